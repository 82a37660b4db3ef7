"""What a report needs besides the run: every worker's shard, and the documents that nobody trained on, tokenised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinylora.base_model import LoadedBase, encode
from tinylora.demo.experiment import Experiment, Text
from tinylora.errors import DataError, SettingError
from tinylora.reading.layouts import text_in
from tinylora.reading.scan import ALLOWANCES
from tinylora.shards import Document, Shard, encode_documents, load_shard, make_shard

N_VALIDATION_DOCUMENTS = 6
MAX_SCORED_DOCUMENTS = 18
"""Per domain, where the text is a user's own: the same as in the demo."""


@dataclass(frozen=True, eq=False)
class Study:
    """Shards of all workers by name, whose text they are, and documents to choose by and to score."""

    shards: dict[str, Shard]
    domains: dict[str, tuple[str, ...]]
    """Worker's name to the domains in its shard. Only the report knows."""
    validation: dict[str, tuple[Document, ...]]
    heldout: dict[str, tuple[Document, ...]]


def study_of(experiment: Experiment, base: LoadedBase) -> Study:
    """The demo's text on this base."""

    def documents(texts: Mapping[str, Sequence[Text]]) -> dict[str, tuple[Document, ...]]:
        return {name: encode_documents(some, lambda text: encode(base.tokenizer, text)) for name, some in texts.items()}

    return Study(
        shards={worker.name: _shard(worker.texts, base, worker.name) for worker in experiment.workers},
        domains={worker.name: worker.domains for worker in experiment.workers},
        validation=documents(experiment.validation),
        heldout=documents(experiment.heldout),
    )


def _shard(texts: Sequence[Text], base: LoadedBase, name: str) -> Shard:
    return make_shard(
        texts,
        lambda text: encode(base.tokenizer, text),
        tokenizer_fingerprint=base.facts.tokenizer_fingerprint,
        name=name,
    )


def study_of_paths(paths: Sequence[Path], base: LoadedBase, *, text_column: str) -> Study:
    """A user's own text: the i-th path is worker i's shard and a domain of the report; its held-out part is scored.

    Raises:
        DataError: A path has no readable text, or too few documents to hold some out.
        SettingError: Two paths have the same name, which would be one domain in the report.
    """
    names = [path.resolve().name for path in paths]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise SettingError(f"--data: two paths are called {double!r}; the report names domains by them, rename one")
    shards, validation, heldout = {}, {}, {}
    # Nothing leaves this machine in a simulation, so nothing is refused.
    options = {"columns": text_in(text_column), "allow": ALLOWANCES, "heldout_share": 0.2}
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        shard = load_shard([path], base, **options, name=f"worker-{index}")
        if len(shard.heldout) < 2:
            raise DataError(
                f"{path}: {len(shard.heldout)} held-out document; expected at least 2 (a fifth of the documents is "
                "held out), so give at least 10 documents"
            )
        n_validation = min(N_VALIDATION_DOCUMENTS, len(shard.heldout) // 2)
        shards[shard.name] = shard
        validation[name] = shard.heldout[:n_validation]
        heldout[name] = shard.heldout[n_validation:][:MAX_SCORED_DOCUMENTS]
    return Study(shards, {f"worker-{i}": (name,) for i, name in enumerate(names)}, validation, heldout)
