"""What the log says of bundles, rounds and erasures, looked up a few rows at a time; the rounds never wait for it."""

import threading
from collections.abc import Iterable
from pathlib import Path

from tinylora.errors import StorageError
from tinylora.federation.events import BundlePublished, Event, GatesSolved, WorkerErased
from tinylora.ledger.sqlite import FILE, SqliteLedger

_TYPES = ("bundle_published", "gates_solved", "worker_erased")
_ROWS = 20_000
"""Looked at in one go: some milliseconds of reading."""


class LogWatch:
    """The bundles that the log names, and the latest version of the routers. May be used from any thread.

    Args:
        root: The run's folder; its ledger may come later.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._ledger: SqliteLedger | None = None
        self._n_seen = 0
        self.named: dict[str, BundlePublished] = {}
        """By sha256; read it, never change it."""
        self.router_version = 0
        self.erased = 0
        """Number of the latest event by which a worker was erased: what was made before may hold its share."""

    def look(self) -> None:
        """Take in what has happened since the last look.

        Raises:
            StorageError: The ledger cannot be read.
        """
        with self._lock:
            if self._ledger is None:
                if not (self._root / FILE).exists():
                    return
                self._ledger = SqliteLedger.open_readonly(self._root)
            while True:
                n_seen, events = self._ledger.events_of(_TYPES, self._n_seen, _ROWS)
                self._take(events)
                is_end, self._n_seen = n_seen < self._n_seen + _ROWS, n_seen
                if is_end:
                    return

    def _take(self, events: Iterable[tuple[int, Event]]) -> None:
        for number, event in events:
            match event:
                case BundlePublished():
                    self.named = {**self.named, event.sha256: event}
                case GatesSolved():
                    self.router_version = event.version
                case WorkerErased():
                    self.erased = number
                case _:
                    continue

    def close(self) -> None:
        """Let go of the ledger."""
        with self._lock:
            ledger, self._ledger = self._ledger, None
        if ledger is not None:
            try:
                ledger.close()
            except StorageError:
                return
