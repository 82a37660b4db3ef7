"""Documents of tokens: one at a time in memory, or many of them in files that are mapped into memory.

Files make a shard's size a matter of disk: of each document there are some numbers in arrays and no object, and pages
of the mapped files are given back to the system after every `RELEASE_BYTES` that were looked at.
"""

import contextlib
import hashlib
import json
import mmap
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, overload

import numpy as np
from jaxtyping import Bool, Int32, Int64

from tinylora.errors import DiskFull, StorageError

RELEASE_BYTES = 64 * 2**20
_PAGES_BYTES = 2**16
"""What the system maps around a byte that is looked at."""
_FORMAT = 1
_KEY_BYTES = 32
_FILES = ("tokens", "keys", "ends", "sizes", "names", "name_ends")
_INDEX = "index.json"

Numbers: TypeAlias = Int64[np.ndarray, " document"]


@dataclass(frozen=True, eq=False)
class Document:
    """One text in tokens; `n_bytes` is the length of the text in UTF-8, for bits per byte."""

    name: str
    tokens: Int32[np.ndarray, " token"]
    n_bytes: int
    is_target: Bool[np.ndarray, " token"] | None = None
    """Tokens that a model is to learn to say; None: all of them."""


@dataclass(frozen=True)
class StoredFacts:
    """What is known of stored documents besides their tokens."""

    n_documents: int
    n_tokens: int
    has_targets: bool
    told: dict[str, Any]
    """What the writer wants to be told again, as JSON."""


class DocumentFiles:
    """Finished files of documents, mapped into memory. What was written, and nothing else: see `open_files`."""

    def __init__(self, folder: Path, facts: StoredFacts) -> None:
        self.folder, self.facts = folder, facts
        self._maps: list[mmap.mmap] = []
        self._n_touched = 0
        self.tokens = self._mapped("tokens", np.int32)
        self.is_target = self._mapped("targets", np.bool_) if facts.has_targets else None
        self.keys = self._mapped("keys", np.uint8).reshape(-1, _KEY_BYTES)
        """sha256 of each document's text, white space aside."""
        self.ends = self._mapped("ends", np.int64)
        self._sizes = self._mapped("sizes", np.int32)
        self._names, self._name_ends = self._mapped("names", np.uint8), self._mapped("name_ends", np.int64)

    def document(self, number: int) -> Document:
        """One of them, in the order in which they were written."""
        start, end = (int(self.ends[number - 1]) if number else 0), int(self.ends[number])
        name_start = int(self._name_ends[number - 1]) if number else 0
        name = bytes(self._names[name_start : int(self._name_ends[number])]).decode()
        is_target = None if self.is_target is None else self.is_target[start:end]
        self.touch(4 * (end - start), n_places=3)
        return Document(name, self.tokens[start:end], int(self._sizes[number]), is_target)

    def touch(self, n_bytes: int, *, n_places: int = 1) -> None:
        """So much was looked at; now and then the pages are given back, and come again when they are needed."""
        self._n_touched += max(n_bytes, n_places * _PAGES_BYTES)
        if self._n_touched > RELEASE_BYTES:
            self.release()

    def release(self) -> None:
        """Give the mapped pages back to the system, where it lets us say so."""
        self._n_touched = 0
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None:
            for mapped in self._maps:
                mapped.madvise(advice)

    def _mapped(self, name: str, dtype: type) -> np.ndarray:
        with (self.folder / name).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype=dtype)


class StoredDocuments(Sequence[Document]):
    """Some of the documents of files, in an order of their own.

    Args:
        files: Where they are.
        numbers: Which of them.
    """

    def __init__(self, files: DocumentFiles, numbers: Numbers) -> None:
        self.files, self.numbers = files, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> "StoredDocuments": ...

    def __getitem__(self, index: int | slice) -> "Document | StoredDocuments":
        if isinstance(index, slice):
            return StoredDocuments(self.files, self.numbers[index])
        return self.files.document(int(self.numbers[index]))

    def take(self, places: Int64[np.ndarray, " place"]) -> "StoredDocuments":
        """Those at these places, in that order."""
        return StoredDocuments(self.files, self.numbers[places])

    @cached_property
    def starts(self) -> Numbers:
        """Where in the files' tokens each begins."""
        return np.where(self.numbers > 0, self.files.ends[self.numbers - 1], 0)

    @cached_property
    def sizes(self) -> Numbers:
        """Tokens of each."""
        return self.files.ends[self.numbers] - self.starts


class TokensOf(Sequence[np.ndarray]):
    """The tokens of documents, one document at a time."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> "TokensOf": ...

    def __getitem__(self, index: int | slice) -> "np.ndarray | TokensOf":
        if isinstance(index, slice):
            return TokensOf(self._documents[index])
        return self._documents[index].tokens


def sizes_of(documents: Sequence[Document]) -> Numbers:
    """Tokens of each."""
    if isinstance(documents, StoredDocuments):
        return documents.sizes
    return np.array([len(document.tokens) for document in documents], dtype=np.int64)


def take(documents: Sequence[Document], places: Int64[np.ndarray, " place"]) -> Sequence[Document]:
    """The documents at these places, in that order, without reading them."""
    if isinstance(documents, StoredDocuments):
        return documents.take(places)
    return tuple(documents[place] for place in places.tolist())


def sampled(documents: Sequence[Document], most: int) -> Sequence[Document]:
    """At most so many of them, evenly spaced: of a shard, whose order is by hash, always the same random sample."""
    if len(documents) <= most:
        return documents
    return take(documents, np.arange(most, dtype=np.int64) * len(documents) // most)


# --- writing ---------------------------------------------------------------------------------------------------------


def keyed(text: str) -> bytes:
    """The hash of a text, white space aside: documents with the same are the same."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()


class _Writer:
    """Files of documents under way; a checksum of each."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._files, self._checksums = folder, dict[str, BinaryIO](), dict[str, int]()
        self.n_documents = self.n_tokens = self._n_name_bytes = 0
        for name in _FILES:
            self._open(name)

    def add(self, key: bytes, document: Document) -> None:
        """One more."""
        if document.is_target is not None and "targets" not in self._files:
            self._open("targets")
            for start in range(0, self.n_tokens, 2**20):  # those before it are targets as a whole
                self._write("targets", np.ones(min(2**20, self.n_tokens - start), dtype=np.bool_))
        name = document.name.encode(errors="replace")
        self.n_documents, self.n_tokens = self.n_documents + 1, self.n_tokens + len(document.tokens)
        self._n_name_bytes += len(name)
        self._write("tokens", document.tokens)
        self._write("keys", key)
        self._write("ends", np.int64(self.n_tokens))
        self._write("sizes", np.int32(document.n_bytes))
        self._write("names", name)
        self._write("name_ends", np.int64(self._n_name_bytes))
        if "targets" in self._files:
            is_target = document.is_target
            self._write("targets", np.ones(len(document.tokens), np.bool_) if is_target is None else is_target)

    def finish(self, told: dict[str, Any]) -> None:
        """The index comes last: files without one are no files."""
        for file in self._files.values():
            file.flush()
        index = {
            "format": _FORMAT,
            "n_documents": self.n_documents,
            "n_tokens": self.n_tokens,
            "files": {name: [(self._folder / name).stat().st_size, crc] for name, crc in self._checksums.items()},
            "told": told,
        }
        text = json.dumps(index)
        (self._folder / _INDEX).write_text(f"{text}\n{zlib.crc32(text.encode())}\n", encoding="utf-8")

    def close(self) -> None:
        """Nothing is written any more."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _open(self, name: str) -> None:
        self._files[name] = (self._folder / name).open("wb", buffering=2**18)
        self._checksums[name] = 0

    def _write(self, name: str, data: Any) -> None:
        raw = bytes(data) if isinstance(data, bytes) else data.tobytes()
        self._files[name].write(raw)
        self._checksums[name] = zlib.crc32(raw, self._checksums[name])


def write_files(
    folder: Path, documents: Iterable[tuple[bytes, Document]], told: Callable[[], dict[str, Any]]
) -> DocumentFiles | None:
    """Write documents with their keys into a new folder and map them; None, and no folder, where there are none.

    Args:
        folder: Not there yet; what is there is thrown away.
        documents: Read one by one.
        told: Asked at the end what to keep beside them.

    Raises:
        DiskFull: No space is left; nothing of it is there any more.
        StorageError: The folder cannot be written.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        with _cleaned(folder), contextlib.closing(_Writer(folder)) as writer:
            for key, document in _outside(documents):
                writer.add(key, document)
            if not writer.n_documents:
                raise _NothingError
            writer.finish(told())
        return open_files(folder)
    except _NothingError:
        return None
    except _SourceError as error:
        raise error.cause from None
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise DiskFull(
                f"{folder}: no space left for the tokens of this data, and nothing was kept; free some"
            ) from None
        raise StorageError(
            f"{folder}: tokens cannot be written there: {error.strerror or error}; choose another place"
        ) from None


class _NothingError(Exception):
    """There was no document."""


class _SourceError(Exception):
    """An OSError of the source is none of the folder."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _outside(documents: Iterable[tuple[bytes, Document]]) -> Iterator[tuple[bytes, Document]]:
    try:
        yield from documents
    except OSError as error:
        raise _SourceError(error) from None


@contextlib.contextmanager
def _cleaned(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def open_files(folder: Path) -> DocumentFiles | None:
    """Files of documents as they were written; None where they are not whole, whatever the reason."""
    try:
        text, _, checksum = (folder / _INDEX).read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        if int(checksum) != zlib.crc32(text.encode()):
            return None
        index = json.loads(text)
        if index["format"] != _FORMAT or not all(
            (folder / name).stat().st_size == size and _checksum(folder / name) == crc
            for name, (size, crc) in index["files"].items()
        ):
            return None
        facts = StoredFacts(index["n_documents"], index["n_tokens"], "targets" in index["files"], index["told"])
        return DocumentFiles(folder, facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(file: Path) -> int:
    found = 0
    with file.open("rb") as stream:
        while data := stream.read(2**20):
            found = zlib.crc32(data, found)
    return found
