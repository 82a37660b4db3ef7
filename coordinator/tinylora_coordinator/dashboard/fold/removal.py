"""Who is out: what was given to them is closed, and what they brought may be taken back."""

from tinylora.federation.events import (
    Event,
    WorkerErased,
    WorkerQuarantined,
    WorkerRevoked,
)
from tinylora.protocol.plain import plain
from tinylora.tree import are_in_line
from tinylora_coordinator.dashboard.fold import sums, units
from tinylora_coordinator.dashboard.fold.board import Board
from tinylora_coordinator.dashboard.records import Part


def follow(board: Board, number: int, at_s: float, event: Event) -> None:
    """Take in an event about somebody who is out."""
    match event:
        case WorkerQuarantined():
            _taken_out(board, event.worker, "quarantined", event.code, event.reason, event.at_s)
            board.mark(number, at_s, "out", f"{board.called(event.worker)} gets no more units: {event.reason}")
        case WorkerRevoked():
            _taken_out(board, event.worker, "revoked", "revoked", event.reason, event.at_s)
            _without_contributions(board, event.worker, event.at_s)
            board.mark(number, at_s, "out", f"the operator removed {board.called(event.worker)}")
        case WorkerErased():
            board.changing(event.worker).standing = "erased"
        case _:
            pass


def _taken_out(board: Board, name: str, standing: str, code: str, reason: str, at_s: float) -> None:
    """As `federation.removal`: its leases are closed, and what waits of it is dropped."""
    worker = board.changing(name)
    for unit in [unit for unit in board.units.values() if unit.worker == name]:
        units.drop(board, unit, f"the worker was {standing}", at_s)
    worker.standing = standing  # type: ignore[assignment]  (callers name one of the standings)
    worker.out, worker.out_reason = code, plain(reason, at_most=300)
    board.count_again()
    board.hold(worker, None)
    board.measured.pop(name, None)
    board.changes.measured.add(name)
    for top, part in board.parts.items():
        if any(told.worker == name for told in part.waiting):
            part.waiting = [told for told in part.waiting if told.worker != name]
            board.changes.parts.add(top)
    board.age_mass()


def _without_contributions(board: Board, name: str, at_s: float) -> None:
    """Every part that the worker contributed to is again what it was before it did."""
    fallen = [top for top, part in board.parts.items() if name in part.before]
    on_them = [unit for unit in board.units.values() if {board.top_of(node) for node in unit.trained} & set(fallen)]
    for unit in on_them:
        units.drop(board, unit, "what it was trained on is no more", at_s)
    for top in fallen:
        part = board.parts[top]
        last = part.before[name]
        earlier = {other: version for other, version in part.before.items() if version.number < last.number}
        first = part.first_loss if last.steps else None
        board.parts[top] = Part(part.version + 1, last.blob, last.steps, first_loss=first, before=earlier)
        board.touch_part(top)
    board.changes.are_trials_new = True
    board.trials = {
        node: trial
        for node, trial in board.trials.items()
        if name not in trial.before.before and not any(are_in_line(node, top) for top in fallen)
    }
    sums.reckon_whole(board, at_s)
