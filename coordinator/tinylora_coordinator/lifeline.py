"""How the supervisor and its children talk: JSON, one object a line.

supervisor → child    stdin. The first line is all that it needs; further lines tell what has changed. Its end is
                      the end of the child, at once: whatever kills the supervisor leaves nobody behind
child → supervisor    stdout. `up` when it does its work, `progress` when it got somewhere
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinylora.errors import TinyLoraError

UP, PROGRESS = "up", "progress"
ORPHANED = 3
"""Exit code of a child whose supervisor has gone."""
Told = Callable[[dict[str, Any]], None]
Work = Callable[[Path, dict[str, Any], threading.Event, Callable[[Told], None]], None]


def run_child(load: Callable[[Path], None], work: Work) -> None:
    """Run a child to its end, and the process with it.

    A foreseen error becomes its sentence on stderr and its exit code. Ctrl-C is the supervisor's affair.

    Args:
        load: Given the run's folder, does all that takes long and changes nothing.
        work: Given that folder, the first line, an event that SIGTERM sets, and a function that has further lines told,
            does the rest.
    """
    root, stop = Path(sys.argv[1]), _stop_on_sigterm()
    load(root)
    first = json.loads(sys.stdin.readline() or "null")
    if first is None:
        sys.exit(ORPHANED)
    listener = _Listener()
    try:
        work(root, first, stop, listener.listen)
    except TinyLoraError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _stop_on_sigterm() -> threading.Event:
    """A thread waits for the signal: a handler that sets an event which its own thread waits for may block for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before there are threads, who inherit it
    stop = threading.Event()

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        stop.set()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()
    return stop


def tell(word: str) -> None:
    """One word to the supervisor. Should it have gone, the life line ends this process."""
    try:
        print(json.dumps({"word": word}), flush=True)
    except OSError:
        os._exit(ORPHANED)


class _Listener:
    """Reads what the supervisor says, in a thread, from the moment on that the first line was read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: Told | None = None
        self._early: list[dict[str, Any]] = []
        threading.Thread(target=self._read, name="lifeline", daemon=True).start()

    def listen(self, told: Told) -> None:
        """Have lines told, first those that came already."""
        with self._lock:
            self._told = told
            for line in self._early:
                told(line)
            self._early.clear()

    def _read(self) -> None:
        for line in sys.stdin:
            with self._lock:
                if self._told is None:
                    self._early.append(json.loads(line))
                else:
                    self._told(json.loads(line))
        os._exit(ORPHANED)
