"""Kills a ledger's process at failpoints, one child for each, and lets another go on: `python -m tests.ledger.killing`.

A program of its own, because it forks: a child takes a millisecond to start instead of a second. It is given a folder
and `name:nth` for each case, and prints a line of JSON for each.
"""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tinylora.ledger.migrate  # noqa: F401  (loaded once, before the forks)
from tests.ledger.life import begin, live
from tinylora.failpoints import armed, watched


def main(root: Path, cases: list[str]) -> None:
    """Print what became of each case; without cases, how often each failpoint is reached."""
    if not cases:
        reached: Counter[str] = Counter()
        with watched(lambda name: reached.update([name])):
            live(begin(root / "counted"))
        print(json.dumps(dict(reached)))
        return
    calm = live(begin(root / "calm"))
    for case in cases:
        folder = begin(root / case.replace(":", "-"))
        with armed(f"{case}:kill"):
            status, acknowledged = _in_child(lambda tell, at=folder: live(at, tell))
        took_up, _ = _in_child(lambda tell, at=folder: _check(live(at, tell), calm))
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        seen = max(acknowledged, default=0)
        print(json.dumps({"case": case, "is_killed": is_killed, "acknowledged": seen, "is_same": took_up == 0}))
        shutil.rmtree(folder)


def _check(found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"expected {expected}, got {found}")


def _in_child(work: Callable[[Callable[[int], None]], object]) -> tuple[int, list[int]]:
    """Wait status of a child that did this work, and the numbers that it told before its end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(lambda number: _tell(writing, number))
            code = 0
        except SystemExit as end:
            print(end, file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as told:
        numbers = [int(line) for line in told]
    return os.waitpid(pid, 0)[1], numbers


def _tell(writing: int, number: int) -> None:
    os.write(writing, f"{number}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
