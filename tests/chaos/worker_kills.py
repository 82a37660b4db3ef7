"""SIGKILL of a volunteer's agent, trainer or both at random moments, over and over, while a real run goes on.

    python -m tests.chaos.worker_kills [--kills 50] [--seed 1] [--workers 2] [--folder DIR]

The trainer counts steps in place of training them; all around it is the product. After each kill: nothing of it is left
that lives, and the worker, started again, is the same one. In the end: no unit was accepted twice, every leaf has had
its steps exactly once, each worker's receipts and the coordinator's table agree, and nothing waits in any outbox.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock
from tinylora_coordinator.folder import RunFolder
from tinylora_coordinator.keys import pin_of, run_public
from tinylora_worker.agent.totals import Totals

from tests.coordinator.running import (
    BASE,
    Coordinator,
    assert_nothing_lost_or_doubled,
    let_in,
    make_run,
    serving,
)
from tests.federation.facts import SETTINGS
from tests.flower.helpers import until
from tests.worker.agents import behave, lives, options, repeated, start_process, steps_of, trainers_of
from tinylora.federation.events import UpdateRejected, WorkerLost
from tinylora.federation.summary import summarise
from tinylora.flower.identity import load_or_create
from tinylora.flower.membership import Membership, save_membership
from tinylora.flower.receipts import read_receipts

Victim = Literal["agent", "trainer", "both"]
STEP_S, LONGEST_PEACE_S = 0.05, 3.0
TOO_LATE = {"lease_closed"}
"""On a machine so busy that a restart takes longer than the coordinator waits, a unit goes to somebody else."""


@dataclass
class Volunteer:
    """A home, and the process that works in it now."""

    home: Path
    worker: str
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Begin, or come back; no address and no token are needed."""
        self.process = start_process(self.home)

    def kill(self, victim: Victim) -> bool:
        """Kill; returns whether that victim was there, and waits until all that must go has gone."""
        assert self.process is not None
        trainers = trainers_of(self.home)
        if victim != "agent" and not trainers:
            return False
        doomed = [self.process.pid] * (victim != "trainer") + trainers * (victim != "agent")
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim != "trainer":
            self.process.wait()
        until(lambda: not any(map(lives, [*doomed, *trainers])), timeout_s=10.0, what="the end of agent and trainer")
        if victim != "trainer":
            with FileLock(self.home / "lock", timeout=0):
                pass
            self.start()
        return True

    def said(self) -> str:
        """The end of what it said."""
        return (self.home / "said").read_text()[-3000:]


@dataclass
class Counts:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    in_unit: Counter[str] = field(default_factory=Counter)
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    n_repeated: dict[str, list[int]] = field(default_factory=dict)

    def note(self, victim: str, recovery_s: float, n_repeated: int, is_in_unit: bool) -> None:
        """One kill."""
        self.kills[victim] += 1
        self.in_unit[victim] += is_in_unit
        self.recoveries_s.setdefault(victim, []).append(recovery_s)
        self.n_repeated.setdefault(victim, []).append(n_repeated)

    def lines(self) -> list[str]:
        """A table."""
        found = ["victim    kills  in mid-unit  next step after (median, longest)  work done again (median, longest)"]
        for victim in sorted(self.kills):
            times, again = self.recoveries_s[victim], [STEP_S * count for count in self.n_repeated[victim]]
            found.append(
                f"{victim:8}  {self.kills[victim]:5}  {self.in_unit[victim]:11}  "
                f"{statistics.median(times):6.1f} s {max(times):6.1f} s {'':17}"
                f"{statistics.median(again):6.2f} s {max(again):6.2f} s"
            )
        return found


def enlist(coordinator: Coordinator, home: Path) -> Volunteer:
    """A home that has joined the run."""
    behave(home, step_s=STEP_S, work="tests.worker.counted")
    identity, keys = load_or_create(home), RunFolder(coordinator.root).keys
    let_in(coordinator, identity)
    url = coordinator.address.url()
    save_membership(home, Membership(url=url, run=SETTINGS.name, pin=pin_of(keys), run_key=run_public(keys)))
    options("", "", home, facts=BASE)
    return Volunteer(home, identity.worker)


def one_kill(volunteer: Volunteer, victim: Victim, counts: Counts) -> bool:
    """Kill one, see it go on, and look at how much was done again; false when the victim was not there."""
    before, in_unit = steps_of(volunteer.home), bool(list((volunteer.home / "units").glob("*/payload")))
    at, n_before = time.monotonic(), sum(map(len, before.values()))
    n_again = sum(repeated(before).values())
    if not volunteer.kill(victim):
        return False
    process = volunteer.process
    assert process is not None

    def goes_on() -> bool:
        return sum(map(len, steps_of(volunteer.home).values())) > n_before or process.poll() is not None

    until(goes_on, timeout_s=120.0, what=f"the next step of {volunteer.home}; {volunteer.said()}")
    recovery_s = time.monotonic() - at
    assert load_or_create(volunteer.home).worker == volunteer.worker
    n_repeated = sum(repeated(steps_of(volunteer.home)).values()) - n_again
    counts.note(victim, recovery_s, n_repeated, in_unit)
    n = sum(counts.kills.values())
    print(f"{n:4} {victim:7} next step after {recovery_s:.1f} s, {n_repeated} steps done again", flush=True)
    return True


def assert_all_is_right(coordinator: Coordinator, volunteers: list[Volunteer]) -> None:
    """Nothing lost, nothing doubled, totals agree, nothing left."""
    assert_nothing_lost_or_doubled(coordinator)
    events = coordinator.events()
    table = {row["worker"]: row for row in summarise(events)["workers"]}
    refused = Counter(event.code for event in events if isinstance(event, UpdateRejected))
    lost = sum(isinstance(event, WorkerLost) for event in events)
    print(f"refused updates: {dict(refused) or 'none'}; workers given up for lost: {lost}")
    assert not refused.keys() - TOO_LATE, refused
    assert lost or not refused, "nobody was given up, and an update came too late all the same"
    for volunteer in volunteers:
        totals = Totals.of(read_receipts(volunteer.home), run=SETTINGS.name, worker=volunteer.worker)
        row = table[volunteer.worker]
        assert (totals.n_trained, totals.tokens) == (row["units"], row["tokens"]), f"{totals} against {row}"
        print(f"{volunteer.worker}: {totals.sentence()}, as the coordinator's table has it")
        left = [folder.name for folder in (volunteer.home / "units").iterdir() if folder.name != ".incoming"]
        assert not left, f"{volunteer.home}: {left} wait in the outbox"
        assert not (volunteer.home / "agent.json").exists() and not trainers_of(volunteer.home)
    assert not [one for one in volunteers if one.process is not None and lives(one.process.pid)]


def main(words: list[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kill a volunteer's processes at random.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args(words)
    rng, counts = random.Random(asked.seed), Counts()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        # More steps than the kills will take: the run is ended by its own steps, after the last kill.
        root = make_run(
            Path(folder, "run"), leaf_steps=80 * asked.kills, unit_steps=40, min_workers=asked.workers, probes=0
        )
        with serving(root) as coordinator:
            volunteers = [enlist(coordinator, Path(folder, f"home {n} ü")) for n in range(asked.workers)]
            try:
                for volunteer in volunteers:
                    volunteer.start()
                until(lambda: all(steps_of(one.home) for one in volunteers), timeout_s=120.0, what="the first steps")
                while sum(counts.kills.values()) < asked.kills:
                    time.sleep(rng.random() * LONGEST_PEACE_S)
                    victim = rng.choice(get_args(Victim))
                    one_kill(rng.choice(volunteers), victim, counts)
                for volunteer in volunteers:
                    behave(volunteer.home, work="tests.worker.counted")
                assert coordinator.finish(600.0) == 0, coordinator.said[-3000:]
                endings = [one.process.wait(60.0) for one in volunteers if one.process is not None]
                assert endings == [0] * asked.workers, [one.said() for one in volunteers]
            finally:
                for volunteer in volunteers:
                    if volunteer.process is not None and volunteer.process.poll() is None:
                        volunteer.process.kill()
            assert_all_is_right(coordinator, volunteers)
    print("\n".join(counts.lines()))


if __name__ == "__main__":
    main(sys.argv[1:])
