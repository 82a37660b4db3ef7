"""One child as its parent sees it. No torch here.

A process for each device rather than a thread: Python runs one thread's bytecode at a time, and a device's driver that
crashes or runs out of memory takes one process with it, whose end the parent hears.
"""

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from typing import TypeAlias

from tinylora.errors import TinyLoraError
from tinylora.serving import messages
from tinylora.serving.device_map import Device
from tinylora.serving.messages import Message

# Without the current folder in its path: a file there that is named like a module of ours is never imported.
COMMAND = ("-P", "-m", "tinylora.serving.child")
_END_S = 5.0

Inbox: TypeAlias = "queue.Queue[tuple[Device, Message | None]]"
"""What all children say; None is a child's end."""


class LeafProcess:
    """A child that serves the leaves of one device, running from now on.

    Args:
        device: Its name for people, and its key in the inbox.
        first: The first message.
        inbox: Where it is heard.
        command: Arguments of Python that start it.
    """

    def __init__(self, device: Device, first: Message, inbox: Inbox, command: tuple[str, ...] = COMMAND) -> None:
        self.device = device
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the child)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Ctrl-C in the parent's terminal is not for the child.
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._reader = threading.Thread(target=self._listen, args=(inbox,), name=f"leaves on {device}", daemon=True)
        self._reader.start()
        self.ask(first)

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def ask(self, message: Message) -> None:
        """Send a message; a child that is gone is heard of by the inbox."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            messages.write(self._process.stdin, message)

    def _listen(self, inbox: Inbox) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            while (message := messages.read(self._process.stdout)) is not None:
                inbox.put((self.device, message))
        inbox.put((self.device, None))

    def death(self) -> TinyLoraError:
        """Why it is gone, after its end was heard."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        how = ending(self._process.returncode, self._last_line())
        return TinyLoraError(f"the process that serves the leaves on {self.device} is gone: {how}")

    def _last_line(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def end(self) -> None:
        """The process is gone and its device free."""
        self._process.kill()
        self._process.wait()
        self._reader.join(_END_S)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def ending(code: int | None, last_line: str) -> str:
    """Why a process ended that was not told to, in words.

    Args:
        code: As `Popen.returncode`: a signal's number is negative; None is not over yet.
        last_line: The last that it wrote for people.
    """
    if code == -getattr(signal, "SIGKILL", 9):
        return "somebody, or the system for want of memory, ended it (SIGKILL); serve fewer rows or leaves at once"
    said = f"; it said: {last_line}" if last_line else ""
    if code is not None and code < 0:
        return f"it crashed ({_signal_name(-code)}){said}"
    return f"it ended by itself (exit code {code}){said}" if code is not None else f"it says nothing any more{said}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
