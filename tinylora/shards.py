"""From files on a volunteer's disk to a shard: text files, folders, JSONL and Parquet become documents of tokens.

The split into training and held-out text goes by document, by the hash of the text: it depends neither on names nor on
the order of files, and a document stays on its side when others are added. Training windows are packed from whole
documents one after the other; every epoch has an order of its own, which follows from the seed alone, so that step k
can be made without making the steps before it. No torch here, and no tokenizer: `encode` is passed in.

Parquet is read with pyarrow and not through the `datasets` library, which would first write a second copy of the
volunteer's text into a cache folder and takes seconds to import.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64

from tinylora.config import BaseFacts
from tinylora.errors import DataError, SettingError

log = logging.getLogger(__name__)

NamedText: TypeAlias = tuple[str, str]
Encode: TypeAlias = Callable[[str], Sequence[int]]


class Rows(NamedTuple):
    """Windows of tokens, one a row."""

    ids: Int64[np.ndarray, "row token"]
    documents: Int64[np.ndarray, "row token"]
    """Beside each token the number of the document it comes from."""
    is_target: Bool[np.ndarray, "row token"] | None = None
    """Tokens that are to be predicted: those of answers and completions. None: all of them."""


READABLE = "text files, .jsonl, .parquet, or folders of them"


@dataclass(frozen=True, eq=False)
class Document:
    """One text in tokens; `n_bytes` is the length of the text in UTF-8, for bits per byte."""

    name: str
    tokens: Int32[np.ndarray, " token"]
    n_bytes: int
    is_target: Bool[np.ndarray, " token"] | None = None
    """Tokens that a model is to learn to say; None: all of them."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A worker's text, tokenised and split. `version` is the same whenever the training tokens are the same."""

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    version: str
    name: str = ""
    n_duplicates: int = 0
    """Documents that were dropped because another one has the same text, white space aside."""

    @cached_property
    def n_tokens(self) -> int:
        """Tokens to train on."""
        return sum(len(document.tokens) for document in self.train)

    @cached_property
    def n_targets(self) -> int:
        """Of these, tokens that are to be predicted."""
        return sum(n_targets(document) for document in self.train)

    def n_windows(self, window_tokens: int) -> int:
        """Full windows in one epoch; the rest of the last one is another text in every epoch."""
        return self.n_tokens // window_tokens

    def windows(self, window_tokens: int, seed: int, epoch: int) -> Rows:
        """All windows of one epoch, in order."""
        packed = Epoch.of(self, window_tokens, seed, epoch)
        return packed.rows(np.arange(len(packed.order)))


@dataclass(frozen=True, eq=False)
class Epoch:
    """One pass over a shard: the documents in a random order, end to end, cut into windows, which are shuffled again.

    The second shuffle keeps the windows of one long document from making up a whole batch.
    """

    window_tokens: int
    stream: Int32[np.ndarray, " token"]
    is_target: Bool[np.ndarray, " token"] | None
    """Beside the stream; None where all tokens are targets."""
    numbers: Int64[np.ndarray, " document"]
    """Document numbers (places in `Shard.train`) in stream order."""
    ends: Int64[np.ndarray, " document"]
    """Where in the stream each of them ends."""
    order: Int64[np.ndarray, " window"]

    @classmethod
    def of(cls, shard: Shard, window_tokens: int, seed: int, epoch: int) -> "Epoch":
        """Pack the training documents of `shard` for one epoch.

        Raises:
            DataError: Not even one full window.
        """
        check_size(shard, window_tokens=window_tokens)
        numbers = _permutation(len(shard.train), "documents", seed, epoch)
        chosen = [shard.train[number].tokens for number in numbers]
        ends = np.cumsum([len(tokens) for tokens in chosen], dtype=np.int64)
        order = _permutation(shard.n_windows(window_tokens), "windows", seed, epoch)
        targets = _joined_targets([shard.train[number] for number in numbers])
        return cls(window_tokens, np.concatenate(chosen), targets, numbers, ends, order)

    def rows(self, positions: Int64[np.ndarray, " row"]) -> Rows:
        """The windows at these positions of the epoch."""
        starts = self.order[positions] * self.window_tokens
        places = starts[:, None] + np.arange(self.window_tokens)
        documents = self.numbers[np.searchsorted(self.ends, places, side="right")]
        is_target = None if self.is_target is None else self.is_target[places]
        return Rows(self.stream[places].astype(np.int64), documents, is_target)


def batches(shard: Shard, *, window_tokens: int, batch_windows: int, seed: int, first_step: int = 0) -> Iterator[Rows]:
    """Batches of windows from step `first_step` on, without end.

    Epochs follow each other without a gap: a batch may hold the last windows of one and the first of the next, and a
    shard smaller than a batch fills it with several epochs. Step k is the same wherever the iteration began.

    Raises:
        DataError: The shard has not even one full window.
    """
    check_size(shard, window_tokens=window_tokens)
    n_windows, step = shard.n_windows(window_tokens), first_step
    packed: dict[int, Epoch] = {}
    while True:
        places = np.arange(step * batch_windows, (step + 1) * batch_windows)
        needed = sorted(set((places // n_windows).tolist()))
        packed = {epoch: packed.get(epoch) or Epoch.of(shard, window_tokens, seed, epoch) for epoch in needed}
        parts = [packed[epoch].rows(places[places // n_windows == epoch] % n_windows) for epoch in needed]
        yield _stacked(parts)
        step += 1


def _stacked(parts: Sequence[Rows]) -> Rows:
    """Rows of one shard under each other: either all of them have targets, or none has."""
    targets = [part.is_target for part in parts if part.is_target is not None]
    return Rows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.documents for part in parts]),
        np.concatenate(targets) if targets else None,
    )


def n_targets(document: Document) -> int:
    """Tokens of a document that are to be predicted."""
    return len(document.tokens) if document.is_target is None else int(np.count_nonzero(document.is_target))


def _joined_targets(documents: Sequence[Document]) -> Bool[np.ndarray, " token"] | None:
    """Targets of documents end to end; None where all tokens of all of them are."""
    if all(document.is_target is None for document in documents):
        return None
    return np.concatenate([_targets(document) for document in documents])


def _targets(document: Document) -> Bool[np.ndarray, " token"]:
    return np.ones(len(document.tokens), dtype=bool) if document.is_target is None else document.is_target


def spaced_windows(documents: Sequence[Document], window_tokens: int, most_windows: int) -> Rows | None:
    """A few windows, evenly spaced over the documents end to end; None where there are not even two tokens.

    One window is as long as all of the text where that is shorter than `window_tokens`.
    """
    sizes = np.array([len(document.tokens) for document in documents], dtype=np.int64)
    n_tokens = int(sizes.sum())
    if n_tokens < 2:
        return None
    width = min(window_tokens, n_tokens)
    starts = np.linspace(0, n_tokens - width, min(most_windows, n_tokens // width)).astype(np.int64)
    ends = np.cumsum(sizes)
    rows = _stacked([_window(documents, ends, int(start), width) for start in starts])
    return rows if any(document.is_target is not None for document in documents) else rows._replace(is_target=None)


def _window(documents: Sequence[Document], ends: Int64[np.ndarray, " document"], start: int, width: int) -> Rows:
    """One window of the documents end to end, with its targets."""
    first, last = (int(np.searchsorted(ends, place, side="right")) for place in (start, start + width - 1))
    inside = [documents[number] for number in range(first, last + 1)]
    begin = int(ends[first - 1]) if first else 0
    cut = slice(start - begin, start - begin + width)
    numbers = np.repeat(np.arange(first, last + 1), [len(document.tokens) for document in inside])[cut]
    ids = np.concatenate([document.tokens for document in inside])[cut].astype(np.int64)
    return Rows(ids[None], numbers[None], np.concatenate([_targets(document) for document in inside])[cut][None])


def check_size(shard: Shard, *, window_tokens: int, min_windows: int = 1) -> None:
    """Check that a shard is worth its worker's time.

    Raises:
        DataError: Fewer than `min_windows` windows of training text.
    """
    if shard.n_windows(window_tokens) < min_windows:
        raise DataError(
            f"shard {shard.name or '(unnamed)'} is too small: its {shard.n_tokens} training tokens make "
            f"{shard.n_windows(window_tokens)} windows of {window_tokens}, needed are {min_windows}; add text"
        )


def _permutation(n: int, *key: object) -> Int64[np.ndarray, " n"]:
    """A random order of n things that follows from `key` alone, on every machine and with every numpy.

    numpy promises to keep the bits of its bit generators, but not the order that `Generator.permutation` makes of them.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(n)
    return np.argsort(np.asarray(raw, dtype=np.uint64), kind="stable").astype(np.int64)


# --- from texts to a shard -------------------------------------------------------------------------------------------


@runtime_checkable
class Tokenizing(Protocol):
    """What `load_shard` needs of a loaded base model."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, as `base_model.encode` takes it."""
        ...

    @property
    def facts(self) -> BaseFacts:
        """For the tokenizer's fingerprint."""
        ...


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A document with the hash of its text, which decides about duplicates, side and order."""

    key: str
    document: Document


def load_shard(
    paths: Sequence[Path],
    base: Tokenizing,
    *,
    text_column: str = "text",
    heldout_share: float = 0.1,
    seed: int = 0,
    name: str = "",
) -> Shard:
    """Read, tokenise and split the text at `paths`; see `read_texts` and `make_shard`."""
    return make_shard(
        read_texts(paths, text_column=text_column),
        _encoder(base),
        tokenizer_fingerprint=base.facts.tokenizer_fingerprint,
        heldout_share=heldout_share,
        seed=seed,
        name=name or (paths[0].name if paths else ""),
    )


def load_documents(paths: Sequence[Path], base: Tokenizing, *, text_column: str = "text") -> tuple[Document, ...]:
    """Read and tokenise the text at `paths` without splitting it: all of it was set aside for an evaluation."""
    return encode_documents(read_texts(paths, text_column=text_column), _encoder(base))


def encode_documents(texts: Iterable[NamedText], encode: Encode) -> tuple[Document, ...]:
    """Tokenise texts, each once, in the order in which they come; texts of white space alone are left out."""
    return tuple(item.document for item in _encode_once(texts, encode)[0])


def make_shard(
    texts: Iterable[NamedText],
    encode: Encode,
    *,
    tokenizer_fingerprint: str,
    heldout_share: float = 0.1,
    seed: int = 0,
    name: str = "",
) -> Shard:
    """Tokenise texts, drop duplicates, and set about `heldout_share` of the documents aside.

    The document lowest by hash is always held out and the highest always trained on, so that neither side is empty.
    Where there is only one document, the end of its text is held out, cut at a line break.

    Raises:
        DataError: No text at all, or a single one that is too short to be cut.
        SettingError: `heldout_share` is not in [0, 1).
    """
    if not 0 <= heldout_share < 1:
        raise SettingError(f"heldout_share {heldout_share}: expected 0 or more and less than 1")
    first: list[NamedText] = []
    items, n_duplicates = _encode_once(_remember_first(texts, first), encode)
    if not items:
        raise DataError(f"shard {name or '(unnamed)'}: no text in it; expected {READABLE}")
    if len(items) == 1 and heldout_share:
        items = _cut_in_two(first[0], encode, heldout_share)
        train, heldout = items[:1], items[1:]
    else:
        train, heldout = _split(items, heldout_share, seed)
    training = tuple(item.document for item in train)
    version = _version(training, tokenizer_fingerprint)
    return Shard(training, tuple(item.document for item in heldout), version, name, n_duplicates)


def shard_of(
    train: Iterable[Document], heldout: Iterable[Document], *, tokenizer_fingerprint: str, name: str = ""
) -> Shard:
    """A shard of documents that are tokenised and split already."""
    training = tuple(train)
    return Shard(training, tuple(heldout), _version(training, tokenizer_fingerprint), name)


def _encoder(base: Tokenizing) -> Encode:
    from tinylora.base_model import encode  # late: it brings torch and transformers

    return lambda text: encode(base.tokenizer, text)


def _remember_first(texts: Iterable[NamedText], first: list[NamedText]) -> Iterator[NamedText]:
    """Pass texts on, and put the first that is not blank into `first`: all of them might not fit in memory."""
    for text in texts:
        if not first and text[1].strip():
            first.append(text)
        yield text


def _encode_once(texts: Iterable[NamedText], encode: Encode) -> tuple[list[_Encoded], int]:
    """Tokenise every text that is not blank and not there already; also how many were there already."""
    items: dict[str, _Encoded] = {}
    n_duplicates = 0
    for name, text in texts:
        words = text.split()
        key = hashlib.sha256(" ".join(words).encode()).hexdigest()
        if words and key in items:
            n_duplicates += 1
        elif words:
            items[key] = _encoded(key, name, text, encode)
    return list(items.values()), n_duplicates


def _encoded(key: str, name: str, text: str, encode: Encode) -> _Encoded:
    tokens = np.asarray(encode(text), dtype=np.int32)
    tokens.flags.writeable = False
    return _Encoded(key, Document(name, tokens, len(text.encode())))


def _split(items: list[_Encoded], share: float, seed: int) -> tuple[list[_Encoded], list[_Encoded]]:
    """Training and held-out documents, each sorted by hash, so that the order of files changes nothing."""
    ordered = sorted(items, key=lambda item: item.key)
    if not share:
        return ordered, []
    position = {item.key: _position(item.key, seed) for item in items}
    by_position = sorted(position, key=position.__getitem__)
    # The first by position is always held out and the last always trained on: neither side is ever empty.
    heldout = {key for key in by_position[1:-1] if position[key] < share} | {by_position[0]}
    return [item for item in ordered if item.key not in heldout], [item for item in ordered if item.key in heldout]


def _position(key: str, seed: int) -> float:
    """A number in [0, 1) that follows from a document's hash and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


def _cut_in_two(text: NamedText, encode: Encode, share: float) -> list[_Encoded]:
    """The beginning and the end of a text, as two documents."""
    name, whole = text
    whole = whole.strip()
    wanted = max(1, round(len(whole) * (1 - share)))
    cut = whole.rfind("\n", 0, wanted) if "\n" in whole[:wanted] else whole.rfind(" ", 0, wanted)
    cut = cut + 1 if cut > 0 else wanted
    parts = whole[:cut].strip(), whole[cut:].strip()
    if not all(parts):
        raise DataError(
            f"{name}: one document of {len(whole)} characters is too short to hold a part of it out; add text"
        )
    return [
        _encoded(f"{index}", f"{name} ({side})", part, encode)
        for index, (side, part) in enumerate(zip(("beginning", "end"), parts, strict=True))
    ]


def _version(train: Iterable[Document], tokenizer_fingerprint: str) -> str:
    digest = hashlib.sha256(tokenizer_fingerprint.encode())
    for document in train:
        digest.update(len(document.tokens).to_bytes(8, "little"))
        digest.update(document.tokens.astype("<i4").tobytes())
        if document.is_target is not None:
            digest.update(np.packbits(document.is_target).tobytes())
    return digest.hexdigest()


# --- from files to texts ---------------------------------------------------------------------------------------------


@dataclass
class _Skipped:
    """What a folder held besides text, for the sentence about it."""

    hidden: int = 0
    binary: int = 0
    empty: int = 0

    def __str__(self) -> str:
        return f"skipped {self.hidden} hidden, {self.binary} binary and {self.empty} empty files"

    @property
    def any(self) -> int:
        return self.hidden + self.binary + self.empty


def read_texts(paths: Sequence[Path], *, text_column: str = "text") -> Iterator[NamedText]:
    """Names and texts of all documents at `paths`, folders in sorted order, to their deepest files.

    A `.jsonl` file has one document per line and a `.parquet` file one per row, in `text_column`; any other file is one
    document. Hidden, binary and empty files inside a folder are skipped and counted in the log; one that was named is
    an error. Names hold no folder above the ones given.

    Raises:
        DataError: A path is missing or is no file, a folder or file holds no text, a named file is binary, a line is
            unreadable (with its number), or the column is unknown or does not hold text.
    """
    if not paths:
        raise DataError(f"no data was named; expected {READABLE}")
    for path in paths:
        if path.is_dir():
            yield from _read_folder(path, text_column)
        else:
            yield from _read_named_file(path, text_column)


def _read_folder(folder: Path, text_column: str) -> Iterator[NamedText]:
    skipped, n_texts = _Skipped(), 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            skipped.hidden += 1
            continue
        for text in _read_found_file(path, f"{folder.name}/{relative.as_posix()}", text_column, skipped):
            n_texts += 1
            yield text
    if not n_texts:
        raise DataError(f"{folder}: no text in this folder ({skipped}); expected {READABLE}")
    if skipped.any:
        log.info("%s: %s", folder, skipped)


def _read_found_file(path: Path, name: str, text_column: str, skipped: _Skipped) -> Iterator[NamedText]:
    """Texts of a file inside a folder, where what is not text may be skipped."""
    if path.suffix.lower() in _READERS:
        yield from _READERS[path.suffix.lower()](path, name, text_column)
        return
    text = _as_text(_read_bytes(path))
    if text is None:
        skipped.binary += 1
    elif not text.strip():
        skipped.empty += 1
    else:
        yield name, text


def _read_named_file(path: Path, text_column: str) -> Iterator[NamedText]:
    """Texts of a file that was asked for by name, where nothing may be missing."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected {READABLE}")
    if not path.is_file():
        raise DataError(f"{path}: neither a file nor a folder; expected {READABLE}")
    if path.suffix.lower() in _READERS:
        texts = _READERS[path.suffix.lower()](path, path.name, text_column)
        first = next(texts, None)
        if first is None:
            raise DataError(f"{path}: no document in this file; expected at least one with column {text_column!r}")
        yield first
        yield from texts
        return
    data = _read_bytes(path)
    text = _as_text(data)
    if text is None:
        raise DataError(f"{path}: a binary file ({_why_binary(data)}); expected {READABLE}")
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected text")
    yield path.name, text


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _as_text(data: bytes) -> str | None:
    """The text of a file, or None where it is not UTF-8 or holds NUL, which no text does."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _why_binary(data: bytes) -> str:
    nul = data.find(b"\0")
    if nul >= 0:
        return f"byte {nul} is NUL"
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8"
    return "not text"


def _read_jsonl(path: Path, name: str, text_column: str) -> Iterator[NamedText]:
    """One document per line; blank lines are passed over, blank texts too."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    text = _text_of_line(line, f"{path}, line {number}", text_column)
                    if text.strip():
                        yield f"{name}:{number}", text
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _text_of_line(line: bytes, where: str, text_column: str) -> str:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        raise DataError(f"{where}: not readable as JSON: nested too deeply") from None
    except ValueError as error:
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{where}: not readable as JSON: {what}; expected one object per line") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where}: expected an object with a column {text_column!r}, got {_type_name(fields)}")
    if text_column not in fields:
        raise _unknown_column(where, text_column, fields)
    return _checked_text(fields[text_column], where, text_column)


def _checked_text(value: object, where: str, text_column: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: column {text_column!r}: expected text, got {_type_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: column {text_column!r}: half of a surrogate pair is no text") from None
    return value


def _type_name(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _unknown_column(where: str, text_column: str, columns: Iterable[str]) -> DataError:
    found = ", ".join(sorted(columns)) or "(none)"
    return DataError(f"{where}: no column {text_column!r}; found: {found}; name one of these as the text column")


def _read_parquet(path: Path, name: str, text_column: str) -> Iterator[NamedText]:
    """One document per row, read batch by batch."""
    import pyarrow as arrow  # late: only those who have Parquet pay for it
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_column not in schema.names:
                raise _unknown_column(str(path), text_column, schema.names)
            number = 0
            for batch in file.iter_batches(columns=[text_column], batch_size=1024):
                for value in batch.column(0).to_pylist():
                    number += 1
                    text = _checked_text(value, f"{path}, row {number}", text_column)
                    if text.strip():
                        yield f"{name}:{number}", text
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


_READERS: dict[str, Callable[[Path, str, str], Iterator[NamedText]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
