"""Serving a run: the link in a thread, the rounds in the main thread, the ledger between this process and the next.

A process may end anywhere, by a signal or by a power cut: `serve` on the same folder takes the run up where its ledger
left it. Workers that are connected notice only that nobody answers for a while.
"""

import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from tinylora import tensors
from tinylora.bundle import write_bundle
from tinylora.errors import DataError, StorageError
from tinylora.federation.campaign import Campaign, fold
from tinylora.federation.events import Event
from tinylora.federation.loop import run_campaign
from tinylora.federation.ports import Ledger
from tinylora.flower.clock import RunClock, age_s
from tinylora.flower.grid import HttpWire
from tinylora.flower.link import Link, create_link
from tinylora.flower.transport import FlowerTransport
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.numerics import TorchNumerics
from tinylora.release import make_bundle
from tinylora_coordinator.folder import RunFiles, RunFolder, read_run, run_id
from tinylora_coordinator.front_door import (
    Served,
    listen,
    serve_internal,
    serve_public,
    server_tls,
)
from tinylora_coordinator.keys import server_identity
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.public_door import make_door
from tinylora_coordinator.telling import tell

LINGER_S = 30.0
"""How long a finished run waits for its workers to notice."""
MIB = 2**20
_PROJECTION = "router.projection"


def say(line: str) -> None:
    """One line for the operator; stdout is kept for data."""
    print(line, file=sys.stderr, flush=True)


def serve(
    root: Path,
    *,
    host: str,
    port: int,
    insecure: bool = False,
    linger_s: float = LINGER_S,
    log: Callable[[str], None] = say,
) -> None:
    """Serve the run in `root` until it is finished or a signal comes; with `insecure` in plain HTTP.

    Raises:
        SettingError: There is no run in `root`, or its settings are not those that it was begun with.
        NetworkError: The address cannot be opened.
        StorageError: The folder cannot be written.
    """
    folder = RunFolder(root)
    files = read_run(folder)
    limit_bytes = int(files.settings.max_update_mib * MIB)
    identity = server_identity(folder.keys, hosts=[host], now=datetime.now(UTC), say=log)
    tls = None if insecure else server_tls(identity.certificate, identity.private_key)
    with SqliteLedger(root) as ledger, OperatorStore(root) as store, _stop_on_signals() as stop:
        link = create_link(folder.link_database)
        inside = serve_internal(link.app, listen("127.0.0.1", 0))
        with inside, serve_public(make_door(link, folder, files, store), listen(host, port), tls=tls) as served:
            _greet(folder, files, served, "http" if insecure else "https", log)
            wire = HttpWire(
                inside.host_port,
                admin=link.admin,
                superexec_secret=link.superexec_secret,
                limit_bytes=limit_bytes,
                folder=root / "spool",
            )
            with FlowerTransport(wire) as transport:
                link.phase = "running"
                campaign = _drive(ledger, transport, files, stop, log)
            if _end(folder, ledger, link, campaign, log):
                wait_until(lambda: stop.is_set() or not link.online_workers(), timeout_s=linger_s)


def _greet(folder: RunFolder, files: RunFiles, served: Served, scheme: str, log: Callable[[str], None]) -> None:
    log(f"run {files.settings.name}: serving {folder.root} at {scheme}://{served.host_port}")
    log(f"`tinylora-coordinator token create {folder.root}` lets a worker in")


def _drive(
    ledger: SqliteLedger,
    transport: FlowerTransport,
    files: RunFiles,
    stop: threading.Event,
    log: Callable[[str], None],
) -> Campaign:
    past = ledger.events()
    if past:
        log(f"taking the run up after {len(past)} events")
    return run_campaign(
        ledger,
        transport,
        RunClock(age_s(past), transport.arrived),
        run=run_id(files.settings),
        settings=files.settings,
        base=files.base,
        numerics=TorchNumerics(),
        on_event=_after(len(past), lambda event: _log_event(event, log)),
        stop=stop.is_set,
        nonce_source=lambda run, seed, unit: secrets.token_hex(16),
    )


def _after(n_past: int, tell_of: Callable[[Event], None]) -> Callable[[Event], None]:
    """Leaves out the first events: the loop tells of the past too."""
    left = n_past

    def hear(event: Event) -> None:
        nonlocal left
        if left > 0:
            left -= 1
        else:
            tell_of(event)

    return hear


def _log_event(event: Event, log: Callable[[str], None]) -> None:
    if line := tell(event):
        log(line)


def _end(folder: RunFolder, ledger: Ledger, link: Link, campaign: Campaign, log: Callable[[str], None]) -> bool:
    """Release a finished run and tell its workers; leave a stopped one as it is. Returns whether it is finished."""
    if not campaign.finished:
        link.phase = "stopping"
        log(f"stopped; `tinylora-coordinator serve {folder.root}` takes the run up again")
        return False
    try:
        sha256 = release(folder, ledger, campaign, folder.bundle_file)
        log(f"{folder.bundle_file}: sha256 {sha256}")
    except DataError as error:
        log(f"no bundle: {error}")
    link.phase = "finished"
    return True


def wait_until(condition: Callable[[], bool], *, timeout_s: float, poll_s: float = 0.2) -> bool:
    """Wait for something that others do; returns whether it came true."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(poll_s)
    return True


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def heard(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)

    is_main = threading.current_thread() is threading.main_thread()
    old = {number: signal.signal(number, heard) for number in ((signal.SIGTERM, signal.SIGINT) if is_main else ())}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


# --- looking at a run, and taking its bundle ----------------------------------------------------------------------


def release(folder: RunFolder, ledger: Ledger, campaign: Campaign, file: Path, *, without: str = "") -> str:
    """Write the run's tree as it stands, or as it would without a worker; returns the file's sha256.

    Raises:
        DataError: The run has no tree yet, or does not know the worker.
        StorageError: The file cannot be written.
    """
    projection = None
    if folder.projection_file.exists():
        projection = tensors.from_bytes(folder.projection_file.read_bytes())[_PROJECTION]
    return write_bundle(make_bundle(campaign, ledger, projection=projection, without=without), file)


def projection_bytes(projection: Any) -> bytes | None:
    """The routing feature's projection as `init` keeps it; None where the feature needs none."""
    return None if projection is None else tensors.to_bytes({_PROJECTION: projection})


def bundle(root: Path, out: Path, *, without: str = "") -> str:
    """Write the bundle of the run in `root`, whether it is being served, stopped or finished.

    Args:
        root: The run's folder.
        out: The file to write.
        without: A worker whose share is left out; the run stays as it is.

    Raises:
        SettingError: There is no run in `root`.
        DataError: It has no tree yet, or does not know the worker.
        StorageError: `out` cannot be written.
    """
    folder = RunFolder(root)
    files = read_run(folder)
    if not out.parent.is_dir():
        raise StorageError(f"{out}: no such folder; make it first")
    with SqliteLedger.open_readonly(root) as ledger:
        campaign = fold(ledger.events())
        if campaign is None:
            raise DataError(f"{root}: run {files.settings.name} has not begun; serve it first")
        return release(folder, ledger, campaign, out, without=without)
