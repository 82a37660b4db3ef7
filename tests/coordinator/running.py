"""A coordinator in processes of its own, workers in threads of this one, and somebody who kills."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from tinylora_coordinator.folder import RunFolder, write_run
from tinylora_coordinator.keys import pin_of
from tinylora_coordinator.operator_store import OperatorStore

from tests.federation.facts import DIM, FACTS, SETTINGS
from tests.flower.counting import CountingTrainer, assert_counted_once
from tests.flower.helpers import QUICK, until
from tinylora.config import RunSettings
from tinylora.federation.campaign import fold
from tinylora.federation.events import Event, UpdateAccepted
from tinylora.flower.enrolment import ask_state, join
from tinylora.flower.fleet import FleetClient
from tinylora.flower.identity import Identity, new_identity
from tinylora.flower.join_token import SYSTEM
from tinylora.flower.messages import Handle, by_folder
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.reach import Address, Trust
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.routing.features import feature_hash

BASE = FACTS.model_copy(update={"feature_hash": feature_hash(None, DIM, DIM)})
"""The fake base as a bundle needs it: its routing feature is not projected."""
Role = Literal["supervisor", "link", "rounds"]
MIB = 2**20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def make_run(root: Path, **changes: object) -> Path:
    """A run of the counting trainer: any number of steps takes no time."""
    settings = RunSettings.model_validate(SETTINGS.model_dump() | {"min_workers": 1} | changes)
    write_run(RunFolder(root), settings, BASE, None)
    return root


@dataclass
class Volunteer:
    """A fleet client in a thread, with the real counting trainer behind `before`."""

    identity: Identity
    stop: threading.Event
    thread: threading.Thread
    log: list[str]
    done: list[str]
    """Ids of the units that were worked on, as often as they were."""
    endings: list[object] = field(default_factory=list)


@dataclass
class Coordinator:
    """`tinylora-coordinator serve` in a process, which may be killed and started again."""

    root: Path
    port: int = field(default_factory=free_port)
    volunteers: list[Volunteer] = field(default_factory=list)
    options: tuple[str, ...] = ()
    """Further ones of `serve`."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> Address:
        """Where workers find it."""
        return Address(f"127.0.0.1:{self.port}", is_plain=True)

    @property
    def said(self) -> str:
        """What it said on stderr, in all its lives."""
        return (self.root / "said").read_text() if (self.root / "said").exists() else ""

    def start(self) -> None:
        """Begin to serve."""
        command = [sys.executable, "-m", "tinylora_coordinator", "serve", str(self.root)]
        command += ["--port", str(self.port), "--insecure", *self.options]
        with open(self.root / "said", "ab") as said:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)

    def wait_until_up(self) -> None:
        """It answers."""
        until(self._answers, what=f"an answer of the coordinator, which said {self.said}")

    def _answers(self) -> bool:
        try:
            return bool(ask_state(self.address, timeout_s=1.0))
        except Exception:
            assert self.process is not None and self.process.poll() is None, self.said
            return False

    def pid_of(self, role: Role) -> int | None:
        """The process that plays this part now."""
        if self.process is None or self.process.poll() is not None:
            return None
        if role == "supervisor":
            return self.process.pid
        found: dict[int, str] = self.children()
        return next((pid for pid in found if found[pid] == role), None)

    def children(self) -> dict[int, str]:
        """Roles of the children that live now, by process; spares are younger than those at work, and stand behind."""
        if self.process is None or self.process.poll() is not None:
            return {}
        found: dict[int, str] = {}
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            for child in sorted(children, key=lambda child: child.create_time()):
                module = child.cmdline()[2]
                found[child.pid] = module.removeprefix("tinylora_coordinator.").removesuffix("_process")
        return found

    def wait_until_spares_are_ready(self) -> None:
        """All four children are there, and those that only load have loaded."""
        until(lambda: len(self.children()) == 4, what="the spares")
        until(self._is_quiet, what="the spares at rest")

    def _is_quiet(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            spares = [psutil.Process(pid) for pid in list(self.children())[2:]]
            before = [spare.cpu_times().user for spare in spares]
            time.sleep(0.3)
            return (
                all(spare.cpu_times().user == at for spare, at in zip(spares, before, strict=True))
                and min(before) > 0.5
            )
        return False

    def kill(self, role: Role) -> list[int]:
        """SIGKILL; returns the processes that must have gone in a moment. A supervisor has to be started by hand."""
        pid = self.pid_of(role)
        if pid is None:
            return []
        children = list(self.children()) if role == "supervisor" else []
        os.kill(pid, signal.SIGKILL)
        if role == "supervisor" and self.process is not None:
            self.process.wait()
        return [pid, *children]

    def finish(self, timeout_s: float = 100.0) -> int:
        """Wait for its end, which is not that we killed it; returns its exit code."""
        ended: list[int] = []

        def has_ended() -> bool:
            code = None if self.process is None else self.process.poll()
            ended[:] = [] if code in (None, -signal.SIGKILL) else [code]
            return bool(ended)

        until(has_ended, timeout_s=timeout_s, what=f"the end of the run; {self.said}")
        return ended[0]

    def events(self) -> list[Event]:
        """What its ledger holds now."""
        if not (self.root / "ledger.sqlite").exists():
            return []
        with SqliteLedger.open_readonly(self.root) as ledger:
            return list(ledger.events())

    def count(self, kind: type) -> int:
        """Events of one type."""
        return sum(isinstance(event, kind) for event in self.events())

    def volunteer(
        self, centre: float = 0.0, *, before: Callable[[Any], None] = lambda unit: None, **options: Any
    ) -> Volunteer:
        """A worker in a thread; `before` is called with each unit before it is worked on."""
        identity, stop, log, done = new_identity(), threading.Event(), [], []
        trainer = CountingTrainer(identity, centre)

        def handle(unit: Any, payload: bytes) -> Any:
            done.append(unit.unit_id)
            before(unit)
            return trainer.run(unit, payload)

        let_in(self, identity)
        client = make_client(self, identity, handle, stop=stop, log=log.append, **options)
        made = Volunteer(identity, stop, threading.Thread(target=lambda: _work(client, made), daemon=True), log, done)
        self.volunteers.append(made)
        made.thread.start()
        return made


def _work(client: FleetClient, volunteer: Volunteer) -> None:
    try:
        volunteer.endings.append(client.work())
    except BaseException as error:
        volunteer.endings.append(error)


def let_in(coordinator: Coordinator, identity: Identity) -> None:
    """Join the run with a token of its operator's; in plain HTTP there is no CA to look at."""
    with OperatorStore(coordinator.root) as store:
        token = store.create_token(SYSTEM, now_s=time.time())
    join(coordinator.address, token.text, identity, trust=Trust(pin_of(RunFolder(coordinator.root).keys)))


def make_client(coordinator: Coordinator, identity: Identity, handle: Handle, **options: Any) -> FleetClient:
    """A worker's client."""
    address = coordinator.address
    return FleetClient(
        address,
        identity,
        by_folder(handle),
        FolderOutbox(coordinator.root.parent / f"{coordinator.root.name}-homes" / identity.worker),
        phase=lambda: ask_state(address).phase,
        limit_bytes=64 * MIB,
        pace=options.pop("pace", QUICK),
        **options,
    )


@contextmanager
def serving(root: Path, *options: str) -> Iterator[Coordinator]:
    """A coordinator that serves `root`; nobody is left behind, whatever happens."""
    coordinator = Coordinator(root, options=options)
    coordinator.start()
    try:
        coordinator.wait_until_up()
        yield coordinator
    finally:
        for volunteer in coordinator.volunteers:
            volunteer.stop.set()
        coordinator.kill("supervisor")
        for volunteer in coordinator.volunteers:
            volunteer.thread.join(10.0)


def gone(pids: list[int]) -> bool:
    """Whether none of these processes lives."""
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def recovery_s(coordinator: Coordinator, n_before: int, killed_at: float, *, timeout_s: float = 60.0) -> float:
    """Seconds from a kill to the next lease or accepted update after the `n_before` ones that there were."""
    while n_steps(coordinator) <= n_before:
        assert time.monotonic() < killed_at + timeout_s, f"no recovery; {coordinator.said[-2000:]}"
        time.sleep(0.05)
    return time.monotonic() - killed_at


def n_steps(coordinator: Coordinator) -> int:
    """Leases and accepted updates so far; a question so cheap that it may be asked often."""
    query = "SELECT count(*), coalesce(sum(state IN ('accepted', 'pending')), 0) FROM unit"
    try:
        with closing(sqlite3.connect(f"file:{coordinator.root / 'ledger.sqlite'}?mode=ro", uri=True)) as database:
            return sum(database.execute(query).fetchone())
    except sqlite3.OperationalError:  # not made yet
        return 0


def assert_nothing_lost_or_doubled(coordinator: Coordinator) -> None:
    """No unit was accepted twice, and every leaf has had its steps exactly."""
    events = coordinator.events()
    accepted = [event.unit_id for event in events if isinstance(event, UpdateAccepted)]
    assert len(accepted) == len(set(accepted))
    campaign = fold(events)
    assert campaign is not None
    with SqliteLedger.open_readonly(coordinator.root) as ledger:
        assert_counted_once(campaign, ledger)
