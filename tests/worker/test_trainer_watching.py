"""Why a trainer ended, and when it is taken for dead: a table each."""

from pathlib import Path

import pytest
from tinylora_worker.trainer.watching import Patience, ending, hang, oom_kills

LOG = Path("trainer.log")


@pytest.mark.parametrize(
    ("event_s", "answer_s", "why"),
    [
        (99.0, 0.0, ""),  # it works, and has no time for pings
        (0.0, 99.0, ""),  # a long step
        (41.0, 41.0, ""),
        (40.0, 30.0, "it gave no sign of life for 60 s"),
        (30.0, 40.0, "it gave no sign of life for 60 s"),
        (-900.0, 99.0, "it did not get any further for 1000 s"),
    ],
)
def test_when_it_hangs(event_s: float, answer_s: float, why: str) -> None:
    patience = Patience(silent_s=60.0, stuck_s=1000.0)
    assert hang(patience, now_s=100.0, event_s=event_s, answer_s=answer_s, has_steps=True) == why


def test_a_base_may_take_its_time_to_come() -> None:
    assert not hang(Patience(stuck_s=1000.0), now_s=9e9, event_s=0.0, answer_s=9e9 - 1, has_steps=False)


@pytest.mark.parametrize(
    ("code", "n_oom_kills", "why"),
    [
        (-9, 0, "somebody, or the system for want of memory, ended it (SIGKILL)"),
        (-9, 1, "the system ended it for want of memory (SIGKILL): close other programs, or take a smaller base"),
        (-15, 0, "somebody ended it (SIGTERM)"),
        (3, 0, "somebody ended it (SIGTERM)"),  # it heard, and went by itself
        (-11, 0, "it crashed (SIGSEGV); trainer.log may tell more"),
        (-77, 0, "it crashed (signal 77); trainer.log may tell more"),
        (1, 0, "it ended by itself (exit code 1); trainer.log tells why"),
    ],
)
def test_how_it_ended(code: int, n_oom_kills: int, why: str) -> None:
    assert ending(code, n_oom_kills=n_oom_kills, log=LOG) == why


def test_the_system_counts_whom_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "vmstat"
    assert oom_kills(file) == 0
    file.write_text("nr_free_pages 17\noom_kill 3\nothers 1\n")
    assert oom_kills(file) == 3
