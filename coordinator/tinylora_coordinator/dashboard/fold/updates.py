"""Updates: what they brought, whether they are believed, and the rounds that they go into."""

from bisect import insort
from collections.abc import Iterable
from dataclasses import replace

from tinylora.federation.events import (
    Event,
    NodeAveraged,
    UpdateAccepted,
    UpdateProbed,
)
from tinylora.tree import NodePath, by_level
from tinylora_coordinator.dashboard.documents import VersionRow
from tinylora_coordinator.dashboard.fold import sums, units
from tinylora_coordinator.dashboard.fold.board import Board
from tinylora_coordinator.dashboard.records import (
    Amount,
    Measured,
    Part,
    Point,
    Told,
    Unit,
    UnitChange,
    Version,
    Worker,
)


def follow(board: Board, number: int, at_s: float, event: Event) -> None:
    """Take in an event about an update."""
    match event:
        case UpdateAccepted():
            _accepted(board, event)
        case UpdateProbed():
            _probed(board, event, at_s)
        case NodeAveraged():
            _averaged(board, number, at_s, event)
        case _:
            pass


def _accepted(board: Board, event: UpdateAccepted) -> None:
    unit = units.close(board, event.unit_id)
    worker = board.changing(event.worker)
    _count(board, worker, event)
    train_loss = event.losses[-1] if event.losses else None
    board.changes.closed.append(_change_of(event, train_loss))
    if event.kind != "train":
        if event.kind == "probe" and event.probe is not None:
            versions = board.head.topology_version, event.router_version
            board.measured[event.worker] = Measured(*versions, dict(event.probe.mass))
            board.changes.measured.add(event.worker)
        board.age_mass()
        return
    trained = event.nodes or board.leaves_below(event.node)
    told = Told(event.worker, event.node, event.heldout_nll_before, event.heldout_nll_after, train_loss)
    if unit is None:  # it had expired
        unit = Unit(event.unit_id, event.worker, "train", event.node, trained, event.at_s, event.at_s, event.n_steps)
    else:
        units.ended(board, unit, event.at_s, "accepted")
    _tell(board, event, train_loss, max(unit.leased_s, event.at_s - event.seconds))
    if not event.is_pending:
        _believed(board, trained, told)
        return
    pending = replace(unit, is_pending=True, told=told, trained=trained)
    board.units[unit.unit_id] = pending
    board.note_unit(pending)
    board.touch_unit(pending)


def _count(board: Board, worker: Worker, event: UpdateAccepted) -> None:
    worker.n_accepted += 1
    worker.tokens += event.tokens
    worker.seconds += event.seconds
    worker.bytes_received += event.bytes_received
    worker.last_accepted_s = event.at_s
    if worker.shard_tokens != event.shard_tokens:
        worker.shard_tokens = event.shard_tokens
        board.age_mass()
    head = board.head
    head.n_accepted += 1
    head.tokens += event.tokens
    head.bytes_received += event.bytes_received
    if event.kind == "train":
        worker.last_trained_s = event.at_s
        worker.speed = event.tokens / event.seconds if event.seconds > 0 else None


def _tell(board: Board, event: UpdateAccepted, train_loss: float | None, start_s: float) -> None:
    """Put the numbers of a train update into the series."""
    board.amount("bytes_per_s", event.at_s, event.at_s, event.bytes_received)
    board.changes.amounts.append(Amount("tokens_per_s", event.node, start_s, event.at_s, event.tokens))
    told = (("loss", event.heldout_nll_after), ("train_loss", train_loss))
    board.changes.points += [Point(name, event.node, event.at_s, value) for name, value in told if value is not None]


def _believed(board: Board, trained: Iterable[NodePath], told: Told) -> None:
    """An update counts from here on: it waits for the rest of its round."""
    tops = {top for node in trained if (top := board.top_of(node)) is not None}
    for top in by_level(tops) if len(tops) > 1 else tops:
        part = board.parts[top]
        insort(part.waiting, told, key=lambda one: (one.worker, one.node))
        board.changes.parts.add(top)


def _probed(board: Board, event: UpdateProbed, at_s: float) -> None:
    unit = board.units.get(event.unit_id)
    state = "accepted" if event.is_kept else "dropped"
    change = UnitChange(event.unit_id, state, reason=event.reason, only_from=("pending",))
    if unit is None or not unit.is_pending:
        return
    board.changes.closed.append(change)
    units.close(board, event.unit_id)
    units.close_probes(board, event.unit_id, at_s)
    if event.is_kept and unit.told is not None:
        _believed(board, unit.trained, unit.told)


def _averaged(board: Board, number: int, at_s: float, event: NodeAveraged) -> None:
    part = board.parts.get(event.node)
    if part is None:
        return
    before = Version(part.version, part.blob, part.steps)
    part.before = {**dict.fromkeys(event.contributors, before), **part.before}
    _take_losses(part)
    part.version, part.blob, part.steps = event.version, event.blob, event.n_steps
    part.waiting = []
    board.touch_part(event.node)
    row = VersionRow.model_construct(
        version=event.version,
        at_s=at_s,
        n_steps=event.n_steps,
        contributors=tuple(event.contributors),
        mismatch=event.mismatch,
    )
    board.changes.versions.append((number, event.node, row))
    sums.reckon_whole(board, at_s, (event.node,))


def _take_losses(part: Part) -> None:
    """The losses that a round told become the part's."""
    held, trained = sums.mean([told.after for told in part.waiting]), sums.mean([told.train for told in part.waiting])
    if part.first_loss is None:
        part.first_loss = sums.mean([told.before for told in part.waiting])
    if held is not None or trained is not None:
        part.loss, part.is_heldout = (held, True) if held is not None else (trained, False)


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
