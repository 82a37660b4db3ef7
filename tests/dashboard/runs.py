"""Runs of the simulator as rows of a ledger, and a reader of the stream who knows nothing but what he is sent."""

import itertools
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from tinylora_coordinator.dashboard.documents import FeedItem, Node, Patch, Run, State, Worker

from tests.federation.world import crowd, run_world
from tinylora.federation.events import Event
from tinylora.simulate import FaultPlan

Row = tuple[int, float, Event]

WORLDS: dict[str, dict[str, Any]] = {
    "leaves": {"depth": 2},
    "probes": {"depth": 1, "probes": 1},
    "subtrees": {"depth": 3},
    "cascade": {"where": "path", "depth": 1},
    "joint": {"where": "path", "path_training": "joint", "depth": 1},
    "growing": {"grow": True, "depth": 2},
}


@cache
def rows_of(world: str, n_workers: int = 5, kill: str = "", drop: float = 0.0) -> tuple[Row, ...]:
    """A whole run; `kill` as in `tinylora simulate`."""
    faults = FaultPlan.parse(kill=[kill] if kill else [], drop=drop)
    return as_rows(run_world(crowd(n_workers), faults=faults, **WORLDS[world])[1])


def as_rows(events: Iterable[Event]) -> tuple[Row, ...]:
    """Events with numbers and times; what tells no time happened when the one before it did."""
    rows, now_s = [], 0.0
    for number, event in enumerate(events, 1):
        now_s = max(now_s, getattr(event, "at_s", 0.0))
        rows.append((number, now_s, event))
    return tuple(rows)


class Reader:
    """Has one snapshot and applies patches to it, as the page does."""

    def __init__(self, state: State) -> None:
        self.position = state.position
        self.run: Run = state.run
        self.nodes: dict[str, Node] = {node.path: node for node in state.nodes}
        self.workers: dict[str, Worker] = {worker.worker: worker for worker in state.workers}
        self.feed: list[FeedItem] = list(state.feed)

    def apply(self, patch: Patch) -> None:
        """Take a patch in, which must follow on."""
        assert patch.before == self.position
        self.position, self.run = patch.position, patch.run
        self.nodes |= {node.path: node for node in patch.nodes}
        for path in patch.gone:
            del self.nodes[path]
        self.workers |= {worker.worker: worker for worker in patch.workers}
        self.feed += patch.feed

    def agrees_with(self, state: State) -> bool:
        """Whether a fresh snapshot says the same."""
        return (
            self.position == state.position
            and self.run == state.run
            and self.nodes == {node.path: node for node in state.nodes}
            and self.workers == {worker.worker: worker for worker in state.workers}
            and self.feed[-len(state.feed) :] == list(state.feed)
        )


def chunks(rows: Sequence[Row], cuts: Iterable[int]) -> list[Sequence[Row]]:
    """The rows in pieces, cut behind these numbers."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(rows)}), len(rows)]
    return [rows[start:end] for start, end in itertools.pairwise(edges)]
