"""Where a run is being served: DIR/served.json, for programs on the same machine. It is a hint; asking decides."""

import contextlib
import json
from pathlib import Path

from tinylora import durable

FILE = "served.json"


def note_served(root: Path, url: str) -> None:
    """Write down where this machine reaches the run. Where that cannot be written, the run is served all the same."""
    with contextlib.suppress(OSError):
        durable.replace_file(root / FILE, f"{json.dumps({'url': url})}\n".encode(), name="folder", mode=0o644)


def forget_served(root: Path) -> None:
    """Nobody serves the run any more."""
    with contextlib.suppress(OSError):
        (root / FILE).unlink(missing_ok=True)


def served_at(root: Path) -> str:
    """Where the run is served, or was when its coordinator was killed; empty if it was stopped."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((root / FILE).read_text(encoding="utf-8"))["url"])
    return ""
