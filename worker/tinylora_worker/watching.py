"""Looking at a worker from another process: its status once, or until it ends."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from tinylora_worker.agent import client
from tinylora_worker.screen import JsonLines, Lines, Picture, as_document, draw, is_unicode


def print_status(home: Path, *, as_json: bool) -> None:
    """What the worker of this home does, on stdout.

    Raises:
        NetworkError: None runs there.
    """
    status = client.status(home)
    if as_json:
        print(json.dumps(as_document(status), sort_keys=True, indent=1, ensure_ascii=False))
        return
    console = Console(highlight=False)
    is_ascii = not is_unicode(console)
    console.print(
        draw(status, width=console.width, zone=None, now_s=time.time(), has_keys=False, is_ascii=is_ascii, n_log=4)
    )


def watch(home: Path, *, as_json: bool) -> None:
    """Show the worker of this home until it ends, or until Ctrl-C, which ends the looking alone; keys are its own.

    Raises:
        NetworkError: None runs there.
    """
    statuses = client.follow(home)
    console = Console(highlight=False)
    if as_json:
        show = JsonLines()
    elif console.is_terminal:
        show = Picture(console, Remote(home), keyboard=sys.stdin)
    else:
        show = Lines()
    with suppress(KeyboardInterrupt), show:
        for status in statuses:
            show.update(status)


class Remote:
    """Wishes on their way to the worker of a home."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def _tell(self, call: Callable[[Path], str]) -> None:
        call(self._home)

    def pause(self) -> None:
        """Hold still until resumed."""
        self._tell(client.pause)

    def resume(self) -> None:
        """Go on."""
        self._tell(client.resume)

    def finish(self) -> None:
        """Leave after the unit under way."""
        self._tell(client.finish)

    def leave(self) -> None:
        """Checkpoint, give the unit back, leave."""
        self._tell(client.leave)
