"""What a unit's folder holds between the trainer, which has no key, and the agent, which signs: an update and tensors.

    home/units/<unit id>/made         tensors
                         made.json    the update, unsigned; written last

They have names of their own: under the outbox's names they would count as signed and finished.
"""

from pathlib import Path

from tinylora import durable
from tinylora.errors import ProtocolError, StorageError
from tinylora.flower.outbox import UNITS
from tinylora.protocol.documents import Update, WorkUnit

MADE, MADE_UPDATE = "made", "made.json"
_STEP = "worker.made"
for _file in (MADE, MADE_UPDATE):
    durable.register_file(f"{_STEP}.{_file}")


def unit_folder(home: Path, folder: Path) -> Path:
    """The folder of a unit of this home.

    Raises:
        ProtocolError: It lies elsewhere, or is none.
    """
    found = folder.resolve()
    if folder.is_symlink() or not found.is_dir() or found.parent != (home / UNITS).resolve():
        raise ProtocolError(f"{folder}: expected the folder of a unit in {home / UNITS}")
    return found


def write_made(folder: Path, update: Update, tensors: bytes) -> None:
    """What came of the unit is on disk.

    Raises:
        StorageError: The disk is full, or not writable.
    """
    try:
        durable.replace_file(folder / MADE, tensors, name=f"{_STEP}.{MADE}")
        durable.replace_file(folder / MADE_UPDATE, update.to_json().encode(), name=f"{_STEP}.{MADE_UPDATE}")
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}; free some space, or choose another --home") from None


def read_made(folder: Path) -> tuple[Update, Path]:
    """The unsigned update of a unit that is done, and the file of its tensors.

    Raises:
        ProtocolError: It is not readable.
        StorageError: It is not there.
    """
    try:
        return Update.from_json((folder / MADE_UPDATE).read_text(encoding="utf-8")), folder / MADE
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{folder / MADE_UPDATE}: {error}; the unit has to be done again") from None


def is_made(folder: Path, unit: WorkUnit) -> bool:
    """Whether this very unit is done already."""
    try:
        update, tensors = read_made(folder)
    except (ProtocolError, StorageError):
        return False
    return (update.run, update.unit_id, update.nonce) == (unit.run, unit.unit_id, unit.nonce) and tensors.is_file()
