"""Feeds the views of a run that is being served: from its ledger, its operator's store, and the supervisor's word.

It only reads. While nothing happens it asks SQLite whether another connection has committed anything, which costs
microseconds; when one has, it reads the events behind those it knows, in batches.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tinylora.errors import DataError, StorageError, TinyLoraError
from tinylora.ledger.sqlite import FILE, SqliteLedger
from tinylora_coordinator.dashboard.documents import Phase
from tinylora_coordinator.dashboard.gate_blobs import read_gates
from tinylora_coordinator.dashboard.views import RunViews
from tinylora_coordinator.operator_store import OperatorStore

LOOK_S = 0.1
"""Between two looks at the ledger."""
ROSTER_S = 2.0
PHASE_S = 0.5
TROUBLE_S = 1.0
"""After a failure it is tried again."""
BATCH = 500
"""Events taken in at once: pages are served in between, with what is known."""
_log = logging.getLogger(__name__)


class Follower:
    """A thread that keeps the views up to date.

    Args:
        root: The run's folder; its ledger may yet have to be made.
        views: To feed.
        store: The operator's.
        phase: What the run is doing, by the supervisor and the operator's orders.
    """

    def __init__(self, root: Path, views: RunViews, store: OperatorStore, phase: Callable[[], Phase]) -> None:
        self._root, self._views, self._store, self._phase = root, views, store, phase
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="views", daemon=True)
        self._ledger: _OpenLedger | None = None
        self._taus_of: int | None = None
        """Version of the routers whose gates were read last."""
        self._trouble, self._n_troubles = "", 0

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and let go of the ledger."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._let_go()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        n_looks = 0
        while not self._stop.is_set():
            is_behind = self._safely(self.look)
            if n_looks % round(ROSTER_S / LOOK_S) == 0:
                self._safely(self.read_roster)
            if n_looks % round(PHASE_S / LOOK_S) == 0:
                self._safely(self.read_phase)
            n_looks += 1
            if not is_behind:
                self._stop.wait(TROUBLE_S if self._trouble else LOOK_S)

    def _safely(self, step: Callable[[], bool]) -> bool:
        """Do one step. What goes wrong is told once; it is tried again later."""
        try:
            is_behind = step()
        except Exception as error:  # a page that stands still would hide it, and the link must not die of it
            self._let_go()
            trouble = f"{type(error).__name__}: {error}"
            self._n_troubles = self._n_troubles + 1 if trouble == self._trouble else 1
            if self._n_troubles == 2:  # once may be a ledger that is just being made
                _log.warning("dashboard: %s", error, exc_info=not isinstance(error, TinyLoraError | sqlite3.Error))
            self._trouble = trouble
            return False
        if step == self.look:
            self._trouble, self._n_troubles = "", 0
        return is_behind

    def look(self) -> bool:
        """Take in the next events, if there are any; returns whether there may be more.

        Raises:
            StorageError: The ledger cannot be read.
        """
        if self._ledger is None:
            if not (self._root / FILE).exists():
                return False
            self._ledger = _OpenLedger(self._root)
            self._compare(self._ledger.ledger)
        if not self._ledger.has_changed():
            return False
        return self._take(self._ledger)

    def _compare(self, ledger: SqliteLedger) -> None:
        """Begin anew where the views were made of another log."""
        known = self._views.n_events
        number, _ = ledger.head()
        if known and (known > number or ledger.chain_at(known) != self._views.chain):
            _log.warning(
                "dashboard: the ledger in %s is another one than was shown; it is read from its start", self._root
            )
            self._views.reset()
            self._taus_of = None

    def _take(self, known: "_OpenLedger") -> bool:
        rows = known.ledger.timed_events(self._views.n_events, BATCH)
        if rows:
            self._views.take(rows, known.ledger.chain_at(rows[-1][0]))
        is_behind = len(rows) == BATCH
        if not is_behind:
            known.is_read()
            self._tell_taus(known.ledger)
        return is_behind

    def _tell_taus(self, ledger: SqliteLedger) -> None:
        """How sharp the gates are is in no event: it is read once for each version, when all events are taken in."""
        version = self._views.router_version
        if version == self._taus_of:
            return
        self._taus_of = version
        try:
            gates = read_gates(ledger, version).nodes if version else {}
        except DataError as error:
            _log.warning("dashboard: %s", error)
            gates = {}
        self._views.set_taus({node: gate.tau for node, gate in gates.items()})

    def read_roster(self) -> bool:
        """Ask whom the operator let in.

        Raises:
            StorageError: The file cannot be read.
        """
        self._views.enrolled(self._store.workers())
        return False

    def read_phase(self) -> bool:
        """Ask what the run is doing."""
        self._views.set_phase(self._phase())
        return False

    def _let_go(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


class _OpenLedger:
    """The ledger, open for reading, and a second connection that tells cheaply whether anybody wrote.

    Args:
        root: The run's folder.

    Raises:
        StorageError: The ledger cannot be opened.
    """

    def __init__(self, root: Path) -> None:
        self.ledger = SqliteLedger.open_readonly(root)
        try:
            uri = (root / FILE).absolute().as_uri() + "?mode=ro"
            self._watch = sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            self.ledger.close()
            raise StorageError(f"{root / FILE}: {error}") from None
        self._seen: object = None
        self._told: object = None

    def has_changed(self) -> bool:
        """Whether anybody may have written since `is_read`."""
        self._seen = self._watch.execute("PRAGMA data_version").fetchone()
        return self._seen != self._told

    def is_read(self) -> None:
        """All was read that was there when `has_changed` was asked last."""
        self._told = self._seen

    def close(self) -> None:
        """Let go of the file."""
        with suppress(sqlite3.Error):
            self._watch.close()
        with suppress(StorageError):
            self.ledger.close()
