"""The state as bytes, made once for all who ask; and so with what is made of it and costs as much."""

import gzip
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.responses import Response

from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.answers import (
    ALWAYS_ASK,
    GZIP_LEVEL,
    has_it,
    json_answer,
    not_modified,
    takes_gzip,
    to_json,
    zipped_tag,
)
from tinylora_coordinator.dashboard.source import Views

T = TypeVar("T")

_KEEP_S = 5.0
"""The run's clock in it goes on, even where nothing happens."""
_REST = 9.0
"""Times as long as it took to make one, the next is not made: a tenth of a core is the most that this takes."""


@dataclass(frozen=True)
class Snapshot:
    """The state at one moment."""

    state: doc.State
    body: bytes
    zipped: bytes
    tag: str

    def answer(self, headers: Mapping[str, str]) -> Response:
        """To a request with these headers."""
        is_zipped = takes_gzip(headers)
        tag = zipped_tag(self.tag) if is_zipped else self.tag
        if has_it(headers, self.tag, zipped_tag(self.tag)):
            return not_modified(tag)
        more = {"content-encoding": "gzip"} if is_zipped else {}
        body = self.zipped if is_zipped else self.body
        return json_answer(
            body, headers={"etag": tag, "cache-control": ALWAYS_ASK, "vary": "accept-encoding", **more}
        )  # fmt: skip


class Snapshots:
    """The latest snapshot; may be asked from any thread.

    Args:
        views: Of the run.
        clock: Seconds.
    """

    def __init__(self, views: Views, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._views, self._clock = views, clock
        self._lock = threading.Lock()
        self._latest: tuple[Snapshot, float, float] | None = None

    def fresh(self) -> Snapshot | None:
        """The snapshot there is, if it still holds; at once."""
        if self._latest is None:
            return None
        snapshot, made_s, cost_s = self._latest
        age_s = self._clock() - made_s
        if age_s < _REST * cost_s or (age_s < _KEEP_S and snapshot.state.position == self._views.position):
            return snapshot
        return None

    def take(self) -> Snapshot:
        """A snapshot that holds; some milliseconds where a new one has to be made."""
        with self._lock:
            if found := self.fresh():
                return found
            begun_s = self._clock()
            snapshot = _make(self._views.state())
            done_s = self._clock()
            self._latest = snapshot, done_s, done_s - begun_s
            return snapshot


class Rested(Generic[T]):
    """What costs time to make: not made anew before nine times as long has passed, per way of asking for it.

    Args:
        make: Makes it, given the way of asking.
        clock: Seconds.
    """

    _N_WAYS = 8

    def __init__(self, make: Callable[[str], T], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._make, self._clock = make, clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[T, float]] = {}

    def take(self, way: str) -> T:
        """It, of late; from any thread."""
        with self._lock:
            begun_s = self._clock()
            if way in self._kept and begun_s < self._kept[way][1]:
                return self._kept[way][0]
            made = self._make(way)
            done_s = self._clock()
            self._kept.pop(way, None)
            self._kept[way] = made, done_s + _REST * (done_s - begun_s)
            while len(self._kept) > self._N_WAYS:
                self._kept.pop(next(iter(self._kept)))
            return made


def _make(state: doc.State) -> Snapshot:
    body = to_json(state)
    # A position has many states, which differ in the clock alone.
    name = f"{state.position}.{round(1000 * state.run.clock_s)}"
    return Snapshot(state, body, gzip.compress(body, GZIP_LEVEL, mtime=0), f'"{name}"')
