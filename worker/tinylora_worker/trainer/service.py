"""What a trainer can be asked for. Nothing here knows torch: the jobs are `session`'s, and done by the main thread."""

import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from tinylora_worker.trainer.failures import failure_of
from tinylora_worker.trainer.jobs import Bench
from tinylora_worker.wire.worker_pb2 import (
    CanaryEvent,
    CanaryRequest,
    Failure,
    LoadEvent,
    LoadRequest,
    PingReply,
    PingRequest,
    RunEvent,
    RunRequest,
    SizeReply,
    SizeRequest,
    StopReply,
    StopRequest,
)
from tinylora_worker.wire.worker_pb2_grpc import TrainerServicer

if TYPE_CHECKING:
    from tinylora_worker.trainer.session import Session

log = logging.getLogger(__name__)
LAST_WORDS_S = 1.0
"""For the last finished step to reach the disk before the process ends."""
_ANSWER_S = 0.3


class TrainerService(TrainerServicer):
    """Passes what is asked for on to the session, which the main thread makes and works with.

    Args:
        home: The worker's.
        bench: Where jobs are done.
        checkpoint_every_s: Most work that a crash may cost, in seconds.
        end: Ends the process; given the exit code.
    """

    def __init__(
        self, home: Path, bench: Bench, *, checkpoint_every_s: float, end: Callable[[int], None] = os._exit
    ) -> None:
        self._home, self._bench, self._every_s, self._end = home, bench, checkpoint_every_s, end
        self._session: Session | None = None

    def warm_up(self) -> None:
        """Have torch and the rest in memory, in the main thread, before the first job."""
        self._made()
        gc.freeze()  # modules stay: looking whether they are garbage costs half a second each time memory is given back

    def _made(self) -> "Session":
        if self._session is None:
            from tinylora_worker.trainer.session import Session  # late: it brings torch

            self._session = Session(self._home, checkpoint_every_s=self._every_s)
        return self._session

    def write_down(self) -> bool:
        """Have the last finished step of the unit under way on disk; returns whether it has a checkpoint.

        It takes a second at most; what is not written by then is not written.
        """
        session, found = self._session, threading.Event()
        if session is None:
            return False

        def write() -> None:
            if session.write_down():
                found.set()

        writer = threading.Thread(target=write, name="last words", daemon=True)
        writer.start()
        writer.join(LAST_WORDS_S)
        return found.is_set()

    def Ping(self, request: PingRequest, context: grpc.ServicerContext) -> PingReply:
        """It is there."""
        return PingReply()

    def Load(self, request: LoadRequest, context: grpc.ServicerContext) -> Iterator[LoadEvent]:
        """See `Session.load`."""
        return self._bench.ask(
            lambda tell: self._made().load(request, tell), lambda error: LoadEvent(failure=_failure(error))
        )

    def Size(self, request: SizeRequest, context: grpc.ServicerContext) -> SizeReply:
        """See `Session.size`."""
        (reply,) = self._bench.ask(
            lambda tell: self._made().size(request), lambda error: SizeReply(failure=_failure(error))
        )
        return reply

    def Run(self, request: RunRequest, context: grpc.ServicerContext) -> Iterator[RunEvent]:
        """See `Session.run`."""
        return self._bench.ask(
            lambda tell: self._made().run(Path(request.folder), tell), lambda error: RunEvent(failure=_failure(error))
        )

    def Canary(self, request: CanaryRequest, context: grpc.ServicerContext) -> Iterator[CanaryEvent]:
        """See `Session.canary`."""
        return self._bench.ask(
            lambda tell: self._made().canary(request, tell), lambda error: CanaryEvent(failure=_failure(error))
        )

    def Stop(self, request: StopRequest, context: grpc.ServicerContext) -> StopReply:
        """Answer, and end the process without waiting for the step in progress: that frees all memory of the device."""
        reply = StopReply(has_checkpoint=self.write_down())
        late = threading.Timer(_ANSWER_S, self._end, (0,))
        late.daemon = True
        late.start()
        context.add_callback(lambda: self._end(0))  # the answer is out
        return reply


def _failure(error: BaseException) -> Failure:
    from tinylora.training.out_of_memory import is_out_of_memory  # late: it brings torch

    return failure_of(error, is_out_of_memory=is_out_of_memory)
