"""What the coordinator's work costs for ten updates and for ten thousand, over the arithmetic that nothing can avoid.

    python -m benchmarks.coordinator_scale        # writes benchmarks/results/coordinator_scale.json

Two workers send updates of 4 MB, which are judged, stored, made the next version and sent out again; events and tables
on disk. Either each holds a leaf (`alone`), or both hold the same one (`shared`), whose updates are clipped and
averaged in float64. Without probes, which are work for workers. Old versions are pruned under a disk cap, as in a long
run. Each count has a process of its own, whose memory is told beside that before the first update.

The floor is what must be done with the bytes at the very least. Each update: sha256, write to disk, read back, add up
in float64. Each version that comes of it (one for each update that is alone, one for two that share a leaf): sha256,
which is its name, and write to disk. `ratio_to_updates` counts the updates' part of the floor alone.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.measure import write_result
from tinylora import tensors
from tinylora.adapters.shapes import adapter_manifest
from tinylora.config import BaseFacts, ProjectionShape, RunSettings
from tinylora.federation.events import Event, RunStarted, UpdateAccepted
from tinylora.federation.loop import Rounds
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import Update, WorkUnit, sha256
from tinylora.protocol.envelope import sign
from tinylora.routing.statistics import PREFIXES, statistics_of
from tinylora.tensors import Tensors

GOAL = 4.0
MOST_BENT = 1.3
"""Largest cost of one update over the smallest, among the counts from a hundred on."""
COUNTS = (10, 100, 1000, 10_000)
SHARED_COUNTS = (10, 100, 1000)
WIDTH, N_LAYERS, RANK = 2048, 16, 16
FACTS = BaseFacts(
    base_id="benchmark",
    fingerprint="a" * 64,
    tokenizer_fingerprint="b" * 64,
    feature_dim=64,
    feature_hash="c" * 64,
    max_window_tokens=2048,
    projections={"proj": ProjectionShape(n_layers=N_LAYERS, in_features=WIDTH, out_features=WIDTH)},
)
SETTINGS = RunSettings(
    rank=RANK,
    unit_steps=1,
    leaf_steps=10**6,
    min_workers=2,
    min_sequences=1,
    router_period=10,
    probes=0,
    disk_cap_mib=256.0,
)
NAMES = ("w0", "w1")
TIMES = {"since_s": 0.0, "patience_s": 1e9, "rejoin_s": 0.0}


def main() -> None:
    """Measure all counts, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--shared-counts", type=int, nargs="*", default=list(SHARED_COUNTS))
    parser.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        print(json.dumps(measure_one(arguments.one, is_shared=arguments.shared)))
        return
    result = measure(arguments.counts, arguments.shared_counts)
    print(result["figure"])
    write_result("coordinator_scale", result | {"command": "python -m benchmarks.coordinator_scale"})


def measure(counts: Sequence[int] = COUNTS, shared_counts: Sequence[int] = SHARED_COUNTS) -> dict[str, Any]:
    """CPU and memory of each count, and whether both are as promised."""
    alone = [_in_a_process(count, is_shared=False) for count in counts]
    shared = [_in_a_process(count, is_shared=True) for count in shared_counts]
    many = [row["cpu_s_per_update"] for row in alone if row["updates"] >= 100] or [1.0]
    figure = {
        "ratio_alone": {str(row["updates"]): row["ratio"] for row in alone},
        "ratio_shared": {str(row["updates"]): row["ratio"] for row in shared},
        "bent": round(max(many) / min(many), 3),
        "memory_mb": {str(row["updates"]): row["memory_mb"] for row in alone},
    }
    return {
        "compares": "coordinator CPU per update with writing, reading, hashing and adding its bytes once",
        "goal": f"<= {GOAL} for every count from 100 on, and growing no faster than the count",
        "is_met": max(row["ratio"] for row in alone if row["updates"] >= 100) <= GOAL and figure["bent"] <= MOST_BENT,
        "figure": figure,
        "details": {"alone": alone, "shared": shared},
    }


def _in_a_process(count: int, *, is_shared: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.coordinator_scale", "--one", str(count)]
    command += ["--shared"] if is_shared else []
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    row = json.loads(done.stdout)
    print(row, flush=True)
    return row


def measure_one(n_updates: int, *, is_shared: bool) -> dict[str, Any]:
    """One run of so many train updates, and its floor."""
    with TemporaryDirectory(prefix="tinylora-bench-") as folder:
        run = _Run(Path(folder, "run"), depth=0 if is_shared else 1)
        run.step()  # the sketches
        before_mb = _peak_mb()
        run.cpu_s = 0.0
        while run.n_trained < n_updates:
            run.step()
        taking_s, storing_s = _floor_s(run.payload, Path(folder))
        disk_mb = run.ledger.stored_bytes() / 2**20
    per_update = run.cpu_s / run.n_trained
    floor_s = taking_s + (storing_s / 2 if is_shared else storing_s)
    return {
        "updates": run.n_trained,
        "payload_bytes": len(run.payload),
        "cpu_s_per_update": round(per_update, 5),
        "floor_s": round(floor_s, 5),
        "ratio": round(per_update / floor_s, 3),
        "ratio_to_updates": round(per_update / taking_s, 3),
        "memory_mb": round(_peak_mb() - before_mb, 1),
        "blobs_mb": round(disk_mb, 1),
    }


def _floor_s(payload: bytes, folder: Path, n_rounds: int = 20) -> tuple[float, float]:
    """Median CPU seconds of the least that must be done with one update, and with one version."""
    total = np.zeros(len(payload) // 4)
    file = folder / "floor"
    taking, storing = [], []
    for _ in range(n_rounds):
        start = time.process_time()
        _store(payload, file)
        middle = time.process_time()
        data = file.read_bytes()
        total += np.frombuffer(data[: 4 * len(total)], dtype=np.float32)
        taking.append(time.process_time() - start)
        storing.append(middle - start)
    return float(np.median(taking)), float(np.median(storing))


def _store(payload: bytes, file: Path) -> None:
    hashlib.sha256(payload).digest()
    with file.open("wb") as out:
        out.write(payload)
        out.flush()
        os.fsync(out.fileno())


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Run:
    """Two workers and the loop; only the loop's CPU seconds are counted."""

    def __init__(self, folder: Path, *, depth: int) -> None:
        self.keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in NAMES}
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self.infos = [
            WorkerInfo(name, name, key.public_key().public_bytes(serialization.Encoding.PEM, form))
            for name, key in self.keys.items()
        ]
        self.sent: list[tuple[str, WorkUnit]] = []
        self.replies: list[Reply] = []
        self.payload = b""
        self.n_trained, self.cpu_s = 0, 0.0
        self.ledger = SqliteLedger(folder)
        self.rounds = Rounds(self.ledger, self, self, TorchNumerics(), on_event=self._note)
        self.rounds.open(RunStarted(run="benchmark", settings=SETTINGS.model_copy(update={"depth": depth}), base=FACTS))
        self.step()

    def now(self) -> float:
        """Time stands still."""
        return 0.0

    def wait(self, seconds: float) -> None:
        """Never asked for."""
        raise RuntimeError(f"nothing to do for {seconds} s: the run got stuck")

    def workers(self) -> Sequence[WorkerInfo]:
        """Both, always."""
        return self.infos

    def poll(self) -> Sequence[Reply]:
        """What was answered."""
        replies, self.replies = self.replies, []
        return replies

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        """Note the unit."""
        self.sent.append((worker, unit))

    def step(self) -> None:
        """Let the loop do all it wants to do, then answer every unit that it sent."""
        start = time.process_time()
        while not self.rounds.step(self, TIMES, lambda: False):
            pass
        self.cpu_s += time.process_time() - start
        sent, self.sent = self.sent, []
        self.replies = [self._answer(worker, unit) for worker, unit in sent]

    def _answer(self, worker: str, unit: WorkUnit) -> Reply:
        made = _sketch(worker) if unit.kind == "sketch" else _adapter(worker, unit.node, unit.first_step)
        payload = tensors.to_bytes(made)
        if unit.kind == "train":
            self.payload = payload
        update = Update(
            unit_id=unit.unit_id,
            run=unit.run,
            kind=unit.kind,
            worker=worker,
            nonce=unit.nonce,
            node=unit.node,
            topology_version=unit.topology_version,
            router_version=unit.router_version,
            node_version=unit.node_version,
            shard_version=sha256(worker.encode()),
            shard_tokens=1_000_000,
            n_steps=unit.n_steps,
            manifest=tensors.manifest_of(made),
            payload_sha256=sha256(payload),
        )
        return Reply(worker, unit.unit_id, sign(update, self.keys[worker]).to_json(), payload)

    def _note(self, event: Event) -> None:
        if isinstance(event, UpdateAccepted):
            self.n_trained += event.kind == "train"


def _sketch(worker: str) -> Tensors:
    random = np.random.Generator(np.random.Philox(NAMES.index(worker)))
    rows = random.standard_normal((600, FACTS.feature_dim))
    sums = statistics_of(rows, np.resize(np.array(PREFIXES), len(rows)))
    return {f"statistics..{name}": torch.from_numpy(array) for name, array in sums.to_arrays().items()}


def _adapter(worker: str, node: str, first_step: int) -> Tensors:
    """Other numbers in every unit: the same bytes would be stored once."""
    return {name: tensor + 1e-6 * (first_step % 1000) for name, tensor in _drawn(worker, node).items()}


@cache
def _drawn(worker: str, node: str) -> Tensors:
    random = torch.Generator().manual_seed(NAMES.index(worker))
    shapes = adapter_manifest(FACTS, SETTINGS.spec, path=node)
    return {name: torch.randn(shape, generator=random) * 1e-3 for name, (_, shape) in shapes.items()}


if __name__ == "__main__":
    main()
