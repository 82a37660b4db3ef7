"""Paths that a volunteer named to files that can be read: folders and globs unfolded, formats told by their endings."""

import errno
import glob
import importlib.util
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from tinylora.errors import DataError

Kind: TypeAlias = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]
Packing: TypeAlias = Literal["", "gz", "zst"]

READABLE = "text files, .jsonl, .json, .csv, .tsv, .parquet, each also as .gz or .zst, or folders of them"
_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_PACKINGS: dict[str, Packing] = {".gz": "gz", ".zst": "zst"}
_PACKAGES: dict[Kind | Packing, str] = {"parquet": "datasets", "zst": "zstandard"}
"""What reads them; of the extra `data`, because most text comes in neither and they are large."""
INSTALL_DATA = "pip install 'tinylora[data]'"
_NO_FILES = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Source:
    """One file."""

    path: Path
    name: str
    """For people: no folder above the one that was named."""
    kind: Kind
    packing: Packing
    folder: Path | None = None
    """The folder in which it was found: what is no text is passed over there. None: it was named itself."""


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """All files at these paths: folders in sorted order to their deepest files, globs likewise, nothing hidden.

    Raises:
        DataError: A path is missing, is neither file nor folder, an address, or a glob that nothing fits; a folder
            cannot be read; a file needs a package that is not installed.
    """
    if not paths:
        raise DataError(f"no data was named; expected {READABLE}")
    found = [source for path in paths for source in _sources_at(path)]
    for source in found:
        for package in lacking(source.path):
            raise DataError(f"{source.path}: reading it needs the package {package}: {INSTALL_DATA}")
    return found


def lacking(path: Path) -> list[str]:
    """Packages that reading this file takes and that are not installed; nothing is imported."""
    source = _source(path, path.name, None)
    needed = (_PACKAGES.get(what, "") for what in (source.kind, source.packing))
    return [package for package in needed if package and importlib.util.find_spec(package) is None]


def is_pattern(path: Path) -> bool:
    """Whether a name is meant as a glob: it has such characters, and no file is called so."""
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def is_hidden(relative: Path) -> bool:
    """Whether a file or a folder on the way to it begins with a dot."""
    return any(part.startswith(".") for part in relative.parts)


def _sources_at(path: Path) -> list[Source]:
    # A Path has made one slash out of two.
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) and not os.path.lexists(path):
        raise DataError(f"{path}: an address; data is read from this machine alone, so download it first")
    if is_pattern(path):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if not found:
            raise DataError(f"{path}: no file fits this pattern; expected {READABLE}")
        return [source for one in found for source in _sources_at(one)]
    if stat.S_ISDIR(_mode(path)):
        return [_source(file, f"{path.name}/{file.relative_to(path).as_posix()}", path) for file in _files_in(path)]
    return [_source(path, path.name, None)]


def _mode(path: Path) -> int:
    """What a path is.

    Raises:
        DataError: Nothing that can be read to its end.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOENT:
            raise DataError(f"{path}: no such file or folder; expected {READABLE}") from None
        if number == errno.ELOOP:
            raise DataError(f"{path}: a symbolic link that leads back to itself; name the file itself") from None
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for is_it, what in _NO_FILES:
        if is_it(mode):
            raise DataError(f"{path}: {what}, which is neither a file nor a folder; expected {READABLE}")
    return mode


def _source(path: Path, name: str, folder: Path | None) -> Source:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = _PACKINGS.get(suffixes[-1], "") if suffixes else ""
    inner = suffixes[:-1] if packing else suffixes
    return Source(path, name, _KINDS.get(inner[-1], "text") if inner else "text", packing, folder)


def _files_in(folder: Path) -> Iterator[Path]:
    """Files of a folder and of those below, sorted by path; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None

    found = [Path(place) / name for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    return iter(sorted(path for path in found if path.is_file()))
