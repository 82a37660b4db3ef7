"""Messages taken apart and put together; limits hold before anything is parsed."""

import os

import pytest
from flwr.app import Message, Metadata, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from tests.flower.helpers import make_unit
from tinylora.errors import ProtocolError
from tinylora.flower.compat.wire import ObjectPullError, ObjectTree, make_message
from tinylora.flower.messages import read_unit, unit_record
from tinylora.flower.objects import OVERHEAD_BYTES, put_together, take_apart


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


@given(st.binary(max_size=2000))
def test_what_was_taken_apart_is_put_together(payload: bytes) -> None:
    message_id, tree, contents = parts(payload)
    back = put_together(message_id, tree, contents.__getitem__, limit_bytes=len(payload))
    assert back.metadata.message_id == message_id and read_unit(back.content)[1] == payload


def test_more_bytes_than_allowed_are_refused() -> None:
    message_id, tree, contents = parts(os.urandom(OVERHEAD_BYTES + 2000))
    with pytest.raises(ProtocolError, match="max_update_mib"):
        put_together(message_id, tree, contents.__getitem__, limit_bytes=1000)


def test_a_swarm_of_objects_is_refused_before_the_first_is_pulled() -> None:
    def pull(object_id: str) -> bytes:
        raise AssertionError("must not be called")

    tree = ObjectTree(object_id="0", children=[ObjectTree(object_id=str(number)) for number in range(1, 100)])
    with pytest.raises(ProtocolError, match="100 objects, too many for 1000 bytes"):
        put_together("0", tree, pull, limit_bytes=1000)


def test_a_part_that_never_came_is_told() -> None:
    message_id, tree, _ = parts(b"x")

    def pull(object_id: str) -> bytes:
        raise ObjectPullError(object_id, "the object could not be found.")

    with pytest.raises(ProtocolError, match="could not be found"):
        put_together(message_id, tree, pull, limit_bytes=1000)


@pytest.mark.parametrize("spoiled", [b"", b"nonsense", b"Message  5\x00hello"])
def test_parts_that_are_no_objects_are_told(spoiled: bytes) -> None:
    message_id, tree, _ = parts(b"x")
    with pytest.raises(ProtocolError, match=message_id[:12]):
        put_together(message_id, tree, lambda object_id: spoiled, limit_bytes=1000)


def test_an_object_that_is_no_message_is_told() -> None:
    content = unit_record(make_unit("u1", b""), b"")
    made = message(content)
    objects, tree = take_apart(made)
    contents = {name: found.deflate() for name, found in objects.items()}
    with pytest.raises(ProtocolError, match="it holds a RecordDict"):
        put_together(content.object_id, tree.children[0], contents.__getitem__, limit_bytes=1000)
