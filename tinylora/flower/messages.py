"""Work units and updates as Flower records, read strictly: one JSON document, one opaque blob, nothing else.

    RecordDict {"document": ConfigRecord {"unit" | "update": json},
                "arrays":   ArrayRecord  {"payload": Array uint8, stype "safetensors"}}

One blob keeps bfloat16 (Flower's own path raises TypeError) and makes 8 objects of 20 MB where 100 tensors make 203.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict

from tinylora.errors import BaseModelError, DataError, ProtocolError, TinyLoraError
from tinylora.flower.compat.wire import make_message
from tinylora.flower.outbox import PAYLOAD
from tinylora.protocol.documents import MAX_DOCUMENT_BYTES, Update, WorkUnit, sha256

MESSAGE_TYPE = "train"
WORKER_FAILED = 2
"""Flower's code for "the ClientApp raised": the unit may be tried again."""
WORKER_DECLINES = 201
"""Ours: asking this worker again is of no use, its text or its base does not fit the run."""
WORKER_LACKS_PARTS = 202
"""Ours: the unit did not arrive whole, because who sent it was cut off; it may be sent again."""

WORKER_GIVES_BACK = 203
"""Ours: the worker's owner needs the machine; the unit is whole, and anybody may have it."""

Handle: TypeAlias = Callable[[WorkUnit, bytes], tuple[Update, bytes]]
"""What a worker does with a unit and its payload."""
FolderHandle: TypeAlias = Callable[[WorkUnit, Path], tuple[Update, bytes | Path]]
"""The same with the unit's folder in the outbox: its payload is `payload` there, and the result may be a file of it."""


class GivenBack(Exception):
    """A handle raises it to give its unit back: nothing was wrong with it, somebody else may do it.

    Args:
        reason: For people.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


def by_folder(handle: Handle) -> FolderHandle:
    """The same, for a unit that lies in a folder."""
    return lambda unit, folder: handle(unit, (folder / PAYLOAD).read_bytes())


def unit_record(unit: WorkUnit, payload: bytes) -> RecordDict:
    """A unit on its way to a worker."""
    return _record("unit", unit.to_json(), payload)


def update_record(update: Update, payload: bytes) -> RecordDict:
    """An update on its way to the coordinator."""
    return _record("update", update.to_json(), payload)


def read_unit(record: RecordDict) -> tuple[WorkUnit, bytes]:
    """Read a unit that came from the coordinator.

    Raises:
        ProtocolError: The record, the document or the payload's hash is not as it should be.
    """
    text, payload = _read("unit", record)
    unit = WorkUnit.from_json(text)
    if sha256(payload) != unit.payload_sha256:
        raise ProtocolError(f"unit {unit.unit_id}: payload hash: expected {unit.payload_sha256}, got {sha256(payload)}")
    return unit, payload


def read_update(record: RecordDict) -> tuple[str, bytes]:
    """Read an update as text and bytes; what they say is checked where updates are accepted.

    Raises:
        ProtocolError: The record is not of the expected form.
    """
    return _read("update", record)


def answer(message: Message, handle: Handle) -> Message:
    """Do the unit in `message` and make the reply; an error becomes an error reply with its sentence, never a crash."""
    try:
        unit, payload = read_unit(message.content)
        return Message(update_record(*handle(unit, payload)), reply_to=message)
    except Exception as error:  # whatever the unit did wrong, the worker stays for the next one
        return Message(fault_of(error), reply_to=message)


def fault_of(error: Exception) -> Error:
    """What an error reply says of it, and by its code, what may be done with the unit."""
    reason, code = str(error)[:1000], WORKER_FAILED
    if isinstance(error, GivenBack):
        code = WORKER_GIVES_BACK
    elif isinstance(error, DataError | BaseModelError):
        code = WORKER_DECLINES
    elif not isinstance(error, TinyLoraError):
        reason = f"{type(error).__name__}: {reason}"
    return Error(code=code, reason=reason)


def reply_to(header: Message, content: RecordDict | Error) -> Message:
    """The answer to a message of which only the head is left; the same answer is the same bytes whenever it is made.

    So a worker that was killed in mid-upload goes on with it: for another message Flower would have no use any more.
    """
    asked = header.metadata
    metadata = Metadata(
        run_id=asked.run_id,
        message_id="",
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=asked.created_at,
        ttl=asked.ttl,
        message_type=asked.message_type,
        src_task_id=asked.dst_task_id,
        dst_task_id=asked.src_task_id,
    )
    if isinstance(content, Error):
        return make_message(metadata=metadata, error=content)
    return make_message(metadata=metadata, content=content)


def _record(kind: str, text: str, payload: bytes) -> RecordDict:
    blob = Array(dtype="uint8", shape=(len(payload),), stype="safetensors", data=payload)
    return RecordDict({"document": ConfigRecord({kind: text}), "arrays": ArrayRecord({"payload": blob})})


def _read(kind: str, record: RecordDict) -> tuple[str, bytes]:
    if set(record) != {"document", "arrays"}:
        raise ProtocolError(f"{kind}: expected records document and arrays, got {', '.join(sorted(record)) or 'none'}")
    text, arrays = read_document(kind, record["document"]), record["arrays"]
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {"payload"}:
        raise ProtocolError(f"{kind}: expected one array, payload")
    return text, _read_blob(kind, arrays["payload"])


def read_document(kind: str, document: object) -> str:
    """The text of a document record, `kind` being "unit" or "update".

    Raises:
        ProtocolError: It is no such record, or too long.
    """
    if not isinstance(document, ConfigRecord) or set(document) != {kind} or not isinstance(text := document[kind], str):
        raise ProtocolError(f"{kind}: the document record is not {{{kind!r}: text}}")
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ProtocolError(f"{kind}: document: expected at most {MAX_DOCUMENT_BYTES} characters, got {len(text)}")
    return text


def _read_blob(kind: str, blob: Array) -> bytes:
    if (blob.dtype, blob.stype) != ("uint8", "safetensors") or tuple(blob.shape) != (len(blob.data),):
        raise ProtocolError(
            f"{kind}: payload: expected uint8 safetensors of shape ({len(blob.data)},), "
            f"got {blob.dtype} {blob.stype} of shape {tuple(blob.shape)}"
        )
    return bytes(blob.data)
