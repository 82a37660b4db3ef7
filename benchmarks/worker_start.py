"""Seconds from a worker's start to its first optimiser step, files already in the system's cache.

A fresh process does what `tinylora-worker join` does when it is given a leaf: imports, base, shard, adapters, one step
on the demo's base with a small folder of text. The network is left out: it has a pace of its own. The other side is a
fresh process that imports torch and transformers and no more, because no worker can be faster than that.
"""

import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tinylora.demo.experiment import BASE_DIR

N_ROUNDS = 5
N_FILES = 40
BARE = "import torch, transformers; transformers.AutoModelForCausalLM; print('ready', flush=True)"


def measure() -> dict[str, Any]:
    """Median over rounds in turns, after one round that fills the cache."""
    with TemporaryDirectory(prefix="tinylora-bench-") as folder:
        gather_text(Path(folder))
        worker = [sys.executable, "-m", "benchmarks.worker_start", str(BASE_DIR), folder]
        bare = [sys.executable, "-c", BARE]
        rounds = [(_seconds_until_it_speaks(worker), _seconds_until_it_speaks(bare)) for _ in range(N_ROUNDS + 1)][1:]
    ours, other = zip(*rounds, strict=True)
    ratio = round(statistics.median(ours) / statistics.median(other), 4)
    return {
        "compares": "process start to first optimiser step with process start to torch and transformers imported",
        "goal": "none, a figure to watch",
        "is_met": True,
        "figure": {"ratio": ratio, "seconds": round(statistics.median(ours), 2)},
        "details": {"ours_s": sorted(ours), "other_s": sorted(other), "clock": "wall"},
    }


def first_step(base_dir: str, data_dir: str) -> None:
    """What the worker's trainer does, up to the first step; says so and ends."""
    from tinylora.base_model import load_base
    from tinylora.protocol.documents import WorkUnit, sha256
    from tinylora.shards import load_shard
    from tinylora.training import UnitRunner

    def stop(node: str, step: int, loss: float, tokens_per_s: float) -> None:
        print(f"step {step} of node {node}", flush=True)
        sys.exit()

    base = load_base(base_dir)
    facts = base.facts
    runner = UnitRunner(base, load_shard([Path(data_dir)], base), worker="w0", on_step=stop, threads=1)
    unit = WorkUnit(
        unit_id="u0",
        run="benchmark",
        kind="train",
        node="0",
        leaves=("0",),
        topology_leaves=("0", "1"),
        nonce="n0",
        deadline_s=600,
        base_fingerprint=facts.fingerprint,
        tokenizer_fingerprint=facts.tokenizer_fingerprint,
        feature_hash=facts.feature_hash,
        rank=8,
        scale=2.0,
        n_steps=10,
        total_steps=10,
        batch_windows=8,
        window_tokens=facts.max_window_tokens,
        learning_rate=1e-3,
        payload_sha256=sha256(b""),
    )
    runner.run(unit, b"")


def gather_text(folder: Path) -> None:
    """Some of Python's own sources as text."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.glob("*.py"))[:N_FILES]:
        shutil.copy(file, folder / f"{file.stem}.txt")


def _seconds_until_it_speaks(command: list[str]) -> float:
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline() if process.stdout else ""
        elapsed = time.monotonic() - start
    if process.returncode or not said:
        raise RuntimeError(f"{command[1:3]} ended with code {process.returncode}")
    return round(elapsed, 3)


if __name__ == "__main__":
    first_step(*sys.argv[1:])
