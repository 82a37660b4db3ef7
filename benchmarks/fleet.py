"""How a coordinator of real processes bears a fleet: latency of its control replies, and its memory.

`--workers` clients speak the whole fleet API, each through the worker's own client and from a loopback address of its
own, with a trainer that sleeps instead of training and returns 8 MB. Beside them stand `--idle` worker processes, as a
volunteer has. Control replies are activate, heartbeat, pull and confirm; uploads and downloads are counted apart.

    python -m benchmarks.fleet [--workers 200] [--idle 4] [--seconds 120] [--unit-seconds 60] [--out FILE]
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import httpx
import numpy as np
import psutil
from tinylora_coordinator.folder import RunFolder, write_run
from tinylora_coordinator.keys import pin_of
from tinylora_coordinator.operator_store import OperatorStore

from tests.coordinator.running import Coordinator
from tests.flower.counting import CountingTrainer
from tinylora.config import BaseFacts, ProjectionShape, RunSettings
from tinylora.federation.events import LeaseExpired, UpdateAccepted, UpdateRejected
from tinylora.flower import use_home
from tinylora.routing.features import feature_hash

GOAL_P99_S, GOAL_MEMORY_BYTES = 0.5, 1.5e9
CONTROL = ("ActivateNode", "SendNodeHeartbeat", "PullMessages", "ConfirmMessageReceived")
DATA = ("PushMessages", "PushObject", "PullObject")
N_PROCESSES = 2
DIM, RANK, HIDDEN, N_LAYERS = 4, 128, 1024, 8  # 8 x 2 x 128 x 1024 numbers of 4 bytes: 8 MiB
BASE = BaseFacts(
    base_id="benchmark",
    fingerprint="a" * 64,
    tokenizer_fingerprint="b" * 64,
    feature_dim=DIM,
    feature_hash=feature_hash(None, DIM, DIM),
    max_window_tokens=64,
    projections={"proj": ProjectionShape(n_layers=N_LAYERS, in_features=HIDDEN, out_features=HIDDEN)},
)


def settings(n_workers: int) -> RunSettings:
    """Sixteen leaves, many workers on each."""
    return RunSettings(
        name="fleet", depth=4, rank=RANK, leaf_steps=1_000_000, unit_steps=5, min_workers=max(1, n_workers // 2),
        min_sequences=1, window_tokens=8, first_deadline_s=600.0, start_after_s=60.0, probes=0,
    )  # fmt: skip


# --- a process full of workers ------------------------------------------------------------------------------------

_here = threading.local()


def _connect_from_own_addresses() -> None:
    """Each thread's connections come from its own loopback address; the door counts connections by address."""
    make = httpx.HTTPTransport.__init__

    def made(transport: httpx.HTTPTransport, *words: Any, **options: Any) -> None:
        make(transport, *words, **{"local_address": getattr(_here, "source", None), **options})

    setattr(httpx.HTTPTransport, "__init__", made)  # noqa: B010


def run_clients(words: argparse.Namespace) -> None:
    """Run so many workers in threads until the run is finished; prints what was measured as JSON."""
    from tinylora.flower.enrolment import ask_state, join
    from tinylora.flower.fleet import FleetClient, FleetHttpClient
    from tinylora.flower.identity import new_identity
    from tinylora.flower.messages import by_folder
    from tinylora.flower.outbox import FolderOutbox
    from tinylora.flower.reach import Address, Trust

    took: dict[str, list[float]] = defaultdict(list)
    endings: list[str] = []
    lock = threading.Lock()

    def timed(verb: str) -> None:
        call = getattr(FleetHttpClient, verb)

        def measure(client: Any, request: Any) -> Any:
            started = time.perf_counter()
            answer = call(client, request)
            took[verb].append(time.perf_counter() - started)
            return answer

        setattr(FleetHttpClient, verb, measure)

    for verb in (*CONTROL, *DATA):
        timed(verb)
    address = Address(f"127.0.0.1:{words.port}", is_plain=True)
    _connect_from_own_addresses()

    def work(number: int) -> None:
        identity, rng = new_identity(), random.Random(number)
        trainer = CountingTrainer(identity, float(number % 16), facts=BASE, rank=RANK)
        source = f"127.1.{number // 250}.{number % 250 + 1}"

        def handle(unit: Any, payload: bytes) -> Any:
            if unit.kind == "train":
                threading.Event().wait(words.unit_seconds * (0.5 + rng.random()))
            return trainer.run(unit, payload)

        def phase() -> Any:
            _here.source = source  # a heartbeat asks from a thread of its own
            return ask_state(address).phase

        _here.source = source
        try:
            join(address, words.token, identity, trust=Trust(words.pin), timeout_s=120.0)
            with tempfile.TemporaryDirectory(prefix="tinylora-fleet-") as home:
                client = FleetClient(
                    address, identity, by_folder(handle), FolderOutbox(Path(home)), phase=phase, limit_bytes=2**26
                )
                ending = str(client.work())
        except Exception as error:
            ending = f"{type(error).__name__}: {error}"
        with lock:
            endings.append(ending)

    threads = [threading.Thread(target=work, args=(words.first + number,)) for number in range(words.workers)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # volunteers do not come all at once
    for thread in threads:
        thread.join()
    cpu_s = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"took": took, "endings": endings, "cpu_s": cpu_s.ru_utime + cpu_s.ru_stime}))


# --- the measurement ----------------------------------------------------------------------------------------------


def measure(words: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Serve a run to the fleet for a while; returns all numbers."""
    write_run(RunFolder(root), settings(words.workers), BASE, None)
    with OperatorStore(root) as store:
        pin = pin_of(RunFolder(root).keys)
        token = store.create_token(pin, now_s=time.time(), max_workers=10_000).text
        coordinator = Coordinator(root)
        coordinator.start()
        clients: list[subprocess.Popen[str]] = []
        try:
            coordinator.wait_until_up()
            share, number = words.workers // N_PROCESSES, 0
            for _ in range(N_PROCESSES):
                clients.append(_start(coordinator.port, token, pin, number, share, words.unit_seconds))
                number += share
            for _ in range(words.idle):  # each a process of its own; its units never end
                clients.append(_start(coordinator.port, token, pin, number, 1, 1e6))
                number += 1
            watched = _watch(coordinator, words.seconds)
            for idle in clients[N_PROCESSES:]:
                idle.kill()
            store.order("finish", now_s=time.time())
            found = [json.loads(client.communicate(timeout=600.0)[0]) for client in clients[:N_PROCESSES]]
            code = coordinator.finish(120.0)
            return _numbers(words, coordinator, watched, found, code)
        finally:
            for client in clients:
                client.kill()
            coordinator.kill("supervisor")


def _start(port: int, token: str, pin: str, first: int, n_workers: int, unit_seconds: float) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "benchmarks.fleet",
        "--client",
        "--port",
        str(port),
        "--token",
        token,
        "--pin",
        pin,
    ]
    command += ["--first", str(first), "--workers", str(n_workers), "--unit-seconds", str(unit_seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _watch(coordinator: Coordinator, seconds: float) -> dict[str, float]:
    """Largest memory of all the coordinator's processes together, and their processor time."""
    most, cpu_s, end = defaultdict[str, float](float), 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1.0)
        assert coordinator.process is not None
        family = [psutil.Process(coordinator.process.pid)]
        family += family[0].children()
        sizes = [process.memory_full_info() for process in family]
        most["pss"] = max(most["pss"], sum(size.pss for size in sizes))
        most["rss"] = max(most["rss"], sum(size.rss for size in sizes))
        cpu_s = sum(sum(process.cpu_times()[:2]) for process in family)
    return {**most, "cpu_s": cpu_s}


def _numbers(
    words: argparse.Namespace, coordinator: Coordinator, watched: dict[str, float], found: list[Any], code: int
) -> dict[str, Any]:
    took = {verb: sorted(t for one in found for t in one["took"].get(verb, [])) for verb in (*CONTROL, *DATA)}
    control = sorted(t for verb in CONTROL for t in took[verb])
    endings = [ending for one in found for ending in one["endings"]]
    return {
        "workers": words.workers,
        "idle_workers": words.idle,
        "seconds": words.seconds,
        "unit_seconds": words.unit_seconds,
        "update_bytes": 4 * 2 * RANK * HIDDEN * N_LAYERS,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[1],
        "accepted": coordinator.count(UpdateAccepted),
        "rejected": coordinator.count(UpdateRejected),
        "expired": coordinator.count(LeaseExpired),
        "errors": words.workers - endings.count("finished"),
        "what": sorted({ending for ending in endings if ending != "finished"})[:5],
        "exit_code": code,
        "control": _quantiles(control),
        "each": {verb: _quantiles(times) for verb, times in took.items()},
        "memory_pss_bytes": watched["pss"],
        "memory_rss_bytes": watched["rss"],
        "coordinator_cpu_s": watched["cpu_s"],
        "clients_cpu_s": sum(one["cpu_s"] for one in found),
    }


def _quantiles(times: list[float]) -> dict[str, float]:
    if not times:
        return {"n": 0}
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {"n": len(times), "p50_s": float(p50), "p99_s": float(p99), "longest_s": float(times[-1])}


def main(text: list[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="A fleet on a coordinator of real processes.")
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--idle", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--unit-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fleet.json"))
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    for word in ("--token", "--pin"):
        parser.add_argument(word, help=argparse.SUPPRESS)
    for word in ("--port", "--first"):
        parser.add_argument(word, type=int, help=argparse.SUPPRESS)
    words = parser.parse_args(text)
    with tempfile.TemporaryDirectory() as folder:
        use_home(Path(folder, "flower"))
        if words.client:
            run_clients(words)
            return
        found = measure(words, Path(folder, "run"))
    words.out.write_text(json.dumps(found, indent=1) + "\n")
    control = found["control"]
    print(f"{found['workers']} workers, {found['accepted']} updates of 8 MiB, {found['errors']} errors")
    print(f"control replies: {control['n']}, p50 {control['p50_s'] * 1e3:.0f} ms, p99 {control['p99_s'] * 1e3:.0f} ms")
    print(f"memory: {found['memory_pss_bytes'] / 1e6:.0f} MB (RSS {found['memory_rss_bytes'] / 1e6:.0f} MB)")
    is_good = control["p99_s"] < GOAL_P99_S and found["memory_pss_bytes"] < GOAL_MEMORY_BYTES and not found["errors"]
    print("goal reached" if is_good else "goal missed")


if __name__ == "__main__":
    main(sys.argv[1:])
