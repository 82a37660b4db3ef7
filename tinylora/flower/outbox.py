"""A worker's units on disk: what it is to do, and what it has done, until the run's receipt for it is in hand.

    home/units/<unit id>/payload        tensors that came with the unit; gone once it is done
                         header         head of the Flower message that brought it: what an answer is addressed by
                         unit.json      the unit; written last, so a folder without it is what a crash left
                         checkpoint     whoever works on the unit writes it, and reads it after a crash
                         result         tensors that came of it
                         update.json    what came of it, signed; written after `result`
                         sent           the coordinator has it, or will ask for it by itself
    home/units/.incoming/               payloads while they arrive

A unit is here before Flower hears that it has arrived, and what came of it before it is sent. One process at a time.
"""

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from tinylora import durable
from tinylora.errors import ProtocolError, StorageError
from tinylora.failpoints import around, reach
from tinylora.protocol.documents import Name, Update, WorkUnit

UNITS = "units"
UNIT, PAYLOAD, HEADER, CHECKPOINT = "unit.json", "payload", "header", "checkpoint"
UPDATE, RESULT, SENT = "update.json", "result", "sent"
_INCOMING = ".incoming"
_STEP = "worker.outbox"

durable.register_folder(f"{_STEP}.open")
for _file in (PAYLOAD, HEADER, UNIT, RESULT, UPDATE, SENT):
    durable.register_file(f"{_STEP}.{_file}")
durable.register_removal(f"{_STEP}.forget")
durable.register_removal(f"{_STEP}.again")
around(f"{_STEP}.flush", f"{_STEP}.clear")
_name: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True)
class Kept:
    """One unit that is here."""

    unit: WorkUnit
    folder: Path
    update: Update | None = None
    """What came of it; None while it is under way."""
    is_sent: bool = False
    """The coordinator has the update, or will ask for it by itself."""

    @property
    def result(self) -> Path:
        """Tensors of the update."""
        return self.folder / RESULT

    def header(self) -> bytes:
        """Head of the message that brought it.

        Raises:
            OSError: It cannot be read.
        """
        return (self.folder / HEADER).read_bytes()


@runtime_checkable
class Outbox(Protocol):
    """Units under way, and updates without a receipt. What a method has done is on disk when it returns.

    All of them raise `StorageError` where the disk is full or not writable; what was there before is still there.
    """

    @property
    def incoming(self) -> Path:
        """A folder for payloads while they arrive, on the same file system."""
        ...

    def take(self, unit: WorkUnit, payload: bytes | Path, header: bytes) -> Path:
        """Keep a unit that came; returns its folder. One that is here already only gets the new header.

        Args:
            unit: Another one of the same id makes room for it.
            payload: Bytes, or a flushed file on the same file system, which is moved.
            header: Of the message that brought it.
        """
        ...

    def finish(self, unit_id: str, update: Update, result: bytes | Path) -> None:
        """Keep what came of a unit; a file on the same file system is flushed and moved."""
        ...

    def mark_sent(self, unit_id: str) -> None:
        """The update need not be sent again unless the coordinator asks for it."""
        ...

    def settle(self, unit_id: str) -> None:
        """The receipt is in hand: forget the unit."""
        ...

    def drop(self, unit_id: str) -> None:
        """Nobody wants this unit any more: forget it."""
        ...

    def made(self, unit: WorkUnit) -> Kept | None:
        """What came of this very unit, by id and nonce."""
        ...

    def kept(self) -> Sequence[Kept]:
        """All units that are here, oldest first."""
        ...

    def under_way(self) -> Sequence[Kept]:
        """Units that are not done, oldest first."""
        ...

    def unsent(self) -> Sequence[Kept]:
        """Updates to be sent, oldest first."""
        ...


class FolderOutbox:
    """An outbox in a worker's home.

    Args:
        home: The worker's. It is its owner's alone.
        run: Units of other runs are left alone, and not told of; of any run without it.
    """

    def __init__(self, home: Path, *, run: str = "") -> None:
        self._home, self._units, self._run = home, home / UNITS, run
        self._lock = threading.RLock()  # receipts come in another thread than units
        with self._trouble():
            durable.make_folder(self._units, name=f"{_STEP}.open")
            self.incoming.mkdir(mode=0o700, exist_ok=True)
            self._clear_remains()

    @property
    def incoming(self) -> Path:
        """A folder for payloads while they arrive; emptied when the outbox is opened."""
        return self._units / _INCOMING

    def take(self, unit: WorkUnit, payload: bytes | Path, header: bytes) -> Path:
        """Keep a unit that came; returns its folder. One that is here already only gets the new header."""
        folder = self._folder(unit.unit_id)
        known = self._read(folder)
        with self._trouble():
            if known is not None and known.unit == unit:
                self._come_again(folder, header)
                if isinstance(payload, Path):
                    payload.unlink(missing_ok=True)
                return folder
            self._remove(folder)
            durable.make_folder(folder, name=f"{_STEP}.open")
            self._put(folder, PAYLOAD, payload)
            self._write(folder, HEADER, header)
            self._write(folder, UNIT, unit.to_json().encode())
        return folder

    def finish(self, unit_id: str, update: Update, result: bytes | Path) -> None:
        """Keep what came of a unit; a file on the same file system is flushed and moved."""
        folder = self._folder(unit_id)
        with self._trouble():
            self._put(folder, RESULT, result)
            self._write(folder, UPDATE, update.to_json().encode())
        with suppress(OSError):  # only room: they go with the folder at the latest
            (folder / PAYLOAD).unlink(missing_ok=True)
            (folder / CHECKPOINT).unlink(missing_ok=True)

    def mark_sent(self, unit_id: str) -> None:
        """The update need not be sent again unless the coordinator asks for it."""
        folder = self._folder(unit_id)
        with self._trouble():
            if folder.is_dir():
                self._write(folder, SENT, b"")

    def settle(self, unit_id: str) -> None:
        """The receipt is in hand: forget the unit."""
        self.drop(unit_id)

    def drop(self, unit_id: str) -> None:
        """Nobody wants this unit any more: forget it."""
        with self._trouble():
            self._remove(self._folder(unit_id))

    def made(self, unit: WorkUnit) -> Kept | None:
        """What came of this very unit, by id and nonce."""
        known = self._read(self._folder(unit.unit_id))
        if known is None or known.update is None:
            return None
        return known if (known.unit.run, known.unit.nonce) == (unit.run, unit.nonce) else None

    def kept(self) -> Sequence[Kept]:
        """All units that are here, oldest first."""
        with self._trouble():
            found = [self._read(folder) for folder in self._folders()]
        ours = [kept for kept in found if kept is not None and self._run in ("", kept.unit.run)]
        return sorted(ours, key=lambda kept: (_age(kept.folder), kept.unit.unit_id))

    def under_way(self) -> Sequence[Kept]:
        """Units that are not done, oldest first."""
        return [kept for kept in self.kept() if kept.update is None]

    def unsent(self) -> Sequence[Kept]:
        """Updates to be sent, oldest first."""
        return [kept for kept in self.kept() if kept.update is not None and not kept.is_sent]

    # --- files -------------------------------------------------------------------------------------------------------

    def _folder(self, unit_id: str) -> Path:
        """Where a unit is; its id came from outside.

        Raises:
            ProtocolError: It is no id.
        """
        try:
            name = _name.validate_python(unit_id)
        except ValidationError:
            raise ProtocolError(f"unit id {unit_id[:40]!r}: expected letters, digits, and . _ : - between") from None
        return self._units / name.replace(":", "%")  # a colon means something else on Windows

    def _folders(self) -> list[Path]:
        return [folder for folder in self._units.iterdir() if folder.is_dir() and folder.name != _INCOMING]

    def _read(self, folder: Path) -> Kept | None:
        """The unit in a folder; None where there is none, or not all of it."""
        try:
            unit = WorkUnit.from_json((folder / UNIT).read_text())
            update = Update.from_json(text) if (text := _text(folder / UPDATE)) else None
        except (OSError, UnicodeDecodeError, ProtocolError):
            return None
        return Kept(unit, folder, update, is_sent=update is not None and (folder / SENT).exists())

    def _write(self, folder: Path, file: str, data: bytes) -> None:
        durable.replace_file(folder / file, data, name=f"{_STEP}.{file}")

    def _put(self, folder: Path, file: str, source: bytes | Path) -> None:
        target, step = folder / file, f"{_STEP}.{file}"
        if isinstance(source, bytes):
            durable.replace_file(target, source, name=step)
            return
        reach(f"{_STEP}.flush.before")
        with source.open("rb+") as out:
            os.fsync(out.fileno())
        reach(f"{_STEP}.flush.after")
        durable.move_file(source, target, name=step)

    def _come_again(self, folder: Path, header: bytes) -> None:
        """The same unit by another message: an answer goes there from now on."""
        self._write(folder, HEADER, header)
        durable.remove_file(folder / SENT, name=f"{_STEP}.again")

    def _remove(self, folder: Path) -> None:
        """First the file without which a folder counts as empty; what a crash leaves of it is cleared at the start."""
        if folder.is_dir():
            durable.remove_file(folder / UNIT, name=f"{_STEP}.forget")
            durable.flush_folder(folder, name=f"{_STEP}.open")
            reach(f"{_STEP}.clear.before")
            shutil.rmtree(folder)
            reach(f"{_STEP}.clear.after")

    def _clear_remains(self) -> None:
        for folder in self._folders():
            if self._read(folder) is None:
                self._remove(folder)
        for file in self.incoming.iterdir():
            file.unlink(missing_ok=True)

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """One thread at a time; what the disk says is told in a sentence."""
        with self._lock:
            try:
                yield
            except OSError as error:
                reason = error.strerror or error
                raise StorageError(f"{self._units}: {reason}; free some space, or choose another --home") from None


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _age(folder: Path) -> int:
    with suppress(OSError):
        return (folder / UNIT).stat().st_mtime_ns
    return 0
