"""Keys of a terminal, one by one, without waiting for Enter; its settings are put back, also after a crash.

Only reading is changed: output, signals and Ctrl-C stay as they are.
"""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO

LOOK_EVERY_S = 0.2


class Keys:
    """While entered, calls `pressed` with each key, in a thread of its own.

    Where keys cannot be read (no terminal, no way on this system) it does nothing, and `is_reading` is false. A worker
    in the background of a shell does not read either: the shell would stop it.

    Args:
        keyboard: The terminal.
        pressed: Called with one character.
    """

    def __init__(self, keyboard: TextIO, pressed: Callable[[str], None]) -> None:
        self._keyboard, self._pressed = keyboard, pressed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: Any = None

    @property
    def is_reading(self) -> bool:
        """Whether keys do something."""
        return self._thread is not None

    def __enter__(self) -> Self:
        """Begin to read."""
        if not self._is_in_foreground() or not self._prepare():
            return self
        atexit.register(self._restore)
        self._thread = threading.Thread(target=self._read, name="keys", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End reading, and put the terminal's settings back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * LOOK_EVERY_S)
            self._thread = None
        self._restore()
        atexit.unregister(self._restore)

    def _is_in_foreground(self) -> bool:
        try:
            if not self._keyboard.isatty():
                return False
            return not hasattr(os, "tcgetpgrp") or os.tcgetpgrp(self._keyboard.fileno()) == os.getpgrp()
        except (OSError, ValueError):
            return False

    if sys.platform == "win32":

        def _prepare(self) -> bool:
            return True

        def _restore(self) -> None:
            pass

        def _read(self) -> None:
            import msvcrt

            while not self._stop.wait(LOOK_EVERY_S):
                while msvcrt.kbhit():
                    self._pressed(msvcrt.getwch())

    else:

        def _prepare(self) -> bool:
            import termios

            try:
                number = self._keyboard.fileno()
                self._before = termios.tcgetattr(number)
                now = termios.tcgetattr(number)
                now[3] &= ~(termios.ICANON | termios.ECHO)
                termios.tcsetattr(number, termios.TCSADRAIN, now)
            except (termios.error, OSError, ValueError):
                self._before = None
            return self._before is not None

        def _restore(self) -> None:
            import termios

            if self._before is not None:
                with suppress(termios.error, OSError, ValueError):  # the terminal may be gone
                    termios.tcsetattr(self._keyboard.fileno(), termios.TCSADRAIN, self._before)
                self._before = None

        def _read(self) -> None:
            import select

            number = self._keyboard.fileno()
            while not self._stop.is_set():
                ready, _, _ = select.select([number], [], [], LOOK_EVERY_S)
                if not ready:
                    continue
                try:
                    keys = os.read(number, 64)
                except OSError:
                    return
                if not keys:
                    return
                for key in keys.decode("ascii", errors="ignore"):
                    self._pressed(key)
