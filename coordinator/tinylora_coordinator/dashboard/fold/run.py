"""The whole fold: one more event, one more report, one more word of the operator's store."""

from dataclasses import dataclass

from tinylora.federation.events import (
    Event,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
)
from tinylora.protocol.plain import plain
from tinylora.protocol.report import WorkerReport
from tinylora_coordinator.dashboard.documents import FeedItem
from tinylora_coordinator.dashboard.fold import removal, sums, tree, units, updates, workers
from tinylora_coordinator.dashboard.fold.board import Board
from tinylora_coordinator.dashboard.records import Head, Roster
from tinylora_coordinator.dashboard.sentences import sentence


@dataclass
class RunFold(Board):
    """A run after some events; records that were read from a file go in as arguments."""

    def index(self) -> None:
        """Make what is looked up often from the records, after these were read from a file."""
        super().index()
        sums.reckon_parts(self, None)

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
        for follow in _PARTS:
            follow(self, number, at_s, event)
        head = self.head
        head.n_events, head.latest_s = number, max(head.latest_s, at_s)
        if head.is_mass_old and (head.mass_s is None or at_s >= head.mass_s + sums.MASS_REST_S):
            sums.reckon_mass(self, at_s)
        self.note_states(at_s)
        sums.sample(self, at_s)

    def hear(self, name: str, report: WorkerReport, at_s: float) -> None:
        """Take in what a worker says of itself.

        Args:
            name: Of the worker.
            report: Checked by whoever took it in.
            at_s: When, seconds of the run's clock.
        """
        workers.hear(self, name, report, at_s)

    def enrol(self, name: str, called: str, state: Roster, tags: tuple[str, ...], at_s: float) -> None:
        """Take in what the operator's store says of a worker.

        Args:
            name: Of the worker.
            called: What it calls itself.
            state: Whether the operator let it in.
            tags: Of its token.
            at_s: Now.
        """
        workers.enrol(self, name, called, state, tags, at_s)


def _follow(board: Board, number: int, at_s: float, event: Event) -> None:
    """Take in an event about the run as a whole."""
    match event:
        case RunStarted():
            _started(board, event)
        case RunPaused():
            board.head.is_paused = True
            board.mark(number, at_s, "paused", "paused")
        case RunResumed():
            board.head.is_paused = False
            board.mark(number, at_s, "resumed", "resumed")
        case RunFinished():
            _finished(board, number, at_s, event)
        case _:
            pass


def _started(board: Board, event: RunStarted) -> None:
    settings = event.settings
    is_path = settings.where == "path"
    board.head = Head(
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


def _finished(board: Board, number: int, at_s: float, event: RunFinished) -> None:
    board.head.finished = event.reason or "finished"
    board.mark(number, at_s, "finished", f"finished: {event.reason}")
    for name in board.workers:
        board.changing(name)
    board.changes.nodes |= {*board.leaves, *board.inner}
    if board.head.is_mass_old:
        sums.reckon_mass(board, at_s)


_PARTS = (_follow, workers.follow, units.follow, updates.follow, tree.follow, removal.follow)
"""No two of them know the same kind of event, but all are asked: what each does stands in one place."""
