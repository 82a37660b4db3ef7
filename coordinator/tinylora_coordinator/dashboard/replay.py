"""A recorded run, played again at any speed: for visitors, pictures and tests.

    Pace      where the run's clock is, when the wall's is there: pure
    Player    tells a projection what is due by then, from one thread
    Stage     the views that the app asks: of whatever turn is being played
    Recorded  what a recording has no answer for: orders, files, gates, a way to join

Nothing of the run is here but its events and what workers said of themselves; so nothing can be changed by a reader,
and the page is the same as on the day.
"""

import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinylora.errors import DataError, RefusedError, SettingError, TinyLoraError
from tinylora.federation.events import Event, RunFinished, RunPaused, RunResumed, RunStarted, TopologySet
from tinylora.protocol.consent import CODE, NEVER_SENT, SENT
from tinylora.protocol.report import WorkerReport
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.recording import Happened, Item, Recording, Told
from tinylora_coordinator.dashboard.services import Services, Who
from tinylora_coordinator.dashboard.source import Views
from tinylora_coordinator.durations import parse_duration

EXAMPLE = Path(__file__).parent / "example.jsonl.gz"
"""A demo run with eight workers, of which some leave and one holds still."""
REST_S = 5.0
"""Of the wall's clock, between the end and the next beginning."""
TICK_S = 0.2
"""Of the wall's clock: what falls into one is told at once."""
LOOK_S = 1.0
"""Of the wall's clock: so often the run's is set, where nothing happens."""
MOST_LINES = 2000
"""That are told in one step, so that whoever wants to stop is heard soon."""


class Projection(Views, Protocol):
    """Views that are fed; see `dashboard.views`."""

    def take(self, rows: Sequence[tuple[int, float, Event]], chain: str = "") -> None:
        """Take further events in."""
        ...

    def hear(self, worker: str, report: WorkerReport, at_s: float) -> None:
        """Take in what a worker says of itself."""
        ...

    def set_phase(self, phase: doc.Phase) -> None:
        """What the run is doing."""
        ...

    def set_clock(self, clock_s: float, speed: float | None = None) -> None:
        """Now, on the run's clock, and how fast that is played."""
        ...

    def close(self) -> None:
        """Nobody asks any more."""
        ...


MakeProjection = Callable[[str, Callable[[], float]], Projection]
"""Given the run's name and a clock in seconds."""


# --- time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """One turn through a recording: where the run's clock is, and when it will be where."""

    begun_s: float
    """On the wall's clock."""
    from_s: float
    """On the run's."""
    speed: float
    """Seconds of the run in one of the wall; 0 holds still."""
    end_s: float
    """On the run's clock, which stands still from there on."""

    def clock_s(self, wall_s: float) -> float:
        """The run's clock."""
        return min(self.end_s, self.from_s + self.speed * max(0.0, wall_s - self.begun_s))

    def wall_s(self, clock_s: float) -> float:
        """When the run's clock comes to a moment; infinity for never."""
        if clock_s <= self.from_s:
            return self.begun_s
        return self.begun_s + (clock_s - self.from_s) / self.speed if self.speed > 0 else math.inf


def parse_moment(text: str, end_s: float) -> float:
    """Seconds in `90s`, `1h30m`, or `end`.

    Raises:
        SettingError: It is none of these.
    """
    if text == "end":
        return end_s
    if re.fullmatch(r"0[smhdw]?", text):
        return 0.0
    parts = re.findall(r"[\d.]+[a-z]", text)
    if not parts or "".join(parts) != text:
        raise SettingError(f"{text!r}: expected a moment of the run, such as 90s, 1h30m or end")
    return sum(parse_duration(part) for part in parts)


# --- what the app asks ----------------------------------------------------------------------------------------------


class Stage:
    """The views of the turn that is being played; those who follow stay when the next one begins.

    Each turn is a projection of its own, and a position of one is unknown to the next: whoever follows asks for the
    state again.
    """

    def __init__(self, first: Projection) -> None:
        self._views = first
        self._followers: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._unfollow = first.subscribe(self._wake)

    def show(self, views: Projection) -> None:
        """Ask these from now on."""
        self._unfollow()
        self._views = views
        self._unfollow = views.subscribe(self._wake)
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            followers = list(self._followers.values())
        for wake in followers:
            wake()

    @property
    def position(self) -> str:
        """Of the present turn."""
        return self._views.position

    def state(self) -> doc.State:
        """Everything that the overview shows."""
        return self._views.state()

    def patch(self, since: str) -> doc.Patch | None:
        """All that changed since a position of this turn."""
        return self._views.patch(since)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever the position is another one."""
        number = next(self._numbers)
        with self._lock:
            self._followers[number] = wake

        def end() -> None:
            with self._lock:
                self._followers.pop(number, None)

        return end

    def node(self, path: str) -> doc.NodeDetail | None:
        """One node."""
        return self._views.node(path)

    def worker(self, worker: str) -> doc.WorkerDetail | None:
        """One worker."""
        return self._views.worker(worker)

    def series(self, metric: doc.Metric, node: str | None, start_s: float, end_s: float, points: int) -> doc.Series:
        """One number over time."""
        return self._views.series(metric, node, start_s, end_s, points)

    def timeline(self, start_s: float, end_s: float, offset: int, limit: int) -> doc.Timeline:
        """Who was at which node when."""
        return self._views.timeline(start_s, end_s, offset, limit)

    def routing(self) -> doc.Routing:
        """Where the text goes."""
        return self._views.routing()


class NoLookUp:
    """Gates are blobs, and a recording holds none."""

    def why_not(self) -> str:
        """Why it cannot."""
        return "this is a recording: the gates themselves are not in it"

    def __call__(self, text: str) -> doc.Lookup:
        """Nothing can be looked up.

        Raises:
            DataError: Always.
        """
        raise DataError(self.why_not())


class NoArtifacts:
    """Adapters and bundles are no part of a recording."""

    def list(self, can_make: bool) -> doc.Artifacts:
        """None."""
        return doc.Artifacts(bundles=(), leaves=())

    def make(self) -> None:
        """Nothing can be made.

        Raises:
            RefusedError: Always.
        """
        raise RefusedError("this is a recording: what was trained is not in it")

    def bundle(self, sha256: str) -> Path | None:
        """None."""
        return None

    def leaf(self, path: str) -> Path | None:
        """None."""
        return None


class Everybody:
    """Whoever reaches a recording may look at it; nobody is its operator."""

    cookie_name = "tinylora-replay"
    needs_token = False

    def who(self, headers: Mapping[str, str], is_local: bool) -> Who:
        """A viewer."""
        return Who("viewer")

    def sign_in(self, token: str) -> tuple[str, str, int, Who] | None:
        """No token is of a recording."""
        return None


def services_of(stage: Views, start: RunStarted) -> Services:
    """What the app asks of a recorded run."""

    def join(address: str) -> doc.JoinInfo:
        return doc.JoinInfo(
            run=start.run,
            address="",
            command="",
            base_id=start.base.base_id,
            min_sequences=start.settings.min_sequences,
            sent=SENT,
            never_sent=NEVER_SENT,
            code=CODE,
            is_open=False,
        )

    return Services(stage, NoLookUp(), NoArtifacts(), None, join, Everybody(), is_replay=True)


# --- playing --------------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a recording, one after the other, with a look at the next."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self.next = next(items, None)

    def until(self, clock_s: float, at_most: int) -> list[Item]:
        """Those up to a moment, and so many at most."""
        found: list[Item] = []
        while self.next is not None and self.next.at_s <= clock_s and len(found) < at_most:
            found.append(self.next)
            self.next = next(self._items, None)
        return found


class Player:
    """Tells a projection what happened, when it is due. One thread calls `step`; everything else is for any thread.

    Args:
        recording: What.
        make: Makes an empty projection; one for each turn.
        speed: Seconds of the run in one of the wall; 0 holds still at `from_s`.
        from_s: Of the run: what happened until then is told at once.
        is_loop: Whether it begins anew, from `from_s`, when it is through.
        clock: The wall's, seconds.
    """

    def __init__(
        self,
        recording: Recording,
        make: MakeProjection,
        *,
        speed: float,
        from_s: float = 0.0,
        is_loop: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recording, self._make, self._clock = recording, make, clock
        self._speed, self._from_s, self._is_loop = speed, min(from_s, recording.end_s), is_loop
        self.start = _first(recording)
        self._begin()
        self.stage = Stage(self._views)
        self._old: Projection | None = None
        self.error: TinyLoraError | None = None
        """Why nothing more is told, where that is not the end."""

    _phase: doc.Phase

    def _begin(self) -> None:
        """A turn: an empty projection, on a clock of its own."""
        pace = Pace(self._clock(), self._from_s, self._speed, self._recording.end_s)
        self._pace = pace
        self._views = self._make(self._recording.run, lambda: pace.clock_s(self._clock()))
        self._lines = _Lines(self._recording.items())
        self._has_tree, self._phase = False, "waiting"
        self._views.set_phase(self._phase)
        self._views.set_clock(self._from_s, self._speed)

    def step(self) -> float:
        """Tell what is due; returns the seconds of the wall's clock until more is. 0: at once; infinity: never.

        Raises:
            DataError: The file was changed meanwhile.
            StorageError: It cannot be read any more.
        """
        wall_s = self._clock()
        clock_s = self._pace.clock_s(wall_s)
        self._tell(self._lines.until(clock_s, MOST_LINES))
        self._views.set_clock(clock_s)
        if self._lines.next is not None:
            is_behind = self._lines.next.at_s <= clock_s
            return 0.0 if is_behind else self._rest(self._lines.next.at_s, wall_s)
        return self._at_the_end(wall_s)

    def _rest(self, clock_s: float, wall_s: float) -> float:
        until_s = self._pace.wall_s(clock_s) - wall_s
        return until_s if math.isinf(until_s) else min(LOOK_S, max(TICK_S, until_s))

    def _at_the_end(self, wall_s: float) -> float:
        if not self._is_loop or self._speed == 0:
            return math.inf
        ended_s = self._pace.wall_s(self._recording.end_s)
        if wall_s < ended_s + REST_S:
            return ended_s + REST_S - wall_s
        if self._old is not None:
            self._old.close()
        self._old = self._views  # somebody may be reading it at this very moment
        self._begin()
        self.stage.show(self._views)
        return 0.0

    def _tell(self, items: Sequence[Item]) -> None:
        for is_event, together in itertools.groupby(items, key=lambda item: isinstance(item, Happened)):
            if not is_event:
                for item in together:
                    if isinstance(item, Told):
                        self._views.hear(item.worker, item.report, item.at_s)
                continue
            rows = [(item.number, item.at_s, item.event) for item in together if isinstance(item, Happened)]
            self._views.take(rows)
            for _, _, event in rows:
                self._turn(event)
            self._views.set_phase(self._phase)

    def _turn(self, event: Event) -> None:
        """What the run is doing from this event on."""
        match event:
            case TopologySet():
                self._has_tree = True
                self._phase = "running" if self._phase == "waiting" else self._phase
            case RunPaused():
                self._phase = "paused"
            case RunResumed():
                self._phase = "running" if self._has_tree else "waiting"
            case RunFinished():
                self._phase = "finished"

    def run(self, stop: threading.Event) -> None:
        """Play until it is over, or somebody wants to stop; `error` tells what went wrong."""
        try:
            while not stop.is_set():
                wait_s = self.step()
                if math.isinf(wait_s):
                    return
                stop.wait(wait_s)
        except TinyLoraError as error:
            self.error = error

    def close(self) -> None:
        """Nobody asks any more."""
        for views in (self._views, self._old):
            if views is not None:
                views.close()


def _first(recording: Recording) -> RunStarted:
    """Its first event, which reading has seen to be this."""
    for item in recording.items():
        if isinstance(item, Happened) and isinstance(item.event, RunStarted):
            return item.event
    raise DataError(f"{recording.file}: was changed meanwhile")
