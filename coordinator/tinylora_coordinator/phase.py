"""What a run is doing, for those who take part: the supervisor's word, the operator's orders, the ledger's tables."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tinylora.errors import StorageError
from tinylora.flower.enrolment import Phase
from tinylora_coordinator.operator_store import Job, OperatorStore
from tinylora_coordinator.public_status import REST_S, PublicStatus


def phase_of(served: Phase, jobs: Sequence[Job], nodes: Mapping[str, Any]) -> Phase:
    """The phase that workers are told.

    Args:
        served: What the supervisor says.
        jobs: The operator's orders, oldest first.
        nodes: Of the public status; none before there is a tree.
    """
    if served != "running":
        return served
    turns = [job.order.kind for job in jobs if job.order.kind in ("pause", "resume")]
    if turns and turns[-1] == "pause":
        return "paused"
    return "running" if nodes else "waiting"


class PhaseReader:
    """Asks all three, from any thread; the files no more often than every `REST_S` seconds, whoever asks.

    Args:
        served: What the supervisor says now.
        store: The operator's orders.
        status: What the ledger says.
        clock: Seconds.
    """

    def __init__(
        self,
        served: Callable[[], Phase],
        store: OperatorStore,
        status: PublicStatus,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._served, self._store, self._status, self._clock = served, store, status, clock
        self._lock, self._looked_at = threading.Lock(), float("-inf")
        self._jobs: Sequence[Job] = ()

    def __call__(self) -> Phase:
        """What the run is doing; while the orders cannot be read, by those known last."""
        with self._lock:
            if self._clock() - self._looked_at >= REST_S:
                self._looked_at = self._clock()
                with suppress(StorageError):
                    self._jobs = self._store.jobs()
            return phase_of(self._served(), self._jobs, self._status.read()["nodes"])
