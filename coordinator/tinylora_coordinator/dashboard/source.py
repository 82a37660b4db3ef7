"""What the API asks of whoever knows a run: one that is being served, or a recorded one that is played again."""

from collections.abc import Callable
from typing import Protocol

from tinylora_coordinator.dashboard.documents import (
    Lookup,
    Metric,
    NodeDetail,
    Patch,
    Routing,
    Series,
    State,
    Timeline,
    WorkerDetail,
)


class Views(Protocol):
    """A run as people see it. Every method may be called from any thread, and answers within milliseconds."""

    @property
    def position(self) -> str:
        """`<epoch>-<sequence>`: grows with everything that is shown, and goes on after a restart."""
        ...

    def state(self) -> State:
        """Everything that the overview shows."""
        ...

    def patch(self, since: str) -> Patch | None:
        """All that changed since a position; None where that is not known any more, or was of another epoch."""
        ...

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake`, from any thread, whenever the position has grown; what is returned ends that."""
        ...

    def node(self, path: str) -> NodeDetail | None:
        """One node; None where the tree has none of that path."""
        ...

    def worker(self, worker: str) -> WorkerDetail | None:
        """One worker; None where nobody knows it."""
        ...

    def series(self, metric: Metric, node: str | None, start_s: float, end_s: float, points: int) -> Series:
        """One number over time, in at most so many buckets."""
        ...

    def timeline(self, start_s: float, end_s: float, offset: int, limit: int) -> Timeline:
        """Who was at which node when."""
        ...

    def routing(self) -> Routing:
        """Where the text goes."""
        ...


class LookUp(Protocol):
    """Routes a text by the present gates."""

    def why_not(self) -> str:
        """Why it cannot; nothing where it can."""
        ...

    def __call__(self, text: str) -> Lookup:
        """The way of a text.

        Raises:
            DataError: It cannot; see `why_not`.
        """
        ...
