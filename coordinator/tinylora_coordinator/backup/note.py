"""What a restored folder knows of where it came from, and what `serve` makes of that.

A run goes on in one place. Served in two, both would lease the same nodes, and each worker's receipts would fit one of
two logs. From afar nobody can tell; on this machine it is refused, and elsewhere it is said.
"""

import json
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora.errors import StorageError
from tinylora_coordinator.backup.contents import Manifest
from tinylora_coordinator.durations import as_date

NOTE = "restored.json"


class Note(BaseModel):
    """In the restored folder, for good: it explains why receipts of workers may not fit this log."""

    model_config = ConfigDict(frozen=True)

    file: str
    taken_s: float
    restored_s: float
    folder: str
    """Where the run was when the backup was taken."""
    host: str
    n_events: Annotated[int, Field(ge=0)]
    chain: str


def note_of(manifest: Manifest, file: Path, now_s: float) -> bytes:
    """The note of a folder restored from this backup."""
    note = Note(
        file=file.name,
        taken_s=manifest.taken_s,
        restored_s=now_s,
        folder=manifest.folder,
        host=manifest.host,
        n_events=manifest.n_events,
        chain=manifest.chain,
    )
    return json.dumps(note.model_dump(), indent=1).encode() + b"\n"


def read_note(root: Path) -> Note | None:
    """The note in this folder, if it was restored; one that is damaged is none."""
    try:
        return Note.model_validate_json((root / NOTE).read_bytes())
    except (OSError, ValidationError):
        return None


def heed_note(root: Path, say: Callable[[str], None]) -> None:
    """Say where a restored run came from; refuse it while the original is served on this machine.

    Raises:
        StorageError: It is.
    """
    note = read_note(root)
    if note is None:
        return
    original = Path(note.folder)
    if note.host == platform.node() and original.resolve() != root.resolve() and _is_served(original):
        raise StorageError(
            f"{root}: was restored from a backup of {original}, which is being served; stop that one first"
        )
    say(
        f"{root}: restored from a backup of {as_date(note.taken_s)}, after {note.n_events} events of "
        f"{note.host}:{note.folder}; the run must be served nowhere else"
    )


def _is_served(root: Path) -> bool:
    """Whether somebody holds the folder's lock; the file is not made where there is none."""
    import fcntl

    with suppress(OSError), (root / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
