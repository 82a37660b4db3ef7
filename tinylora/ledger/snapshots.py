"""The state after some event, kept to start from. A snapshot is a way to be faster and nothing else.

It is believed only when all of it is there, the same code wrote it, and the log still has the same hash at that event;
otherwise the events are folded from the first.
"""

import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tinylora import __version__
from tinylora.durable import register_file, replace_file
from tinylora.protocol.documents import sha256

FILE = "snapshot.json"
_SOURCES = ("tinylora", "tinylora.federation", "tinylora.protocol")

register_file("ledger.snapshot")


class Snapshot(BaseModel):
    """A state, and what it is the state of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_events: int
    chain: str
    """Hash of the log after so many events."""
    code: str
    """Of the rules that folded them."""
    sha256: str
    """Of `text`."""
    text: str


@cache
def code_version() -> str:
    """A hash over the source of the rules and of what a state is made of: other code's states are not believed."""
    digest = hashlib.sha256(__version__.encode())
    for package in _SOURCES:
        files = (file for file in resources.files(package).iterdir() if file.name.endswith(".py"))
        for file in sorted(files, key=lambda file: file.name):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def write_snapshot(directory: Path, n_events: int, chain: str, text: str) -> None:
    """Replace the last snapshot.

    Raises:
        OSError: The one before is still there.
    """
    found = Snapshot(n_events=n_events, chain=chain, code=code_version(), sha256=sha256(text.encode()), text=text)
    data = json.dumps(found.model_dump(), sort_keys=True, separators=(",", ":")).encode()
    replace_file(directory / FILE, data, name="ledger.snapshot")


def read_snapshot(directory: Path) -> Snapshot | None:
    """The last snapshot, if it is whole and of this code; whether it fits the log is the caller's to find out."""
    try:
        found = Snapshot.model_validate_json((directory / FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    is_sound = found.code == code_version() and found.sha256 == sha256(found.text.encode())
    return found if is_sound else None
