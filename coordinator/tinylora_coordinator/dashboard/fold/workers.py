"""Workers: who is there, who says what, who holds which node."""

from tinylora.federation.events import (
    Event,
    WorkerAssigned,
    WorkerJoined,
    WorkerLost,
    WorkerReturned,
)
from tinylora.protocol.plain import plain
from tinylora.protocol.report import WorkerReport
from tinylora_coordinator.dashboard.documents import LogLine
from tinylora_coordinator.dashboard.doing import has_said_goodbye
from tinylora_coordinator.dashboard.fold import units
from tinylora_coordinator.dashboard.fold.board import MAX_NAME, Board
from tinylora_coordinator.dashboard.records import Roster


def follow(board: Board, number: int, at_s: float, event: Event) -> None:
    """Take in an event about who is there."""
    match event:
        case WorkerJoined():
            _joined(board, event)
        case WorkerLost():
            _lost(board, number, event)
        case WorkerReturned():
            _returned(board, number, event)
        case WorkerAssigned():
            board.hold(board.changing(event.worker), event.node)
            board.age_mass()
        case _:
            pass


def _joined(board: Board, event: WorkerJoined) -> None:
    worker = board.changing(event.worker)
    worker.name = plain(event.name, at_most=MAX_NAME)
    worker.is_joined = worker.is_online = worker.is_listed = True
    board.count_again()
    worker.joined_s = event.at_s


def _lost(board: Board, number: int, event: WorkerLost) -> None:
    worker = board.changing(event.worker)
    worker.n_lost += 1
    worker.is_online, worker.is_current = False, has_said_goodbye(worker)
    board.count_again()
    units.release(board, worker.unit_id, "the worker went offline", event.at_s)
    worker.unit_id = ""
    board.touch_held(worker)
    board.mark(number, event.at_s, "lost", f"{board.called(event.worker)} went offline")


def _returned(board: Board, number: int, event: WorkerReturned) -> None:
    worker = board.changing(event.worker)
    worker.is_online, worker.is_current = True, False
    board.count_again()
    board.touch_held(worker)
    board.mark(number, event.at_s, "returned", f"{board.called(event.worker)} is back")


def hear(board: Board, name: str, report: WorkerReport, at_s: float) -> None:
    """See `RunFold.hear`."""
    worker = board.changing(name)
    worker.report = report.model_copy(update={"log": ()})
    board.changes.lines += [(name, LogLine(at_s=at_s, text=line)) for line in report.log]
    worker.heard_s, worker.is_current, worker.is_listed = at_s, True, True
    board.note_states(at_s)


def enrol(board: Board, name: str, called: str, state: Roster, tags: tuple[str, ...], at_s: float) -> None:
    """See `RunFold.enrol`."""
    known = board.workers.get(name)
    if known is not None and (known.roster, known.tags) == (state, tags):
        return
    worker = board.changing(name)
    worker.roster, worker.tags = state, tags
    worker.is_listed |= state == "pending"
    worker.name = worker.name or plain(called, at_most=MAX_NAME)
    board.touch_held(worker)
    board.note_states(at_s)
