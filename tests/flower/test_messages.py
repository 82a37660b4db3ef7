"""Records in and out, and everything that a record may not be."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from tests.flower.helpers import make_unit, make_update
from tinylora.errors import BaseModelError, DataError, NetworkError, ProtocolError
from tinylora.flower.compat.wire import make_message
from tinylora.flower.messages import (
    WORKER_DECLINES,
    WORKER_FAILED,
    answer,
    read_unit,
    read_update,
    unit_record,
    update_record,
)
from tinylora.flower.texts import printable
from tinylora.protocol.documents import MAX_DOCUMENT_BYTES, Update, WorkUnit


def blob(data: bytes, **changes: object) -> Array:
    values = {"dtype": "uint8", "shape": (len(data),), "stype": "safetensors", "data": data} | changes
    return Array(**values)  # type: ignore[arg-type]


def record(text: object = "{}", **arrays: Array) -> RecordDict:
    return RecordDict(
        {"document": ConfigRecord({"update": text}), "arrays": ArrayRecord(arrays or {"payload": blob(b"x")})}  # type: ignore[dict-item]
    )


@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_units_and_updates_come_back_as_they_were(payload: bytes, seed: int) -> None:
    unit = make_unit("u00000001", payload, seed=seed)
    assert read_unit(unit_record(unit, payload)) == (unit, payload)
    update = make_update(unit, "w-1", payload)
    text, back = read_update(update_record(update, payload))
    assert (Update.from_json(text), back) == (update, payload)


WRONG = {
    "no records": (RecordDict({}), "expected records"),
    "one record more": (RecordDict({**record(), "more": ConfigRecord({})}), "expected records"),
    "another document": (
        RecordDict({"document": ConfigRecord({"unit": "{}"}), "arrays": record()["arrays"]}),
        "document record",
    ),
    "a document of bytes": (record(b"{}"), "document record"),
    "a document that is too long": (record("x" * (MAX_DOCUMENT_BYTES + 1)), "at most"),
    "arrays in place of the document": (
        RecordDict({"document": record()["arrays"], "arrays": record()["arrays"]}),
        "document record",
    ),
    "a document in place of the arrays": (
        RecordDict({"document": record()["document"], "arrays": record()["document"]}),
        "one array",
    ),
    "two arrays": (record(payload=blob(b"x"), more=blob(b"y")), "one array"),
    "another dtype": (record(payload=blob(b"x", dtype="float32")), "uint8"),
    "another serialisation": (record(payload=blob(b"x", stype="numpy.ndarray")), "safetensors"),
    "a shape that lies": (record(payload=blob(b"x", shape=(2,))), "shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_record_of_another_form_is_refused(case: str) -> None:
    made, reason = WRONG[case]
    with pytest.raises(ProtocolError, match=reason):
        read_update(made)


def message(content: RecordDict) -> Message:
    metadata = Metadata(
        run_id=1, message_id="m", src_node_id=1, dst_node_id=2, reply_to_message_id="", group_id="", created_at=1e9,
        ttl=1e9, message_type="train",
    )  # fmt: skip
    return make_message(metadata=metadata, content=content)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("too small"), WORKER_DECLINES),
        (BaseModelError("another base"), WORKER_DECLINES),
        (NetworkError("gone"), WORKER_FAILED),
        (MemoryError("no memory"), WORKER_FAILED),
    ],
)
def test_what_goes_wrong_is_told_with_its_sentence_and_whether_it_will_last(error: Exception, code: int) -> None:
    def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        raise error

    reply = answer(message(unit_record(make_unit("u1", b""), b"")), handle)
    assert reply.error.code == code and str(error) in (reply.error.reason or "")
    assert reply.metadata.reply_to_message_id == "m"


@given(st.text(max_size=300))
def test_text_for_a_terminal_is_one_line_that_moves_nothing(text: str) -> None:
    shown = printable(text, at_most=100)
    assert shown.isprintable() and len(shown) <= 100
    assert printable("plain text, ünïcode", at_most=100) == "plain text, ünïcode"


def test_a_unit_that_cannot_be_read_is_answered_with_the_reason() -> None:
    def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        raise AssertionError("must not be called")

    assert "expected records" in (answer(message(RecordDict({})), handle).error.reason or "")
