"""What anybody may know of a run: from the ledger's query tables, and looked up no more often than needed."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinylora.errors import StorageError
from tinylora.ledger.sqlite import FILE, SqliteLedger

REST_S = 2.0
"""Strangers who ask more often get the same answer: looking costs time, however little."""


class PublicStatus:
    """Counts, versions and the head of the log; no worker's name, text or loss.

    Args:
        root: The run's folder.
        clock: Seconds.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._last: Mapping[str, Any] = _NOTHING

    def read(self) -> Mapping[str, Any]:
        """What is known; while the ledger cannot be read, what was known last.

        Returns:
            `events` (n, and sha256: the log's chain), `workers` (n, n_online, n_taken_out), `nodes` (path to version
            and n_steps), `router_version`.
        """
        with self._lock:
            if self._clock() - self._looked_at >= REST_S:
                self._looked_at = self._clock()
                self._look()
            return self._last

    def _look(self) -> None:
        if not (self._root / FILE).exists():
            return
        try:
            with SqliteLedger.open_readonly(self._root) as ledger:
                number, chain = ledger.head()
                if number != self._last["events"]["n"]:
                    self._last = {"events": {"n": number, "sha256": chain}, **_counts(ledger)}
        except StorageError:
            return  # being made, or in trouble that its owner hears of elsewhere


_NOTHING: Mapping[str, Any] = {
    "events": {"n": 0, "sha256": ""},
    "workers": {"n": 0, "n_online": 0, "n_taken_out": 0},
    "nodes": {},
    "router_version": 0,
}


def _counts(ledger: SqliteLedger) -> dict[str, Any]:
    workers = ledger.rows("worker")
    nodes = {row["node"]: {"version": row["version"], "n_steps": row["n_steps"]} for row in ledger.rows("node_version")}
    return {
        "workers": {
            "n": len(workers),
            "n_online": sum(bool(row["is_online"]) for row in workers),
            "n_taken_out": sum(row["standing"] != "good" for row in workers),
        },
        "nodes": nodes,
        "router_version": max((int(row["version"] or 0) for row in ledger.rows("router_version")), default=0),
    }
