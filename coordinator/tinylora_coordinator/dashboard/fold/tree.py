"""The tree: which leaves it has, what moves on as one, and the gates."""

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace

from tinylora.federation.events import (
    Event,
    GatesSolved,
    LeafSplit,
    LeavesMerged,
    SplitKept,
    SubtreeDivided,
    TopologySet,
)
from tinylora.protocol.plain import plain
from tinylora.tree import NodePath, Topology, ancestors, by_level, is_under
from tinylora_coordinator.dashboard.documents import RouterRow, VersionRow
from tinylora_coordinator.dashboard.fold import sums
from tinylora_coordinator.dashboard.fold.board import Board
from tinylora_coordinator.dashboard.records import Part, Point, Trial, Version


def follow(board: Board, number: int, at_s: float, event: Event) -> None:
    """Take in an event about the shape of the tree, or about its gates."""
    match event:
        case TopologySet():
            _set(board, number, at_s, event)
        case GatesSolved():
            _solved(board, number, at_s, event)
        case LeafSplit() | LeavesMerged() | SubtreeDivided():
            _reshaped(board, number, at_s, event)
        case SplitKept():
            board.trials.pop(event.node, None)
            board.changes.are_trials_new = True
        case _:
            pass


def _set(board: Board, number: int, at_s: float, event: TopologySet) -> None:
    tops = set(event.assignment.values())
    trunk = {above for top in tops for above in ancestors(top)} if board.head.is_path else set()
    board.changes.parts |= board.parts.keys() | tops | trunk
    board.parts = {top: Part() for top in by_level(tops | trunk)}
    board.shape(event.version, event.leaves)
    for name in {*board.workers, *event.assignment}:
        board.hold(board.changing(name), event.assignment.get(name))
    board.add_lanes(tops)
    board.mark(number, at_s, "topology", f"the tree is set: {len(event.leaves)} leaves")
    sums.reckon_mass(board, at_s)


def _reshaped(board: Board, number: int, at_s: float, event: LeafSplit | LeavesMerged | SubtreeDivided) -> None:
    """The parts below a node are others; as `campaign._moved`."""
    board.changes.are_trials_new = True
    below = {top: part for top, part in board.parts.items() if is_under(top, event.node)}
    parts = _new_parts(board, event, below)
    board.changes.parts |= below.keys() | parts.keys()
    kept = {top: part for top, part in board.parts.items() if top not in below}
    board.parts = {top: {**kept, **parts}[top] for top in by_level({*kept, *parts})}
    board.shape(event.version, event.leaves)
    for name, node in event.assignment.items():
        board.hold(board.changing(name), node)
    board.add_lanes(parts)
    if isinstance(event, LeavesMerged):
        part = parts[event.node]
        row = VersionRow(version=part.version, at_s=at_s, n_steps=part.steps, contributors=())
        board.changes.versions.append((number, event.node, row))
    what = {"leaf_split": "split", "leaves_merged": "merged", "subtree_divided": "divided"}[event.type]
    board.mark(number, at_s, "topology", f"{event.node or 'root'} {what}")
    sums.reckon_mass(board, at_s)


def _new_parts(
    board: Board, event: LeafSplit | LeavesMerged | SubtreeDivided, below: dict[NodePath, Part]
) -> dict[NodePath, Part]:
    match event:
        case LeafSplit():
            before = board.parts[event.node]
            board.trials[event.node] = Trial(deepcopy(before))
            child = replace(before, version=before.version + 1, blob=event.blob, before=_nothing_before([before]))
            return {top: _fresh(child) for top in sorted(set(event.assignment.values()))}
        case SubtreeDivided():
            before = board.parts[event.node]
            leaf = replace(before, version=before.version + 1)
            return {top: _fresh(leaf) for top in Topology(event.leaves).leaves_below(event.node)}
        case LeavesMerged():
            return {event.node: _merged(board, event, below)}


def _merged(board: Board, event: LeavesMerged, below: dict[NodePath, Part]) -> Part:
    trial = board.trials.pop(event.node, None)
    was = trial.before if trial is not None and trial.before.blob == event.blob else None
    parts = list(below.values())
    firsts = [part.first_loss for part in parts]
    return Part(
        event.node_version,
        event.blob,
        event.n_steps,
        loss=was.loss if was else sums.mean([part.loss for part in parts]),
        is_heldout=was.is_heldout if was else all(part.is_heldout for part in parts),
        first_loss=was.first_loss if was else sums.mean(firsts),
        before=dict(was.before) if was else _nothing_before(parts),
    )


def _solved(board: Board, number: int, at_s: float, event: GatesSolved) -> None:
    head = board.head
    head.router_version, head.drift, head.accuracy = event.version, event.drift, dict(event.accuracy)
    board.changes.nodes.update(board.inner)
    board.changes.is_tree_new = True
    board.age_mass()
    row = RouterRow(
        version=event.version,
        at_s=at_s,
        drift=event.drift,
        n_contributors=len(event.contributors),
        reason=plain(event.reason, at_most=200),
        entropy_bits=None,
    )
    board.changes.routers.append(row)
    board.changes.points.append(Point("drift", None, at_s, event.drift))
    board.mark(number, at_s, "router", f"routers version {event.version}")


def _fresh(part: Part) -> Part:
    """A part that begins like another."""
    return replace(part, waiting=[], before=dict(part.before))


def _nothing_before(parts: Collection[Part]) -> dict[str, Version]:
    """Where a part takes on another shape, no version of the new one is without those who made the old one."""
    return {worker: Version() for part in parts for worker in sorted(part.before)}
