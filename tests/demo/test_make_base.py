"""The recipe's schedule, its plateau, and that it goes on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinylora.adapters.spec import AdapterSpec
from tinylora.demo import make_base
from tinylora.demo.corpus import Document
from tinylora.demo.make_base import LOW_LR, PEAK_LR, Recipe, Trainer, learning_rate, plateau
from tinylora.model import TreeModel

TINY = Recipe(n_steps=6, step_tokens=256, window_tokens=64, first_window_tokens=32, n_validation_windows=2)


def test_the_rate_rises_holds_falls_and_is_halved_twice():
    rates = [learning_rate(step, 1000) for step in (0, 99, 400, 749, 760, 850, 950)]
    expected = [PEAK_LR / 100, PEAK_LR, PEAK_LR, None, PEAK_LR * LOW_LR, PEAK_LR * LOW_LR / 2, PEAK_LR * LOW_LR / 4]
    for rate, wanted in zip(rates, expected, strict=True):
        assert wanted is None or rate == pytest.approx(wanted)
    assert rates[3] == pytest.approx(PEAK_LR * LOW_LR, rel=0.01)


def test_plateau_compares_with_four_fifths_of_the_tokens():
    curve = [{"tokens": tokens, "nll": {"a": nll}} for tokens, nll in ((0, 9.0), (40, 4.0), (80, 2.0), (100, 1.99))]
    assert plateau(curve) == {"a": pytest.approx(-0.005)}


def streams() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randint(3, 90, (600,), generator=generator).to(torch.int16) for name in ("a", "b")}


def test_going_on_after_an_interruption_gives_the_same_weights(tmp_path):
    whole, first = (Trainer(TINY, streams(), streams()) for _ in range(2))
    for index in range(4):
        whole.step(index)
    for index in range(2):
        first.step(index)
    first.evaluate(2)
    first.save(tmp_path / "state.pt")
    second = Trainer(TINY, streams(), streams())
    assert second.resume(tmp_path / "state.pt") == 2
    for index in range(2, 4):
        second.step(index)
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_shipped_base_says_how_it_was_made():
    from tinylora.demo.experiment import BASE_DIR, seen_hashes

    record = json.loads((BASE_DIR / "curves.json").read_text())
    assert len(record["curve"][-1]["nll"]) >= 8
    assert record["change_over_last_fifth"] == pytest.approx(plateau(record["curve"]))
    assert sum(file.stat().st_size for file in BASE_DIR.iterdir()) < 8e6
    assert len(seen_hashes()) > 1000


def test_every_demo_domain_is_in_the_base():
    from tinylora.demo.corpus import DOMAINS
    from tinylora.demo.experiment import BASE_DIR

    record = json.loads((BASE_DIR / "curves.json").read_text())
    assert {domain.name for domain in DOMAINS} == set(record["train_tokens"])
    assert make_base.CONFIG["vocab_size"] == 2048


@pytest.mark.parametrize("family", make_base.FAMILY_CONFIGS)
def test_every_family_of_the_recipe_is_as_large_and_learns(family):
    trainer = Trainer(replace(TINY, family=family, is_bf16=True), streams(), streams())
    assert trainer.model.config.model_type == family
    assert sum(p.numel() for p in trainer.model.parameters()) == pytest.approx(0.53e6, rel=0.02)
    losses = [trainer.step(index) for index in range(4)]
    assert losses[-1] < losses[0]
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_a_base_like_another_sees_no_text_that_the_other_did_not():
    seen, new = (Document(name, text) for name, text in (("a", "seen text"), ("b", "new text")))
    assert make_base._only_seen({"python": [seen, new], "docs": [new]}, frozenset({seen.text_hash})) == {
        "python": [seen],
        "docs": [],
    }


def test_the_bloom_of_the_benchmarks_is_as_the_demo_base_but_for_its_family():
    from tinylora.base_model import load_base
    from tinylora.demo.experiment import BASE_DIR

    where = Path(__file__).parents[2] / "benchmarks" / "bloom"
    bloom, llama = load_base(where), load_base(BASE_DIR)
    assert bloom.model.config.model_type == "bloom"
    assert bloom.facts.tokenizer_fingerprint == llama.facts.tokenizer_fingerprint
    assert bloom.facts.max_window_tokens == llama.facts.max_window_tokens
    assert bloom.facts.projections["self_attention.query_key_value"].out_features == 3 * 96
    model = TreeModel(bloom, nodes=("",), spec=AdapterSpec("lora", 4), scale=2.0)
    model.load_node("", {name: torch.randn(t.shape) / 10 for name, t in model.node_state("").items()})
    model.loss(torch.arange(3, 67).view(1, -1)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.adapter_parameters())


def test_the_bloom_of_the_benchmarks_saw_what_the_demo_base_saw():
    from tinylora.demo.experiment import BASE_DIR

    places = (BASE_DIR, Path(__file__).parents[2] / "benchmarks" / "bloom")
    records = [json.loads((place / "curves.json").read_text()) for place in places]
    assert records[0]["train_tokens"].keys() == records[1]["train_tokens"].keys()
    for name, tokens in records[0]["train_tokens"].items():
        assert records[1]["train_tokens"][name] <= tokens
