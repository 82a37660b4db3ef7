"""Messages taken apart and put together; limits hold before anything is parsed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from tests.flower.helpers import make_unit, make_update
from tinylora.errors import ProtocolError
from tinylora.flower.compat.wire import ObjectPullError, ObjectTree, ObjectUnavailableError, make_message
from tinylora.flower.messages import reply_to, unit_record, update_record
from tinylora.flower.objects import OVERHEAD_BYTES, PartMissing, Pull, Spooled, spool, take_apart, wait_for
from tinylora.protocol.documents import WorkUnit, sha256


def message(content: RecordDict) -> Message:
    metadata = Metadata(
        run_id=1, message_id="", src_node_id=1, dst_node_id=2, reply_to_message_id="", group_id="", created_at=1e9,
        ttl=1e9, message_type="train",
    )  # fmt: skip
    return make_message(metadata=metadata, content=content)


def parts(payload: bytes) -> tuple[str, ObjectTree, dict[str, bytes]]:
    made = message(unit_record(make_unit("u1", payload), payload))
    objects, tree = take_apart(made)
    return made.metadata.message_id, tree, {name: found.deflate() for name, found in objects.items()}


def whole(message_id: str, tree: ObjectTree, pull: Pull, folder: Path, limit_bytes: int = 1000) -> Spooled:
    def impatient(seconds: float) -> None:
        raise AssertionError("nothing to wait for")

    steps = spool(message_id, tree, pull, limit_bytes=limit_bytes, folder=folder, kind="unit")
    return wait_for(steps, patience_s=1.0, wait=impatient)


@given(st.binary(max_size=2000))
def test_what_was_taken_apart_is_put_together(tmp_path_factory: pytest.TempPathFactory, payload: bytes) -> None:
    message_id, tree, contents = parts(payload)
    back = whole(message_id, tree, contents.__getitem__, tmp_path_factory.getbasetemp(), len(payload))
    assert WorkUnit.from_json(back.document) == make_unit("u1", payload) and back.sha256 == sha256(payload)
    assert (back.file.read_bytes() if back.file else b"") == payload


def test_more_bytes_than_allowed_are_refused(tmp_path: Path) -> None:
    message_id, tree, contents = parts(os.urandom(OVERHEAD_BYTES + 2000))
    with pytest.raises(ProtocolError, match="max_update_mib"):
        whole(message_id, tree, contents.__getitem__, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_swarm_of_objects_is_refused_before_the_first_is_pulled(tmp_path: Path) -> None:
    def pull(object_id: str) -> bytes:
        raise AssertionError("must not be called")

    tree = ObjectTree(object_id="0", children=[ObjectTree(object_id=str(number)) for number in range(1, 100)])
    with pytest.raises(ProtocolError, match="100 objects, too many for 1000 bytes"):
        whole("0", tree, pull, tmp_path)


def test_a_part_that_never_came_is_told(tmp_path: Path) -> None:
    message_id, tree, _ = parts(b"x")

    def pull(object_id: str) -> bytes:
        raise ObjectPullError(object_id, "the object could not be found.")

    with pytest.raises(PartMissing, match="could not be found"):
        whole(message_id, tree, pull, tmp_path)


def test_a_part_that_is_late_is_waited_for_and_one_that_is_too_late_is_not(tmp_path: Path) -> None:
    message_id, tree, contents = parts(b"x")
    waited: list[float] = []

    def late(object_id: str) -> bytes:
        if len(waited) < 4:
            raise ObjectUnavailableError(object_id)
        return contents[object_id]

    steps = spool(message_id, tree, late, limit_bytes=1000, folder=tmp_path, kind="unit")
    assert wait_for(steps, patience_s=100.0, wait=waited.append).file is not None
    assert waited == sorted(waited) and len(waited) == 4
    waited.clear()
    steps = spool(message_id, tree, late, limit_bytes=1000, folder=tmp_path, kind="unit")
    with pytest.raises(PartMissing, match="nothing more of it came"):
        wait_for(steps, patience_s=0.1, wait=waited.append)


@pytest.mark.parametrize("spoiled", [b"", b"nonsense", b"Message  5\x00hello"])
def test_parts_that_are_no_objects_are_told(tmp_path: Path, spoiled: bytes) -> None:
    message_id, tree, _ = parts(b"x")
    with pytest.raises(ProtocolError, match=message_id[:12]):
        whole(message_id, tree, lambda object_id: spoiled, tmp_path)


def test_an_object_that_is_no_message_is_told(tmp_path: Path) -> None:
    content = unit_record(make_unit("u1", b""), b"")
    made = message(content)
    objects, tree = take_apart(made)
    contents = {name: found.deflate() for name, found in objects.items()}
    with pytest.raises(ProtocolError, match="got a RecordDict"):
        whole(content.object_id, tree.children[0], contents.__getitem__, tmp_path)


# --- a reply, straight to a file ----------------------------------------------------------------------------------


def reply_parts(payload: bytes, record: RecordDict | None = None) -> tuple[str, ObjectTree, dict[str, bytes]]:
    unit = make_unit("u1", b"")
    made = message(update_record(make_update(unit, "w", payload), payload) if record is None else record)
    objects, tree = take_apart(made)
    return made.metadata.message_id, tree, {name: found.deflate() for name, found in objects.items()}


def spooled(message_id: str, tree: ObjectTree, pull: Pull, folder: Path, limit_bytes: int) -> tuple[Spooled, int]:
    """What comes in the end, and how often it had to be waited for."""
    steps, n_waits = spool(message_id, tree, pull, limit_bytes=limit_bytes, folder=folder), 0
    while True:
        try:
            next(steps)
            n_waits += 1
        except StopIteration as end:
            return end.value, n_waits


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 65_536)
    return 65_536


@pytest.mark.parametrize("n_bytes", [0, 1, 65_536, 200_000])
def test_a_reply_is_written_to_a_file_as_its_parts_come(tmp_path: Path, small_parts: int, n_bytes: int) -> None:
    payload, seen = os.urandom(n_bytes), set()
    message_id, tree, contents = reply_parts(payload)

    def slow(object_id: str) -> bytes:
        if object_id not in seen:
            seen.add(object_id)
            raise ObjectUnavailableError(object_id)
        return contents[object_id]

    found, n_waits = spooled(message_id, tree, slow, tmp_path, 200_000)
    assert n_waits == len(contents) == 5 + -(-n_bytes // small_parts)
    assert (found.file.read_bytes() if found.file else b"") == payload and found.sha256 == sha256(payload)
    assert '"unit_id":"u1"' in found.document and found.error is None


def test_a_payload_of_equal_parts_is_written_whole(tmp_path: Path, small_parts: int) -> None:
    payload = bytes(5 * small_parts)
    found, _ = spooled(*reply_parts(payload)[:2], reply_parts(payload)[2].__getitem__, tmp_path, len(payload))
    assert found.file and found.file.read_bytes() == payload


def test_an_error_is_no_file(tmp_path: Path) -> None:
    made = reply_to(message(unit_record(make_unit("u1", b""), b"")), Error(2, "no text left"))
    objects, tree = take_apart(made)
    contents = {name: found.deflate() for name, found in objects.items()}
    found, _ = spooled(made.metadata.message_id, tree, contents.__getitem__, tmp_path, 1000)
    assert found.error and found.error.reason == "no text left" and not list(tmp_path.iterdir())


def array(**changes: Any) -> RecordDict:
    """An update whose array is not as it should be."""
    values: dict[str, Any] = {"dtype": "uint8", "shape": (4,), "stype": "safetensors", "data": b"1234"} | changes
    update = make_update(make_unit("u1", b""), "w", b"1234").to_json()
    return RecordDict(
        {"document": ConfigRecord({"update": update}), "arrays": ArrayRecord({"payload": Array(**values)})}
    )


WRONG: dict[str, tuple[Callable[[], RecordDict], str]] = {
    "more bytes than its shape says": (lambda: array(shape=(3,)), "expected 3 bytes"),
    "fewer bytes than its shape says": (lambda: array(shape=(5,)), "expected 5 bytes"),
    "two dimensions": (lambda: array(shape=(2, 2)), "one dimension"),
    "another dtype": (lambda: array(dtype="float32"), "uint8 safetensors"),
    "numpy": (lambda: array(stype="numpy.ndarray"), "uint8 safetensors"),
    "larger than allowed": (lambda: array(shape=(n := 2_000_000,), data=bytes(n)), "max_update_mib"),
    "no document": (lambda: RecordDict({"arrays": ArrayRecord()}), "expected document and arrays"),
    "a unit": (lambda: unit_record(make_unit("u1", b""), b""), "update: the document record"),
    "two arrays": (
        lambda: RecordDict({
            "document": ConfigRecord({"update": "{}"}),
            "arrays": ArrayRecord({name: Array("uint8", (1,), "safetensors", name.encode()) for name in "ab"}),
        }),
        "expected payload",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_reply_is_refused_and_leaves_no_file(tmp_path: Path, fault: str) -> None:
    make, complaint = WRONG[fault]
    message_id, tree, contents = reply_parts(b"", make())
    with pytest.raises(ProtocolError, match=complaint):
        spooled(message_id, tree, contents.__getitem__, tmp_path, 1_000)
    assert list(tmp_path.iterdir()) == []


def test_an_object_of_another_message_is_not_fetched(tmp_path: Path) -> None:
    message_id, _, contents = reply_parts(b"abc")
    with pytest.raises(ProtocolError, match="an object that it does not hold"):
        spooled(message_id, ObjectTree(object_id=message_id), contents.__getitem__, tmp_path, 1_000)


@given(st.data())
def test_changed_bytes_are_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("spool")
    message_id, tree, contents = reply_parts(b"some payload")
    victim = data.draw(st.sampled_from(sorted(contents)))
    place = data.draw(st.integers(0, len(contents[victim]) - 1))
    changed = bytearray(contents[victim])
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        found, _ = spooled(message_id, tree, (contents | {victim: bytes(changed)}).__getitem__, folder, 1_000)
    except ProtocolError:
        assert list(folder.iterdir()) == []
    else:
        assert isinstance(found, Spooled)


def test_a_reply_that_nobody_waits_for_leaves_no_file(tmp_path: Path, small_parts: int) -> None:
    message_id, tree, contents = reply_parts(os.urandom(2 * small_parts))
    last = list(contents)[1]  # the second part of the payload

    def pull(object_id: str) -> bytes:
        if object_id == last:
            raise ObjectUnavailableError(object_id)
        return contents[object_id]

    steps = spool(message_id, tree, pull, limit_bytes=10**6, folder=tmp_path)
    assert next(steps) is True and next(steps) is False
    assert len(list(tmp_path.iterdir())) == 1
    steps.close()
    assert list(tmp_path.iterdir()) == []
