"""A program in a terminal of its own, at which a test types."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def in_terminal(
    *words: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Python with these words, whose controlling terminal is ours to type at; yields it and the terminal's two ends."""
    ours, its = os.openpty()
    child = subprocess.Popen(
        [sys.executable, *words],
        preexec_fn=lambda: os.login_tty(its),
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"} | dict(environment or {}),
        pass_fds=(its,),
    )
    try:
        yield child, ours, its
    finally:
        child.kill()
        child.wait()
        os.close(ours)
        os.close(its)


def read_until(end: int, is_there: Callable[[bytes], bool], timeout_s: float = 30.0) -> bytes:
    """What the terminal shows until `is_there(shown)`."""
    shown, deadline = b"", time.monotonic() + timeout_s
    while not is_there(shown):
        assert time.monotonic() < deadline, shown.decode(errors="replace")
        if select.select([end], [], [], 0.05)[0]:
            shown += os.read(end, 65_536)
    return shown
