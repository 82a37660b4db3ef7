"""Under a flood the coordinator's memory stays where it was, and an honest worker's units take hardly longer."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
import pytest

from tests.flower.helpers import QUICK, make_unit, replies, reversing, until
from tinylora.flower.enrolment import Address
from tinylora.flower.fleet import FleetClient
from tinylora.flower.grid import HttpWire
from tinylora.flower.identity import new_identity
from tinylora.flower.messages import by_folder
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.transport import FlowerTransport

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pathspec, about flwr's use

MB = 1_000_000
LIMIT_BYTES = 4 * 2**20
PAYLOAD = bytes(range(256)) * 4096  # 1 MiB


@contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A helper that lives as long as its stdin."""
    command = [sys.executable, "-m", *argv]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            if child.stdin and not child.stdin.closed:
                child.stdin.close()
            child.wait(30)


def line_of(child: subprocess.Popen[str]) -> str:
    """The next thing it says."""
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line, f"the process ended with {child.wait(30)}"
    return line


@dataclass
class MemoryWatch:
    """The most memory that a process has had, looked at again and again by a thread."""

    process: psutil.Process
    most: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "MemoryWatch":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self.is_over.wait(0.02):
            self.most = max(self.most, self.process.memory_info().rss)


class Honest:
    """One worker behind the public port, and the rounds behind the inner one."""

    def __init__(self, transport: FlowerTransport, worker: str) -> None:
        self._transport, self._worker, self._n_done = transport, worker, 0

    def unit_s(self) -> float:
        """Seconds from a unit's dispatch until its update is here, checked."""
        self._n_done += 1
        unit = make_unit(f"unit-{self._n_done}", PAYLOAD)
        begun = time.monotonic()
        self._transport.send(self._worker, unit, PAYLOAD)
        reply = replies(self._transport, 1)[unit.unit_id]
        took_s = time.monotonic() - begun
        data = reply.file.read_bytes() if reply.file else reply.payload
        assert reply.worker == self._worker and data == PAYLOAD[::-1] and not reply.error
        return took_s

    def units_s(self, number: int) -> float:
        """The median of so many."""
        return median(self.unit_s() for _ in range(number))


def flood(folder: Path, *, n_sockets: int, n_posts: int, n_units: int) -> dict[str, float]:
    """Work in peace, then under attack; returns what it cost."""
    identity = new_identity()
    pem = folder / "worker.pem"
    pem.write_bytes(identity.public_pem)
    with process("tests.door.served_link", str(folder), str(pem)) as server:
        told = json.loads(line_of(server))
        wire = HttpWire(
            f"127.0.0.1:{told['inside']}",
            admin=told["admin"],
            superexec_secret=bytes.fromhex(told["superexec_secret"]),
            limit_bytes=LIMIT_BYTES,
            folder=folder,
        )
        stop = threading.Event()
        client = FleetClient(
            Address(f"127.0.0.1:{told['public']}", is_plain=False),
            identity,
            by_folder(reversing(identity.worker)),
            FolderOutbox(folder / "home"),
            phase=lambda: "running",
            limit_bytes=LIMIT_BYTES,
            root_certificates=(folder / "keys" / "ca.pem").read_bytes(),
            pace=QUICK,
            stop=stop,
            log=lambda line: None,
        )
        worker = threading.Thread(target=client.work, daemon=True)
        with FlowerTransport(wire, poll_s=0.1, folder=folder) as transport:
            worker.start()
            honest = Honest(transport, identity.worker)
            until(lambda: bool(transport.workers()), what="the worker")
            honest.unit_s()
            try:
                return measure(honest, server, told["public"], n_sockets, n_posts, n_units)
            finally:
                stop.set()
                worker.join(20)


def measure(
    honest: Honest, server: "subprocess.Popen[str]", port: int, n_sockets: int, n_posts: int, n_units: int
) -> dict[str, float]:
    """Seconds of a unit and the server's memory, before and during."""
    calm_s = honest.units_s(n_units)
    measured = psutil.Process(server.pid)
    before = measured.memory_info().rss
    with (
        MemoryWatch(measured) as memory,
        process("tests.door.attack", str(port), str(n_sockets), str(n_posts)) as attack,
    ):
        assert line_of(attack) == "begun\n"
        busy_s = honest.units_s(n_units)
        assert attack.stdin is not None
        attack.stdin.close()
        counts = json.loads(line_of(attack))
    return {"calm_s": calm_s, "busy_s": busy_s, "rise_mb": (memory.most - before) / MB, **counts}


def test_a_small_flood(tmp_path: Path) -> None:
    cost = flood(tmp_path, n_sockets=150, n_posts=10, n_units=3)
    print(cost)
    assert cost["rise_mb"] < 60 and cost["posts"] == 10
    assert cost["busy_s"] < 2 * cost["calm_s"]


@pytest.mark.slow
def test_the_whole_flood(tmp_path: Path) -> None:
    cost = flood(tmp_path, n_sockets=1000, n_posts=50, n_units=5)
    print(cost)
    assert cost["rise_mb"] < 100 and cost["posts"] == 50
    assert cost["busy_s"] < 2 * cost["calm_s"]
