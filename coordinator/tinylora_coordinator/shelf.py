"""Bundles that were made of a run while it went on, in DIR/bundles: the files, and what the log would say of each.

<sha256>.safetensors  a bundle; the oldest ones go first
<sha256>.json         of which log it is; stays while the log names the bundle
.making-…             one that is being written
leaves/               single leaves as zipped PEFT adapters, made on demand; none of them survives a start
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from tinylora import durable
from tinylora.errors import StorageError
from tinylora.federation.events import BundlePublished

MAKING = ".making-"
_SHA256 = re.compile("[0-9a-f]{64}")

durable.register_folder("shelf")
durable.register_move("shelf.take")
durable.register_file("shelf.note")


class Shelf:
    """The folder of bundles of one run. One process takes bundles in; any number look.

    Args:
        root: The run's folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "bundles"
        self.leaves = self.folder / "leaves"

    def tidy(self) -> None:
        """The folders are there, and nothing in them that a killed process left half done.

        Raises:
            OSError: The folder cannot be written.
        """
        durable.make_folder(self.folder, name="shelf")
        shutil.rmtree(self.leaves, ignore_errors=True)
        self.leaves.mkdir(mode=0o700, exist_ok=True)
        half = [*self.folder.glob(f"{MAKING}*"), *self.folder.glob(f".{MAKING}*")]
        unknown = [file for file in self.folder.glob("*.safetensors") if not self._note(file.stem).exists()]
        for file in (*half, *unknown):
            file.unlink(missing_ok=True)

    def new_file(self) -> Path:
        """Where a bundle is to be written before it is taken in."""
        return self.folder / f"{MAKING}{secrets.token_hex(8)}.safetensors"

    def take(self, file: Path, made: BundlePublished) -> None:
        """Keep a bundle, after a look at whether its bytes are what is said of them.

        Raises:
            StorageError: They are others.
            OSError: It cannot be moved, or noted.
        """
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if (found, file.stat().st_size) != (made.sha256, made.bytes):
            raise StorageError(f"{file}: expected sha256 {made.sha256[:12]}, got {found[:12]}; the disk may be failing")
        durable.move_file(file, self._bundle(made.sha256), name="shelf.take")
        self.note(made)

    def note(self, made: BundlePublished) -> None:
        """Keep what is known of a bundle, wherever its file is.

        Raises:
            OSError: It cannot be written.
        """
        durable.make_folder(self.folder, name="shelf")
        durable.replace_file(self._note(made.sha256), made.model_dump_json().encode(), name="shelf.note")

    def all(self) -> tuple[BundlePublished, ...]:
        """What is known of every bundle, the newest first; a damaged note is none."""
        found = [made for file in self.folder.glob("*.json") if (made := _read(file)) is not None]
        return tuple(sorted(found, key=lambda made: (-made.n_events, made.sha256)))

    def file(self, sha256: str) -> Path | None:
        """The file of a bundle, where it is still here."""
        file = self._bundle(sha256)
        return file if _SHA256.fullmatch(sha256) and file.is_file() else None

    def prune(self, keep: int, named: Collection[str]) -> None:
        """Only the newest `keep` files stay; of the others a note, where the log names them."""
        here = [made.sha256 for made in self.all() if self.file(made.sha256) is not None]
        for sha256 in here[keep:]:
            if sha256 not in named:
                self._note(sha256).unlink(missing_ok=True)
            self._bundle(sha256).unlink(missing_ok=True)

    def forget(self, before: int, named: Collection[str]) -> None:
        """The files of bundles of so short logs go, and all leaves: they may hold what was erased since."""
        for made in self.all():
            if made.n_events < before:
                self._bundle(made.sha256).unlink(missing_ok=True)
                if made.sha256 not in named:
                    self._note(made.sha256).unlink(missing_ok=True)
        for file in self.leaves.glob("leaf-*.zip"):
            file.unlink(missing_ok=True)

    # --- leaves ------------------------------------------------------------------------------------------------------

    def new_leaf(self) -> Path:
        """Where a leaf is to be written before it is taken in."""
        return self.leaves / f"{MAKING}{secrets.token_hex(8)}.zip"

    def leaf(self, name: str) -> Path | None:
        """A leaf that was made before."""
        file = self.leaves / f"{name}.zip"
        return file if file.is_file() else None

    def take_leaf(self, file: Path, name: str, keep: int) -> Path:
        """Keep a leaf, and of all the `keep` that were made last; any of them can be made again.

        Raises:
            OSError: It cannot be moved.
        """
        target = self.leaves / f"{name}.zip"
        file.replace(target)
        here = sorted(self.leaves.glob("leaf-*.zip"), key=lambda other: (-other.stat().st_mtime_ns, other.name))
        for other in here[keep:]:
            other.unlink(missing_ok=True)
        return target

    def _bundle(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.safetensors"

    def _note(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.json"


def _read(file: Path) -> BundlePublished | None:
    try:
        made = BundlePublished.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    return made if made.sha256 == file.stem else None
