"""Servers to look at: recordings played again, and a real run."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.flower.helpers import until

_ADDRESS = re.compile(r"dashboard: (http://\S+?)/?$", re.MULTILINE)


def address_in(said: str) -> str:
    """The address of a dashboard, without a slash at its end; the last that was told, nothing before."""
    found = _ADDRESS.findall(said)
    return found[-1] if found else ""


@dataclass
class Shown:
    """A process that serves a page."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the page, without a slash at its end."""
        return address_in("\n".join(self.lines))

    def listen(self) -> None:
        """Keep what it says."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())


@contextmanager
def replaying(*options: str | Path) -> Iterator[Shown]:
    """`tinylora-coordinator replay` with these options, on a free port."""
    command = [sys.executable, "-m", "tinylora_coordinator", "replay", *map(str, options), "--port", "0"]
    shown = Shown(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    listening = threading.Thread(target=shown.listen, daemon=True)
    listening.start()
    try:
        until(lambda: bool(shown.url) or shown.process.poll() is not None, timeout_s=60.0, what="the replay's address")
        assert shown.url, shown.lines
        yield shown
    finally:
        shown.process.terminate()
        shown.process.wait(15.0)
        listening.join(5.0)
        if shown.process.stderr is not None:
            shown.process.stderr.close()
