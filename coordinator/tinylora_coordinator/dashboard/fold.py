"""The projection's fold: what each event changes of what is shown. No clock, no file, no thread.

It follows `tinylora.federation.campaign`, which decides; tests hold the two against each other. Unlike that one it
changes its records in place, and notes which ones (`Changes`), because an event must cost microseconds.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace

from tinylora.federation.events import (
    Event,
    GatesSolved,
    LeafSplit,
    LeaseExpired,
    LeavesMerged,
    NodeAveraged,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SplitKept,
    SubtreeDivided,
    TopologySet,
    UnitLeased,
    UpdateAccepted,
    UpdateProbed,
    UpdateRejected,
    WorkerAssigned,
    WorkerErased,
    WorkerJoined,
    WorkerLost,
    WorkerQuarantined,
    WorkerReturned,
    WorkerRevoked,
)
from tinylora.federation.standing import BENIGN_CODES, FINAL_CODES
from tinylora.protocol.plain import plain
from tinylora.protocol.report import WorkerReport
from tinylora.tree import NodePath, Topology, ancestors, are_in_line, by_level, is_under
from tinylora_coordinator.dashboard.documents import (
    FeedItem,
    LogLine,
    Mark,
    MassSource,
    RouterRow,
    StateSpan,
    VersionRow,
)
from tinylora_coordinator.dashboard.doing import standstill
from tinylora_coordinator.dashboard.records import (
    MAX_PACE,
    Amount,
    Head,
    Measured,
    Part,
    Point,
    Roster,
    Told,
    Trial,
    Unit,
    UnitChange,
    Version,
    Worker,
)
from tinylora_coordinator.dashboard.sentences import sentence
from tinylora_coordinator.dashboard.shares import entropy_bits, measured_shares, text_shares, with_inner

MASS_REST_S = 2.0
"""Shares of text are reckoned anew no more often, by the run's clock: every probe would change them all a little."""
MAX_NAME = 60
_FINE = 10**12


@dataclass
class Changes:
    """What has changed since it was last taken."""

    workers: set[str] = field(default_factory=set)
    parts: set[NodePath] = field(default_factory=set)
    units: set[str] = field(default_factory=set)
    """Open ones: given out, changed or closed."""
    nodes: set[NodePath] = field(default_factory=set)
    """Of which what is shown may be other."""
    measured: set[str] = field(default_factory=set)
    is_mass_new: bool = False
    is_tree_new: bool = False
    are_trials_new: bool = False
    leased: list[tuple[int, Unit]] = field(default_factory=list)
    """New units, by the number of their event."""
    closed: list[UnitChange] = field(default_factory=list)
    versions: list[tuple[int, NodePath, VersionRow]] = field(default_factory=list)
    routers: list[RouterRow] = field(default_factory=list)
    entropies: list[tuple[int, float]] = field(default_factory=list)
    """By version of the routers."""
    lines: list[tuple[str, LogLine]] = field(default_factory=list)
    """Of workers' logs."""
    marks: list[tuple[int, Mark]] = field(default_factory=list)
    states: list[tuple[str, StateSpan]] = field(default_factory=list)
    """States that workers went over to, in order."""
    feed: list[FeedItem] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    amounts: list[Amount] = field(default_factory=list)
    ended: list[tuple[Unit, float, str]] = field(default_factory=list)
    """Train units that are no longer under way: when, and accepted, expired or rejected."""


@dataclass
class RunFold:
    """A run after some events, as far as it is shown.

    Attributes:
        head: The run as a whole.
        parts: What moves on as one, by its top.
        workers: By id.
        units: Open leases and updates that wait for probes, by id.
        measured: Probes' word on where the text goes, by worker.
        trials: Splits under trial.
        mass: Share of each node, as shown; reckoned every `MASS_REST_S` at most.
        changes: Since `take_changes`.
    """

    head: Head = field(default_factory=Head)
    parts: dict[NodePath, Part] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    trials: dict[NodePath, Trial] = field(default_factory=dict)
    mass: dict[NodePath, float] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)

    def __post_init__(self) -> None:
        """Make the indexes that the records imply."""
        self.index()

    def index(self) -> None:
        """Make what is looked up often from the records, after these were read from a file."""
        self.holders_at: dict[NodePath, set[str]] = {}
        for worker in self.workers.values():
            if worker.node is not None:
                self.holders_at.setdefault(worker.node, set()).add(worker.worker)
        self.units_on: dict[NodePath, set[str]] = {}
        for unit in self.units.values():
            self._note_unit(unit)
        self._touched: set[str] = set()
        self._n_online: int | None = None
        self.leaves: tuple[NodePath, ...] = self.head.leaves
        self.inner = Topology(self.leaves).inner if self.leaves else ()
        self._is_leaf = frozenset(self.leaves)
        self._trunk = {above for top in self.parts for above in ancestors(top) if above in self.parts}
        self._shares: dict[NodePath, tuple[int, int, int]] = {}
        self._sums = 0, 0, 0
        self._reckon_parts(None)

    def take_changes(self) -> Changes:
        """What has changed since the last call."""
        changes, self.changes = self.changes, Changes()
        return changes

    # --- questions ---------------------------------------------------------------------------------------------------

    def leaves_below(self, node: NodePath) -> tuple[NodePath, ...]:
        """Leaves in the subtree of `node`, left to right."""
        return self.leaves[bisect_left(self.leaves, node) : bisect_left(self.leaves, node + "2")]

    def is_leaf(self, node: NodePath) -> bool:
        """Whether the tree has such a leaf."""
        return node in self._is_leaf

    def is_trunk(self, top: NodePath) -> bool:
        """Whether this part is a node above others that have adapters too."""
        return top in self._trunk

    def top_of(self, node: NodePath) -> NodePath | None:
        """The part that the adapter of `node` belongs to."""
        return next((top for top in _upwards(node) if top in self.parts), None)

    def way_to(self, node: NodePath) -> tuple[NodePath, ...]:
        """Parts whose adapters add up at `node`, upper ones first."""
        return tuple(top for top in (*ancestors(node), node) if top in self.parts)

    def holders_of(self, node: NodePath) -> list[str]:
        """Workers that hold a leaf, be it with a whole subtree; of an inner node those who hold just this."""
        tops = _upwards(node) if self.is_leaf(node) else (node,)
        return sorted(worker for top in tops for worker in self.holders_at.get(top, ()))

    def budget(self, top: NodePath) -> int:
        """Steps that a part is to have; as `Campaign.budget`."""
        if not self.head.is_cascade:
            return self.head.leaf_steps
        if self.is_trunk(top):
            return self.head.level_steps[len(top)]
        return self.head.leaf_steps - sum(self.head.level_steps[len(above)] for above in self.way_to(top)[:-1])

    def is_done(self, top: NodePath) -> bool:
        """Whether a part has had its steps; as `Campaign.is_done`."""
        if self.parts[top].steps >= self.budget(top):
            return True
        if self.head.is_cascade or not self.is_trunk(top) or self.parts[top].waiting or self.units_on.get(top):
            return False
        below = (other for other in self.parts if other != top and is_under(other, top) and not self.is_trunk(other))
        return all(self.is_done(other) for other in below)

    def leaf_steps(self, leaf: NodePath) -> int:
        """Steps that count for one leaf, of those that it is to have."""
        if not self.head.is_cascade:
            top = self.top_of(leaf)
            return min(self.parts[top].steps, self.head.leaf_steps) if top is not None else 0
        return min(self.head.leaf_steps, sum(min(self.parts[top].steps, self.budget(top)) for top in self.way_to(leaf)))

    # --- events ------------------------------------------------------------------------------------------------------

    def apply(self, number: int, at_s: float, event: Event) -> None:
        """Take one more event in.

        Args:
            number: Its number in the ledger, from 1.
            at_s: When it was written, seconds of the run's clock.
            event: What happened.
        """
        said = sentence(event, self.workers, self.units)
        if said is not None:
            item = FeedItem.model_construct(
                number=number, at_s=at_s, kind=event.type, text=said.text, tone=said.tone, node=said.node,
                worker=said.worker,
            )  # fmt: skip
            self.changes.feed.append(item)
        self._follow(number, at_s, event)
        head = self.head
        head.n_events, head.latest_s = number, max(head.latest_s, at_s)
        if head.is_mass_old and (head.mass_s is None or at_s >= head.mass_s + MASS_REST_S):
            self.reckon_mass(at_s)
        self.note_states(at_s)
        self._sample(at_s)

    def note_states(self, at_s: float) -> None:
        """Note which of the workers that were touched went over to another state."""
        for name in sorted(self._touched):
            worker = self.workers[name]
            doing = standstill(worker, is_over=bool(self.head.finished))
            if worker.shown_state != doing[:2]:
                worker.shown_state = doing[:2]
                self.changes.states.append(
                    (name, StateSpan.model_construct(state=doing.state, reason=doing.reason, start_s=at_s))
                )
                self._touch_held(worker)
        self._touched.clear()

    def _follow(self, number: int, at_s: float, event: Event) -> None:
        match event:
            case RunStarted():
                self._started(event)
            case WorkerJoined():
                self._joined(event)
            case WorkerLost():
                self._lost(number, event)
            case WorkerReturned():
                self._returned(number, event)
            case UnitLeased():
                self._leased(number, event)
            case LeaseExpired():
                self._expired(event)
            case UpdateAccepted():
                self._accepted(event)
            case UpdateRejected():
                self._rejected(event)
            case UpdateProbed():
                self._probed(event, at_s)
            case WorkerQuarantined():
                self._taken_out(event.worker, "quarantined", event.code, event.reason, event.at_s)
                self._mark(number, at_s, "out", f"{self._name(event.worker)} gets no more units: {event.reason}")
            case WorkerRevoked():
                self._taken_out(event.worker, "revoked", "revoked", event.reason, event.at_s)
                self._without_contributions(event.worker, event.at_s)
                self._mark(number, at_s, "out", f"the operator removed {self._name(event.worker)}")
            case WorkerErased():
                self._worker(event.worker).standing = "erased"
            case TopologySet():
                self._topology_set(number, at_s, event)
            case WorkerAssigned():
                self._hold(self._worker(event.worker), event.node)
                self._age_mass()
            case GatesSolved():
                self._solved(number, at_s, event)
            case NodeAveraged():
                self._averaged(number, at_s, event)
            case LeafSplit() | LeavesMerged() | SubtreeDivided():
                self._reshaped(number, at_s, event)
            case SplitKept():
                self.trials.pop(event.node, None)
                self.changes.are_trials_new = True
            case RunPaused():
                self.head.is_paused = True
                self._mark(number, at_s, "paused", "paused")
            case RunResumed():
                self.head.is_paused = False
                self._mark(number, at_s, "resumed", "resumed")
            case RunFinished():
                self._finished(number, at_s, event)
            case _:
                pass

    def _started(self, event: RunStarted) -> None:
        settings = event.settings
        is_path = settings.where == "path"
        self.head = Head(
            run=event.run,
            base_id=plain(event.base.base_id, at_most=200),
            adapter=settings.adapter,
            rank=settings.rank,
            depth=settings.depth,
            leaf_steps=settings.leaf_steps,
            is_path=is_path,
            is_cascade=is_path and settings.path_training == "cascade",
            level_steps=settings.level_steps,
        )

    def _finished(self, number: int, at_s: float, event: RunFinished) -> None:
        self.head.finished = event.reason or "finished"
        self._mark(number, at_s, "finished", f"finished: {event.reason}")
        for name in self.workers:
            self._worker(name)
        self.changes.nodes |= {*self.leaves, *self.inner}
        if self.head.is_mass_old:
            self.reckon_mass(at_s)

    # --- workers -----------------------------------------------------------------------------------------------------

    def _worker(self, name: str) -> Worker:
        """The record of a worker, which is about to change; what is shown of its nodes may follow."""
        worker = self.workers.setdefault(name, Worker(name))
        self.changes.workers.add(name)
        self._touched.add(name)
        return worker

    def _name(self, name: str) -> str:
        return plain((self.workers[name].name if name in self.workers else "") or name, at_most=MAX_NAME)

    def _joined(self, event: WorkerJoined) -> None:
        worker = self._worker(event.worker)
        worker.name = plain(event.name, at_most=MAX_NAME)
        worker.is_joined = worker.is_online = worker.is_listed = True
        self._n_online = None
        worker.joined_s = event.at_s

    def _lost(self, number: int, event: WorkerLost) -> None:
        worker = self._worker(event.worker)
        worker.n_lost += 1
        worker.is_online = worker.is_current = False
        self._n_online = None
        self._release(worker.unit_id, "the worker went offline", event.at_s)
        worker.unit_id = ""
        self._touch_held(worker)
        self._mark(number, event.at_s, "lost", f"{self._name(event.worker)} went offline")

    def _returned(self, number: int, event: WorkerReturned) -> None:
        worker = self._worker(event.worker)
        worker.is_online, worker.is_current = True, False
        self._n_online = None
        self._touch_held(worker)
        self._mark(number, event.at_s, "returned", f"{self._name(event.worker)} is back")

    def _hold(self, worker: Worker, node: NodePath | None) -> None:
        if worker.node is not None:
            self._touch_held(worker)
            self.holders_at.get(worker.node, set()).discard(worker.worker)
        worker.node = node
        self.changes.workers.add(worker.worker)
        if node is not None:
            self.holders_at.setdefault(node, set()).add(worker.worker)
            self._touch_held(worker)
            self._add_lanes((node,))

    def _touch_held(self, worker: Worker) -> None:
        """What is shown of the nodes that depend on this worker may be other."""
        if worker.node is not None:
            self.touch(worker.node)

    def touch(self, node: NodePath) -> None:
        """What is shown of a node, of the leaves below it, and of the trunk above it may be other."""
        self.changes.nodes.add(node)
        self.changes.nodes.update(self.leaves_below(node))
        if self.head.is_path:
            self.changes.nodes.update(ancestors(node))

    def hear(self, name: str, report: WorkerReport, at_s: float) -> None:
        """Take in what a worker says of itself; of people who are not known nothing is taken.

        Args:
            name: Of the worker.
            report: Checked by whoever took it in.
            at_s: When, seconds of the run's clock.
        """
        worker = self._worker(name)
        worker.report = report.model_copy(update={"log": ()})
        self.changes.lines += [(name, LogLine(at_s=at_s, text=line)) for line in report.log]
        worker.heard_s, worker.is_current, worker.is_listed = at_s, True, True
        self.note_states(at_s)

    def enrol(self, name: str, called: str, state: Roster, tags: tuple[str, ...], at_s: float) -> None:
        """Take in what the operator's store says of a worker.

        Args:
            name: Of the worker.
            called: What it calls itself.
            state: Whether the operator let it in.
            tags: Of its token.
            at_s: Now.
        """
        known = self.workers.get(name)
        if known is not None and (known.roster, known.tags) == (state, tags):
            return
        worker = self._worker(name)
        worker.roster, worker.tags = state, tags
        worker.is_listed |= state == "pending"
        worker.name = worker.name or plain(called, at_most=MAX_NAME)
        self._touch_held(worker)
        self.note_states(at_s)

    # --- units -------------------------------------------------------------------------------------------------------

    def _note_unit(self, unit: Unit) -> None:
        for node in unit.trained:
            self.units_on.setdefault(node, set()).add(unit.unit_id)

    def _leased(self, number: int, event: UnitLeased) -> None:
        worker = self._worker(event.worker)
        trains = event.kind == "train"
        unit = Unit(
            event.unit_id,
            event.worker,
            event.kind,
            event.node,
            (event.nodes or self.leaves_below(event.node)) if trains else (),
            event.at_s,
            event.deadline_s,
            event.n_steps,
            event.subject,
        )
        self.units[unit.unit_id] = unit
        self._note_unit(unit)
        self._touch_unit(unit)
        self.changes.leased.append((number, replace(unit)))
        worker.unit_id, worker.is_current = unit.unit_id, False
        worker.bytes_sent += event.bytes_sent
        self.head.bytes_sent += event.bytes_sent
        self._touch_held(worker)
        self._amount("bytes_per_s", event.at_s, event.at_s, event.bytes_sent)
        if trains:
            self._add_lanes((event.node,))
            if self.head.training_s is None:
                self.head.training_s = event.at_s
                self.head.pace = [(event.at_s, 0.0)]

    def _touch_unit(self, unit: Unit) -> None:
        self.changes.units.add(unit.unit_id)
        self._worker(unit.worker)
        for node in unit.trained:
            self.changes.nodes.add(node)

    def _close(self, unit_id: str) -> Unit | None:
        """A unit is no longer open; its worker is free."""
        unit = self.units.pop(unit_id, None)
        if unit is None:
            return None
        for node in unit.trained:
            self.units_on[node].discard(unit_id)
        self._touch_unit(unit)
        worker = self.workers.get(unit.worker)
        if worker is not None and worker.unit_id == unit_id:
            self._free(worker)
        return unit

    def _free(self, worker: Worker) -> None:
        """It is at nothing any more; that it worked, as it said, is out of date."""
        worker.unit_id = ""
        if worker.report is not None and worker.report.state == "working":
            worker.is_current = False
        self._touch_held(worker)

    def _release(self, unit_id: str, reason: str, at_s: float) -> None:
        """Close a lease without an update."""
        unit = self.units.get(unit_id)
        if unit is None or unit.is_pending:
            return
        self._close(unit_id)
        self.changes.closed.append(UnitChange(unit_id, "expired", at_s, reason, only_from=("leased",)))
        self._ended(unit, at_s, "expired")

    def _ended(self, unit: Unit, at_s: float, outcome: str) -> None:
        if unit.kind == "train":
            self.changes.ended.append((unit, at_s, outcome))
            self.head.longest_s = max(self.head.longest_s, at_s - unit.leased_s)

    def _expired(self, event: LeaseExpired) -> None:
        unit = self.units.get(event.unit_id)
        if unit is None or unit.is_pending:
            return
        if not event.is_returned:
            self.head.n_expired += 1
            self._worker(unit.worker).n_expired += 1
        self._release(event.unit_id, event.reason, event.at_s)

    def _rejected(self, event: UpdateRejected) -> None:
        self.head.n_rejected += 1
        if event.worker not in self.workers or not event.is_proven:
            return
        worker = self._worker(event.worker)
        worker.n_rejected += 1
        unit = self.units.get(event.unit_id)
        is_benign = event.code in BENIGN_CODES
        change = UnitChange(event.unit_id, "rejected", event.at_s, event.reason, worker=event.worker)
        change.only_from = ("expired",) if is_benign else ("leased", "expired")
        self.changes.closed.append(change)
        if is_benign:
            return
        if unit is not None and worker.unit_id == event.unit_id:
            self._close(event.unit_id)
            self._ended(unit, event.at_s, "rejected")
        if event.code == "declined" and unit is not None and unit.kind == "probe":
            return
        if event.code in FINAL_CODES and not worker.out:
            worker.out, worker.out_reason = event.code, event.reason
            self._n_online = None
            self._touch_held(worker)

    # --- updates -----------------------------------------------------------------------------------------------------

    def _accepted(self, event: UpdateAccepted) -> None:
        unit = self._close(event.unit_id)
        worker = self._worker(event.worker)
        self._count(worker, event)
        train_loss = event.losses[-1] if event.losses else None
        self.changes.closed.append(_change_of(event, train_loss))
        if event.kind != "train":
            if event.kind == "probe" and event.probe is not None:
                versions = self.head.topology_version, event.router_version
                self.measured[event.worker] = Measured(*versions, dict(event.probe.mass))
                self.changes.measured.add(event.worker)
            self._age_mass()
            return
        trained = event.nodes or self.leaves_below(event.node)
        told = Told(event.worker, event.node, event.heldout_nll_before, event.heldout_nll_after, train_loss)
        if unit is None:  # it had expired
            unit = Unit(
                event.unit_id, event.worker, "train", event.node, trained, event.at_s, event.at_s, event.n_steps
            )
        else:
            self._ended(unit, event.at_s, "accepted")
        self._tell(event, train_loss, max(unit.leased_s, event.at_s - event.seconds))
        if not event.is_pending:
            self._believed(trained, told)
            return
        pending = replace(unit, is_pending=True, told=told, trained=trained)
        self.units[unit.unit_id] = pending
        self._note_unit(pending)
        self._touch_unit(pending)

    def _count(self, worker: Worker, event: UpdateAccepted) -> None:
        worker.n_accepted += 1
        worker.tokens += event.tokens
        worker.seconds += event.seconds
        worker.bytes_received += event.bytes_received
        worker.last_accepted_s = event.at_s
        if worker.shard_tokens != event.shard_tokens:
            worker.shard_tokens = event.shard_tokens
            self._age_mass()
        head = self.head
        head.n_accepted += 1
        head.tokens += event.tokens
        head.bytes_received += event.bytes_received
        if event.kind == "train":
            worker.last_trained_s = event.at_s
            worker.speed = event.tokens / event.seconds if event.seconds > 0 else None

    def _tell(self, event: UpdateAccepted, train_loss: float | None, start_s: float) -> None:
        """Put the numbers of a train update into the series."""
        self._amount("bytes_per_s", event.at_s, event.at_s, event.bytes_received)
        self.changes.amounts.append(Amount("tokens_per_s", event.node, start_s, event.at_s, event.tokens))
        told = (("loss", event.heldout_nll_after), ("train_loss", train_loss))
        self.changes.points += [Point(name, event.node, event.at_s, value) for name, value in told if value is not None]

    def _believed(self, trained: Iterable[NodePath], told: Told) -> None:
        """An update counts from here on: it waits for the rest of its round."""
        tops = {top for node in trained if (top := self.top_of(node)) is not None}
        for top in by_level(tops) if len(tops) > 1 else tops:
            part = self.parts[top]
            insort(part.waiting, told, key=lambda one: (one.worker, one.node))
            self.changes.parts.add(top)

    def _probed(self, event: UpdateProbed, at_s: float) -> None:
        unit = self.units.get(event.unit_id)
        state = "accepted" if event.is_kept else "dropped"
        change = UnitChange(event.unit_id, state, reason=event.reason, only_from=("pending",))
        if unit is None or not unit.is_pending:
            return
        self.changes.closed.append(change)
        self._close(event.unit_id)
        self._close_probes(event.unit_id, at_s)
        if event.is_kept and unit.told is not None:
            self._believed(unit.trained, unit.told)

    def _close_probes(self, subject: str, at_s: float) -> None:
        """Nobody is asked any more to score this update."""
        asked = [unit for unit in self.units.values() if unit.kind == "probe" and unit.subject == subject]
        for unit in asked:
            self._release(unit.unit_id, "its answer is not needed any more", at_s)

    def _averaged(self, number: int, at_s: float, event: NodeAveraged) -> None:
        part = self.parts.get(event.node)
        if part is None:
            return
        before = Version(part.version, part.blob, part.steps)
        part.before = {**dict.fromkeys(event.contributors, before), **part.before}
        _take_losses(part)
        part.version, part.blob, part.steps = event.version, event.blob, event.n_steps
        part.waiting = []
        self._changed_part(event.node)
        row = VersionRow.model_construct(
            version=event.version,
            at_s=at_s,
            n_steps=event.n_steps,
            contributors=tuple(event.contributors),
            mismatch=event.mismatch,
        )
        self.changes.versions.append((number, event.node, row))
        self._reckon_whole(at_s, (event.node,))

    def _changed_part(self, top: NodePath) -> None:
        self.changes.parts.add(top)
        self.changes.nodes.add(top)
        self.changes.nodes.update(self.leaves_below(top))
        if self.head.is_path:
            self.changes.nodes.update(ancestors(top))

    # --- the tree ----------------------------------------------------------------------------------------------------

    def _topology_set(self, number: int, at_s: float, event: TopologySet) -> None:
        tops = set(event.assignment.values())
        trunk = {above for top in tops for above in ancestors(top)} if self.head.is_path else set()
        self.changes.parts |= self.parts.keys() | tops | trunk
        self.parts = {top: Part() for top in by_level(tops | trunk)}
        self._shape(event.version, event.leaves)
        for name in {*self.workers, *event.assignment}:
            self._hold(self._worker(name), event.assignment.get(name))
        self._add_lanes(tops)
        self._mark(number, at_s, "topology", f"the tree is set: {len(event.leaves)} leaves")
        self.reckon_mass(at_s)

    def _shape(self, version: int, leaves: Iterable[NodePath]) -> None:
        """The tree has these leaves now."""
        self.head.topology_version = version
        self.head.leaves = self.leaves = tuple(sorted(leaves))
        self._is_leaf = frozenset(self.leaves)
        self.inner = Topology(self.leaves).inner
        self._trunk = {above for top in self.parts for above in ancestors(top) if above in self.parts}
        self.changes.is_tree_new = True
        self.changes.nodes |= {*self.leaves, *self.inner}

    def _add_lanes(self, nodes: Iterable[NodePath]) -> None:
        if new := set(nodes).difference(self.head.lanes):
            self.head.lanes = tuple(sorted({*self.head.lanes, *new}))
            self.changes.is_tree_new = True

    def _reshaped(self, number: int, at_s: float, event: LeafSplit | LeavesMerged | SubtreeDivided) -> None:
        """The parts below a node are others; as `campaign._moved`."""
        self.changes.are_trials_new = True
        below = {top: part for top, part in self.parts.items() if is_under(top, event.node)}
        parts = self._new_parts(event, below)
        self.changes.parts |= below.keys() | parts.keys()
        kept = {top: part for top, part in self.parts.items() if top not in below}
        self.parts = {top: {**kept, **parts}[top] for top in by_level({*kept, *parts})}
        self._shape(event.version, event.leaves)
        for name, node in event.assignment.items():
            self._hold(self._worker(name), node)
        self._add_lanes(parts)
        if isinstance(event, LeavesMerged):
            part = parts[event.node]
            row = VersionRow(version=part.version, at_s=at_s, n_steps=part.steps, contributors=())
            self.changes.versions.append((number, event.node, row))
        what = {"leaf_split": "split", "leaves_merged": "merged", "subtree_divided": "divided"}[event.type]
        self._mark(number, at_s, "topology", f"{event.node or 'root'} {what}")
        self.reckon_mass(at_s)

    def _new_parts(
        self, event: LeafSplit | LeavesMerged | SubtreeDivided, below: dict[NodePath, Part]
    ) -> dict[NodePath, Part]:
        match event:
            case LeafSplit():
                before = self.parts[event.node]
                self.trials[event.node] = Trial(deepcopy(before))
                child = replace(before, version=before.version + 1, blob=event.blob, before=_nothing_before([before]))
                return {top: _fresh(child) for top in sorted(set(event.assignment.values()))}
            case SubtreeDivided():
                before = self.parts[event.node]
                leaf = replace(before, version=before.version + 1)
                return {top: _fresh(leaf) for top in Topology(event.leaves).leaves_below(event.node)}
            case LeavesMerged():
                return {event.node: self._merged(event, below)}

    def _merged(self, event: LeavesMerged, below: dict[NodePath, Part]) -> Part:
        trial = self.trials.pop(event.node, None)
        was = trial.before if trial is not None and trial.before.blob == event.blob else None
        parts = list(below.values())
        firsts = [part.first_loss for part in parts]
        return Part(
            event.node_version,
            event.blob,
            event.n_steps,
            loss=was.loss if was else _mean([part.loss for part in parts]),
            is_heldout=was.is_heldout if was else all(part.is_heldout for part in parts),
            first_loss=was.first_loss if was else _mean(firsts),
            before=dict(was.before) if was else _nothing_before(parts),
        )

    def _solved(self, number: int, at_s: float, event: GatesSolved) -> None:
        head = self.head
        head.router_version, head.drift, head.accuracy = event.version, event.drift, dict(event.accuracy)
        self.changes.nodes.update(self.inner)
        self.changes.is_tree_new = True
        self._age_mass()
        row = RouterRow(
            version=event.version,
            at_s=at_s,
            drift=event.drift,
            n_contributors=len(event.contributors),
            reason=plain(event.reason, at_most=200),
            entropy_bits=None,
        )
        self.changes.routers.append(row)
        self.changes.points.append(Point("drift", None, at_s, event.drift))
        self._mark(number, at_s, "router", f"routers version {event.version}")

    # --- taking out --------------------------------------------------------------------------------------------------

    def _taken_out(self, name: str, standing: str, code: str, reason: str, at_s: float) -> None:
        """As `federation.removal`: its leases are closed, and what waits of it is dropped."""
        worker = self._worker(name)
        for unit in [unit for unit in self.units.values() if unit.worker == name]:
            self._drop(unit, f"the worker was {standing}", at_s)
        worker.standing = standing  # type: ignore[assignment]
        worker.out, worker.out_reason = code, plain(reason, at_most=300)
        self._n_online = None
        self._hold(worker, None)
        self.measured.pop(name, None)
        self.changes.measured.add(name)
        for top, part in self.parts.items():
            if any(told.worker == name for told in part.waiting):
                part.waiting = [told for told in part.waiting if told.worker != name]
                self.changes.parts.add(top)
        self._age_mass()

    def _drop(self, unit: Unit, reason: str, at_s: float) -> None:
        """Close a lease, or drop an update that waits for its probes."""
        if not unit.is_pending:
            self._release(unit.unit_id, reason, at_s)
            return
        self._close(unit.unit_id)
        self.changes.closed.append(UnitChange(unit.unit_id, "dropped", reason=reason, only_from=("pending",)))
        self._close_probes(unit.unit_id, at_s)

    def _without_contributions(self, name: str, at_s: float) -> None:
        """Every part that the worker contributed to is again what it was before it did."""
        fallen = [top for top, part in self.parts.items() if name in part.before]
        on_them = [unit for unit in self.units.values() if {self.top_of(node) for node in unit.trained} & set(fallen)]
        for unit in on_them:
            self._drop(unit, "what it was trained on is no more", at_s)
        for top in fallen:
            part = self.parts[top]
            last = part.before[name]
            earlier = {other: version for other, version in part.before.items() if version.number < last.number}
            first = part.first_loss if last.steps else None
            self.parts[top] = Part(part.version + 1, last.blob, last.steps, first_loss=first, before=earlier)
            self._changed_part(top)
        self.changes.are_trials_new = True
        self.trials = {
            node: trial
            for node, trial in self.trials.items()
            if name not in trial.before.before and not any(are_in_line(node, top) for top in fallen)
        }
        self._reckon_whole(at_s)

    # --- sums over the tree ------------------------------------------------------------------------------------------

    def _age_mass(self) -> None:
        self.head.is_mass_old = True

    def reckon_mass(self, at_s: float) -> None:
        """Shares of text by what is known now."""
        head = self.head
        head.mass_s, head.is_mass_old = at_s, False
        head.mass_source, leaves = self.present_shares()
        before, self.mass = self.mass, {node: round(share, 6) for node, share in with_inner(leaves).items()}
        head.entropy_bits = entropy_bits(leaves.values()) if leaves else None
        self.changes.is_mass_new = True
        self.changes.nodes |= {node for node in (*self.leaves, *self.inner) if before.get(node) != self.mass.get(node)}
        if head.entropy_bits is not None:
            self.changes.points.append(Point("entropy", None, at_s, head.entropy_bits))
            if head.mass_source == "probes":
                self.changes.entropies.append((head.router_version, round(head.entropy_bits, 6)))
        rest_s = max(MASS_REST_S, len(self.leaves) / 16)
        if leaves and (head.mass_recorded_s is None or at_s >= head.mass_recorded_s + rest_s):
            head.mass_recorded_s = at_s
            self.changes.points += [Point("mass", node, at_s, share) for node, share in self.mass.items()]
        self._reckon_whole(at_s)

    def present_shares(self) -> tuple[MassSource, dict[NodePath, float]]:
        """Where the shares of the leaves are from, and the shares.

        Each worker's latest probe in the present tree counts, though the gates may have moved a little since: by the
        present ones alone, a single worker's text would stand for all after each new version.
        """
        told = [
            (max(1, self.workers[name].shard_tokens), measured.mass)
            for name, measured in sorted(self.measured.items())
            if measured.topology_version == self.head.topology_version and measured.mass
        ]
        if (shares := measured_shares(self.leaves, told)) is not None:
            return "probes", shares
        holders = (worker for _, worker in sorted(self.workers.items()) if not worker.out)
        if (shares := text_shares(self.leaves, holders)) is not None:
            return "tokens", shares
        return "none", {}

    def _reckon_whole(self, at_s: float, tops: Iterable[NodePath] | None = None) -> None:
        """Progress and loss over all leaves.

        Args:
            at_s: Now.
            tops: Parts that have changed; all where none are named.
        """
        head = self.head
        if not self.leaves:
            return
        self._reckon_parts(tops)
        done, weight, lost = self._sums
        head.progress = round(done / (head.leaf_steps * len(self.leaves)), 9) if head.leaf_steps else 0.0
        head.loss = round(lost / weight, 9) if weight else None
        if head.training_s is not None and head.progress != head.pace[-1][1]:
            head.pace.append((at_s, head.progress))
            if len(head.pace) > MAX_PACE:
                head.pace = [head.pace[0], *head.pace[2::2]]

    def _reckon_parts(self, tops: Iterable[NodePath] | None) -> None:
        """What each part adds to progress and loss: held-out loss by mass where that is known, by leaves otherwise.

        In whole numbers, whose sums do not depend on their order and can be brought up to date part by part.
        """
        if tops is None:
            self._shares, self._sums = {}, (0, 0, 0)
        for top in self.parts if tops is None else self._parts_below(tops):
            if self.is_trunk(top):
                continue
            before, after = self._shares.get(top, (0, 0, 0)), self._share(top)
            self._shares[top] = after
            done, weight, lost = self._sums
            self._sums = done + after[0] - before[0], weight + after[1] - before[1], lost + after[2] - before[2]

    def _share(self, top: NodePath) -> tuple[int, int, int]:
        """Steps done over all leaves of a part; its weight, and its loss times that."""
        part, leaves = self.parts[top], self.leaves_below(top)
        done = self.leaf_steps(leaves[0]) * len(leaves) if leaves else 0
        if not part.is_heldout or part.loss is None:
            return done, 0, 0
        weight = self.mass.get(top, 0.0) if self.mass else len(leaves) / len(self.leaves)
        return done, round(weight * _FINE), round(weight * part.loss * _FINE)

    def _parts_below(self, tops: Iterable[NodePath]) -> list[NodePath]:
        if not self._trunk:
            return [top for top in tops if top in self.parts]
        return [top for top in self.parts if any(is_under(top, one) for one in tops)]

    # --- series ------------------------------------------------------------------------------------------------------

    def _sample(self, at_s: float) -> None:
        """What goes on without steps has a value at every event."""
        self.changes.points.append(Point("workers", None, at_s, float(self.n_online)))
        self.changes.points.append(Point("progress", None, at_s, self.head.progress))
        if self.head.loss is not None:
            self.changes.points.append(Point("loss", None, at_s, self.head.loss))

    @property
    def n_online(self) -> int:
        """Workers that can be reached and are not out."""
        if self._n_online is None:
            self._n_online = sum(worker.is_online and not worker.out for worker in self.workers.values())
        return self._n_online

    def _amount(self, metric: str, start_s: float, end_s: float, amount: float) -> None:
        if amount:
            self.changes.amounts.append(Amount(metric, None, start_s, end_s, amount))

    def _mark(self, number: int, at_s: float, kind: str, text: str) -> None:
        self.changes.marks.append((number, Mark(at_s=at_s, kind=kind, text=text[:200])))  # type: ignore[arg-type]


def _upwards(node: NodePath) -> Iterator[NodePath]:
    """A node and all above it, the deepest first."""
    return (node[:level] for level in range(len(node), -1, -1))


def _fresh(part: Part) -> Part:
    """A part that begins like another."""
    return replace(part, waiting=[], before=dict(part.before))


def _nothing_before(parts: Collection[Part]) -> dict[str, Version]:
    """Where a part takes on another shape, no version of the new one is without those who made the old one."""
    return {worker: Version() for part in parts for worker in sorted(part.before)}


def _take_losses(part: Part) -> None:
    """The losses that a round told become the part's."""
    held, trained = _mean([told.after for told in part.waiting]), _mean([told.train for told in part.waiting])
    if part.first_loss is None:
        part.first_loss = _mean([told.before for told in part.waiting])
    if held is not None or trained is not None:
        part.loss, part.is_heldout = (held, True) if held is not None else (trained, False)


def _mean(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else None


def _change_of(event: UpdateAccepted, train_loss: float | None) -> UnitChange:
    return UnitChange(
        event.unit_id,
        "pending" if event.is_pending else "accepted",
        event.at_s,
        reason="",
        n_steps=event.n_steps,
        tokens=event.tokens,
        seconds=event.seconds,
        heldout_before=event.heldout_nll_before,
        heldout_after=event.heldout_nll_after,
        train_loss=train_loss,
        bytes_received=event.bytes_received,
    )
