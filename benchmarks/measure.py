"""What the benchmarks share: rounds in turns, the machine in words, the file with the result."""

import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS_DIR = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "flwr", "safetensors", "numpy")


@dataclass(frozen=True)
class Rounds:
    """CPU seconds of the same number of rounds of two things that took turns."""

    ours_s: tuple[float, ...]
    other_s: tuple[float, ...]

    def ratio(self) -> dict[str, float]:
        """Ours over the other: of the fastest rounds, and of the medians."""
        return {
            "min": round(min(self.ours_s) / min(self.other_s), 4),
            "median": round(statistics.median(self.ours_s) / statistics.median(self.other_s), 4),
        }

    def seconds(self) -> dict[str, dict[str, float]]:
        """The numbers behind the ratio."""
        return {name: _summary(values) for name, values in (("ours_s", self.ours_s), ("other_s", self.other_s))}


def take_turns(
    ours: Callable[[], object],
    other: Callable[[], object],
    *,
    n_rounds: int,
    repeat: int = 1,
    warm_up: int = 2,
) -> Rounds:
    """Run A, B, A, B, ...; one round is `repeat` calls. The garbage collector rests meanwhile.

    Args:
        ours: Our side.
        other: What it is compared with.
        n_rounds: Rounds of each that count.
        repeat: Calls in a round, for things that are over too soon for the clock.
        warm_up: Rounds of each before that.
    """
    times = interleave({"ours": ours, "other": other}, n_rounds=n_rounds, repeat=repeat, warm_up=warm_up)
    return Rounds(times["ours"], times["other"])


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    n_rounds: int,
    repeat: int = 1,
    warm_up: int = 2,
    seconds_of: Callable[[Callable[[], object], int], float] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Run A, B, C, A, B, C, ...: seconds of each round of each, as in `take_turns`.

    Args:
        calls: What takes turns, by name.
        n_rounds: Rounds of each that count.
        repeat: Calls in a round, for things that are over too soon for the clock.
        warm_up: Rounds of each before that.
        seconds_of: The clock: seconds of one call among so many; CPU time unless given.
    """
    clock = seconds_of or _cpu_seconds
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for number in range(warm_up + n_rounds):
            for name, call in calls.items():
                elapsed = clock(call, repeat)
                if number >= warm_up:
                    times[name].append(elapsed)
    finally:
        gc.enable()
    return {name: tuple(values) for name, values in times.items()}


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """Write a benchmark's numbers with the command that makes them again and the machine they were made on."""
    document = {"name": name, "command": f"python -m benchmarks {name}", **result, "machine": machine()}
    RESULTS_DIR.mkdir(exist_ok=True)
    file = RESULTS_DIR / f"{name}.json"
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return file


def machine() -> dict[str, Any]:
    """This machine in words that name nobody."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **versions,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _cpu_seconds(call: Callable[[], object], repeat: int) -> float:
    start = time.process_time()
    for _ in range(repeat):
        call()
    return (time.process_time() - start) / repeat


def _summary(values: tuple[float, ...]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "rounds": len(values)}
