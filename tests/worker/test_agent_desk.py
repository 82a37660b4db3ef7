"""What the agent does now: every pause, deadline and wish, over a simulated day."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_worker.agent.desk import MARGIN_S, Orders, Outside, Situation, UnitFacts, UnitOrder, decide
from tinylora_worker.policy import Verdict

from tinylora.protocol.standstill import Reason, WorkerState

NOW = 1_000_000.0
WORKS = Verdict(True)
JOINED = Outside(has_joined=True, phase="running")
IDLE = Situation(NOW, WORKS, JOINED, is_loaded=True)


def until(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW + seconds, UTC)


def paused(reason: Reason = Reason.USER_PAUSED, seconds: float | None = None) -> Verdict:
    return Verdict(False, reason, "why", None if seconds is None else until(seconds), may_take=False)


def with_unit(deadline_in_s: float = 100.0, left_s: float = 0.0) -> Situation:
    return replace(IDLE, unit=UnitFacts(NOW + deadline_in_s, left_s))


# --- what is done ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("situation", "unit", "may_train", "may_ask", "has_to_leave"),
    [
        (IDLE, UnitOrder.NONE, True, True, False),
        (with_unit(), UnitOrder.GO_ON, True, True, False),
        (with_unit(deadline_in_s=-50.0), UnitOrder.GO_ON, True, True, False),
        (replace(IDLE, verdict=paused()), UnitOrder.NONE, False, False, False),
        (replace(with_unit(), verdict=paused()), UnitOrder.HOLD, False, False, False),
        (replace(with_unit(3.0), verdict=paused()), UnitOrder.GIVE_BACK, False, False, False),
        (replace(with_unit(100.0, left_s=96.0), verdict=paused()), UnitOrder.GIVE_BACK, False, False, False),
        (replace(with_unit(), verdict=paused(seconds=90.0)), UnitOrder.HOLD, False, False, False),
        (replace(with_unit(), verdict=paused(seconds=97.0)), UnitOrder.GIVE_BACK, False, False, False),
        (replace(with_unit(), is_finishing=True), UnitOrder.GO_ON, True, False, False),
        (replace(IDLE, is_finishing=True), UnitOrder.NONE, False, False, True),
        (replace(with_unit(), is_finishing=True, verdict=paused()), UnitOrder.HOLD, False, False, False),
        (replace(IDLE, is_finishing=True, verdict=paused()), UnitOrder.NONE, False, False, True),
        (replace(with_unit(), is_leaving=True), UnitOrder.GIVE_BACK, False, False, True),
        (replace(IDLE, is_leaving=True, is_finishing=True, verdict=paused()), UnitOrder.NONE, False, False, True),
    ],
)
def test_what_is_done(
    situation: Situation, unit: UnitOrder, may_train: bool, may_ask: bool, has_to_leave: bool
) -> None:
    orders = decide(situation)
    assert (orders.unit, orders.may_train, orders.may_ask, orders.has_to_leave) == (
        unit, may_train, may_ask, has_to_leave,
    )  # fmt: skip


def test_a_held_unit_goes_back_when_the_pause_has_lasted_too_long() -> None:
    """A pause without an end, looked at every second; and the same unit when the pause ends in time."""
    start = with_unit(deadline_in_s=60.0, left_s=20.0)
    orders = [decide(replace(start, now_s=NOW + second, verdict=paused())).unit for second in range(61)]
    assert orders == [UnitOrder.HOLD] * 36 + [UnitOrder.GIVE_BACK] * 25
    assert decide(replace(start, now_s=NOW + 35)).unit is UnitOrder.GO_ON


@given(
    st.sampled_from([None, *Reason]),
    st.one_of(st.none(), st.floats(-100, 1000)),
    st.one_of(st.none(), st.tuples(st.floats(-100, 1000), st.floats(0, 500))),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_whatever_happens(
    reason: Reason | None,
    ends_in_s: float | None,
    unit: tuple[float, float] | None,
    is_loaded: bool,
    is_finishing: bool,
    is_leaving: bool,
) -> None:
    verdict = WORKS if reason is None or not reason.is_pause else paused(reason, ends_in_s)
    facts = None if unit is None else UnitFacts(NOW + unit[0], unit[1])
    orders = decide(Situation(NOW, verdict, JOINED, facts, is_loaded, is_finishing, is_leaving))
    assert (orders.unit is UnitOrder.NONE) == (facts is None)
    assert not orders.may_train or verdict.may_work, "a limit is never overruled"
    assert not (orders.may_ask and (is_finishing or is_leaving or not verdict.may_work))
    assert orders.unit is not UnitOrder.GO_ON or orders.may_train
    assert orders.unit is not UnitOrder.HOLD or not is_leaving
    if orders.unit is UnitOrder.HOLD:
        assert facts is not None and NOW + MARGIN_S + facts.left_s <= facts.deadline_s
    assert (orders.state is WorkerState.PAUSED) == (orders.reason is not None and orders.reason.is_pause)
    assert orders.reason is not None or orders.state not in (WorkerState.PAUSED, WorkerState.WAITING)


# --- what it is called ----------------------------------------------------------------------------------------------


def words(situation: Situation) -> tuple[WorkerState, Reason | None]:
    orders = decide(situation)
    return orders.state, orders.reason


@pytest.mark.parametrize(
    ("outside", "state", "reason"),
    [
        (Outside(), WorkerState.STARTING, None),
        (JOINED, WorkerState.WAITING, Reason.NO_WORK),
        (Outside(has_joined=True, phase="waiting"), WorkerState.WAITING, Reason.WAITING_FOR_PEERS),
        (Outside(has_joined=True, phase="paused"), WorkerState.WAITING, Reason.RUN_PAUSED),
        (Outside(has_joined=True, phase="finished"), WorkerState.FINISHED, None),
        (replace(JOINED, unreachable_since_s=NOW), WorkerState.WAITING, Reason.COORDINATOR_UNREACHABLE),
        (Outside(unreachable_since_s=NOW), WorkerState.WAITING, Reason.COORDINATOR_UNREACHABLE),
        (replace(JOINED, needs_update="newer"), WorkerState.WAITING, Reason.UPDATE_REQUIRED),
        (replace(JOINED, error="broken"), WorkerState.WAITING, Reason.ERROR),
    ],
)
def test_who_has_no_unit_says_what_is_missing(outside: Outside, state: WorkerState, reason: Reason | None) -> None:
    assert words(replace(IDLE, outside=outside)) == (state, reason)
    assert words(replace(IDLE, outside=outside, verdict=paused(Reason.BATTERY))) == (WorkerState.PAUSED, Reason.BATTERY)


def test_training_goes_on_while_the_coordinator_is_away() -> None:
    away = replace(JOINED, unreachable_since_s=NOW - 30)
    assert words(replace(with_unit(), outside=away)) == (WorkerState.WORKING, None)
    assert words(replace(with_unit(), is_loaded=False)) == (WorkerState.STARTING, None)


def test_a_pause_tells_its_detail_and_its_end() -> None:
    orders = decide(replace(IDLE, verdict=paused(Reason.TOO_HOT, 30.0)))
    assert orders == Orders(
        UnitOrder.NONE, False, False, False, WorkerState.PAUSED, Reason.TOO_HOT, "why", NOW + 30.0
    )  # fmt: skip
    assert words(replace(IDLE, is_leaving=True, verdict=paused())) == (WorkerState.LEAVING, None)
