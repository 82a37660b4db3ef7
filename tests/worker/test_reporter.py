"""Reports on their way: at once when something changes, now and then at work, never in the way of anything."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinylora_worker.agent.board import Board
from tinylora_worker.agent.desk import Orders, UnitOrder
from tinylora_worker.agent.journal import Journal
from tinylora_worker.agent.outward import Discretion
from tinylora_worker.agent.reporter import Reporter, SharedLog

from tests.flower.helpers import until
from tinylora.flower.reporting import Answer
from tinylora.protocol.report import WorkerReport
from tinylora.protocol.standstill import Reason, WorkerState

STARTING, WORKING, PAUSED, LEAVING = (
    Orders(UnitOrder.NONE, False, False, False, state, reason)
    for state, reason in (
        (WorkerState.STARTING, None),
        (WorkerState.WORKING, None),
        (WorkerState.PAUSED, Reason.BATTERY),
        (WorkerState.LEAVING, None),
    )
)
HEARD = Answer(True)


@dataclass
class Ears:
    """In place of the coordinator; says what it is told to say."""

    answer: Answer = HEARD
    heard: list[WorkerReport] = field(default_factory=list)
    is_closed: bool = False
    hold: threading.Event = field(default_factory=threading.Event)

    def send(self, report: WorkerReport, *, timeout_s: float = 0.0) -> Answer:
        self.heard.append(report)
        return self.answer

    def close(self) -> None:
        self.is_closed = True

    @property
    def states(self) -> list[str]:
        return [report.state for report in self.heard]


@dataclass
class Scene:
    """A reporter at work."""

    ears: Ears
    board: Board
    journal: Journal
    noted: list[str]
    is_shared: bool = False
    may_talk: bool = True


@contextmanager
def reporting(tmp_path: Path, answer: Answer = HEARD, **pace: float) -> Iterator[Scene]:
    journal = Journal(tmp_path, show=lambda line: None)
    scene = Scene(Ears(answer), Board(STARTING), journal, [])

    def make(log: tuple[str, ...]) -> WorkerReport | None:
        orders = scene.board.orders
        made = WorkerReport(state=orders.state, reason=orders.reason or "", log=log)
        return made if scene.may_talk else None

    how: dict[str, Any] = {"working_s": 1e6, "resting_s": 1e6, "least_s": 0.01, "jitter": lambda: 0.5} | pace
    log = SharedLog(journal, Discretion(), lambda: scene.is_shared)
    with Reporter(scene.ears, scene.board, make, log, note=scene.noted.append, **how):
        until(lambda: bool(scene.ears.heard), what="the first report")
        yield scene
    journal.close()


def test_each_change_is_told_at_once_and_the_end_is_leaving(tmp_path: Path) -> None:
    with reporting(tmp_path) as scene:
        for orders in (WORKING, PAUSED, WORKING):
            n_before = len(scene.ears.heard)
            scene.board.post(orders)
            until(lambda before=n_before: len(scene.ears.heard) > before, what=f"a report of {orders.state}")
        for _ in range(100):
            scene.board.touch()  # nothing that others are told
    assert scene.ears.states == ["starting", "working", "paused", "working", "leaving"]
    assert scene.ears.is_closed


def test_who_has_said_that_he_leaves_does_not_say_it_twice(tmp_path: Path) -> None:
    with reporting(tmp_path) as scene:
        scene.board.post(LEAVING)
        until(lambda: scene.ears.states[-1] == "leaving", what="leaving")
    assert scene.ears.states == ["starting", "leaving"]


def test_at_work_it_goes_on_telling(tmp_path: Path) -> None:
    with reporting(tmp_path, working_s=0.03) as scene:
        scene.board.post(WORKING)
        until(lambda: scene.ears.states.count("working") >= 4, what="four reports of work")


def test_one_who_does_not_listen_is_not_talked_at_and_gets_no_goodbye(tmp_path: Path) -> None:
    with reporting(tmp_path, Answer(False, rest_s=1e6, why="this coordinator takes no reports")) as scene:
        scene.board.post(WORKING)
        until(lambda: bool(scene.noted), what="a line about it")
    assert scene.ears.states == ["starting"]
    assert scene.noted == ["a report was not heard: this coordinator takes no reports"]


def test_what_was_lost_is_said_again_with_its_lines(tmp_path: Path) -> None:
    with reporting(tmp_path) as scene:
        scene.is_shared, scene.ears.answer = True, Answer(False, is_lost=True, why="away")
        scene.journal.say("one line")
        scene.board.post(WORKING)
        until(lambda: scene.ears.states.count("working") >= 2, what="a second try")
        scene.ears.answer = HEARD
        n_before = len(scene.ears.heard)
        until(lambda: len(scene.ears.heard) > n_before, what="a third try")
        scene.journal.say("another line")
        scene.board.post(PAUSED)
        until(lambda: scene.ears.states[-1] == "paused", what="paused")
    lines = [report.log for report in scene.ears.heard if report.state != "leaving"]
    assert lines[0] == () and set(lines[1:-1]) == {("one line",)} and lines[-1] == ("another line",)
    assert scene.noted.count("a report was not heard: away") == 1


def test_what_was_said_before_sharing_is_never_told(tmp_path: Path) -> None:
    with reporting(tmp_path) as scene:
        scene.journal.say("private")
        scene.board.post(WORKING)
        until(lambda: scene.ears.states[-1] == "working", what="working")
        scene.is_shared = True
        scene.journal.say("public")
        scene.board.post(PAUSED)
        until(lambda: scene.ears.states[-1] == "paused", what="paused")
    assert [line for report in scene.ears.heard for line in report.log] == ["public"]


def test_at_the_traffic_cap_nothing_is_said_not_even_goodbye(tmp_path: Path) -> None:
    with reporting(tmp_path) as scene:
        scene.may_talk = False
        scene.board.post(PAUSED)
    assert scene.ears.states == ["starting"]
