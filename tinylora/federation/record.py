"""What has happened and where it stands: the ledger, the state that its events add up to, and the room for more."""

from collections.abc import Callable
from pathlib import Path

from tinylora.errors import DiskFull, SettingError
from tinylora.federation.campaign import apply, fold
from tinylora.federation.events import BlobsPruned, Event, RunStarted
from tinylora.federation.ports import Clock, Ledger
from tinylora.federation.retention import Stored, reachable
from tinylora.federation.snapshot import read_snapshot, write_snapshot
from tinylora.federation.state import Campaign

SNAPSHOT_EVENTS = 64
"""Events from one snapshot to the next, at least."""
WORKERS_PER_EVENT = 4
"""For so many workers one event more: a snapshot is as long as their list, and must not cost each event more for it."""
MIB = 1 << 20
MAY_CHANGE = frozenset({"disk_cap_mib"})
"""Settings that say nothing about the run itself, only about this machine."""


def past(ledger: Ledger) -> Campaign | None:
    """The state of the run in a ledger: from the last snapshot on, where there is one that this program can read.

    Raises:
        StorageError: The ledger cannot be read.
    """
    kept = ledger.load_snapshot()
    state = read_snapshot(kept[1]) if kept else None
    if kept is None or state is None or state.n_events != kept[0]:
        return fold(ledger.events())
    for event in ledger.events(after=kept[0]):
        state = apply(state, event)
    return state


class Record:
    """The past of a run, durable, and its present; everything that happens is written here first."""

    state: Campaign

    def __init__(self, ledger: Ledger, clock: Clock, on_event: Callable[[Event], None] | None = None) -> None:
        self.ledger = ledger
        self.clock = clock
        self._tell = on_event
        self._cap_bytes = 0
        self._stored: Stored | None = None
        self._n_snapshot = 0

    def open(self, start: RunStarted) -> bool:
        """Begin the run, or take up its past; returns whether there was one.

        Raises:
            SettingError: The ledger holds another run than `start` says.
        """
        self._cap_bytes = int(start.settings.disk_cap_mib * MIB)
        state = past(self.ledger)
        if state is None:
            self.state = apply(None, start)
            self.ledger.append([start], self.clock.now())
        else:
            _check_same(state, start)
            self.state = state
        self._n_snapshot = self.state.n_events
        if self._tell is not None:
            for event in self.ledger.events():
                self._tell(event)
        return state is not None

    def emit(self, *events: Event) -> None:
        """Write events down, then believe them.

        Raises:
            DiskFull: There is no room; nothing was written, and nothing is believed.
        """
        self.ledger.append(events, self.clock.now())
        for event in events:
            self.state = apply(self.state, event)
            if self._stored is not None:
                self._stored.note(event)
            if self._tell:
                self._tell(event)
        if self.state.n_events - self._n_snapshot >= SNAPSHOT_EVENTS + len(self.state.workers) // WORKERS_PER_EVENT:
            self._save_snapshot()

    def _save_snapshot(self) -> None:
        """A disk without room for it is none for the next event either, which will say so."""
        self._n_snapshot = self.state.n_events
        try:
            self.ledger.save_snapshot(self.state.n_events, write_snapshot(self.state))
        except DiskFull:
            return

    # --- blobs -------------------------------------------------------------------------------------------------------

    def put(self, data: bytes, *, sha256: str = "") -> str:
        """Store bytes.

        Raises:
            DiskFull: There is no room on the disk, or under the run's cap, even after pruning.
        """
        self.make_room(len(data))
        return self.ledger.put_blob(data, sha256=sha256)

    def adopt(self, file: Path, sha256: str) -> str:
        """Store a file by taking it over.

        Raises:
            DiskFull: As of `put`; the file stays where it is.
        """
        self.make_room(file.stat().st_size)
        return self.ledger.adopt_blob(file, sha256)

    def make_room(self, n_bytes: int) -> None:
        """Prune, if so many bytes more would not fit under the run's cap.

        Raises:
            DiskFull: They do not fit even then.
        """
        if not self._cap_bytes or self.ledger.stored_bytes() + n_bytes <= self._cap_bytes:
            return
        self.prune()
        stored = self.ledger.stored_bytes()
        if stored + n_bytes > self._cap_bytes:
            raise DiskFull(
                f"run {self.state.run}: {stored / MIB:.3g} MiB are in use after pruning, and {n_bytes / MIB:.3g} MiB "
                f"more do not fit under disk_cap_mib = {self._cap_bytes / MIB:.3g}; raise it in run.toml, start again"
            )

    def prune(self) -> None:
        """Delete the blobs that nothing needs any more."""
        if self._stored is None:
            self._stored = Stored(self.ledger.events())
        unused = tuple(sorted(self._stored.names - reachable(self.state)))
        if unused:
            self.emit(BlobsPruned(blobs=unused, reason="the disk cap"))
            self.ledger.drop_blobs(unused)


def _check_same(state: Campaign, start: RunStarted) -> None:
    if state.run != start.run:
        raise SettingError(f"ledger: holds run {state.run}, not {start.run}; give each run a folder of its own")
    if state.base != start.base:
        raise SettingError(
            f"ledger: run {state.run} is on base {state.base.base_id} ({state.base.fingerprint[:12]}), not on "
            f"{start.base.base_id} ({start.base.fingerprint[:12]}); serve it with the base it began with"
        )
    mine, theirs = state.settings.model_dump(), start.settings.model_dump()
    changed = [name for name in sorted(mine) if mine[name] != theirs[name] and name not in MAY_CHANGE]
    if changed:
        changes = ", ".join(f"{name} {mine[name]!r} to {theirs[name]!r}" for name in changed)
        raise SettingError(
            f"ledger: settings of run {state.run} changed: {changes}; settings are fixed once a run began"
        )
