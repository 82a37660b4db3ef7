"""Sums over the tree: where the text goes, how far the run is, and at which loss."""

from collections.abc import Iterable

from tinylora.tree import NodePath, is_under
from tinylora_coordinator.dashboard.documents import MassSource
from tinylora_coordinator.dashboard.fold.board import Board
from tinylora_coordinator.dashboard.records import MAX_PACE, Point
from tinylora_coordinator.dashboard.shares import entropy_bits, measured_shares, text_shares, with_inner

MASS_REST_S = 2.0
"""Shares of text are reckoned anew no more often, by the run's clock: every probe would change them all a little."""
_FINE = 10**12


def reckon_mass(board: Board, at_s: float) -> None:
    """Shares of text by what is known now."""
    head = board.head
    head.mass_s, head.is_mass_old = at_s, False
    head.mass_source, leaves = present_shares(board)
    before, board.mass = board.mass, {node: round(share, 6) for node, share in with_inner(leaves).items()}
    head.entropy_bits = entropy_bits(leaves.values()) if leaves else None
    board.changes.is_mass_new = True
    board.changes.nodes |= {node for node in (*board.leaves, *board.inner) if before.get(node) != board.mass.get(node)}
    if head.entropy_bits is not None:
        board.changes.points.append(Point("entropy", None, at_s, head.entropy_bits))
        if head.mass_source == "probes":
            board.changes.entropies.append((head.router_version, round(head.entropy_bits, 6)))
    rest_s = max(MASS_REST_S, len(board.leaves) / 16)
    if leaves and (head.mass_recorded_s is None or at_s >= head.mass_recorded_s + rest_s):
        head.mass_recorded_s = at_s
        board.changes.points += [Point("mass", node, at_s, share) for node, share in board.mass.items()]
    reckon_whole(board, at_s)


def present_shares(board: Board) -> tuple[MassSource, dict[NodePath, float]]:
    """Where the shares of the leaves are from, and the shares.

    Each worker's latest probe in the present tree counts, though the gates may have moved a little since: by the
    present ones alone, a single worker's text would stand for all after each new version.
    """
    told = [
        (max(1, board.workers[name].shard_tokens), measured.mass)
        for name, measured in sorted(board.measured.items())
        if measured.topology_version == board.head.topology_version and measured.mass
    ]
    if (shares := measured_shares(board.leaves, told)) is not None:
        return "probes", shares
    holders = (worker for _, worker in sorted(board.workers.items()) if not worker.out)
    if (shares := text_shares(board.leaves, holders)) is not None:
        return "tokens", shares
    return "none", {}


def reckon_whole(board: Board, at_s: float, tops: Iterable[NodePath] | None = None) -> None:
    """Progress and loss over all leaves.

    Args:
        board: To change.
        at_s: Now.
        tops: Parts that have changed; all where none are named.
    """
    head = board.head
    if not board.leaves:
        return
    reckon_parts(board, tops)
    done, weight, lost = board.part_sums
    head.progress = round(done / (head.leaf_steps * len(board.leaves)), 9) if head.leaf_steps else 0.0
    head.loss = round(lost / weight, 9) if weight else None
    if head.training_s is not None and head.progress != head.pace[-1][1]:
        head.pace.append((at_s, head.progress))
        if len(head.pace) > MAX_PACE:
            head.pace = [head.pace[0], *head.pace[2::2]]


def reckon_parts(board: Board, tops: Iterable[NodePath] | None) -> None:
    """What each part adds to progress and loss: held-out loss by mass where that is known, by leaves otherwise.

    In whole numbers, whose sums do not depend on their order and can be brought up to date part by part.
    """
    if tops is None:
        board.part_shares, board.part_sums = {}, (0, 0, 0)
    for top in board.parts if tops is None else _parts_below(board, tops):
        if board.is_trunk(top):
            continue
        before, after = board.part_shares.get(top, (0, 0, 0)), _share(board, top)
        board.part_shares[top] = after
        done, weight, lost = board.part_sums
        board.part_sums = done + after[0] - before[0], weight + after[1] - before[1], lost + after[2] - before[2]


def _share(board: Board, top: NodePath) -> tuple[int, int, int]:
    """Steps done over all leaves of a part; its weight, and its loss times that."""
    part, leaves = board.parts[top], board.leaves_below(top)
    done = board.leaf_steps(leaves[0]) * len(leaves) if leaves else 0
    if not part.is_heldout or part.loss is None:
        return done, 0, 0
    weight = board.mass.get(top, 0.0) if board.mass else len(leaves) / len(board.leaves)
    return done, round(weight * _FINE), round(weight * part.loss * _FINE)


def _parts_below(board: Board, tops: Iterable[NodePath]) -> list[NodePath]:
    if not board.trunk:
        return [top for top in tops if top in board.parts]
    return [top for top in board.parts if any(is_under(top, one) for one in tops)]


def sample(board: Board, at_s: float) -> None:
    """What goes on without steps has a value at every event."""
    board.changes.points.append(Point("workers", None, at_s, float(board.n_online)))
    board.changes.points.append(Point("progress", None, at_s, board.head.progress))
    if board.head.loss is not None:
        board.changes.points.append(Point("loss", None, at_s, board.head.loss))


def mean(numbers: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else None
