"""Jobs on a tiny base: equal tokens, equal documents, and an outcome on disk that is the one that was made."""

import functools

import pytest
import torch

from tests.helpers import tiny_base_model
from tinylora.base_model import LoadedBase, encode
from tinylora.errors import SettingError
from tinylora.quality import jobs as jobs_module
from tinylora.quality.config import QualityConfig, Rate
from tinylora.quality.corpus import Corpus
from tinylora.quality.jobs import Context, mean_nll, outcome_file, read_outcome, run_job, write_outcome
from tinylora.quality.plan import base, central, fedavg, full, pooled, tree
from tinylora.quality.run import open_folder
from tinylora.shards import Document, encode_documents

KINDS = {
    "prose": "the cat sat on the mat and the dog ran far away from the cat. ",
    "numbers": "0123 4567 8901 2345 6789 1029 3847 5610 9283 7465\n",
}
RATES = {key: Rate(learning_rate=1e-2) for key in ("tree:2", "fedavg:2", "pooled:2", "full")}
CONFIG = QualityConfig(
    rates=RATES, dtype="float32", depth=1, rank=2, leaf_steps=6, round_steps=3, batch_windows=2, window_tokens=32
)


class TinyContext(Context):
    """A base of a few thousand parameters and two kinds of text made here."""

    def _load(self, name: str) -> LoadedBase:
        return tiny_base_model()

    @functools.cached_property
    def corpus(self) -> Corpus:
        loaded = self.base("demo")

        def documents(kind: str, start: int, n: int) -> tuple[Document, ...]:
            texts = [(f"{kind}/{i}", KINDS[kind][i % 7 :] * (6 + i % 3)) for i in range(start, start + n)]
            return encode_documents(texts, lambda text: encode(loaded.tokenizer, text))

        return Corpus(
            train={kind: documents(kind, 0, 10) for kind in KINDS},
            local={kind: documents(kind, 10, 2) for kind in KINDS},
            validation={kind: documents(kind, 12, 2) for kind in KINDS},
            heldout={kind: documents(kind, 14, 3) for kind in KINDS},
            tokenizer_fingerprint=loaded.facts.tokenizer_fingerprint,
        )


@functools.cache
def outcome(name: str):
    context = TinyContext(CONFIG)
    job = {
        "base": base(CONFIG),
        "tree": tree(CONFIG, 1),
        "first tree": tree(CONFIG, 0),
        "fedavg": fedavg(CONFIG, 2, 0),
        "pooled": pooled(CONFIG, 2, 0),
        "full": full(CONFIG, 0),
        "central": central(CONFIG, 0),
    }[name]
    return run_job(context, job.model_copy(update={"rate": CONFIG.rate(job.rate_key)}))


@pytest.mark.parametrize("name", ["tree", "fedavg", "pooled", "full", "central"])
def test_every_system_learns_from_the_same_number_of_tokens(name):
    found = outcome(name)
    assert found.tokens == 2 * CONFIG.leaf_steps * CONFIG.batch_windows * CONFIG.window_tokens
    learned = found.scored["oracle" if "oracle" in found.scored else "one"]
    assert mean_nll(learned) < mean_nll(outcome("base").scored["one"]) - 0.01


def test_all_are_scored_on_the_same_documents():
    keys = {
        tuple((score.domain, score.name, score.n_tokens) for score in scored.scores)
        for name in ("base", "tree", "fedavg", "pooled", "full", "central")
        for scored in outcome(name).scored.values()
    }
    assert len(keys) == 1


def test_active_and_total_ranks_say_what_a_token_and_a_file_cost():
    found = outcome("tree")
    assert {name: scored.active_rank for name, scored in found.scored.items()} == {
        "soft": 4, "top2": 4, "hard": 2, "elastic": 2, "hard@sequence:32": 2, "oracle": 2,
    }  # fmt: skip
    assert found.total_rank == 4 and outcome("fedavg").total_rank == 2
    assert found.n_parameters == 2 * outcome("fedavg").n_parameters


def test_the_first_tree_is_scored_under_routers_that_know_less():
    found = outcome("first tree").scored
    assert {"uniform", "random", "averaged weights", "merged", "concatenated", "hard@sequence:8"} <= found.keys()
    assert found["merged"].active_rank == 4 and found["merged, to one rank"].active_rank == 2
    documents = {(score.domain, score.name, score.n_tokens) for score in found["oracle"].scores}
    for name in ("uniform", "random", "averaged weights"):
        assert {(score.domain, score.name, score.n_tokens) for score in found[name].scores} == documents
    by_leaf = {score.name: {score.nll_sum} for score in found["oracle"].scores}
    drawn = [score.nll_sum in by_leaf[score.name] for score in found["random"].scores]
    assert any(drawn) and not all(drawn), "by chance some documents meet their own leaf"
    assert mean_nll(found["oracle"]) < mean_nll(found["random"])


def test_training_the_base_fully_leaves_the_shared_base_alone():
    context = TinyContext(CONFIG)
    before = [parameter.clone() for parameter in context.base("demo").model.parameters()]
    job = full(CONFIG, 0)
    run_job(context, job.model_copy(update={"rate": CONFIG.rate("full")}))
    after = context.base("demo").model.parameters()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_curve_ends_where_the_run_does():
    job = tree(CONFIG, 0).model_copy(update={"rate": CONFIG.rate("tree:2"), "n_checkpoints": 2, "policies": ("soft",)})
    found = run_job(TinyContext(CONFIG), job)
    assert [point.tokens for point in found.curve] == [found.tokens // 2, found.tokens]
    validation = run_job(TinyContext(CONFIG), job.model_copy(update={"on": "validation", "n_checkpoints": 0}))
    assert found.curve[-1].nll["soft"] == pytest.approx(mean_nll(validation.scored["soft"]), abs=1e-6)


def test_an_outcome_is_read_back_as_it_was_and_never_taken_for_another_jobs(tmp_path):
    found = outcome("fedavg")
    assert read_outcome(tmp_path, found.job) is None
    write_outcome(tmp_path, found)
    assert read_outcome(tmp_path, found.job) == found
    assert [file.name for file in (tmp_path / "jobs").iterdir()] == [outcome_file(tmp_path, found.job).name]
    with pytest.raises(SettingError, match="holds another configuration of fedavg:2"):
        read_outcome(tmp_path, found.job.model_copy(update={"rate": Rate(learning_rate=5e-3)}))


def test_a_folder_belongs_to_one_configuration_but_rows_may_be_added(tmp_path):
    open_folder(tmp_path, CONFIG)
    open_folder(tmp_path, CONFIG.model_copy(update={"rows": (1, 2)}))
    with pytest.raises(SettingError, match=r"holds a report of another configuration: rank is 2 there and 4 now"):
        open_folder(tmp_path, CONFIG.model_copy(update={"rank": 4}))


def test_a_kept_tree_is_a_whole_bundle(tmp_path):
    from tinylora.bundle import read_bundle

    context = TinyContext(CONFIG, tmp_path)
    job = tree(CONFIG, 0).model_copy(update={"rate": CONFIG.rate("tree:2"), "policies": ("soft",)})
    run_job(context, job)
    kept = read_bundle(jobs_module.outcome_file(tmp_path, job).with_suffix(".safetensors"))
    assert sorted(kept.nodes) == ["0", "1"]
