"""A backup taken while a run goes on, restored in another folder: real processes, real training, real kills.

The coordinator is killed some time after the backup, and its folder is gone. What was accepted in between is in no log
any more and is done again; nothing else is asked of anybody.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.coordinator.running import free_port
from tests.flower.helpers import until
from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tinylora.bundle import verify
from tinylora.errors import NetworkError
from tinylora.federation.events import (
    Event,
    LeaseExpired,
    RunFinished,
    UpdateAccepted,
    UpdateRejected,
    WorkerJoined,
    WorkerQuarantined,
)
from tinylora.flower.enrolment import ask_state
from tinylora.flower.reach import Address, Trust
from tinylora.flower.receipts import read_receipts
from tinylora.ledger.sqlite import SqliteLedger

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1200)]

SETTINGS = {
    "name": "moving", "depth": 1, "rank": 2, "leaf_steps": 48, "unit_steps": 4, "batch_windows": 1, "warmup_steps": 1,
    "window_tokens": WINDOW_TOKENS, "min_sequences": 1, "min_workers": 2, "router_period": 4, "probes": 0,
}  # fmt: skip


def command(*words: object) -> str:
    """A command of the operator's; returns what it prints."""
    line = [sys.executable, "-m", "tinylora_coordinator", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Place:
    """One machine's processes and what they say."""

    root: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where workers find the coordinator."""
        return f"https://127.0.0.1:{self.port}"

    def start(self, name: str, *words: object) -> None:
        """Start a program in the background; its words go to a file."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with open(self.root / f"{name}.said", "ab") as said:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
            )

    def said(self, name: str) -> str:
        """What a program has said."""
        return (self.root / f"{name}.said").read_text()

    def serve(self, name: str, run: Path) -> None:
        """Serve a run, and wait until it answers."""
        self.start(name, "tinylora_coordinator", "serve", run, "--port", self.port, "--no-dashboard")
        until(lambda: self._answers(name, run), timeout_s=120.0, what=f"an answer; {self.said(name)}")

    def _answers(self, name: str, run: Path) -> bool:
        trust = Trust("", (run / "keys" / "ca.pem").read_bytes())
        try:
            return bool(ask_state(Address.parse(self.url), trust=trust, timeout_s=2.0))
        except NetworkError:
            assert self.processes[name].poll() is None, self.said(name)
            return False

    def join(self, name: str, token: str) -> None:
        """A worker with a text of its own."""
        texts = self.root / f"{name}-texts"
        texts.mkdir()
        for number in range(12):
            words = " ".join(f"{name}{i * number}" for i in range(60))
            (texts / f"{number}.txt").write_text(f"{name} wrote text {number}: {words}")
        (self.root / f"{name}-token").write_text(token)
        options = ("--token-file", self.root / f"{name}-token", "--data", texts, "--base", tiny_base_dir(), "--yes")
        self.start(name, "tinylora_worker", "join", self.url, *options, "--home", self.root / name, "--threads", 1)

    def kill(self, name: str) -> None:
        """SIGKILL to a program; returns when its children have gone too."""
        process = self.processes[name]
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(family, timeout=30.0)

    def close(self) -> None:
        """Nobody is left behind."""
        for process in self.processes.values():
            with ExitStack() as held:
                if process.poll() is None:
                    for child in psutil.Process(process.pid).children(recursive=True):
                        held.callback(_kill, child)
                    process.kill()
                process.wait()


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def telling(place: Place) -> Iterator[None]:
    """What all programs said, should something fail."""
    try:
        yield
    except BaseException:
        for file in sorted(place.root.glob("*.said")):
            print(f"--- {file.name}\n{file.read_text()[-4000:]}")
        raise


def rows(run: Path) -> list[tuple[int, str, str, float, str]]:
    """The events as they lie on disk, byte for byte, chain and all."""
    with closing(sqlite3.connect(f"file:{run}/ledger.sqlite?mode=ro", uri=True)) as database:
        return database.execute("SELECT number, type, body, at_s, chain FROM event ORDER BY number").fetchall()


def events(run: Path) -> list[Event]:
    if not (run / "ledger.sqlite").exists():
        return []
    with SqliteLedger.open_readonly(run) as ledger:
        return list(ledger.events())


def accepted(run: Path) -> list[UpdateAccepted]:
    return [event for event in events(run) if isinstance(event, UpdateAccepted)]


def token(run: Path) -> str:
    return json.loads(command("token", "create", run, "--json"))["token"]


def count(found: list[Event], kind: type) -> int:
    return sum(isinstance(event, kind) for event in found)


def test_a_run_goes_on_from_a_backup_that_was_taken_while_it_was_under_way(
    place: Place, tmp_path: Path, record_property: Any
) -> None:
    run, elsewhere, file = tmp_path / "run", tmp_path / "elsewhere" / "run", tmp_path / "backup.tar"
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    command("init", run, "--base", tiny_base_dir(), "--host", "127.0.0.1", *settings)
    tokens = {name: token(run) for name in ("ann", "bob", "cem")}
    with telling(place):
        place.serve("first", run)
        for name in ("ann", "bob"):
            place.join(name, tokens[name])
        until(lambda: len(accepted(run)) >= 6, timeout_s=400.0, what="the first updates")

        began = time.monotonic()
        taken = json.loads(command("backup", run, "--out", file, "--json"))
        took_s = time.monotonic() - began
        place.join("cem", tokens["cem"])  # whom the backup does not know
        until(lambda: count(events(run), WorkerJoined) == 3, timeout_s=300.0, what="the third worker")
        until(lambda: len(accepted(run)) >= 14, timeout_s=400.0, what="updates after the backup")
        place.kill("first")
        old, late = rows(run), len(rows(run)) - taken["n_events"]
        n_before, n_redone = len(accepted(run)), len(accepted(run))
        run.rename(tmp_path / "lost")

        told = json.loads(command("restore", file, elsewhere, "--json"))
        assert rows(elsewhere) == old[: taken["n_events"]], "a prefix of the old log, byte for byte"
        assert (told["n_events"], told["chain"]) == (taken["n_events"], old[taken["n_events"] - 1][4])
        n_redone -= len(accepted(elsewhere))
        began = time.monotonic()
        place.serve("second", elsewhere)
        n_taken = taken["n_events"]
        until(lambda: len(accepted(elsewhere)) > n_before - n_redone, timeout_s=300.0, what="the first new update")
        back_s = time.monotonic() - began
        until(lambda: place.processes["second"].poll() is not None, timeout_s=600.0, what="the end of the run")
        for name in tokens:
            until(lambda name=name: place.processes[name].poll() is not None, timeout_s=60.0, what=f"the end of {name}")

        assert place.processes["second"].returncode == 0
        assert {name: place.processes[name].returncode for name in tokens} == dict.fromkeys(tokens, 0)
        assert rows(elsewhere)[:n_taken] == old[:n_taken]
        found = events(elsewhere)
        assert count(found, RunFinished) == 1 and count(found, WorkerJoined) == 3
        # Nothing is held against anybody. Units of seconds may be out of time before their workers are back.
        assert not count(found, WorkerQuarantined)
        assert {event.code for event in found if isinstance(event, UpdateRejected)} <= {"lease_closed"}
        assert json.loads(command("verify-log", elsewhere, "--json"))["faults"] == []
        assert verify(elsewhere / "bundle.safetensors")
        units = [event.unit_id for event in found if isinstance(event, UpdateAccepted)]
        assert len(units) == len(set(units))
        assert sum(event.n_steps for event in accepted(elsewhere) if event.kind == "train") >= SETTINGS["leaf_steps"]
        for name in tokens:
            check_receipts(place.root / name, elsewhere)
        assert count(found, LeaseExpired) <= 2 * len(tokens)
    print(
        f"backup of {taken['bytes']} bytes and {n_taken} events in {took_s:.1f} s; {late} events and {n_redone} "
        f"updates were lost with the machine and done again; the first new update {back_s:.1f} s after `serve`"
    )
    record_property("back_s", back_s)


def check_receipts(home: Path, run: Path) -> None:
    """Each unit's last receipt fits the log of the restored run, unless that never gave the unit to this worker."""
    last = {receipt.unit_id: receipt for receipt in read_receipts(home)}
    with SqliteLedger.open_readonly(run) as ledger:
        for unit, receipt in last.items():
            if ledger.rows("unit", unit_id=unit, worker=receipt.worker):
                assert ledger.chain_at(receipt.event) == receipt.log_sha256, unit
