"""Failpoints by themselves: named, armed, counted, fired once."""

import subprocess
import sys

import pytest

from tinylora import failpoints
from tinylora.failpoints import armed, around, reach, register, registered, watched

around("tests.step")


def test_nothing_happens_where_nothing_is_armed():
    reach("tests.step.before")
    reach("tests.step.after")


def test_names_are_known_and_of_one_form():
    assert {"tests.step.before", "tests.step.after"} <= set(registered())
    assert list(registered()) == sorted(set(registered()))
    with pytest.raises(KeyError, match="not registered"):
        reach("tests.other.before")
    with pytest.raises(ValueError, match=r"ends with \.before or \.after"):
        register("tests.step")


@pytest.mark.parametrize(("action", "message"), [("enospc", "No space left"), ("eio", "Input/output error")])
def test_the_nth_time_and_only_then(action, message):
    with armed(f"tests.step.before:2:{action}"):
        reach("tests.step.before")
        reach("tests.step.after")
        with pytest.raises(OSError, match=message):
            reach("tests.step.before")
        reach("tests.step.before")
    reach("tests.step.before")


@pytest.mark.parametrize("text", ["", "a.before:0", "a.before:x", "a.before:1:2", "a.before:1:burn", "a.after:1:eio"])
def test_what_cannot_be_armed(text):
    with pytest.raises(ValueError, match="TINYLORA_FAILPOINT="), armed(text):
        pass


def test_a_watcher_is_told_all():
    seen: list[str] = []
    with watched(seen.append):
        reach("tests.step.before")
        reach("tests.step.after")
    reach("tests.step.before")
    assert seen == ["tests.step.before", "tests.step.after"]


PROGRAM = """
from tinylora.failpoints import around, reach
around("tests.step")
reach("tests.step.before")
print("alive")
"""


def test_armed_from_outside_a_process_dies_and_its_successor_lives(tmp_path):
    """The mark is what keeps a process that is started again, with the same environment, from dying again."""
    mark = tmp_path / "fired"
    environment = {failpoints.VARIABLE: "tests.step.before", failpoints.MARK_VARIABLE: str(mark)}
    results = [
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60)
        for _ in range(2)
    ]
    assert [result.returncode for result in results] == [-9, 0]
    assert [result.stdout for result in results] == ["", "alive\n"]
    assert mark.exists()
