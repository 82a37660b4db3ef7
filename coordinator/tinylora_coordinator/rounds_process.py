"""The rounds: the loop over the ledger, its workers reached through the link's inner listener.

A child of the supervisor. It may be killed at any moment: all it believes is in the ledger, and the next one takes the
run up from there and sends open units again.
"""

import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinylora.errors import DataError, DiskFull, NetworkError, ProtocolError, StorageError
from tinylora.federation.campaign import Campaign
from tinylora.federation.events import Event, UpdateAccepted
from tinylora.federation.loop import run_campaign
from tinylora.federation.ports import WorkerInfo
from tinylora.flower import use_home
from tinylora.flower.clock import RunClock, age_s
from tinylora.ledger.sqlite import SqliteLedger
from tinylora_coordinator.folder import RunFiles, RunFolder, read_run, run_id
from tinylora_coordinator.lifeline import PROGRESS, UP, Told, run_child, tell
from tinylora_coordinator.operator_store import OperatorStore, Worker
from tinylora_coordinator.telling import tell as describe

STOPPED = 75
"""Exit code when it was asked to stop before the run was finished."""
MIB = 2**20
_REACH_S = 0.2
_ROSTER_S = 0.4
_FULL_S = 5.0


def main() -> None:
    """Entry point of the process."""
    run_child(_load, _work)


def _load(root: Path) -> None:
    use_home(RunFolder(root).flower_home)
    import tinylora_coordinator.service  # noqa: F401  so that a spare has torch before it is needed


def _work(root: Path, first: dict[str, Any], stop: threading.Event, listen: Callable[[Told], None]) -> None:
    from tinylora.flower.transport import FlowerTransport

    folder = RunFolder(root)
    files = read_run(folder)
    with SqliteLedger(root) as ledger, OperatorStore(root) as store:
        wire = _reach(first, files, ledger.spool, stop)
        if wire is None:
            sys.exit(STOPPED)
        with FlowerTransport(wire, folder=ledger.spool, admit=Roster(store).admit) as transport:
            listen(lambda line: transport.doubt() if line.get("link") == UP else None)
            tell(UP)
            campaign = _drive(ledger, transport, store, files, stop)
        if not campaign.finished:
            sys.exit(STOPPED)
        _publish(folder, ledger, campaign, stop)


def _reach(first: dict[str, Any], files: RunFiles, spool: Path, stop: threading.Event) -> Any:
    """Open a Flower run, as soon as the link answers; None when we are to stop first."""
    from tinylora.flower.grid import HttpWire

    while not stop.wait(_REACH_S):
        try:
            return HttpWire(
                first["link"],
                admin=first["admin"],
                superexec_secret=bytes.fromhex(first["superexec_secret"]),
                limit_bytes=int(files.settings.max_update_mib * MIB),
                folder=spool,
            )
        except NetworkError as error:
            _say(f"rounds: {error}; trying again")
    return None


def _drive(
    ledger: SqliteLedger, transport: Any, store: OperatorStore, files: RunFiles, stop: threading.Event
) -> Campaign:
    from tinylora.numerics import TorchNumerics

    past = ledger.events()
    if past:
        _say(f"taking the run up after {len(past)} events")
    return run_campaign(
        ledger,
        transport,
        RunClock(age_s(past), transport.arrived),
        run=run_id(files.settings),
        settings=files.settings,
        base=files.base,
        numerics=TorchNumerics(),
        desk=store,
        warn=_say,
        on_event=_News(len(past)).hear,
        stop=stop.is_set,
        nonce_source=lambda run, seed, unit: secrets.token_hex(16),
    )


class Roster:
    """Who may take part, as the operator's file says: looked up once for all who are online, and not too often."""

    def __init__(self, store: OperatorStore) -> None:
        self._store, self._known, self._looked_at = store, dict[str, Worker](), float("-inf")

    def admit(self, info: WorkerInfo) -> WorkerInfo | None:
        """What is said of a worker who is online: with the token he came by; None without the operator's approval."""
        self._look()
        found = self._known.get(info.worker)
        return replace(info, token=found.token_id) if found is not None and found.state == "approved" else None

    def _look(self) -> None:
        if time.monotonic() - self._looked_at < _ROSTER_S:
            return
        with suppress(StorageError):  # what was known holds; the link, too, turns away who was revoked
            self._known = {worker.worker: worker for worker in self._store.workers()}
        self._looked_at = time.monotonic()


class _News:
    """Tells of events, but for the first ones: the loop tells of the past too."""

    def __init__(self, n_past: int) -> None:
        self._left = n_past

    def hear(self, event: Event) -> None:
        """Say what happened, if it is new."""
        if self._left > 0:
            self._left -= 1
            return
        if line := describe(event):
            _say(line)
        if isinstance(event, UpdateAccepted):
            tell(PROGRESS)


def _publish(folder: RunFolder, ledger: SqliteLedger, campaign: Campaign, stop: threading.Event) -> None:
    """Publish the bundle of a finished run and name it in the log, once there is room for both."""
    from tinylora_coordinator.service import publish

    told = False
    while True:
        try:
            _say(f"{folder.bundle_file}: sha256 {publish(folder, ledger, campaign).sha256}")
            return
        except (DataError, ProtocolError) as error:
            _say(f"no bundle: {error}")
            return
        except DiskFull as error:
            if not told:
                _say(f"the bundle waits for room: {error}")
            told = True
        if stop.wait(_FULL_S):
            sys.exit(STOPPED)


def _say(line: str) -> None:
    """One line for the operator; stdout is the supervisor's."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
