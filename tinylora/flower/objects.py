"""Flower's messages travel as a tree of hashed objects: taking them apart, and putting them together within limits.

    Message → RecordDict → ConfigRecord (the document)
                         → ArrayRecord → Array → ArrayChunk, ArrayChunk, ... (the payload, in parts of 5 MiB)

Both ends ask for one object after the other, from the root down, and write the payload's parts to a file as they come:
nobody holds a message in memory.
"""

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from flwr.app import ConfigRecord, Error, Message

from tinylora.errors import ProtocolError
from tinylora.failpoints import around, reach
from tinylora.flower.compat.wire import (
    ObjectPullError,
    ObjectTree,
    ObjectUnavailableError,
    get_all_nested_objects,
    get_object_body_of_any,
    get_object_head_values_from_object_content,
    get_object_tree,
    inflate_object_from_contents,
    iterate_object_tree,
    no_object_id_recompute,
)
from tinylora.flower.messages import read_document
from tinylora.protocol.documents import MAX_DOCUMENT_BYTES

around("spool.flush")

OVERHEAD_BYTES = MAX_DOCUMENT_BYTES + 65_536
"""What a message may hold beside its payload: the document and the heads of the objects."""
_SMALLEST_CHUNK = 65_536  # a payload is cut in chunks of 5 MiB, of 1 MiB on slow uplinks; below this it is an attack
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0

Kind = Literal["unit", "update"]
Pull = Callable[[str], bytes]
"""An object by its id: `ObjectUnavailableError` while it is not there yet, `ObjectPullError` if it never comes."""


def take_apart(message: Message) -> tuple[dict, ObjectTree]:
    """Name the message by its hash, and return its objects by hash, and their tree."""
    message.metadata.__dict__["_message_id"] = message.object_id
    with no_object_id_recompute():
        return get_all_nested_objects(message), get_object_tree(message)


def _ids(message_id: str, tree: ObjectTree, limit_bytes: int) -> set[str]:
    found = {branch.object_id for branch in iterate_object_tree(tree)}
    if len(found) > 64 + limit_bytes // _SMALLEST_CHUNK:
        raise ProtocolError(f"message {message_id[:12]}: {len(found)} objects, too many for {limit_bytes} bytes")
    return found


def _error_of(message_id: str, content: bytes) -> Error:
    """The error that a message without content tells."""
    with _bytes_from_outside(message_id):
        message = inflate_object_from_contents(message_id, {message_id: content})
        if isinstance(message, Message):
            return message.error
    raise ProtocolError(f"message {message_id[:12]}: it is none")


@contextmanager
def _bytes_from_outside(message_id: str) -> Iterator[None]:
    """Flwr's parsers raise whatever they stumble over."""
    try:
        yield
    except ProtocolError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"message {message_id[:12]}: its objects make no sense: {reason}") from None


class PartMissing(ProtocolError):
    """An object of a message will never come: its sender was cut off. The same message may be sent again."""


class _Budget:
    """Bytes that one message may still bring; objects are pulled by several threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._left_bytes, self._lock = limit_bytes, limit_bytes, threading.Lock()

    def take(self, content: bytes) -> bytes:
        """Count `content` and hand it on.

        Raises:
            ProtocolError: The message is larger than allowed.
        """
        with self._lock:
            self._left_bytes -= len(content)
            if self._left_bytes < 0:
                raise ProtocolError(f"message: larger than the {self._limit_bytes} bytes allowed (max_update_mib)")
        return content


# --- straight to a file ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spooled:
    """A message that is all here: an error, or a document and a payload, in a file where it is not empty."""

    error: Error | None = None
    document: str = ""
    payload: bytes = b""
    file: Path | None = None
    """Where the payload is, if it is not in memory."""
    sha256: str = ""
    """Of the file's bytes."""


Spooling = Generator[bool, None, Spooled]
"""A message on its way. Yields whenever the next object is not there yet: whether any came since it was asked last."""


def spool(
    message_id: str, tree: ObjectTree, pull: Pull, *, limit_bytes: int, folder: Path, kind: Kind = "update"
) -> Spooling:
    """Pull a message's objects in order, its payload into a new file of `folder`, flushed to disk.

    A slow upload holds no thread: what was yielded may be asked again later. Memory is that of one object. Whatever
    ends it early removes the file.

    Raises:
        ProtocolError: Too many objects or bytes, not the objects of such a message, or (`PartMissing`) a part that
            never came.
        OSError: The file cannot be written; nothing was taken from the sender, and the message may be spooled again.
    """
    reader = _Reader(message_id, _ids(message_id, tree, limit_bytes), pull, _Budget(limit_bytes + OVERHEAD_BYTES))
    head = yield from reader.read(message_id, "Message")
    if not head.children:
        return Spooled(error=_error_of(message_id, head.content))
    records = yield from reader.read(head.only_child(), "RecordDict")
    names = records.names("document", "arrays")
    document = yield from reader.read(names["document"], "ConfigRecord")
    with _bytes_from_outside(message_id):
        text = read_document(kind, ConfigRecord.inflate(document.content))
    arrays = yield from reader.read(names["arrays"], "ArrayRecord")
    array = yield from reader.read(arrays.names("payload")["payload"], "Array")
    parts, n_bytes = array.parts()
    if not n_bytes:
        return Spooled(document=text, sha256=hashlib.sha256(b"").hexdigest())
    file, sha256 = yield from _write_parts(reader, parts, n_bytes, folder)
    return Spooled(document=text, file=file, sha256=sha256)


def wait_for(steps: Spooling, *, patience_s: float, wait: Callable[[float], object]) -> Spooled:
    """The message, once all of it is here.

    Args:
        steps: Of `spool`.
        patience_s: How long it may stand still.
        wait: Sleeps so many seconds; what it raises ends the waiting.

    Raises:
        ProtocolError: As `spool` says; `PartMissing` where nothing came for `patience_s`.
        OSError: As `spool` says.
    """
    waited_s, delay_s = 0.0, _FIRST_WAIT_S
    with closing(steps):
        while True:
            try:
                is_moving = next(steps)
            except StopIteration as end:
                return end.value
            if is_moving:
                waited_s, delay_s = 0.0, _FIRST_WAIT_S
            if waited_s >= patience_s:
                raise PartMissing(f"message: nothing more of it came for {waited_s:.0f} s")
            wait(delay_s)
            waited_s, delay_s = waited_s + delay_s, min(2 * delay_s, _LONGEST_WAIT_S)


def _write_parts(
    reader: "_Reader", parts: list[str], n_bytes: int, folder: Path
) -> Generator[bool, None, tuple[Path, str]]:
    file, hashed = folder / uuid.uuid4().hex, hashlib.sha256()
    try:
        with open(file, "xb", opener=_private) as out:
            for part in parts:
                body = (yield from reader.read(part, "ArrayChunk")).body
                hashed.update(body)
                out.write(body)
            if out.tell() != n_bytes:
                raise ProtocolError(f"update: payload: expected {n_bytes} bytes as its shape says, got {out.tell()}")
            flush(out)
    except BaseException:  # GeneratorExit too: nobody waits for it any more
        file.unlink(missing_ok=True)
        raise
    return file, hashed.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def flush(out: IO[bytes]) -> None:
    """What was written is on disk."""
    out.flush()
    reach("spool.flush.before")
    os.fsync(out.fileno())
    reach("spool.flush.after")


@dataclass(frozen=True)
class _Object:
    """One object of a message, read as far as its head."""

    message_id: str
    content: bytes
    children: list[str]

    @property
    def body(self) -> bytes:
        """What follows the head."""
        return get_object_body_of_any(self.content)

    def only_child(self) -> str:
        """The content of a message."""
        if len(self.children) != 1:
            self._complain(f"expected one content, got {len(self.children)}")
        return self.children[0]

    def names(self, *expected: str) -> dict[str, str]:
        """Object ids by these names and no others."""
        found = self._json()
        if set(found) != set(expected) or not set(map(str, found.values())) <= set(self.children):
            self._complain(f"expected {' and '.join(expected)}, got {', '.join(sorted(found)) or 'nothing'}")
        return found

    def parts(self) -> tuple[list[str], int]:
        """Ids of the payload's parts in order, and how many bytes they shall have together."""
        found = self._json()
        dtype, stype, shape = found.get("dtype"), found.get("stype"), found.get("shape")
        order = found.get("arraychunk_ids")
        n_bytes = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
        if (dtype, stype) != ("uint8", "safetensors") or type(n_bytes) is not int or n_bytes < 0:
            self._complain("payload: expected uint8 safetensors of one dimension")
        if not isinstance(order, list) or len(order) > 64 + n_bytes // _SMALLEST_CHUNK:
            self._complain("payload: its parts are not a list, or too many for its size")
        if not all(type(number) is int and 0 <= number < len(self.children) for number in order):
            self._complain("payload: it names parts that it does not have")
        return [self.children[number] for number in order], n_bytes

    def _json(self) -> dict[str, Any]:
        with _bytes_from_outside(self.message_id):
            found = json.loads(self.body)
        if not isinstance(found, dict):
            self._complain("expected an object of JSON")
        return found

    def _complain(self, what: str) -> NoReturn:
        raise ProtocolError(f"message {self.message_id[:12]}: {what}")


@dataclass
class _Reader:
    """Reads objects of one message, and no others."""

    message_id: str
    known: set[str]
    pull: Pull
    budget: _Budget
    is_moving: bool = False
    """An object came since it was told last that none is there."""

    def read(self, object_id: str, kind: str) -> Generator[bool, None, _Object]:
        """The object, which must be of this kind; yields while it is not there.

        Raises:
            ProtocolError: It is another kind of object, or not one of this message's, or too much of it.
        """
        if object_id not in self.known:
            raise ProtocolError(f"message {self.message_id[:12]}: it names an object that it does not hold")
        while True:
            try:
                content = self.budget.take(self.pull(object_id))
                break
            except ObjectUnavailableError:
                yield self.is_moving
                self.is_moving = False
            except ObjectPullError as error:
                raise PartMissing(f"message {self.message_id[:12]}: {error}") from None
        with _bytes_from_outside(self.message_id):
            found, children, _ = get_object_head_values_from_object_content(content)
        self.is_moving = True
        if found != kind:
            raise ProtocolError(f"message {self.message_id[:12]}: expected a {kind}, got a {found[:40]}")
        return _Object(self.message_id, content, children)
