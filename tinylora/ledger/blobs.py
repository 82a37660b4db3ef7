"""Payloads in files that are named by the hash of their bytes, spread over folders by its first two digits."""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tinylora.durable import (
    flush_folder,
    make_folder,
    move_file,
    register_file,
    register_folder,
    register_move,
    register_removal,
    remove_file,
    replace_file,
)
from tinylora.errors import StorageError
from tinylora.protocol.documents import sha256 as sha256_of

_NAME = re.compile("[0-9a-f]{64}")

register_file("ledger.blob")
register_move("ledger.adopt")
register_removal("ledger.prune")
register_removal("ledger.orphan")
register_removal("ledger.spool")
register_folder("ledger.folder")


class BlobFolder:
    """The files below one run's folder; it knows nothing of events.

    Args:
        directory: The run's folder.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._root = directory / "blobs"
        self.spool = directory / "spool"
        """Bodies on their way in, on the same file system, so that adopting one is a rename."""
        self._sizes: dict[str, int] = {}
        self._stored_bytes = 0
        self._checked: dict[str, tuple[int, int]] = {}  # by time of writing and length: hashed once, not each time

    # --- opening -----------------------------------------------------------------------------------------------------

    def prepare(self) -> Mapping[str, int]:
        """Make the folders, empty the spool, and find out what there is: bytes by name."""
        for folder in (self._root, self.spool):
            make_folder(folder, name="ledger.folder")
        # A process that was killed may have made folders and never flushed their names.
        flush_folder(self._root, name="ledger.folder")
        for file in self.spool.iterdir():
            remove_file(file, name="ledger.spool")
        self._sizes = {file.name: file.stat().st_size for file in self._files() if self._is_blob(file)}
        self._stored_bytes = sum(self._sizes.values())
        return self._sizes

    def keep_only(self, live: Collection[str]) -> None:
        """Remove whatever no event names, or names as gone: what a killed process left on its way."""
        known = frozenset(live)
        for file in list(self._files()):
            if not self._is_blob(file):
                remove_file(file, name="ledger.orphan")
            elif file.name not in known:
                remove_file(file, name="ledger.orphan")
                self._forget(file.name)

    # --- bytes -------------------------------------------------------------------------------------------------------

    def put(self, data: bytes, name: str) -> None:
        """The blob is on disk; one that is there and sound is left alone, a damaged one is written anew."""
        file = self.file(name)
        if self._holds(file, data):
            return
        make_folder(file.parent, name="ledger.folder")
        try:
            replace_file(file, data, name="ledger.blob")
        except BaseException:
            # Renamed but perhaps not for good: it must not be taken for sound when the same is put again.
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            self._forget(name)
            raise
        self._note(name, len(data))

    def adopt(self, source: Path, name: str) -> None:
        """A flushed file becomes the blob of this name by renaming; nothing of it is read."""
        file = self.file(name)
        n_bytes = source.stat().st_size
        make_folder(file.parent, name="ledger.folder")
        try:
            move_file(source, file, name="ledger.adopt")
        except BaseException:
            if not source.exists():
                file.replace(source)
                self._forget(name)
            raise
        self._note(name, n_bytes)

    def get(self, name: str) -> bytes:
        """Bytes of a blob, compared with its name unless the very file was compared before."""
        file = self.file(name)
        if not file.exists():
            raise StorageError(f"blob {name}: not in {self._directory}; restore {file} from a backup")
        written = file.stat().st_mtime_ns
        data = file.read_bytes()
        if self._checked.get(name) != (written, len(data)):
            found = sha256_of(data)
            if found != name:
                raise StorageError(f"{file}: altered on disk, its sha256 is {found}; restore it from a backup")
            self._checked[name] = (written, len(data))
        return data

    def drop(self, names: Sequence[str]) -> None:
        """Remove blobs; those not there are no error."""
        for name in names:
            remove_file(self.file(name), name="ledger.prune")
            self._forget(name)

    # --- facts -------------------------------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """Where a blob is or would be.

        Raises:
            StorageError: This is no name of a blob.
        """
        if not _NAME.fullmatch(name):
            raise StorageError(f"blob {name!r}: expected 64 hex digits, the sha256 of its bytes")
        return self._root / name[:2] / name

    def sizes(self) -> Mapping[str, int]:
        """Bytes of each blob, as far as this writer knows."""
        return self._sizes

    def stored_bytes(self) -> int:
        """Bytes of all blobs, as far as this writer knows."""
        return self._stored_bytes

    def measure(self) -> int:
        """Bytes of all blobs, by looking at each file: for those who only read."""
        return sum(file.stat().st_size for file in self._files() if self._is_blob(file))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _files(self) -> Iterator[Path]:
        return (file for file in self._root.glob("*/*") if file.is_file())

    def _is_blob(self, file: Path) -> bool:
        return bool(_NAME.fullmatch(file.name)) and file.parent.name == file.name[:2]

    def _holds(self, file: Path, data: bytes) -> bool:
        return file.exists() and file.stat().st_size == len(data) and file.read_bytes() == data

    def _note(self, name: str, n_bytes: int) -> None:
        self._forget(name)
        self._sizes[name] = n_bytes
        self._stored_bytes += n_bytes

    def _forget(self, name: str) -> None:
        self._stored_bytes -= self._sizes.pop(name, 0)
        self._checked.pop(name, None)
