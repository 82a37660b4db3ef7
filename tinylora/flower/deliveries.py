"""One unit's way through a worker: fetched to disk, done, sent. At each step the outbox alone knows how far it is.

Nothing that came is executed, unpacked or imported: a unit is one JSON document and one file of tensors.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

from flwr.app import Error, Message

from tinylora.errors import DataError, ProtocolError, StorageError
from tinylora.flower.asking import Asking, Stopped, UnitIsOver
from tinylora.flower.compat.fleet import FleetHttpClient, PushMessagesRequest
from tinylora.flower.compat.wire import (
    Node,
    ObjectPushError,
    ObjectTree,
    ProtoMessage,
    PushObjectRequest,
    PushObjectResponse,
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
    message_from_proto,
    message_to_proto,
    push_objects,
    remove_content_from_message,
)
from tinylora.flower.messages import (
    WORKER_FAILED,
    WORKER_LACKS_PARTS,
    FolderHandle,
    GivenBack,
    fault_of,
    reply_to,
    update_record,
)
from tinylora.flower.objects import PartMissing, spool, take_apart, wait_for
from tinylora.flower.outbox import Kept, Outbox
from tinylora.protocol.documents import Update, WorkUnit, sha256

ClientPhase: TypeAlias = Literal[
    "connecting", "waiting", "fetching", "working", "sending", "unreachable", "resting"
]  # fmt: skip
"""What the worker's connection is doing; `resting`: it has left Flower's roster, because it is not ready."""
_SEND_ATTEMPTS = 5
_PARTS_S = 10.0  # the coordinator uploads a unit's parts right after its head; who still waits then, waits in vain
_FULL_S = 5.0


class Deliveries:
    """Takes units in, has them done, and sends what came of them.

    Args:
        api: The Fleet API.
        ask: Repeats a request until somebody answers.
        outbox: Where units and updates are until nobody needs them any more.
        handle: Does a unit.
        limit_bytes: Largest payload to accept.
        stop: Ends all waiting.
        log: Takes one line for people.
        on_phase: Told what is being done.
    """

    def __init__(
        self,
        api: FleetHttpClient,
        ask: Asking,
        outbox: Outbox,
        handle: FolderHandle,
        *,
        limit_bytes: int,
        stop: threading.Event,
        log: Callable[[str], None],
        on_phase: Callable[[ClientPhase], None],
    ) -> None:
        self._api, self._ask, self._outbox, self._handle = api, ask, outbox, handle
        self._limit_bytes, self._stop, self._log, self._on_phase = limit_bytes, stop, log, on_phase
        self._delivered: set[Path] = set()  # where the disk was too full to write down that an update was sent

    def send_unsent(self, node: Node) -> None:
        """Send what was done and did not get through yet."""
        for kept in self._outbox.unsent():
            if kept.folder not in self._delivered:
                self._send(node, kept)

    def go_on(self, node: Node) -> None:
        """Do what an earlier process began."""
        for kept in self._outbox.under_way():
            self._do(node, kept)

    def take(self, node: Node, head: ProtoMessage, tree: ObjectTree) -> None:
        """Do the unit whose message begins with `head`; what was made of it before is not made again."""
        header = message_from_proto(head)
        try:
            taken = self._fetch(node, head, header, tree)
        except PartMissing as error:
            self._refuse(node, header, Error(WORKER_LACKS_PARTS, str(error)))
        except (ProtocolError, StorageError) as error:
            self._refuse(node, header, fault_of(error))
        except UnitIsOver:
            self._say_over()
        else:
            made = self._outbox.made(taken.unit)
            if made is not None:
                self._send(node, made)
            else:
                self._do(node, taken)

    # --- in ----------------------------------------------------------------------------------------------------------

    def _fetch(self, node: Node, head: ProtoMessage, header: Message, tree: ObjectTree) -> Kept:
        """The unit, once it is in the outbox. Only then is Flower told that it arrived, and forgets it."""
        self._on_phase("fetching")
        run_id, message_id = header.metadata.run_id, header.metadata.message_id
        pull = make_pull_object_fn_protobuf(lambda request: self._ask(self._api.PullObject, request), node, run_id)
        confirm = make_confirm_message_received_fn_protobuf(
            lambda request: self._ask(self._api.ConfirmMessageReceived, request), node, run_id
        )
        incoming = self._outbox.incoming
        steps = spool(message_id, tree, pull, limit_bytes=self._limit_bytes, folder=incoming, kind="unit")
        try:
            found = wait_for(steps, patience_s=_PARTS_S, wait=self._wait)
        except OSError as error:
            raise StorageError(f"{incoming}: {error.strerror or error}; free some space") from None
        if found.error is not None:
            raise ProtocolError(f"message {message_id[:12]}: it tells an error and holds no unit")
        try:
            unit = WorkUnit.from_json(found.document)
            if found.sha256 != unit.payload_sha256:
                raise ProtocolError(
                    f"unit {unit.unit_id}: payload hash: expected {unit.payload_sha256}, got {found.sha256}"
                )
            folder = self._outbox.take(unit, found.file or b"", head.SerializeToString())
        finally:
            if found.file is not None:
                found.file.unlink(missing_ok=True)
        confirm(message_id)
        return Kept(unit, folder)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    # --- work --------------------------------------------------------------------------------------------------------

    def _do(self, node: Node, kept: Kept) -> None:
        """Have a unit done. What goes wrong with it is told to the coordinator, and the worker stays for the next."""
        self._on_phase("working")
        unit_id = kept.unit.unit_id
        try:
            update, result = self._handle(kept.unit, kept.folder)
            if isinstance(result, Path) and not result.is_file():
                raise DataError(f"{result}: the result is not there")
        except Exception as error:
            self._log(f"unit {unit_id} {'is given back' if isinstance(error, GivenBack) else 'failed'}: {error}")
            self._give_up(node, kept, fault_of(error))
            if isinstance(error, GivenBack):
                self._stop.wait(1.0)  # whoever gives back is about to leave; and two who disagree do not spin
            return
        self._keep(kept, update, result)
        made = self._outbox.made(kept.unit)
        if made is not None:
            self._send(node, made)

    def _keep(self, kept: Kept, update: Update, result: bytes | Path) -> None:
        """Write down what was made. It may have taken hours, so a full disk is waited for."""
        said = ""
        while True:
            try:
                self._outbox.finish(kept.unit.unit_id, update, result)
                return
            except StorageError as error:
                if not kept.folder.is_dir():  # somebody has removed it: nobody wants it any more
                    return
                if str(error) != said:
                    self._log(f"an update waits for room: {error}")
                said = str(error)
            self._wait(_FULL_S)

    # --- out ---------------------------------------------------------------------------------------------------------

    def _send(self, node: Node, kept: Kept) -> None:
        """Send an update. Unless it gets through it stays unsent, and is sent again later."""
        self._on_phase("sending")
        update = kept.update
        try:
            payload, header = kept.result.read_bytes(), _header(kept)
        except (OSError, ProtocolError):  # its receipt has come meanwhile; or the disk has lost it
            self._log(f"unit {kept.unit.unit_id}: the update is not to be read any more")
            return
        if update is None or sha256(payload) != update.payload_sha256:
            self._log(f"unit {kept.unit.unit_id}: the update on disk is not what was written")
            self._give_up(node, kept, Error(WORKER_FAILED, "the update was damaged on the worker's disk"))
            return
        try:
            self._push(node, reply_to(header, update_record(update, payload)), update.seconds)
        except UnitIsOver:
            self._say_over()
        except ObjectPushError as error:
            self._log(f"an update did not get through yet: {error}")
            return
        except ProtocolError as error:
            self._log(f"an update is not taken: {error}")
        self._delivered.add(kept.folder)
        with self._told_of_storage():
            self._outbox.mark_sent(kept.unit.unit_id)

    @contextmanager
    def _told_of_storage(self) -> Iterator[None]:
        """A disk that cannot be written now is told, and is no reason to stop."""
        try:
            yield
        except StorageError as error:
            self._log(str(error))

    def _give_up(self, node: Node, kept: Kept, error: Error) -> None:
        """Say why there will be no update of this unit, and forget it."""
        with suppress(OSError, ProtocolError):  # then its lease ends by itself
            self._refuse(node, _header(kept), error)
        with self._told_of_storage():
            self._outbox.drop(kept.unit.unit_id)

    def _say_over(self) -> None:
        self._log("the coordinator was started again; it will send for this unit once more")

    def _refuse(self, node: Node, header: Message, error: Error) -> None:
        """Say why there is no update."""
        with suppress(UnitIsOver, ObjectPushError, ProtocolError):
            self._push(node, reply_to(header, error), 0.0)

    def _push(self, node: Node, reply: Message, seconds: float) -> None:
        """Upload a reply: first its head, which names its parts, then those parts that the link does not have.

        When an answer of the link gets lost, or a push session expires on a slow uplink, the head is sent again. If it
        has been handed on meanwhile, the link knows it no more and asks for nothing: then all parts are offered.
        """
        objects, tree = take_apart(reply)
        head = message_to_proto(remove_content_from_message(reply) if reply.has_content() else reply)
        request = PushMessagesRequest(
            node=node, messages_list=[head], message_object_trees=[tree], clientapp_runtime_list=[seconds]
        )
        run_id = reply.metadata.run_id
        for attempt in range(1, _SEND_ATTEMPTS + 1):
            session = self._ask(self._api.PushMessages, request)
            wanted = set(session.objects_to_push)
            if not wanted:
                push_objects(objects, lambda part_id, content: self._offer(node, run_id, part_id, content))
                return
            push = make_push_object_fn_protobuf(self._push_part, node, run_id, session.session_id)
            try:
                push_objects(objects, push, object_ids_to_push=wanted, keep_objects=True)
                return
            except ObjectPushError:
                if attempt == _SEND_ATTEMPTS:
                    raise

    def _push_part(self, part: PushObjectRequest) -> PushObjectResponse:
        return self._ask(self._api.PushObject, part)

    def _offer(self, node: Node, run_id: int, part_id: str, content: bytes) -> None:
        """Push a part without naming a session; the link keeps it if some session waits for it."""
        self._push_part(PushObjectRequest(node=node, run_id=run_id, object_id=part_id, object_content=content))


def _header(kept: Kept) -> Message:
    """Head of the message that brought a unit.

    Raises:
        OSError: It cannot be read.
        ProtocolError: It makes no sense any more.
    """
    try:
        return message_from_proto(ProtoMessage.FromString(kept.header()))
    except OSError:
        raise
    except Exception as error:  # protobuf and flwr raise whatever they stumble over
        raise ProtocolError(f"unit {kept.unit.unit_id}: its message is damaged: {error}") from None
