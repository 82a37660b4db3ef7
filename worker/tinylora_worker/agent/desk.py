"""What to do now: go on with the unit, hold it, give it back, ask for another, leave. Pure, no clock of its own.

A unit is held through a pause while it can still be back before its lease's deadline; who waits for it otherwise would
wait in vain. Wishes are stronger than limits, and to leave is the strongest.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tinylora.flower.enrolment import Phase
from tinylora.protocol.standstill import Reason, WorkerState
from tinylora_worker.policy import Verdict

MARGIN_S = 5.0
"""To start the trainer again, and to send what it made."""


class UnitOrder(StrEnum):
    """What becomes of the unit under way."""

    NONE = "none"
    """There is none."""
    GO_ON = "go_on"
    HOLD = "hold"
    """No step, no device memory; the lease stays ours."""
    GIVE_BACK = "give_back"


@dataclass(frozen=True)
class UnitFacts:
    """The unit under way."""

    deadline_s: float
    """When its lease ends, seconds since 1970."""
    left_s: float = 0.0
    """Seconds of work that are left; 0: not known."""


@dataclass(frozen=True)
class Outside:
    """What is known of the coordinator, and of what keeps everything from working."""

    has_joined: bool = False
    phase: Phase | None = None
    unreachable_since_s: float = 0.0
    """Seconds since 1970; 0: it answers."""
    needs_update: str = ""
    """The coordinator's sentence, where this program is too old for the run."""
    error: str = ""
    """The sentence of what is broken."""


@dataclass(frozen=True)
class Situation:
    """All that a decision needs."""

    now_s: float
    verdict: Verdict
    outside: Outside
    unit: UnitFacts | None = None
    is_loaded: bool = False
    """Whether a trainer is ready for steps."""
    is_finishing: bool = False
    is_leaving: bool = False


@dataclass(frozen=True)
class Orders:
    """What to do, and what to call it."""

    unit: UnitOrder
    may_train: bool
    """Whether the trainer may hold the device."""
    may_ask: bool
    """Whether another unit is wanted."""
    has_to_leave: bool
    state: WorkerState
    reason: Reason | None = None
    detail: str = ""
    until_s: float = 0.0
    """When the reason ends by itself, seconds since 1970; 0: not known."""


def decide(at: Situation) -> Orders:
    """What to do now."""
    if at.is_leaving:
        order = UnitOrder.NONE if at.unit is None else UnitOrder.GIVE_BACK
        return Orders(order, False, False, True, WorkerState.LEAVING)
    may_work = at.verdict.may_work
    unit = _of_unit(at)
    is_last = at.is_finishing and at.unit is None
    state, reason, detail, until_s = _words(at)
    return Orders(
        unit=unit,
        may_train=may_work and not is_last,
        may_ask=may_work and not at.is_finishing,
        has_to_leave=is_last,
        state=WorkerState.LEAVING if is_last else state,
        reason=None if is_last else reason,
        detail="" if is_last else detail,
        until_s=0.0 if is_last else until_s,
    )


def _of_unit(at: Situation) -> UnitOrder:
    if at.unit is None:
        return UnitOrder.NONE
    if at.verdict.may_work:
        return UnitOrder.GO_ON
    back_s = max(at.now_s, _seconds(at.verdict.until))
    is_in_time = back_s + at.unit.left_s + MARGIN_S <= at.unit.deadline_s
    return UnitOrder.HOLD if is_in_time else UnitOrder.GIVE_BACK


def _words(at: Situation) -> tuple[WorkerState, Reason | None, str, float]:
    """State, reason, detail, and when it ends."""
    outside = at.outside
    if not at.verdict.may_work:
        return WorkerState.PAUSED, at.verdict.reason, at.verdict.detail, _seconds(at.verdict.until)
    if outside.phase == "finished" and at.unit is None:
        return WorkerState.FINISHED, None, "", 0.0
    if outside.needs_update:
        return WorkerState.WAITING, Reason.UPDATE_REQUIRED, outside.needs_update, 0.0
    if outside.error:
        return WorkerState.WAITING, Reason.ERROR, outside.error, 0.0
    if at.unit is not None:
        return (WorkerState.WORKING if at.is_loaded else WorkerState.STARTING), None, "", 0.0
    if outside.unreachable_since_s:
        since = datetime.fromtimestamp(outside.unreachable_since_s).strftime("%H:%M:%S")
        return WorkerState.WAITING, Reason.COORDINATOR_UNREACHABLE, f"since {since}", 0.0
    if not (outside.has_joined and at.is_loaded):
        return WorkerState.STARTING, None, "", 0.0
    return WorkerState.WAITING, _missing(outside.phase), "", 0.0


def _seconds(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()


def _missing(phase: Phase | None) -> Reason:
    """What a worker waits for that could work."""
    if phase == "waiting":
        return Reason.WAITING_FOR_PEERS
    if phase in ("paused", "stopping"):
        return Reason.RUN_PAUSED
    return Reason.NO_WORK
