"""Canaries: planted in a copy, ranked by hand, exposed where they were learnt and nowhere else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.learning.units import base, shard
from tinylora.adapters.lora import AdapterLinear
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import encode
from tinylora.config import RunSettings
from tinylora.errors import SettingError
from tinylora.model import TreeModel
from tinylora.training import canary
from tinylora.training.canary import Canary, audit, documents_of, exposure, make_canaries, measure, plant, secret_nll

SETTINGS = RunSettings(
    name="canaries", depth=1, rank=16, alpha=32, batch_windows=4, window_tokens=64, learning_rate=0.02, warmup_steps=2
)


def test_canaries_follow_from_the_seed_and_are_all_different():
    found = make_canaries(50, 7)
    assert found == make_canaries(50, 7) != make_canaries(50, 8)
    assert len({one.beginning for one in found}) == len({one.secret for one in found}) == 50
    assert all(one.text.startswith("The door code of ") and len(one.secret) == 8 for one in found)
    assert found[0] == Canary("The door code of Nute Dozu is ", "73469953")


def test_random_secrets_are_as_many_as_asked_for(monkeypatch):
    monkeypatch.setattr(canary, "N_DIGITS", 2)
    assert sorted(canary.random_secrets(100, 1)) == [f"{number:02}" for number in range(100)]


def test_a_copy_of_the_shard_holds_each_a_few_times():
    text, canaries = shard("letters"), make_canaries(3, 1)
    planted = plant(text, documents_of(canaries, base()), 4)
    assert planted.train[: len(text.train)] == text.train
    names = [document.name for document in planted.train[len(text.train) :]]
    assert names == [f"canary-{number}#{repeat}" for number in range(3) for repeat in range(4)]
    assert planted.n_tokens == text.n_tokens + 4 * sum(len(encode(base().tokenizer, one.text)) for one in canaries)
    assert planted.heldout == text.heldout


@pytest.mark.parametrize("wrong", [lambda: make_canaries(0, 1), lambda: plant(shard("letters"), [], 0)])
def test_none_at_all_is_refused(wrong):
    with pytest.raises(SettingError, match="expected at least 1, got 0"):
        wrong()


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0, 100))
def test_exposure_is_bits_by_rank(candidates, own):
    rank = sorted([own, *candidates]).index(own) + 1
    assert exposure(own, candidates) == pytest.approx(math.log2((len(candidates) + 1) / rank))


def test_nothing_remembered_is_little_more_than_a_bit():
    others = [number + 0.5 for number in range(511)]
    bits = [exposure(float(place), others) for place in range(512)]
    assert sum(bits) / len(bits) == pytest.approx(1 / math.log(2), abs=0.02)


@pytest.fixture
def model():
    made = TreeModel(base(), nodes=("",), spec=AdapterSpec("lora", 2), scale=1.0)
    yield made
    made.detach_adapters()


def test_a_secret_s_nats_are_those_of_its_tokens_alone(model):
    beginning, secrets = "The code is ", ["12345678", "1", "87654321"]
    expected = []
    for secret in secrets:
        ids = torch.tensor([encode(base().tokenizer, beginning + secret)[:-1]])  # without the end
        logits = model(ids).logits[0]
        nll = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        expected.append(nll[-len(secret) :].sum().item())  # a token for each byte
    assert secret_nll(model, beginning, secrets) == pytest.approx(expected, rel=1e-4)


def test_secrets_that_were_not_learnt_are_not_exposed(model):
    found = measure(model, make_canaries(8, 3), seed=3, n_candidates=63)
    assert found.most_bits == 6
    assert sum(found.bits) / 8 < 4
    assert found.n_extracted == 0


def test_secrets_that_were_learnt_are_exposed_and_extracted():
    steps = []
    found = audit(
        base(),
        SETTINGS,
        shard("letters", n=4),
        n_canaries=1,
        n_repeats=60,
        n_steps=120,
        seed=5,
        n_candidates=63,
        on_step=lambda node, step, loss, speed: steps.append(step),
    )
    assert steps == list(range(120))
    assert found.bits == (6.0,)
    assert found.n_extracted == 1
    assert not any(isinstance(module, AdapterLinear) for module in base().model.modules())
