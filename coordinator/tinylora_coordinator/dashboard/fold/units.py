"""Leases: given out, given back, expired, refused."""

from dataclasses import replace

from tinylora.federation.events import (
    Event,
    LeaseExpired,
    UnitLeased,
    UpdateRejected,
)
from tinylora.federation.standing import BENIGN_CODES, FINAL_CODES
from tinylora_coordinator.dashboard.fold.board import Board
from tinylora_coordinator.dashboard.records import Unit, UnitChange, Worker


def follow(board: Board, number: int, at_s: float, event: Event) -> None:
    """Take in an event about a lease."""
    match event:
        case UnitLeased():
            _leased(board, number, event)
        case LeaseExpired():
            _expired(board, event)
        case UpdateRejected():
            _rejected(board, event)
        case _:
            pass


def _leased(board: Board, number: int, event: UnitLeased) -> None:
    worker = board.changing(event.worker)
    trains = event.kind == "train"
    unit = Unit(
        event.unit_id,
        event.worker,
        event.kind,
        event.node,
        (event.nodes or board.leaves_below(event.node)) if trains else (),
        event.at_s,
        event.deadline_s,
        event.n_steps,
        event.subject,
    )
    board.units[unit.unit_id] = unit
    board.note_unit(unit)
    board.touch_unit(unit)
    board.changes.leased.append((number, replace(unit)))
    worker.unit_id, worker.is_current = unit.unit_id, False
    worker.bytes_sent += event.bytes_sent
    board.head.bytes_sent += event.bytes_sent
    board.touch_held(worker)
    board.amount("bytes_per_s", event.at_s, event.at_s, event.bytes_sent)
    if trains:
        board.add_lanes((event.node,))
        if board.head.training_s is None:
            board.head.training_s = event.at_s
            board.head.pace = [(event.at_s, 0.0)]


def close(board: Board, unit_id: str) -> Unit | None:
    """A unit is no longer open; its worker is free."""
    unit = board.units.pop(unit_id, None)
    if unit is None:
        return None
    for node in unit.trained:
        board.units_on[node].discard(unit_id)
    board.touch_unit(unit)
    worker = board.workers.get(unit.worker)
    if worker is not None and worker.unit_id == unit_id:
        _free(board, worker)
    return unit


def _free(board: Board, worker: Worker) -> None:
    """It is at nothing any more; that it worked, as it said, is out of date."""
    worker.unit_id = ""
    if worker.report is not None and worker.report.state == "working":
        worker.is_current = False
    board.touch_held(worker)


def release(board: Board, unit_id: str, reason: str, at_s: float) -> None:
    """Close a lease without an update."""
    unit = board.units.get(unit_id)
    if unit is None or unit.is_pending:
        return
    close(board, unit_id)
    board.changes.closed.append(UnitChange(unit_id, "expired", at_s, reason, only_from=("leased",)))
    ended(board, unit, at_s, "expired")


def ended(board: Board, unit: Unit, at_s: float, outcome: str) -> None:
    """Note that a unit is over, of those that train."""
    if unit.kind == "train":
        board.changes.ended.append((unit, at_s, outcome))
        board.head.longest_s = max(board.head.longest_s, at_s - unit.leased_s)


def _expired(board: Board, event: LeaseExpired) -> None:
    unit = board.units.get(event.unit_id)
    if unit is None or unit.is_pending:
        return
    if not event.is_returned:
        board.head.n_expired += 1
        board.changing(unit.worker).n_expired += 1
    release(board, event.unit_id, event.reason, event.at_s)


def _rejected(board: Board, event: UpdateRejected) -> None:
    board.head.n_rejected += 1
    if event.worker not in board.workers or not event.is_proven:
        return
    worker = board.changing(event.worker)
    worker.n_rejected += 1
    unit = board.units.get(event.unit_id)
    is_benign = event.code in BENIGN_CODES
    change = UnitChange(event.unit_id, "rejected", event.at_s, event.reason, worker=event.worker)
    change.only_from = ("expired",) if is_benign else ("leased", "expired")
    board.changes.closed.append(change)
    if is_benign:
        return
    if unit is not None and worker.unit_id == event.unit_id:
        close(board, event.unit_id)
        ended(board, unit, event.at_s, "rejected")
    if event.code == "declined" and unit is not None and unit.kind == "probe":
        return
    if event.code in FINAL_CODES and not worker.out:
        worker.out, worker.out_reason = event.code, event.reason
        board.count_again()
        board.touch_held(worker)


def close_probes(board: Board, subject: str, at_s: float) -> None:
    """Nobody is asked any more to score this update."""
    asked = [unit for unit in board.units.values() if unit.kind == "probe" and unit.subject == subject]
    for unit in asked:
        release(board, unit.unit_id, "its answer is not needed any more", at_s)


def drop(board: Board, unit: Unit, reason: str, at_s: float) -> None:
    """Close a lease, or drop an update that waits for its probes."""
    if not unit.is_pending:
        release(board, unit.unit_id, reason, at_s)
        return
    close(board, unit.unit_id)
    board.changes.closed.append(UnitChange(unit.unit_id, "dropped", reason=reason, only_from=("pending",)))
    close_probes(board, unit.unit_id, at_s)
