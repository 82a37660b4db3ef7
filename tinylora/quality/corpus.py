"""The text of a report: domains found on this machine, split by file, and the ways of dealing it to workers.

`train` is what workers own, `local` their own held-out part (it calibrates routers), `validation` chooses rates and the
oracle's leaves, `heldout` is scored and nothing else.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tinylora.base_model import LoadedBase, encode
from tinylora.demo.corpus import Document as Text
from tinylora.demo.corpus import Domain, available_domains, read_documents
from tinylora.demo.experiment import seen_hashes
from tinylora.errors import DataError, SettingError
from tinylora.shards import Document, Shard, encode_documents, shard_of

LOCAL_SHARE = 0.1
"""Of a domain's training documents: the workers' own held-out part."""
MAX_DOCUMENT_CHARS = 20_000
"""Of a document that is scored; somewhat more than is read."""

Documents = tuple[Document, ...]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised documents by domain."""

    train: dict[str, Documents]
    local: dict[str, Documents]
    validation: dict[str, Documents]
    heldout: dict[str, Documents]
    tokenizer_fingerprint: str

    @property
    def domains(self) -> tuple[str, ...]:
        """Names, in a fixed order."""
        return tuple(self.train)

    def by_domain(self) -> dict[str, Shard]:
        """One worker for each domain: worker's name to its shard."""
        return {
            worker_name(number): self._shard(self.train[name], self.local[name], worker_name(number))
            for number, name in enumerate(self.domains)
        }

    def halves(self) -> dict[str, Shard]:
        """Two workers for each domain, with disjoint documents."""
        pairs = [(name, side) for name in self.domains for side in (0, 1)]
        return {
            worker_name(number): self._shard(
                self.train[name][side::2], self.local[name][side::2] or self.local[name], worker_name(number)
            )
            for number, (name, side) in enumerate(pairs)
        }

    def pooled(self) -> dict[str, Shard]:
        """All text in one hand, as no federation can have it."""
        return {worker_name(0): self._shard(_joined(self.train), _joined(self.local), worker_name(0))}

    def mixed(self, n_workers: int, *, alpha: float | None, seed: int) -> dict[str, Shard]:
        """Every domain dealt to all workers: evenly (IID), or in shares drawn from a Dirichlet distribution.

        Args:
            n_workers: How many.
            alpha: Concentration; None is IID. The smaller, the more each domain is in few hands.
            seed: Of the shares and of who gets which document.
        """
        rng = np.random.default_rng((seed, n_workers))
        train: list[list[Document]] = [[] for _ in range(n_workers)]
        local: list[list[Document]] = [[] for _ in range(n_workers)]
        for name in self.domains:
            shares = np.full(n_workers, 1 / n_workers) if alpha is None else rng.dirichlet(np.full(n_workers, alpha))
            for side, documents in ((train, self.train[name]), (local, self.local[name])):
                for document, worker in zip(documents, _deal(documents, shares, rng), strict=True):
                    side[worker].append(document)
        names = [worker_name(number) for number in range(n_workers)]
        return {
            name: self._shard(tuple(train[number]), tuple(local[number]), name)
            for number, name in enumerate(names)
            if sum(len(document.tokens) for document in train[number]) >= MIN_SHARD_TOKENS
        }

    def _shard(self, train: Documents, local: Documents, name: str) -> Shard:
        return shard_of(train, local, tokenizer_fingerprint=self.tokenizer_fingerprint, name=name)


MIN_SHARD_TOKENS = 4096
"""A worker whom a skewed draw left with less stays at home."""


def worker_name(number: int) -> str:
    """Of the `number`-th worker."""
    return f"worker-{number:02d}"


def _joined(documents: Mapping[str, Documents]) -> Documents:
    return tuple(document for some in documents.values() for document in some)


def _deal(documents: Documents, shares: np.ndarray, rng: np.random.Generator) -> list[int]:
    """A worker for every document, so that the workers' tokens come near to their shares."""
    sizes = np.array([len(document.tokens) for document in documents], dtype=np.float64)
    order, room = rng.permutation(len(documents)), shares * sizes.sum()
    workers = [0] * len(documents)
    for index in order.tolist():
        workers[index] = int(np.argmax(room))
        room[workers[index]] -= sizes[index]
    return workers


def read_corpus(
    base: LoadedBase,
    *,
    n_domains: int,
    shard_chars: int,
    n_documents: int,
    domains: Sequence[Domain] | None = None,
) -> Corpus:
    """Find text on this machine and tokenise it; the same on every call.

    Raises:
        DataError: The machine has too few kinds of text, or a domain has too few documents to hold some out.
    """
    chosen = list(islice(available_domains() if domains is None else domains, n_domains))
    if len(chosen) < n_domains:
        raise DataError(f"report: needs {n_domains} kinds of text, this machine has {len(chosen)}; use a smaller depth")
    unwanted = seen_hashes()
    texts = {d.name: read_documents(d, "shard", max_chars=shard_chars, unwanted_hashes=unwanted) for d in chosen}
    trained = unwanted | {text.text_hash for some in texts.values() for text in some}
    kept = {d.name: read_documents(d, "heldout", max_documents=n_documents, unwanted_hashes=trained) for d in chosen}
    short = next((name for name, some in kept.items() if len(some) < 6), None)
    if short is not None:
        raise DataError(f"report: domain {short} has {len(kept[short])} documents to hold out; expected at least 6")

    def tokens(some: Sequence[Text], limit: int | None = None) -> Documents:
        return encode_documents([(t.name, t.text[:limit]) for t in some], lambda text: encode(base.tokenizer, text))

    split = {name: _split(some, lambda text: _position(text.name) < LOCAL_SHARE) for name, some in texts.items()}
    return Corpus(
        train={name: tokens(train) for name, (_, train) in split.items()},
        local={name: tokens(local) for name, (local, _) in split.items()},
        validation={name: tokens(some[: len(some) // 3], MAX_DOCUMENT_CHARS) for name, some in kept.items()},
        heldout={name: tokens(some[len(some) // 3 :], MAX_DOCUMENT_CHARS) for name, some in kept.items()},
        tokenizer_fingerprint=base.facts.tokenizer_fingerprint,
    )


def _split(some: Sequence[Text], is_first: Callable[[Text], bool]) -> tuple[list[Text], list[Text]]:
    """Those for which it holds, and the others; each side has at least one document."""
    first = [text for text in some if is_first(text)] or list(some[:1])
    names = {text.name for text in first}
    rest = [text for text in some if text.name not in names]
    if not rest:
        raise DataError(f"report: a domain has only {len(some)} documents to train on; expected at least 2")
    return first, rest


def _position(name: str) -> float:
    return int.from_bytes(hashlib.sha256(b"local" + name.encode()).digest()[:8], "big") / 2**64


def deal(corpus: Corpus, how: str, *, n_workers: int, seed: int) -> dict[str, Shard]:
    """Shards by worker: `domain`, `halves`, `pooled`, `iid`, or `dirichlet:A`.

    Raises:
        SettingError: The word is unknown.
    """
    word, _, alpha = how.partition(":")
    if word == "domain":
        return corpus.by_domain()
    if word == "halves":
        return corpus.halves()
    if word == "pooled":
        return corpus.pooled()
    if word in ("iid", "dirichlet"):
        return corpus.mixed(n_workers, alpha=float(alpha) if word == "dirichlet" else None, seed=seed)
    raise SettingError(f"split {how!r}: expected domain, halves, pooled, iid or dirichlet:A")
