"""`python -m tests.chaos [--times 3]`: the kill matrix, every failpoint of every scenario."""

import argparse
import os
import time

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before torch: a forked process must find no threads
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import torch

from tests.chaos.matrix import kills, reached, survive
from tests.chaos.scenarios import SCENARIOS


def matrix(times: int) -> bool:
    """Every failpoint of every scenario, so many times; prints the counts, returns whether all went well."""
    n_points, n_kills, n_wrong, slowest_s = set(), 0, 0, 0.0
    for scenario in SCENARIOS:
        counts, facts = reached(scenario)
        n_points |= counts.keys()
        started = time.monotonic()
        todo = list(kills(scenario, counts, times=times))
        for kill in todo:
            n_kills += 1
            try:
                outcome = survive(kill)
            except AssertionError as error:
                n_wrong += 1
                print(f"WRONG {kill}: {error}", flush=True)
                continue
            slowest_s = max(slowest_s, outcome.recovery_s)
            if outcome.facts != facts:
                n_wrong += 1
                print(f"WRONG {kill}: {outcome.facts} instead of {facts}", flush=True)
        seconds = time.monotonic() - started
        print(f"{scenario.name}: {len(counts)} failpoints, {len(todo)} kills, {seconds:.0f} s", flush=True)
    print(f"kill matrix: {len(n_points)} failpoints, {n_kills} kills, {n_wrong} ended otherwise than undisturbed,")
    print(f"slowest from start to end of the whole scenario after a kill: {slowest_s:.2f} s", flush=True)
    return n_wrong == 0


def main() -> int:
    """1 if anything was lost, doubled or different."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--times", type=int, default=3, help="kills at each failpoint")
    options = parser.parse_args()
    torch.set_num_threads(1)
    return 0 if matrix(options.times) else 1


if __name__ == "__main__":
    raise SystemExit(main())
