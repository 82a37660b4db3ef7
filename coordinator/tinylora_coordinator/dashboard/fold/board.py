"""A run after some events: its records, what is looked up in them, and what all parts of the fold do with them."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tinylora.protocol.plain import plain
from tinylora.tree import NodePath, Topology, ancestors, is_under
from tinylora_coordinator.dashboard.documents import Mark, StateSpan
from tinylora_coordinator.dashboard.doing import standstill
from tinylora_coordinator.dashboard.fold.changes import Changes
from tinylora_coordinator.dashboard.records import Amount, Head, Measured, Part, Trial, Unit, Worker

MAX_NAME = 60


@dataclass
class Board:
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
            self.note_unit(unit)
        self.touched: set[str] = set()
        self._n_online: int | None = None
        self.leaves: tuple[NodePath, ...] = self.head.leaves
        self.inner = Topology(self.leaves).inner if self.leaves else ()
        self._is_leaf = frozenset(self.leaves)
        self.trunk = {above for top in self.parts for above in ancestors(top) if above in self.parts}
        self.part_shares: dict[NodePath, tuple[int, int, int]] = {}
        self.part_sums: tuple[int, int, int] = 0, 0, 0

    def take_changes(self) -> Changes:
        """What has changed since the last call."""
        changes, self.changes = self.changes, Changes()
        return changes

    # --- questions ----------------------------------------------------------------------------------------------------

    def leaves_below(self, node: NodePath) -> tuple[NodePath, ...]:
        """Leaves in the subtree of `node`, left to right."""
        return self.leaves[bisect_left(self.leaves, node) : bisect_left(self.leaves, node + "2")]

    def is_leaf(self, node: NodePath) -> bool:
        """Whether the tree has such a leaf."""
        return node in self._is_leaf

    def is_trunk(self, top: NodePath) -> bool:
        """Whether this part is a node above others that have adapters too."""
        return top in self.trunk

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

    # --- workers ------------------------------------------------------------------------------------------------------

    def note_states(self, at_s: float) -> None:
        """Note which of the workers that were touched went over to another state."""
        for name in sorted(self.touched):
            worker = self.workers[name]
            doing = standstill(worker, is_over=bool(self.head.finished))
            if worker.shown_state != doing[:2]:
                worker.shown_state = doing[:2]
                self.changes.states.append(
                    (name, StateSpan.model_construct(state=doing.state, reason=doing.reason, start_s=at_s))
                )
                self.touch_held(worker)
        self.touched.clear()

    def changing(self, name: str) -> Worker:
        """The record of a worker, which is about to change; what is shown of its nodes may follow."""
        worker = self.workers.setdefault(name, Worker(name))
        self.changes.workers.add(name)
        self.touched.add(name)
        return worker

    def called(self, name: str) -> str:
        """The name that people know a worker by."""
        return plain((self.workers[name].name if name in self.workers else "") or name, at_most=MAX_NAME)

    def hold(self, worker: Worker, node: NodePath | None) -> None:
        """A worker holds this node from here on; None: no node."""
        if worker.node is not None:
            self.touch_held(worker)
            self.holders_at.get(worker.node, set()).discard(worker.worker)
        worker.node = node
        self.changes.workers.add(worker.worker)
        if node is not None:
            self.holders_at.setdefault(node, set()).add(worker.worker)
            self.touch_held(worker)
            self.add_lanes((node,))

    def touch_held(self, worker: Worker) -> None:
        """What is shown of the nodes that depend on this worker may be other."""
        if worker.node is not None:
            self.touch(worker.node)

    def touch(self, node: NodePath) -> None:
        """What is shown of a node, of the leaves below it, and of the trunk above it may be other."""
        self.changes.nodes.add(node)
        self.changes.nodes.update(self.leaves_below(node))
        if self.head.is_path:
            self.changes.nodes.update(ancestors(node))

    def note_unit(self, unit: Unit) -> None:
        """A unit is open on the nodes that it trains."""
        for node in unit.trained:
            self.units_on.setdefault(node, set()).add(unit.unit_id)

    def touch_unit(self, unit: Unit) -> None:
        """What is shown of a unit, of its worker, and of the nodes that it trains is other."""
        self.changes.units.add(unit.unit_id)
        self.changing(unit.worker)
        self.changes.nodes.update(unit.trained)

    def touch_part(self, top: NodePath) -> None:
        """A part is other, and what is shown of its nodes."""
        self.changes.parts.add(top)
        self.touch(top)

    def shape(self, version: int, leaves: Iterable[NodePath]) -> None:
        """The tree has these leaves now."""
        self.head.topology_version = version
        self.head.leaves = self.leaves = tuple(sorted(leaves))
        self._is_leaf = frozenset(self.leaves)
        self.inner = Topology(self.leaves).inner
        self.trunk = {above for top in self.parts for above in ancestors(top) if above in self.parts}
        self.changes.is_tree_new = True
        self.changes.nodes |= {*self.leaves, *self.inner}

    def add_lanes(self, nodes: Iterable[NodePath]) -> None:
        """Somebody held or trained these nodes."""
        if new := set(nodes).difference(self.head.lanes):
            self.head.lanes = tuple(sorted({*self.head.lanes, *new}))
            self.changes.is_tree_new = True

    def age_mass(self) -> None:
        """The shares of text are to be reckoned anew."""
        self.head.is_mass_old = True

    def count_again(self) -> None:
        """Who is online, or who is out, has changed."""
        self._n_online = None

    @property
    def n_online(self) -> int:
        """Workers that can be reached and are not out."""
        if self._n_online is None:
            self._n_online = sum(worker.is_online and not worker.out for worker in self.workers.values())
        return self._n_online

    def amount(self, metric: str, start_s: float, end_s: float, amount: float) -> None:
        """Something was made between two moments."""
        if amount:
            self.changes.amounts.append(Amount(metric, None, start_s, end_s, amount))

    def mark(self, number: int, at_s: float, kind: str, text: str) -> None:
        """Something concerned the whole run."""
        # The document checks the kind; here it is any word.
        self.changes.marks.append((number, Mark(at_s=at_s, kind=kind, text=text[:200])))  # type: ignore[arg-type]


def _upwards(node: NodePath) -> Iterator[NodePath]:
    """A node and all above it, the deepest first."""
    return (node[:level] for level in range(len(node), -1, -1))
