"""What the dashboard costs its server, with a tree of 1,023 nodes, 200 workers and ten readers.

    python -m benchmarks dashboard        # writes benchmarks/results/dashboard.json

A replay of an artificial run at the speed at which it would have happened: five events and some twenty reports in a
second, as much as 200 workers say that are all at work. The server is a process of its own; its CPU seconds are counted
over a minute, with nobody looking and with ten who follow the stream. What a replay does besides, reading its file, is
counted too. Then each question is asked, one after the other.
"""

import gzip
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from tinylora_coordinator.dashboard.recording import Happened, write_recording

from tests.dashboard.synthetic import Plan, make_run

GOAL = 0.02
"""Of a core."""
PLAN = Plan(n_leaves=512, n_workers=200, hours=0.75, events_per_s=5.0)
FROM_S = 1800.0
N_READERS = 10
MEASURE_S = 60.0
N_ASKED = 40
SETTLE_S = 5.0


def measure() -> dict[str, Any]:
    """CPU of the server with and without readers, and the cost of each question."""
    with TemporaryDirectory(prefix="tinylora-bench-") as folder:
        file = Path(folder, "run.jsonl.gz")
        items = list(make_run(PLAN))
        write_recording(file, "artificial", items)
        n_there = sum(isinstance(item, Happened) and item.at_s <= FROM_S for item in items)
        with _served(file, "--from", f"{FROM_S:g}s", "--speed", "1") as server:
            ready_s = server.wait_for(n_there)
            alone = server.cpu_share(MEASURE_S)
            with _readers(server.address, N_READERS) as readers:
                time.sleep(SETTLE_S)
                before = [(reader.n_patches, reader.n_bytes) for reader in readers]
                shared = server.cpu_share(MEASURE_S)
                heard = [(r.n_patches - n, r.n_bytes - b) for r, (n, b) in zip(readers, before, strict=True)]
            memory_mb = server.memory_mb()
        with _served(file, "--at", f"{FROM_S:g}s") as server:
            server.wait_for(n_there)
            questions = server.ask_all()
    return {
        "compares": "CPU of the server of a replay at its own speed, 1,023 nodes and 200 workers",
        "goal": f"at most {GOAL:.0%} of a core with {N_READERS} readers",
        "is_met": shared <= GOAL,
        "figure": {"share_of_a_core": {"nobody": round(alone, 4), f"{N_READERS} readers": round(shared, 4)}},
        "details": {
            "jump_to_half_an_hour_s": round(ready_s, 1),
            "memory_mb": round(memory_mb, 1),
            "a_reader_in_a_minute": {
                "patches": round(statistics.mean(n for n, _ in heard) * 60 / MEASURE_S, 1),
                "kilobytes": round(statistics.mean(b for _, b in heard) * 60 / MEASURE_S / 1000, 1),
            },
            "questions": questions,
        },
    }


# --- the server -----------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.address = address
        self._process = psutil.Process(process.pid)
        self._client = httpx.Client(base_url=address, trust_env=False, timeout=60.0)

    def wait_for(self, n_events: int) -> float:
        """Until it was told so many events; returns after how many seconds."""
        begun_s = time.monotonic()
        while self._client.get("/api/v1/state").json()["run"].get("n_events", 0) < n_events:
            time.sleep(0.5)
        time.sleep(SETTLE_S)
        return time.monotonic() - begun_s - SETTLE_S

    def cpu_s(self) -> float:
        """So far."""
        times = self._process.cpu_times()
        return times.user + times.system

    def cpu_share(self, seconds: float) -> float:
        """CPU seconds in each second, over so many."""
        before, begun_s = self.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return (self.cpu_s() - before) / (time.monotonic() - begun_s)

    def memory_mb(self) -> float:
        """Resident."""
        return self._process.memory_info().rss / 2**20

    def ask_all(self) -> dict[str, Any]:
        """By question: sizes, time of an answer, CPU of the server for it."""
        state = self._client.get("/api/v1/state").json()
        leaf = next(node["path"] for node in reversed(state["nodes"]) if node["kind"] == "leaf")
        worker = state["workers"][0]["worker"]
        paths = {
            "state": "/api/v1/state",
            "workers": "/api/v1/workers",
            "node": f"/api/v1/nodes/{leaf}",
            "worker": f"/api/v1/workers/{worker}",
            "series of the run": "/api/v1/series?metric=loss",
            "series of a node": f"/api/v1/series?metric=loss&node={leaf}",
            "timeline": "/api/v1/timeline",
            "routing": "/api/v1/routing",
            "lite": "/lite",
            "metrics": "/metrics",
        }
        return {name: self._ask(path) for name, path in paths.items()}

    def _ask(self, path: str) -> dict[str, float]:
        """Not from a cache: nobody says what he has already."""
        took, cpu_s, body = [], self.cpu_s(), b""
        for _ in range(N_ASKED):
            begun_s = time.perf_counter()
            answer = self._client.get(path, headers={"accept-encoding": "identity"})
            took.append(time.perf_counter() - begun_s)
            answer.raise_for_status()
            body = answer.content
        return {
            "bytes": len(body),
            "gzip_bytes": len(gzip.compress(body, 5)),
            "median_ms": round(1000 * statistics.median(took), 2),
            "longest_ms": round(1000 * max(took), 2),
            "cpu_ms": round(1000 * (self.cpu_s() - cpu_s) / N_ASKED, 2),
        }


@contextmanager
def _served(file: Path, *options: str) -> Iterator[_Server]:
    command = [sys.executable, "-m", "tinylora_coordinator", "replay", str(file), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(line.split()[1] for line in process.stderr if line.startswith("dashboard: "))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield _Server(process, address)
        finally:
            process.terminate()


# --- the readers ----------------------------------------------------------------------------------------------------


class _Reader:
    """Follows the stream over a bare socket, so that reading takes little from the machine."""

    def __init__(self, address: str) -> None:
        place = urlsplit(address)
        assert place.hostname is not None
        self.n_bytes = self.n_patches = 0
        self._socket = socket.create_connection((place.hostname, place.port or 80))
        self._socket.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := self._socket.recv(1 << 16):
            self.n_bytes += len(data)
            self.n_patches += data.count(b"event: patch")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@contextmanager
def _readers(address: str, count: int) -> Iterator[list[_Reader]]:
    readers = [_Reader(address) for _ in range(count)]
    try:
        yield readers
    finally:
        for reader in readers:
            reader.close()


def main() -> None:
    """Measure and print, without writing a result."""
    print(json.dumps(measure(), indent=1))


if __name__ == "__main__":
    main()
