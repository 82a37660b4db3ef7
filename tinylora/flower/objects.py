"""Flower's messages travel as a tree of hashed objects: taking them apart, and putting them together within limits."""

import threading
from collections.abc import Callable

from flwr.app import Message

from tinylora.errors import ProtocolError
from tinylora.flower.compat.wire import (
    ObjectPullError,
    ObjectTree,
    get_all_nested_objects,
    get_object_tree,
    inflate_object_from_contents,
    iterate_object_tree,
    no_object_id_recompute,
    pull_objects,
)
from tinylora.protocol.documents import MAX_DOCUMENT_BYTES

OVERHEAD_BYTES = MAX_DOCUMENT_BYTES + 65_536
"""What a message may hold beside its payload: the document and the heads of the objects."""
_SMALLEST_CHUNK = 65_536  # a payload is cut in chunks of 5 MiB, of 1 MiB on slow uplinks; below this it is an attack
_FIRST_WAIT_S, _LONGEST_WAIT_S, _PATIENCE_S = 0.05, 2.0, 7200.0  # a slow uplink may need an hour for a large update


def take_apart(message: Message) -> tuple[dict, ObjectTree]:
    """Name the message by its hash, and return its objects by hash, and their tree."""
    message.metadata.__dict__["_message_id"] = message.object_id
    with no_object_id_recompute():
        return get_all_nested_objects(message), get_object_tree(message)


def put_together(message_id: str, tree: ObjectTree, pull: Callable[[str], bytes], *, limit_bytes: int) -> Message:
    """Pull the objects of a message, waiting for those that its sender has not uploaded yet.

    Nothing is parsed before everything is here and small enough.

    Raises:
        ProtocolError: Too many objects or bytes, an object that never came, or no message in the end.
    """
    object_ids = [branch.object_id for branch in iterate_object_tree(tree)]
    budget = _Budget(limit_bytes + OVERHEAD_BYTES)
    if len(object_ids) > 64 + limit_bytes // _SMALLEST_CHUNK:
        raise ProtocolError(f"message {message_id[:12]}: {len(object_ids)} objects, too many for {limit_bytes} bytes")
    try:
        contents = pull_objects(
            object_ids,
            lambda object_id: budget.take(pull(object_id)),
            initial_backoff=_FIRST_WAIT_S,
            backoff_cap=_LONGEST_WAIT_S,
            max_time=_PATIENCE_S,
            max_tries_per_object=None,
        )
    except ObjectPullError as error:
        raise ProtocolError(f"message {message_id[:12]}: {error}") from None
    message = _inflate(message_id, contents)
    message.metadata.__dict__["_message_id"] = message_id
    return message


def _inflate(message_id: str, contents: dict[str, bytes]) -> Message:
    try:
        message = inflate_object_from_contents(message_id, contents)
    except Exception as error:  # bytes from outside: flwr's parsers raise whatever they stumble over
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"message {message_id[:12]}: its objects make no sense: {reason}") from None
    if not isinstance(message, Message):
        raise ProtocolError(f"message {message_id[:12]}: it holds a {type(message).__name__}")
    return message


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
