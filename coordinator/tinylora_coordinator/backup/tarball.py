"""A tar of plain files. Written by Python's own module; read by the few rules that what we wrote keeps.

A tar may hold links, devices, names that lead elsewhere, headers that change the next one. None of that is looked for
here: a block that is not the header of the plain file that the manifest names next is refused.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from tinylora.errors import StorageError
from tinylora_coordinator.backup.contents import MANIFEST, MAX_MANIFEST_BYTES, Manifest, mode_of, read_manifest

BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


class Sink(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Take these."""
        ...


# --- writing --------------------------------------------------------------------------------------------------------


class _Hashing:
    """A stream that knows the hash of what went through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.digest, self.n_bytes = stream, hashlib.sha256(), 0

    def read(self, size: int = -1, /) -> bytes:
        """Read on."""
        data = self._stream.read(size)
        self._note(data)
        return data

    def write(self, data: bytes, /) -> int:
        """Write on."""
        self._note(data)
        return self._stream.write(data)

    def _note(self, data: bytes) -> None:
        self.digest.update(data)
        self.n_bytes += len(data)


def write_archive(out: BinaryIO, manifest: Manifest, opened: "Opener") -> str:
    """Write the manifest and all files that it names; returns the hash of all that was written.

    Args:
        out: Where to.
        manifest: Sizes and hashes are those of the files.
        opened: Opens a file by its name.

    Raises:
        StorageError: A file is not what the manifest says.
        OSError: Something cannot be read or written.
    """
    whole = _Hashing(out)
    with tarfile.open(fileobj=whole, mode="w|", format=tarfile.GNU_FORMAT) as archive:  # type: ignore[arg-type]  # write() is enough
        text = manifest.model_dump_json(indent=1).encode() + b"\n"
        archive.addfile(_header(MANIFEST, len(text), manifest.taken_s), io.BytesIO(text))
        for member in manifest.files:
            with opened(member.name) as stream:
                source = _Hashing(stream)
                archive.addfile(_header(member.name, member.bytes, manifest.taken_s), source)  # type: ignore[arg-type]  # read() is, too
            if source.digest.hexdigest() != member.sha256 or source.n_bytes != member.bytes:
                raise StorageError(f"{member.name}: altered on disk, its sha256 is {source.digest.hexdigest()}")
    return whole.digest.hexdigest()


class Opener(Protocol):
    """Opens a file to be read."""

    def __call__(self, name: str, /) -> BinaryIO:
        """The file of this name."""
        ...


def _header(name: str, n_bytes: int, taken_s: float) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = n_bytes, 0o600, int(taken_s)
    return info


# --- reading --------------------------------------------------------------------------------------------------------


class ArchiveReader:
    """A backup, read from beginning to end, once.

    Args:
        stream: Uncompressed.
        n_bytes: Length of the whole of it, which is all that its manifest can promise.

    Raises:
        StorageError: It does not begin with a manifest of ours, or promises more than it has.
    """

    def __init__(self, stream: BinaryIO, n_bytes: int) -> None:
        self._stream, self._left = stream, n_bytes
        size = self._begin(MANIFEST)
        if size > MAX_MANIFEST_BYTES:
            raise StorageError(f"its manifest has {size} bytes, expected at most {MAX_MANIFEST_BYTES}")
        text = io.BytesIO()
        self._copy(size, text)
        self.manifest = read_manifest(text.getvalue())
        promised = sum(BLOCK + _padded(member.bytes) for member in self.manifest.files)
        if promised + BLOCK > self._left:
            raise StorageError(f"it is cut off: its manifest promises {promised} bytes more, {self._left} are there")

    def members(self, place: Path) -> Iterator[str]:
        """Write each file below `place`, in the order of the manifest; its name is given once it is there and right.

        Raises:
            StorageError: The next one is not what the manifest says.
            OSError: It cannot be written.
        """
        for member in self.manifest.files:
            size = self._begin(member.name)
            if size != member.bytes:
                raise StorageError(f"{member.name} has {size} bytes, its manifest says {member.bytes}")
            with _new_file(place, member.name, mode_of(member.name)) as out:
                found = self._copy(size, out)
            if found != member.sha256:
                raise StorageError(
                    f"{member.name} was altered: its sha256 is {found}, its manifest says {member.sha256}"
                )
            yield member.name
        self._end()

    def _begin(self, name: str) -> int:
        """The size of the file that follows, which must be a plain one of this name."""
        block = self._take(BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            what = "it is no backup of a run" if name == MANIFEST else f"expected {name}, and found no file"
            raise StorageError(what) from None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = _KINDS.get(info.type, f"a record of type {info.type!r}")
            raise StorageError(f"it holds {kind} by the name {info.name[:80]!r}; a backup holds plain files alone")
        if info.name != name:
            raise StorageError(f"expected {name}, and found {info.name[:80]!r}")
        if info.size < 0:
            raise StorageError(f"{name}: a size below nothing")
        return info.size

    def _copy(self, size: int, out: Sink) -> str:
        """Pass so many bytes on; returns their hash."""
        digest, left = hashlib.sha256(), size
        if _padded(size) > self._left:
            raise StorageError(f"it is cut off: {size} bytes were to follow, {self._left} are there")
        while left:
            data = self._take(min(_CHUNK, left))
            digest.update(data)
            out.write(data)
            left -= len(data)
        self._take(_padded(size) - size)
        return digest.hexdigest()

    def _end(self) -> None:
        """Nothing follows but the zeros that fill a tar up."""
        if self._left > 2 * BLOCK + tarfile.RECORDSIZE or self._take(self._left).strip(b"\0"):
            raise StorageError("something stands behind its last file")

    def _take(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise StorageError("it is cut off")
        self._left -= size
        return data


@contextmanager
def _new_file(place: Path, name: str, mode: int) -> Iterator[BinaryIO]:
    """A file that was not there, in folders of its owner alone."""
    *folders, _ = name.split("/")
    for depth in range(1, len(folders) + 1):
        place.joinpath(*folders[:depth]).mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, mode)
        yield out


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
