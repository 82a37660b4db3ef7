"""Anything in any order: joins, answers, repetitions, losses, revocations, pauses, crashes, against a small model."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import FakeRunner, only
from tinylora.federation.campaign import fold
from tinylora.federation.events import NodeAveraged, RunStarted, UpdateAccepted, UpdateProbed, UpdateRejected
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import Rounds
from tinylora.federation.ports import Order, Reply, WorkerInfo
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import WorkUnit
from tinylora.simulate import VirtualClock

NAMES = ("w0", "w1", "w2", "w3")
NEVER = 1e9
CHANGES: dict[str, Any] = {"depth": 1, "probes": 1, "leaf_steps": 15, "min_workers": 2}


@dataclass
class _Network:
    """Who is there, what was sent to them and what has arrived; it outlives the loop."""

    online: set[str] = field(default_factory=set)
    sent: list[tuple[str, WorkUnit, bytes]] = field(default_factory=list)
    arrived: list[Reply] = field(default_factory=list)
    planned: list[Order] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)

    def workers(self) -> list[WorkerInfo]:
        return [WorkerInfo(name, name) for name in sorted(self.online)]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        self.sent.append((worker, unit, payload))

    def poll(self) -> list[Reply]:
        found, self.arrived = self.arrived, []
        return found

    def orders(self) -> list[Order]:
        return [order for order in self.planned if order.order_id not in self.outcomes]

    def done(self, order: Order, outcome: str) -> None:
        self.outcomes[order.order_id] = outcome


class AnyRun(RuleBasedStateMachine):
    """The model: which units were answered rightly while they were open; that, and only that, is accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.network, self.clock = MemoryLedger(), _Network(), VirtualClock()
        self.network_upcoming = NEVER
        self.clock.upcoming = lambda now: NEVER
        self.n_accepted = 0
        self._start()

    def _start(self) -> None:
        self.rounds = Rounds(self.ledger, self.network, self.clock, TorchNumerics(), desk=self.network)
        start = RunStarted(run="test", settings=SETTINGS.model_copy(update=CHANGES), base=FACTS)
        self.rounds.open(start)

    def _go_on(self) -> None:
        times = {"since_s": 0.0, "patience_s": NEVER, "rejoin_s": 0.0}
        while not self.rounds.step(self.network, times, lambda: False):
            pass

    def _answer(self, index: int, *, is_bad: bool = False) -> Reply:
        worker, unit, payload = self.network.sent[index % len(self.network.sent)]
        update, data = FakeRunner(worker, (2.0 * int(worker[1:]), 0, 0, 0)).run(unit, payload)
        if is_bad:
            data = data[:-1]
        return Reply(worker, unit.unit_id, update.to_json(), data)

    def _order(self, kind: Any, worker: str = "", node: str = "") -> None:
        self.network.planned.append(Order(f"o{len(self.network.planned)}", kind, worker, node=node))
        self._go_on()

    @rule(name=st.sampled_from(NAMES))
    def comes(self, name: str) -> None:
        self.network.online.add(name)
        self._go_on()

    @rule(name=st.sampled_from(NAMES))
    def goes(self, name: str) -> None:
        self.network.online.discard(name)
        self._go_on()

    @rule(seconds=st.sampled_from([1.0, 10.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.wait(seconds)
        self._go_on()

    @precondition(lambda self: self.network.sent)
    @rule(back=st.integers(1, 6), n_times=st.integers(1, 2))
    def answers(self, back: int, n_times: int) -> None:
        """An answer to one of the latest units, open, late or answered before; once or twice at a time."""
        self.network.arrived += [self._answer(-back)] * n_times
        self._go_on()

    @precondition(lambda self: self.network.sent)
    @rule(back=st.integers(1, 3))
    def answers_badly(self, back: int) -> None:
        self.network.arrived.append(self._answer(-back, is_bad=True))
        self._go_on()

    @rule()
    def everybody_answers(self) -> None:
        """All that is open is answered, as most of the time."""
        leases = self.rounds.state.leases
        sent = {unit.unit_id: index for index, (_, unit, _) in enumerate(self.network.sent)}
        self.network.arrived += [self._answer(sent[unit]) for unit in leases if unit in sent]
        self._go_on()

    @rule(name=st.sampled_from(NAMES))
    def is_revoked(self, name: str) -> None:
        self._order("revoke", name)
        worker = self.rounds.state.workers.get(name)
        assert worker is None or worker.standing in ("revoked", "erased")

    @rule(name=st.sampled_from(NAMES))
    def is_released(self, name: str) -> None:
        """Its unit is taken from it, and it gets no other one at once."""
        had = self.rounds.state.workers[name].unit_id if name in self.rounds.state.workers else ""
        self._order("release", name)
        assert not had or self.rounds.state.workers[name].unit_id == ""
        assert had not in {*self.rounds.state.leases, *self.rounds.state.late}

    @rule(name=st.sampled_from(NAMES), node=st.sampled_from(["", "0", "1"]))
    def is_moved(self, name: str, node: str) -> None:
        before = self.rounds.state
        self._order("reassign", name, node)
        after = self.rounds.state.workers.get(name)
        if after is not None and after.node != before.workers[name].node:
            assert after.node == node
            left = {unit for unit, lease in self.rounds.state.late.items() if lease.worker == name}
            assert not left & {*before.leases, *before.late}

    @rule(kind=st.sampled_from(["pause", "resume"]))
    def is_ordered(self, kind: str) -> None:
        self._order(kind)
        assert self.rounds.state.is_paused == (kind == "pause") or self.rounds.state.finished

    @rule()
    def crashes(self) -> None:
        """What arrived and was not taken in comes again: workers keep it; whatever is open is sent again."""
        before = self.rounds.state
        self._start()
        assert self.rounds.state == before
        n_sent = len(self.network.sent)
        self._go_on()
        again = {unit.unit_id for _, unit, _ in self.network.sent[n_sent:]}
        online = {unit for unit, lease in before.leases.items() if lease.worker in self.network.online}
        assert online - {unit for unit in online if unit not in self.rounds.state.leases} <= again

    @invariant()
    def the_state_is_the_fold_of_the_log(self) -> None:
        assert fold(self.ledger.events()) == self.rounds.state

    @invariant()
    def nothing_is_accepted_twice_or_taken_back(self) -> None:
        accepted = [event.unit_id for event in only(self.ledger.events(), UpdateAccepted)]
        assert len(accepted) == len(set(accepted)) >= self.n_accepted
        self.n_accepted = len(accepted)
        probed = Counter(event.unit_id for event in only(self.ledger.events(), UpdateProbed))
        assert max(probed.values(), default=1) == 1

    @invariant()
    def steps_are_those_of_the_versions(self) -> None:
        """Each version is at most one unit further than the one before; a part never has more than its share."""
        state = self.rounds.state
        assert all(node.steps <= state.budget(top) for top, node in state.nodes.items())
        for event in only(self.ledger.events(), NodeAveraged):
            assert event.contributors

    @invariant()
    def whoever_was_taken_out_is_in_nothing(self) -> None:
        state = self.rounds.state
        out = {name for name, worker in state.workers.items() if worker.standing == "revoked"}
        assert not out & {lease.worker for lease in (*state.leases.values(), *state.late.values())}
        assert not out & {item.update.worker for item in state.pending.values()}
        assert not any(out & set(node.before) for node in state.nodes.values())
        assert not any(state.workers[name].sketch for name in out)

    @invariant()
    def only_what_was_wrong_is_refused(self) -> None:
        codes = {event.code for event in only(self.ledger.events(), UpdateRejected)}
        assert codes <= {"bad_hash", "duplicate", "lease_closed"}


TestAnyRun = AnyRun.TestCase
TestAnyRun.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
