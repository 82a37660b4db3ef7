"""A heartbeat: a daemon thread that calls a function now and then, sooner again after a failure."""

import threading
from collections.abc import Callable


class Pulse:
    """Beats while its context is open. `beat` returns whether it got through, and must not raise."""

    def __init__(self, beat: Callable[[], bool], *, period_s: float, retry_s: float = 2.0) -> None:
        self._beat, self._period_s, self._retry_s = beat, period_s, min(retry_s, period_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def _run(self) -> None:
        wait_s = self._period_s
        while not self._stop.wait(wait_s):
            wait_s = self._period_s if self._beat() else self._retry_s

    def start(self) -> None:
        """Begin; the first beat comes after one period."""
        self._thread.start()

    def stop(self) -> None:
        """End; a beat that is under way is not waited for."""
        self._stop.set()

    def __enter__(self) -> "Pulse":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        """Stop."""
        self.stop()
