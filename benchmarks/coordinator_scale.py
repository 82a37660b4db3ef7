"""What the coordinator's work costs for ten updates and for ten thousand, over the arithmetic that nothing can avoid.

    python -m benchmarks coordinator_scale        # writes benchmarks/results/coordinator_scale.json

Updates come as spooled files, are judged, stored, made the next version and sent out again; events and tables on disk.
Without probes, which are work for workers. Each count has a process of its own, whose memory is told beside that before
the first update.

* `alone`: two workers with a leaf each send one update after the other. Of 256 KiB, to see whether the thousandth costs
  what the tenth does; and of 4 MB, to see what the bytes cost. Old versions are pruned under a disk cap, as in a long
  run.
* `crowd`: so many workers hold one node, and each sends one update of 256 KiB in one round, which are clipped and
  averaged in float64. Counted from the first reply until the version is made; the workers joined before.

The floor is what must be done with the bytes at the very least. Each update: sha256, write to disk, read back, add up
in float64. Each version that comes of it (one for each update that is alone, one for the whole crowd): sha256, which is
its name, and write to disk.
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

from tinylora import tensors
from tinylora.adapters.shapes import adapter_manifest
from tinylora.config import BaseFacts, ProjectionShape, RunSettings
from tinylora.federation.events import Event, NodeAveraged, RunStarted, UpdateAccepted, UpdateRejected
from tinylora.federation.loop import Rounds
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import Update, WorkUnit, sha256
from tinylora.protocol.envelope import sign
from tinylora.routing.statistics import PREFIXES, statistics_of
from tinylora.tensors import Tensors

GOAL = 4.0
MOST_BENT = 1.2
MOST_MEMORY_MB = 64.0
CASES = (
    *(("alone", "small", count) for count in (10, 100, 1000, 10_000)),
    *(("alone", "large", count) for count in (10, 100, 1000)),
    *(("crowd", "small", count) for count in (10, 100, 1000)),
)
N_LAYERS, RANK = 16, 16
WIDTHS = {"small": 128, "large": 2048}
"""Of the only projection: adapters of 256 KiB, and of 4 MiB."""
BATCH = 64
"""Replies that arrive together."""
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
TIMES = {"since_s": 0.0, "patience_s": 1e9, "rejoin_s": 0.0}


def main() -> None:
    """Measure one case in this process, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("alone", "crowd"))
    parser.add_argument("size", choices=sorted(WIDTHS))
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure_one(arguments.how, arguments.size, arguments.count)))


def measure() -> dict[str, Any]:
    """CPU and memory of each case, and whether both are as promised."""
    rows = [_in_a_process(*case) for case in CASES]
    figure = {f"{how}, {size}": _figure([r for r in rows if (r["how"], r["size"]) == (how, size)]) for how, size in
              dict.fromkeys(case[:2] for case in CASES)}  # fmt: skip
    is_cheap = all(case["worst_ratio"] <= GOAL for case in figure.values())
    is_linear = all(found["bent"] <= MOST_BENT for found in figure.values())
    is_small = all(found["memory_mb"] <= MOST_MEMORY_MB for found in figure.values())
    return {
        "compares": "coordinator CPU per update with writing, reading, hashing and adding its bytes once",
        "goal": (
            f"ratio <= {GOAL} in every case from 100 updates on; an update among the most costs at most {MOST_BENT} "
            f"times what it costs among 100; at most {MOST_MEMORY_MB} MB more than before the first, however many"
        ),
        "is_met": is_cheap and is_linear and is_small,
        "figure": figure,
        "details": {"rows": rows},
    }


def _figure(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    many = [row for row in rows if row["updates"] >= 100]
    return {
        "ratio": {str(row["updates"]): row["ratio"] for row in rows},
        "worst_ratio": max(row["ratio"] for row in many),
        "bent": round(many[-1]["cpu_s_per_update"] / many[0]["cpu_s_per_update"], 3),
        "memory_mb": max(row["memory_mb"] for row in rows),
    }


def _in_a_process(how: str, size: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.coordinator_scale", how, size, str(count)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    row = json.loads(done.stdout)
    print(row, flush=True)
    return row


def measure_one(how: str, size: str, n_updates: int) -> dict[str, Any]:
    """One run of so many train updates, and its floor."""
    is_crowd = how == "crowd"
    with TemporaryDirectory(prefix="tinylora-bench-") as folder:
        run = _Run(Path(folder, "run"), size, n_workers=n_updates if is_crowd else 2, depth=0 if is_crowd else 1)
        while run.n_sketches < len(run.infos) or not run.rounds.state.topology:
            run.step()
        run.settle()
        before_mb, run.cpu_s = _peak_mb(), 0.0
        while run.n_trained < n_updates or (is_crowd and not run.n_versions):
            run.step()
        memory_mb = _peak_mb() - before_mb
        taking_s, storing_s = _floor_s(run.payload, Path(folder))
        disk_mb = run.ledger.stored_bytes() / 2**20
    per_update = run.cpu_s / run.n_trained
    floor_s = taking_s + (0.0 if is_crowd else storing_s)
    return {
        "how": how,
        "size": size,
        "updates": run.n_trained,
        "payload_bytes": len(run.payload),
        "cpu_s_per_update": round(per_update, 5),
        "floor_s": round(floor_s, 5),
        "ratio": round(per_update / floor_s, 3),
        "memory_mb": round(memory_mb, 1),
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
    """Workers and the loop; only the loop's CPU seconds are counted."""

    def __init__(self, folder: Path, size: str, *, n_workers: int, depth: int) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public = self.key.public_key().public_bytes(serialization.Encoding.PEM, form)
        self.infos = [WorkerInfo(name, name, public) for name in (f"w{number:05d}" for number in range(n_workers))]
        self.facts = _facts(WIDTHS[size])
        self.sent: list[tuple[str, WorkUnit]] = []
        self.replies: list[Reply] = []
        self.payload = b""
        self.n_trained = self.n_sketches = self.n_versions = 0
        self.cpu_s = 0.0
        self.ledger = SqliteLedger(folder)
        self.rounds = Rounds(self.ledger, self, self, TorchNumerics(), on_event=self._note)
        cap = SETTINGS.disk_cap_mib if depth else 0.0  # the updates of one round are all needed until its end
        settings = SETTINGS.model_copy(update={"depth": depth, "min_workers": n_workers, "disk_cap_mib": cap})
        self.rounds.open(RunStarted(run="benchmark", settings=settings, base=self.facts))
        self.settle()

    def now(self) -> float:
        """Time stands still."""
        return 0.0

    def wait(self, seconds: float) -> None:
        """Never asked for."""
        raise RuntimeError(f"nothing to do for {seconds} s: the run got stuck")

    def workers(self) -> Sequence[WorkerInfo]:
        """All, always."""
        return self.infos

    def poll(self) -> Sequence[Reply]:
        """What was answered."""
        replies, self.replies = self.replies, []
        return replies

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        """Note the unit."""
        self.sent.append((worker, unit))

    def step(self) -> None:
        """Answer units that were sent, then let the loop do all it wants to do."""
        answered, self.sent = self.sent[:BATCH], self.sent[BATCH:]
        self.replies = [self._answer(worker, unit) for worker, unit in answered]
        self.settle()

    def settle(self) -> None:
        """Let the loop do all it wants to do."""
        start = time.process_time()
        while not self.rounds.step(self, TIMES, lambda: False):
            pass
        self.cpu_s += time.process_time() - start

    def _answer(self, worker: str, unit: WorkUnit) -> Reply:
        made = _sketch(int(worker[1:]), self.facts.feature_dim) if unit.kind == "sketch" else self._adapter(unit)
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
        file = self.ledger.spool / unit.unit_id
        _store(payload, file)
        return Reply(worker, unit.unit_id, sign(update, self.key).to_json(), file=file, sha256=update.payload_sha256)

    def _adapter(self, unit: WorkUnit) -> Tensors:
        """Other numbers in every unit: the same bytes would be stored once."""
        manifest = adapter_manifest(self.facts, unit.spec, path=unit.node)
        number = int(unit.unit_id[1:]) % 1009
        return {name: _drawn(shape) + 1e-6 * number for name, (_, shape) in manifest.items()}

    def _note(self, event: Event) -> None:
        if isinstance(event, UpdateAccepted):
            self.n_trained += event.kind == "train"
            self.n_sketches += event.kind == "sketch"
        if isinstance(event, UpdateRejected):
            raise RuntimeError(f"an update was refused: {event.reason}")
        self.n_versions += isinstance(event, NodeAveraged)


def _facts(width: int) -> BaseFacts:
    return BaseFacts(
        base_id="benchmark",
        fingerprint="a" * 64,
        tokenizer_fingerprint="b" * 64,
        feature_dim=64,
        feature_hash="c" * 64,
        max_window_tokens=2048,
        projections={"proj": ProjectionShape(n_layers=N_LAYERS, in_features=width, out_features=width)},
    )


def _sketch(number: int, dim: int) -> Tensors:
    random = np.random.Generator(np.random.Philox(number))
    rows = random.standard_normal((600, dim))
    sums = statistics_of(rows, np.resize(np.array(PREFIXES), len(rows)))
    return {f"statistics..{name}": torch.from_numpy(array) for name, array in sums.to_arrays().items()}


@cache
def _drawn(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3


if __name__ == "__main__":
    main()
