"""What is made of what arrived: the tree, the next versions of its parts, a tree of another shape, the gates."""

from tinylora.federation.assignment import assign, leaves_for, nearest_leaf
from tinylora.federation.decisions import Assign, SetTopology
from tinylora.federation.events import (
    GatesSolved,
    LeafSplit,
    LeavesMerged,
    NodeAveraged,
    SubtreeDivided,
    TopologySet,
    WorkerAssigned,
)
from tinylora.federation.growing import FoldBack, Merge
from tinylora.federation.growth import sides
from tinylora.federation.ports import Numerics, Round
from tinylora.federation.record import Record
from tinylora.federation.routers import Blobs, leaf_statistics, next_gates
from tinylora.federation.state import Campaign
from tinylora.tree import NodePath, Topology, children, is_under


class Making:
    """Makes new blobs of those in the ledger, and writes down what they are."""

    def __init__(self, record: Record, numerics: Numerics, blobs: Blobs) -> None:
        self._record = record
        self._numerics = numerics
        self._blobs = blobs

    def set_topology(self, command: SetTopology) -> None:
        """Cluster the sketches into the tree, and hand out its nodes."""
        settings = self._record.state.settings
        depth = 0 if settings.grow else settings.depth
        workers = {name: self._record.state.workers[name] for name in command.workers}
        sketches = self._blobs.sketches(self._record.state, workers)
        volumes = {name: worker.log_volume for name, worker in workers.items()}
        known = {worker: volume for worker, volume in volumes.items() if volume is not None}
        assignment = dict(sorted(assign(sketches, depth, known).items()))
        leaves = leaves_for(assignment, depth, {name: worker.max_leaves for name, worker in workers.items()})
        version = self._record.state.topology_version + 1
        self._record.emit(TopologySet(version=version, leaves=leaves, assignment=assignment))

    def assign(self, command: Assign) -> None:
        """Give a worker the leaf whose text is nearest to its own."""
        sketch = self._blobs.statistics(self._record.state.workers[command.worker].sketch)[""]
        leaf = nearest_leaf(leaf_statistics(self._record.state, self._blobs), command.leaves, sketch)
        self._record.emit(WorkerAssigned(worker=command.worker, node=leaf))

    def average(self, top: NodePath) -> None:
        """Make a part's next version of the updates that wait for it."""
        state, node = self._record.state, self._record.state.nodes[top]
        by_adapter = {
            path: {update.worker: update.blob for update in node.contributions if path in state.trained_by(update)}
            for path in state.adapters_of(top)
        }
        averaged = self._numerics.average(by_adapter, self._round_of(top), self._record.ledger.get_blob)
        self._record.make_room(len(averaged.payload) + len(averaged.momentum))
        self._record.emit(
            NodeAveraged(
                node=top,
                version=node.version + 1,
                contributors=tuple(sorted({update.worker for update in node.contributions})),
                blob=self._record.put(averaged.payload),
                n_steps=node.steps + max(update.n_steps for update in node.contributions),
                mismatch=averaged.mismatch,
                momentum=self._record.put(averaged.momentum) if averaged.momentum else "",
            )
        )

    # --- a tree that grows -------------------------------------------------------------------------------------------

    def split(self, leaf: NodePath) -> None:
        """Two children with the leaf's own adapter; its workers part by their texts, a lone one holds both."""
        state, node = self._record.state, self._record.state.nodes[leaf]
        left, right = children(leaf)
        holders = state.holders(leaf)
        sketches = self._blobs.sketches(state, holders)
        is_right = sides(sketches) if len(holders) > 1 else {}
        assignment = {name: (right if is_right[name] else left) if is_right else leaf for name in holders}
        blob = self._numerics.rename(self._record.ledger.get_blob(node.blob), {leaf: (left, right)})
        topology = Topology(state.leaves).split(leaf)
        self._record.emit(
            LeafSplit(
                node=leaf,
                version=state.topology_version + 1,
                leaves=topology.leaves,
                assignment=assignment,
                blob=self._record.put(blob),
                heldout_nll=node.history[-1],
            )
        )

    def fold_back(self, command: FoldBack) -> None:
        """A split did not pay: the leaf comes back as it was."""
        before = self._record.state.trials[command.node].before
        self._unite(command.node, before.blob, command.reason)

    def merge(self, command: Merge) -> None:
        """Both children's adapters become one: the mean of their products, where they are pairs A, B."""
        state, spec = self._record.state, self._record.state.settings.spec
        halves = {
            child: self._numerics.rename(
                self._record.ledger.get_blob(state.nodes[child].blob), {child: (command.node,)}
            )
            for child in children(command.node)
        }
        how = Round(halves[children(command.node)[0]], "mean" if spec.kind == "tied" else "product", 1.0, 0.0, b"")
        names = {child: child for child in halves}
        averaged = self._numerics.average({command.node: names}, how, halves.__getitem__)
        self._unite(command.node, self._record.put(averaged.payload), command.reason)

    def divide(self, node: NodePath) -> None:
        """Those who held all of it get the leaves that nobody holds, then any others."""
        state = self._record.state
        leaves = state.leaves_below(node)
        held = {worker.node for worker in state.workers.values()}
        free = [leaf for leaf in leaves if leaf not in held] or list(leaves)
        assignment = {name: free[number % len(free)] for number, name in enumerate(state.holders(node))}
        version = state.topology_version + 1
        self._record.emit(SubtreeDivided(node=node, version=version, leaves=state.leaves, assignment=assignment))

    def _unite(self, node: NodePath, blob: str, reason: str) -> None:
        """The children of a node become one leaf again."""
        state = self._record.state
        parts = [state.nodes[top] for top in state.parts_below(node)]
        below = sorted(name for name, worker in state.workers.items() if worker.node and is_under(worker.node, node))
        self._record.emit(
            LeavesMerged(
                node=node,
                version=state.topology_version + 1,
                leaves=Topology(state.leaves).merge(node).leaves,
                assignment=dict.fromkeys(below, node),
                blob=blob,
                node_version=max(part.version for part in parts) + 1,
                n_steps=max(part.steps for part in parts),
                reason=reason,
            )
        )

    def _round_of(self, top: NodePath) -> Round:
        """What the workers of a node began its present version with, and how their updates become one."""
        state, node = self._record.state, self._record.state.nodes[top]
        settings = state.settings
        if node.blob:
            start = self._record.ledger.get_blob(node.blob)
        else:
            start = self._numerics.initial(state.base, settings.spec, settings.seed, state.adapters_of(top))
        momentum = self._record.ledger.get_blob(node.momentum) if node.momentum else b""
        previous = self._record.ledger.get_blob(node.earlier[-1]) if node.earlier and settings.clip else b""
        return Round(
            start,
            settings.replicas,
            settings.outer_lr,
            settings.outer_momentum,
            momentum,
            clip=settings.clip,
            previous=previous,
        )

    def solve(self, reason: str) -> None:
        """Make the next version of the gates."""
        state = self._record.state
        arrays, drift, accuracy = next_gates(state, self._blobs)
        contributors = state.router.contributors or _speakers(state)
        self._record.emit(
            GatesSolved(
                version=state.router.version + 1,
                contributors=contributors,
                drift=drift,
                blob=self._record.put(self._numerics.pack(arrays)),
                reason=reason,
                accuracy=accuracy,
            )
        )


def _speakers(state: Campaign) -> tuple[str, ...]:
    """Workers whose statistics the gates are made of, for a version that no update led to."""
    return tuple(sorted(name for name, worker in state.workers.items() if worker.node is not None and worker.sketch))
