"""What a worker is doing, as far as the coordinator can tell. Pure."""

from typing import NamedTuple

from tinylora.protocol.standstill import WorkerState
from tinylora_coordinator.dashboard.documents import WorkerStateName
from tinylora_coordinator.dashboard.records import Worker


class Standstill(NamedTuple):
    """What a worker is doing, and why not more."""

    state: WorkerStateName
    reason: str = ""
    detail: str = ""


_GOODBYES = (WorkerState.LEAVING, WorkerState.FINISHED)


def has_said_goodbye(worker: Worker) -> bool:
    """Whether the last that it said was that it goes: who then goes offline was not lost."""
    return worker.is_current and worker.report is not None and worker.report.state in _GOODBYES


def standstill(worker: Worker, *, is_over: bool) -> Standstill:
    """What a worker is doing: the ledger's word first, then the operator's, then its own."""
    if worker.out:
        return Standstill("out", worker.out, worker.out_reason)
    if worker.roster == "revoked":
        return Standstill("out", "revoked")
    if worker.roster == "pending":
        return Standstill("pending")
    if worker.is_joined and not worker.is_online:
        return Standstill("finished", detail="left") if has_said_goodbye(worker) else Standstill("lost")
    if is_over:
        return Standstill("finished")
    report = worker.report
    if report is not None and worker.is_current:
        return Standstill(report.state.value, str(report.reason), report.detail)
    if not worker.is_joined:
        return Standstill("starting")
    return Standstill("working" if worker.unit_id else "waiting")
