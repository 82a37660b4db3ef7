"""Run the benchmarks named on the command line, or all, each in a process of its own."""

import argparse
import importlib
import json
import os
import subprocess
import sys

from benchmarks.measure import write_result

NAMES = (
    "training_step",
    "mixed_leaves",
    "bundle_loading",
    "accepted_update",
    "worker_start",
    "leaf_memory",
    "coordinator_scale",
    "volunteer",
    "dashboard",
    "merge_bundles",
    "route_proxy",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    """Exit code 0 when every goal was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure; write benchmarks/results/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"{unknown[0]}: no such benchmark; expected one of {', '.join(NAMES)}")
    if len(names) == 1:
        return measure(names[0])
    command = [sys.executable, "-m", "benchmarks"]
    return max(
        subprocess.run([*command, name], env=os.environ | ONE_THREAD, check=False).returncode for name in names or NAMES
    )


def measure(name: str) -> int:
    """Run one benchmark here and write what it found."""
    os.environ.update(ONE_THREAD)
    result = importlib.import_module(f"benchmarks.{name}").measure()
    file = write_result(name, result)
    is_met = result["is_met"]
    verdict = "met" if is_met else "missed"
    print(f"{name}: {json.dumps(result['figure'])}, goal {result['goal']}: {verdict}; see {file.name}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
