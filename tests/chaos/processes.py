"""Work in a process of its own that may be killed at any moment; forked, so that nothing is imported anew."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic, TypeVar, cast

Answer = TypeVar("Answer")
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Ending(Generic[Answer]):
    """How a process ended: with an answer, or killed."""

    answer: Answer | None
    seconds: float

    @property
    def is_killed(self) -> bool:
        """Whether it was killed before it could answer."""
        return self.answer is None


def in_a_process(work: Callable[[], Answer], *, timeout_s: float = 60.0) -> Ending[Answer]:
    """Fork, do `work` there, and return what it returned; an error in it is raised here.

    Raises:
        AssertionError: The process ended otherwise than by SIGKILL or with an answer, or `work` raised.
    """
    mine, theirs = _FORK.Pipe(duplex=False)
    started = time.monotonic()
    child = _FORK.Process(target=_answer, args=(work, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        kind, answer = mine.recv() if mine.poll(timeout_s) else ("late", f"no answer within {timeout_s} s")
    except EOFError:
        kind, answer = "killed", None
    child.join(timeout_s) if kind != "late" else os.kill(child.pid or 0, signal.SIGKILL)
    seconds = time.monotonic() - started
    if kind == "killed":
        assert child.exitcode == -signal.SIGKILL, f"expected SIGKILL, got exit code {child.exitcode}"
        return Ending(None, seconds)
    assert kind == "answer", answer
    return Ending(cast(Answer, answer), seconds)


def _answer(work: Callable[[], object], pipe: Connection) -> None:
    try:
        pipe.send(("answer", work()))
    except BaseException as error:  # told to the parent, which fails the test with it
        pipe.send(("raised", f"{type(error).__name__}: {error}"))
