"""SIGKILL of a random process of the coordinator at random moments, over and over, with workers at work all along.

    python -m tests.chaos.random_kills [--kills 200] [--seed 0] [--workers 4] [--folder DIR]

Runs follow each other until there were enough kills. After each run: no unit was accepted twice, every leaf had its
steps exactly once, and whatever had been accepted when somebody was killed is there in the end, in the same order.
"""

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.coordinator.running import (
    Coordinator,
    Role,
    assert_nothing_lost_or_doubled,
    gone,
    make_run,
    n_steps,
    recovery_s,
    serving,
)
from tests.flower.helpers import until
from tinylora.federation.events import Event, UpdateAccepted

ROLES: tuple[Role, ...] = ("link", "rounds", "supervisor")
LEAF_STEPS, SLOWEST_UNIT_S, LONGEST_PEACE_S = 150, 0.3, 2.0


@dataclass
class Counts:
    """What happened in all runs together."""

    kills: Counter[str] = field(default_factory=Counter)
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    n_runs: int = 0
    n_accepted: int = 0
    n_lost: int = 0
    n_done: int = 0

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{sum(self.kills.values())} kills in {self.n_runs} runs: {dict(self.kills)}"]
        found.append(
            f"{self.n_accepted} accepted updates, {self.n_lost} lost, 0 doubled; {self.n_done} units worked on"
        )
        for role, times in sorted(self.recoveries_s.items()):
            median, most = statistics.median(times), max(times)
            found.append(f"next step after a kill of {role}: median {median:.1f} s, longest {most:.1f} s")
        return found


def accepted(events: list[Event]) -> list[str]:
    """Units whose updates were accepted, in order."""
    return [event.unit_id for event in events if isinstance(event, UpdateAccepted)]


def one_run(root: Path, rng: random.Random, n_kills: int, n_workers: int, counts: Counts) -> None:
    """Serve a run to its end, and kill while it lasts."""
    with serving(make_run(root, leaf_steps=LEAF_STEPS, min_workers=2)) as coordinator:
        pace = random.Random(rng.random())

        def slowly(_unit: Any) -> None:
            threading.Event().wait(pace.random() * SLOWEST_UNIT_S)

        workers = [coordinator.volunteer(float(number), before=slowly) for number in range(n_workers)]
        until(lambda: n_steps(coordinator) > n_workers, what="the first units")
        witnessed: list[str] = []
        for _ in range(n_kills):
            time.sleep(rng.random() * LONGEST_PEACE_S)
            if not kill(coordinator, rng.choice(ROLES), witnessed, counts):
                break
        code = coordinator.finish(600.0)
        assert code == 0, coordinator.said[-3000:]
        until(lambda: all(worker.endings for worker in workers), what="the workers' end")
        assert [worker.endings for worker in workers] == [["finished"]] * n_workers
        assert_nothing_lost_or_doubled(coordinator)
        now_accepted = accepted(coordinator.events())
        counts.n_lost += len(set(witnessed) - set(now_accepted))
        assert now_accepted[: len(witnessed)] == witnessed
        counts.n_runs += 1
        counts.n_accepted += len(now_accepted)
        counts.n_done += sum(len(worker.done) for worker in workers)


def kill(coordinator: Coordinator, role: Role, witnessed: list[str], counts: Counts) -> bool:
    """Kill one, see it recover, and remember what was accepted by then; false when the run was over."""
    n_before, at = n_steps(coordinator), time.monotonic()
    killed = coordinator.kill(role)
    if not killed:
        return coordinator.process is not None and coordinator.process.poll() is None
    until(lambda: gone(killed), timeout_s=10.0, what="the end of all that was killed")
    counts.kills[role] += 1
    if role == "supervisor":
        coordinator.start()
    witnessed[:] = accepted(coordinator.events())
    try:
        took_s = recovery_s(coordinator, n_before, at, timeout_s=60.0)
    except AssertionError:
        if "finished:" in coordinator.said:
            return False
        raise
    counts.recoveries_s.setdefault(role, []).append(took_s)
    print(f"{sum(counts.kills.values()):4} {role}: next step after {took_s:.1f} s", flush=True)
    return True


def main(words: list[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kill the coordinator's processes at random.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args(words)
    rng, counts = random.Random(options.seed), Counts()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        while (left := options.kills - sum(counts.kills.values())) > 0:
            one_run(Path(folder, f"run-{counts.n_runs}"), rng, left, options.workers, counts)
    print("\n".join(counts.lines()))
    assert counts.n_lost == 0


if __name__ == "__main__":
    main(sys.argv[1:])
