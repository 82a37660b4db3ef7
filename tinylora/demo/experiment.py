"""Who has which text: the demo's workers, their shards from this machine, and the documents that only the report reads.

As many domains take part as the tree has leaves. More workers than domains share a domain (replicas of a leaf); fewer
workers hold several domains, mixed and unlabelled (a subtree). The report and the live page name them; the run knows
no names.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tinylora.demo.corpus import Document, Domain, available_domains, read_documents
from tinylora.errors import DataError

BASE_DIR = Path(__file__).parent / "base"
"""The small base model that ships with the project."""
DEMO = "demo"
"""What `--base` may say for it; a folder of that name goes before."""

MAX_SHARD_CHARS = 900_000  # per domain: more than a demo run can read
N_SCORED_DOCUMENTS = 18  # per domain
N_VALIDATION_DOCUMENTS = 6  # per domain; they choose the oracle's leaf of a mixed shard and are not scored
_WANTED = N_VALIDATION_DOCUMENTS + N_SCORED_DOCUMENTS
SCORED_CHARS = 5_000  # the beginning of a document: somewhat more than is scored

Text = tuple[str, str]
"""Name and text of one document."""


@dataclass(frozen=True)
class WorkerText:
    """What one worker owns."""

    name: str
    domains: tuple[str, ...]
    texts: tuple[Text, ...]


@dataclass(frozen=True)
class Experiment:
    """Shards of all workers, and documents that no worker has: `validation` to choose by, `heldout` to score."""

    workers: tuple[WorkerText, ...]
    validation: dict[str, tuple[Text, ...]]
    heldout: dict[str, tuple[Text, ...]]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order of the report."""
        return tuple(self.heldout)


def place_of_base(name: str) -> str:
    """What `--base` means: `demo` is the base that ships with the project, and everything else is what it is."""
    return str(BASE_DIR) if name == DEMO and not Path(name).is_dir() else name


def seen_hashes() -> frozenset[str]:
    """Hashes of all texts that the demo base was trained on."""
    return frozenset((BASE_DIR / "seen_hashes.txt").read_text().split())


def deal_domains(n_workers: int, n_domains: int) -> list[tuple[int, ...]]:
    """Which domains each worker holds: one each in turn, and what is left over goes round once more."""
    held: list[list[int]] = [[] for _ in range(n_workers)]
    for turn in range(max(n_workers, n_domains)):
        held[turn % n_workers].append(turn % n_domains)
    return [tuple(domains) for domains in held]


def gather(n_workers: int, depth: int, *, domains: Sequence[Domain] | None = None) -> Experiment:
    """Read text from this machine and deal it out, the same way every time on one machine.

    Raises:
        DataError: This machine has fewer domains than the tree has leaves.
    """
    n_domains = 2**depth
    unwanted = seen_hashes()
    usable = (domain for domain in available_domains() if _has_enough(domain, unwanted))
    chosen = list(islice(usable if domains is None else domains, n_domains))
    if len(chosen) < n_domains:
        raise DataError(
            f"demo text: a tree of depth {depth} needs {n_domains} kinds of text, this machine has {len(chosen)}; "
            "choose a smaller depth, or give your own text with `tinylora simulate --data DIR --data DIR ...`"
        )
    shards = {d.name: read_documents(d, "shard", max_chars=MAX_SHARD_CHARS, unwanted_hashes=unwanted) for d in chosen}
    trained = unwanted | {document.text_hash for documents in shards.values() for document in documents}
    heldout = {d.name: _heldout(d, trained) for d in chosen}
    return Experiment(
        workers=tuple(_worker_texts(n_workers, shards)),
        validation={name: texts[:N_VALIDATION_DOCUMENTS] for name, texts in heldout.items()},
        heldout={name: texts[N_VALIDATION_DOCUMENTS:] for name, texts in heldout.items()},
    )


def _has_enough(domain: Domain, unwanted: frozenset[str]) -> bool:
    """Whether this machine has what is scored: how much there is of a domain depends on the packages beside ours."""
    return len(read_documents(domain, "heldout", max_documents=_WANTED // 2, unwanted_hashes=unwanted)) >= _WANTED // 2


def _heldout(domain: Domain, trained: frozenset[str]) -> tuple[Text, ...]:
    documents = read_documents(domain, "heldout", max_documents=_WANTED, unwanted_hashes=trained)
    if len(documents) < _WANTED // 2:
        raise DataError(
            f"demo text: domain {domain.name} has only {len(documents)} documents to hold out on this machine"
        )
    return tuple((document.name, document.text[:SCORED_CHARS]) for document in documents)


def _worker_texts(n_workers: int, shards: dict[str, list[Document]]) -> list[WorkerText]:
    """Deal domains to workers; holders of one domain get disjoint documents of it."""
    names = list(shards)
    dealt = deal_domains(n_workers, len(names))
    workers = []
    for number, held in enumerate(dealt):
        texts: list[Text] = []
        for index in held:
            holders = [other for other, domains in enumerate(dealt) if index in domains]
            part = shards[names[index]][holders.index(number) :: len(holders)]
            texts.extend((document.name, document.text) for document in part)
        texts.sort(key=lambda text: hashlib.sha256(text[0].encode()).digest())  # mixed: the order tells no domain
        workers.append(WorkerText(f"worker-{number}", tuple(names[index] for index in held), tuple(texts)))
    return workers


def write_shard(worker: WorkerText, directory: Path) -> Path:
    """Write a worker's documents as JSON lines under `directory`, for a worker process to read; returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{worker.name}.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for name, text in worker.texts:
            lines.write(json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n")
    return file
