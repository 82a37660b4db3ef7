"""From files on a volunteer's disk to a shard: what `tinylora.reading` finds there becomes documents of tokens.

The split into training and held-out text goes by document, by the hash of the text: it depends neither on names nor on
the order of files, and a document stays on its side when others are added. Training windows are packed from whole
documents one after the other; every epoch has an order of its own, which follows from the seed alone, so that step k
can be made without making the steps before it. No torch here, and no tokenizer: `encode` is passed in.

Documents lie in memory, or with a cache folder in files that are mapped into it. Of a large shard there are then some
numbers by document in memory: 24 bytes for the shard, 16 for each epoch under way, and 56 while it is made.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64

from tinylora.config import BaseFacts
from tinylora.errors import DataError, SettingError
from tinylora.reading.cache import cache_key, folder_of, keep_only
from tinylora.reading.chat import Encoded, Encoder, TokenizerEncoder, encode_all
from tinylora.reading.documents import (
    Document,
    DocumentFiles,
    StoredDocuments,
    keyed,
    open_files,
    sizes_of,
    write_files,
)
from tinylora.reading.examples import read_examples
from tinylora.reading.layouts import Example, Part
from tinylora.reading.rows import Rejected
from tinylora.reading.scan import Scan, check_allowances
from tinylora.reading.sources import READABLE, find_sources

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


class _Flat(NamedTuple):
    """The tokens of a shard's training documents, and where each document's begin."""

    tokens: Int32[np.ndarray, " token"]
    is_target: Bool[np.ndarray, " token"] | None
    starts: Int64[np.ndarray, " document"]
    files: DocumentFiles | None


@dataclass(frozen=True, eq=False)
class Shard:
    """A worker's text, tokenised and split. `version` is the same whenever the training tokens are the same."""

    train: Sequence[Document]
    heldout: Sequence[Document]
    version: str
    name: str = ""
    n_duplicates: int = 0
    """Documents that were dropped because another one has the same text, white space aside."""

    @cached_property
    def n_tokens(self) -> int:
        """Tokens to train on."""
        return int(sizes_of(self.train).sum())

    @cached_property
    def n_targets(self) -> int:
        """Of these, tokens that are to be predicted."""
        if isinstance(self.train, StoredDocuments) and self.train.files.is_target is None:
            return self.n_tokens
        return sum(n_targets(document) for document in self.train)

    def n_windows(self, window_tokens: int) -> int:
        """Full windows in one epoch; the rest of the last one is another text in every epoch."""
        return self.n_tokens // window_tokens

    @cached_property
    def flat(self) -> _Flat:
        """All training tokens in one array: a copy of those in memory, the files of those on disk."""
        if isinstance(self.train, StoredDocuments):
            files = self.train.files
            return _Flat(files.tokens, files.is_target, self.train.starts, files)
        sizes = sizes_of(self.train)
        tokens = np.concatenate([document.tokens for document in self.train])
        return _Flat(tokens, _joined_targets(self.train), np.cumsum(sizes) - sizes, None)

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
    flat: _Flat
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
        ends = np.cumsum(sizes_of(shard.train)[numbers])
        order = _permutation(shard.n_windows(window_tokens), "windows", seed, epoch)
        return cls(window_tokens, shard.flat, numbers, ends, order)

    def rows(self, positions: Int64[np.ndarray, " row"]) -> Rows:
        """The windows at these positions of the epoch."""
        places = (self.order[positions] * self.window_tokens)[:, None] + np.arange(self.window_tokens)
        nth = np.searchsorted(self.ends, places, side="right")
        documents = self.numbers[nth]
        begins = np.where(nth > 0, self.ends[nth - 1], 0)
        found = self.flat.starts[documents] + places - begins
        ids = self.flat.tokens[found].astype(np.int64)
        is_target = None if self.flat.is_target is None else self.flat.is_target[found]
        if self.flat.files is not None:
            self.flat.files.touch(4 * found.size, n_places=2 * len(np.unique(documents)))
        return Rows(ids, documents, is_target)


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
class _Item:
    """A document with the hash of its text, which decides about duplicates, side and order."""

    key: bytes
    document: Document


def load_shard(
    paths: Sequence[Path],
    base: Tokenizing,
    *,
    columns: Mapping[str, str] | None = None,
    allow: Sequence[str] = (),
    cache: Path | None = None,
    heldout_share: float = 0.1,
    seed: int = 0,
    name: str = "",
) -> Shard:
    """Read, look through, tokenise and split the text at `paths`; see `reading.examples` and `make_shard`.

    Args:
        paths: Files, folders, globs, on this machine.
        base: Whose tokenizer.
        columns: Which columns of rows hold what, see `reading.layouts`; what is not said is detected.
        allow: Kinds of findings that may be trained on: secrets, emails, phones.
        cache: A folder for the tokens, which are found there again as long as nothing changes; tokens of other data
            there are removed. None: they stay in memory.
        heldout_share: Share of the documents that is set aside.
        seed: Of the split.
        name: For people; the first path's unless told otherwise.

    Raises:
        DataError: Text is missing, unreadable or too little, a row cannot be used, or something was found that is not
            allowed.
        SettingError: `columns`, `allow` or `heldout_share` makes no sense.
        DiskFull: The cache's disk is full.
        StorageError: The cache cannot be written.
    """
    _check_share(heldout_share)
    check_allowances(allow)
    encoder, name = TokenizerEncoder(base.tokenizer), name or (paths[0].name if paths else "")
    fingerprint = base.facts.tokenizer_fingerprint
    if cache is not None:
        stored = _stored(paths, encoder, fingerprint, columns or {}, cache)
        if stored is not None and stored.facts.n_documents:
            _scan_of(stored).check(allow)
            found = _split_files(stored, fingerprint, heldout_share, seed, name)
            if found is not None:
                return found
    scan = Scan()
    examples = _looked_through(read_examples(paths, columns=columns), scan)
    shard = _in_memory(examples, encoder, fingerprint, heldout_share, seed, name)
    scan.check(allow)
    return shard


def load_documents(
    paths: Sequence[Path], base: Tokenizing, *, columns: Mapping[str, str] | None = None
) -> tuple[Document, ...]:
    """Read and tokenise the text at `paths` without splitting it: all of it was set aside for an evaluation."""
    found = _encode_once(read_examples(paths, columns=columns), TokenizerEncoder(base.tokenizer))[0]
    return tuple(item.document for item in found)


def encode_documents(texts: Iterable[NamedText], encode: Encode) -> tuple[Document, ...]:
    """Tokenise texts, each once, in the order in which they come; texts of white space alone are left out."""
    return tuple(item.document for item in _encode_once(_as_examples(texts), _TextEncoder(encode))[0])


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
    _check_share(heldout_share)
    return _in_memory(_as_examples(texts), _TextEncoder(encode), tokenizer_fingerprint, heldout_share, seed, name)


def _check_share(heldout_share: float) -> None:
    if not 0 <= heldout_share < 1:
        raise SettingError(f"heldout_share {heldout_share}: expected 0 or more and less than 1")


def _in_memory(
    examples: Iterable[Example], encoder: Encoder, fingerprint: str, heldout_share: float, seed: int, name: str
) -> Shard:
    first: list[Example] = []
    items, n_duplicates = _encode_once(_remember_first(examples, first), encoder)
    if not items:
        raise DataError(f"shard {name or '(unnamed)'}: no text in it; expected {READABLE}")
    if len(items) == 1 and heldout_share:
        train, heldout = _cut_in_two(first[0], encoder, heldout_share)
        return Shard((train,), (heldout,), _version((train,), fingerprint), name, n_duplicates)
    items.sort(key=lambda item: item.key)
    is_heldout = _is_heldout([item.key for item in items], heldout_share, seed)
    training = tuple(item.document for item, is_out in zip(items, is_heldout, strict=True) if not is_out)
    heldout = tuple(item.document for item, is_out in zip(items, is_heldout, strict=True) if is_out)
    return Shard(training, heldout, _version(training, fingerprint), name, n_duplicates)


def shard_of(
    train: Iterable[Document], heldout: Iterable[Document], *, tokenizer_fingerprint: str, name: str = ""
) -> Shard:
    """A shard of documents that are tokenised and split already."""
    training = tuple(train)
    return Shard(training, tuple(heldout), _version(training, tokenizer_fingerprint), name)


class _TextEncoder:
    """Plain texts by a function."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    def encode(self, examples: Sequence[Example]) -> list[Encoded | Rejected]:
        """Each in tokens."""
        return [Encoded(_read_only(self._encode(example.text)), None) for example in examples]


def _read_only(ids: Sequence[int]) -> Int32[np.ndarray, " token"]:
    tokens = np.asarray(ids, dtype=np.int32)
    tokens.flags.writeable = False
    return tokens


def _as_examples(texts: Iterable[NamedText]) -> Iterator[Example]:
    return (Example(name, name, "text", (Part("text", text),)) for name, text in texts if text.strip())


def _remember_first(examples: Iterable[Example], first: list[Example]) -> Iterator[Example]:
    """Pass examples on, and put the first into `first`: all of them might not fit in memory."""
    for example in examples:
        if not first:
            first.append(example)
        yield example


def _looked_through(examples: Iterable[Example], scan: Scan) -> Iterator[Example]:
    """Pass examples on, and look for what should perhaps not be learnt."""
    for example in examples:
        scan.look_at(example.where, example.text)
        yield example


def _encode_once(examples: Iterable[Example], encoder: Encoder) -> tuple[list[_Item], int]:
    """Tokenise every example that is not there already; also how many were there already."""
    items: dict[bytes, _Item] = {}
    n_documents = 0
    for key, document in _encoded(examples, encoder):
        n_documents += 1
        items.setdefault(key, _Item(key, document))
    return list(items.values()), n_documents - len(items)


def _encoded(examples: Iterable[Example], encoder: Encoder) -> Iterator[tuple[bytes, Document]]:
    """Documents with the hashes of their texts, duplicates among them."""
    for example, found in encode_all(examples, encoder):
        if isinstance(found, Rejected):
            raise found.error()
        text = example.text
        yield keyed(text), Document(example.name, found.tokens, len(text.encode()), found.is_target)


def _is_heldout(keys: Sequence[bytes], share: float, seed: int) -> Bool[np.ndarray, " document"]:
    """Which documents are held out. Keys are sorted, so that the order of files changes nothing."""
    if not share:
        return np.zeros(len(keys), dtype=bool)
    position = np.fromiter((_position(bytes(key).hex(), seed) for key in keys), dtype=np.float64, count=len(keys))
    found = position < share
    # The first by position is always held out and the last always trained on: neither side is ever empty.
    found[np.argmax(position)], found[np.argmin(position)] = False, True
    return found


def _position(key: str, seed: int) -> float:
    """A number in [0, 1) that follows from a document's hash and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


def _cut_in_two(example: Example, encoder: Encoder, share: float) -> tuple[Document, Document]:
    """The beginning and the end of a text, as two documents."""
    whole = example.text.strip()
    if example.layout != "text":
        raise DataError(f"{example.where}: the only example, and none is left to hold out; add more")
    wanted = max(1, round(len(whole) * (1 - share)))
    cut = whole.rfind("\n", 0, wanted) if "\n" in whole[:wanted] else whole.rfind(" ", 0, wanted)
    cut = cut + 1 if cut > 0 else wanted
    parts = whole[:cut].strip(), whole[cut:].strip()
    if not all(parts):
        raise DataError(
            f"{example.name}: one document of {len(whole)} characters is too short to hold a part of it out; add text"
        )
    names = (f"{example.name} (beginning)", f"{example.name} (end)")
    (_, train), (_, heldout) = _encoded(_as_examples(zip(names, parts, strict=True)), encoder)
    return train, heldout


def _version(train: Iterable[Document], tokenizer_fingerprint: str) -> str:
    digest = hashlib.sha256(tokenizer_fingerprint.encode())
    for document in train:
        digest.update(len(document.tokens).to_bytes(8, "little"))
        digest.update(document.tokens.astype("<i4").tobytes())
        if document.is_target is not None:
            digest.update(np.packbits(document.is_target).tobytes())
    return digest.hexdigest()


# --- documents on disk -----------------------------------------------------------------------------------------------


def _stored(
    paths: Sequence[Path], encoder: TokenizerEncoder, fingerprint: str, columns: Mapping[str, str], cache: Path
) -> DocumentFiles | None:
    """The tokens of the data, from the cache or into it; None where there is no text."""
    key = cache_key(find_sources(paths), f"{fingerprint}/{encoder.fingerprint}", columns)
    folder = folder_of(cache, key)
    found = open_files(folder)
    if found is None:
        if cache.is_dir():
            keep_only(cache, key)
        scan = Scan()
        examples = _looked_through(read_examples(paths, columns=columns), scan)
        found = write_files(folder, _encoded(examples, encoder), told=lambda: {"scan": scan.to_json()})
    return found


def _scan_of(files: DocumentFiles) -> Scan:
    return Scan.from_json(files.facts.told["scan"])


def _split_files(files: DocumentFiles, fingerprint: str, heldout_share: float, seed: int, name: str) -> Shard | None:
    """A shard of stored documents, each text once; None where there is only one, which has to be cut."""
    order = _by_key(files.keys)
    keys = files.keys
    if len(order) == 1 and heldout_share:
        return None
    is_heldout = _is_heldout(_KeysInOrder(keys, order), heldout_share, seed)
    train = StoredDocuments(files, order[~is_heldout])
    heldout = StoredDocuments(files, order[is_heldout])
    files.release()
    return Shard(train, heldout, _version(train, fingerprint), name, files.facts.n_documents - len(order))


class _KeysInOrder(Sequence[bytes]):
    """Keys of stored documents, read as they are asked for."""

    def __init__(self, keys: np.ndarray, order: Int64[np.ndarray, " document"]) -> None:
        self._keys, self._order = keys, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        return self._keys[self._order[index]].tobytes()


def _by_key(keys: np.ndarray) -> Int64[np.ndarray, " document"]:
    """Numbers of the documents sorted by key; of those with the same key the first alone.

    The first half of a sha256 tells any two texts apart.
    """
    halves = keys[:, :16].reshape(-1).view(">u8").reshape(-1, 2).astype(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    halves = halves[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (halves[1:] != halves[:-1]).any(axis=1)
    return order[is_new].astype(np.int64)
