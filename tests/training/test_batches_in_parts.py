"""A step in parts against the step as a whole: gradients, losses, targets, recomputed blocks."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tests.learning.test_paths import node_payload
from tests.learning.test_training import adapters, gate_payload, heldout
from tests.learning.units import base, shard, unit
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import load_base
from tinylora.errors import ProtocolError
from tinylora.model import TreeModel
from tinylora.tensors import from_bytes
from tinylora.training import Fit, UnitRunner
from tinylora.training.batch import Batch
from tinylora.training.losses import loss_for, mean_nll
from tinylora.training.optimiser import Optimiser, Schedule, take_step
from tinylora.training.runner import heldout_rows

SPEC = AdapterSpec("lora", 2)
UNITS = {
    "leaf": unit(batch_windows=5),
    "subtree": unit("train", "1", gate_payload(nodes=("", "1")), batch_windows=5),
    "nested": unit(adapter="nested", batch_windows=5),
    "path": unit("train", "10", node_payload("", "10"), nodes=("", "1", "10"), node_versions=(3, 0, 2)),
}


@pytest.fixture(scope="module")
def text():
    return shard("letters", "digits")


def masked(found, share=0.3):
    """The same text, where only some tokens are to be predicted; of some documents none."""
    draw = np.random.default_rng(0)

    def one(document):
        is_target = draw.random(len(document.tokens)) < share * draw.integers(0, 3)
        return dataclasses.replace(document, is_target=is_target)

    train, heldout = (tuple(map(one, documents)) for documents in (found.train, found.heldout))
    return dataclasses.replace(found, train=train, heldout=heldout)


def batch_of(found, n_windows=5, seed=0):
    rows = found.windows(WINDOW_TOKENS, seed, 0)
    chosen = rows._replace(
        ids=rows.ids[:n_windows],
        documents=rows.documents[:n_windows],
        is_target=None if rows.is_target is None else rows.is_target[:n_windows],
    )
    return Batch.of(chosen)


@pytest.fixture
def model():
    made = TreeModel(base(), nodes=("0",), spec=SPEC, scale=2.0)
    state = init_adapter(base().facts, SPEC, seed=3, path="0")
    made.load_node("0", {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in state.items()})
    yield made
    made.detach_adapters()


def gradients(model, batch, fit):
    """Of a step at rate zero."""
    optimiser = Optimiser(model.adapter_parameters(), Schedule(0.0, 0, 1))
    loss_of = loss_for(unit()[0], model, None, lambda: fit.gradient_checkpointing)
    nll = take_step(optimiser, batch, loss_of, 0, 0, fit)
    found = [parameter.grad.clone() for parameter in optimiser.parameters if parameter.grad is not None]
    assert len(found) == len(optimiser.parameters)
    return nll, found


# --- parts -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 13), st.booleans())
def test_parts_are_all_windows_once_and_their_shares_add_up(n_windows, at_once, has_targets):
    ids = torch.arange(n_windows * 4).view(n_windows, 4)
    batch = Batch(ids, ids + 1, (ids % 3 == 0) if has_targets else None)
    parts = list(batch.parts(at_once))
    assert torch.equal(torch.cat([part.ids for part in parts]), ids)
    assert torch.equal(torch.cat([part.documents for part in parts]), ids + 1)
    assert max(map(len, parts)) <= at_once and min(map(len, parts)) >= 1
    assert sum(part.share_of_tokens for part in parts) == pytest.approx(1)
    assert sum(part.share_of_targets for part in parts) == pytest.approx(1 if batch.n_targets else 0)
    assert sum(part.n_targets for part in parts) == batch.n_targets
    if at_once >= n_windows:
        assert parts[0] is batch


@pytest.mark.parametrize("has_targets", [False, True])
@pytest.mark.parametrize("fit", [Fit(1), Fit(2), Fit(3), Fit(0, True), Fit(1, True)], ids=str)
def test_a_step_in_parts_has_the_gradients_of_the_whole(model, text, fit, has_targets):
    batch = batch_of(masked(text) if has_targets else text)
    nll, whole = gradients(model, batch, Fit())
    in_parts, others = gradients(model, batch, fit)
    assert in_parts == pytest.approx(nll, abs=1e-5)
    for left, right in zip(others, whole, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


def test_parts_as_large_as_the_batch_change_no_bit(text):
    for order, payload in (UNITS["leaf"], UNITS["subtree"]):
        expected = UnitRunner(base(), text, worker="w0").run(order, payload)[1]
        again = UnitRunner(base(), text, worker="w0", fit=Fit(order.batch_windows))
        assert again.run(order, payload)[1] == expected


@pytest.mark.parametrize(
    ("name", "fit"),
    [("leaf", Fit(2)), ("subtree", Fit(2)), ("subtree", Fit(0, True)), ("nested", Fit(2, True)), ("path", Fit(1))],
    ids=str,
)
def test_units_in_parts_end_where_whole_ones_do(name, fit, text):
    whole, expected = UnitRunner(base(), text, worker="w0").run(*UNITS[name])
    update, payload = UnitRunner(base(), text, worker="w0", fit=fit).run(*UNITS[name])
    assert update.losses == pytest.approx(whole.losses, abs=1e-4)
    assert update.heldout_nll_after == pytest.approx(whole.heldout_nll_after, abs=1e-3)
    expected = adapters(from_bytes(expected))
    for tensor_name, tensor in adapters(from_bytes(payload)).items():
        assert (tensor - expected[tensor_name]).norm() <= 0.02 * expected[tensor_name].norm() + 1e-4


def test_what_a_machine_takes_is_told_with_every_update_and_more_is_refused(text):
    one = UnitRunner(base(), text, worker="w0", fit=Fit(max_rank=2, max_leaves=1))
    update, _ = one.run(*unit("sketch", ""))
    assert (update.max_rank, update.max_leaves) == (2, 1)
    with pytest.raises(ProtocolError, match="a subtree of 2 leaves, this worker trains 1 at most"):
        one.run(*UNITS["subtree"])
    with pytest.raises(ProtocolError, match="adapters of rank 4, this worker trains rank 2 at most"):
        one.run(*unit(rank=4))


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_a_quantised_base_takes_parts_and_recomputing(quantise, text):
    """int8 keeps columns with outliers in 16 bits, and other windows beside a window have others: it is rounding."""
    bits = load_base(tiny_base_dir(), quantise=quantise)
    runs = [
        UnitRunner(bits, text, worker="w0", fit=fit).run(*unit(batch_windows=4, n_steps=3))[0]
        for fit in (Fit(quantise=quantise), Fit(1, True, quantise))
    ]
    assert runs[1].losses == pytest.approx(runs[0].losses, abs={"nf4": 1e-3, "int8": 1e-2}[quantise])
    assert runs[1].losses[-1] < runs[1].losses[0]


def test_a_probe_in_parts_sums_the_same(text):
    given = unit("probe", payload=_candidate(), subject="u0", probe_windows=4, leaves=("0",), n_steps=0)
    whole, some = (UnitRunner(base(), text, worker="w0", fit=fit).run(*given)[0].probe for fit in (Fit(), Fit(1)))
    assert whole is not None and some is not None
    assert some.tokens == whole.tokens
    assert some.nll_candidate == pytest.approx(whole.nll_candidate, rel=1e-5)


def _candidate():
    return {name.replace("node.", "candidate."): tensor for name, tensor in node_payload("0").items()}


# --- recomputed blocks -----------------------------------------------------------------------------------------------


def test_recomputing_keeps_less_between_the_ways(model, text):
    batch = batch_of(text)
    plain = _kept_numbers(model, batch)
    model.is_recomputing = True
    assert _kept_numbers(model, batch) < 0.5 * plain


def _kept_numbers(model, batch):
    numbers = []

    def keep(tensor):
        numbers.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(batch.ids)
    return sum(numbers)


def test_recomputing_leaves_the_base_as_it_was(model, text):
    model.is_recomputing = True
    model.loss(batch_of(text).ids).backward()
    assert all("forward" not in block.__dict__ for block in base().blocks)
    assert not base().model.training
    with pytest.raises(IndexError):
        model.loss(torch.full((1, 4), 10**6))
    assert all("forward" not in block.__dict__ for block in base().blocks)


# --- targets ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_targets(model, text):
    batch = batch_of(masked(text))
    logits = model(batch.ids).logits[:, :-1]
    nll = F.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
    assert batch.is_target is not None
    is_target = batch.is_target[:, 1:]
    assert 0 < batch.n_targets == int(is_target.sum()) < is_target.numel()
    expected = nll[is_target].mean()
    torch.testing.assert_close(model.loss(batch.ids, is_target=batch.is_target), expected)
    assert mean_nll(model, batch, Fit()) == pytest.approx(expected.item(), abs=1e-5)
    assert mean_nll(model, batch, Fit(2)) == pytest.approx(expected.item(), abs=1e-5)
    alone, _ = model.token_nll(batch.ids, is_target=batch.is_target)
    torch.testing.assert_close(alone, torch.where(is_target, nll, 0.0), rtol=1e-4, atol=1e-5)


def test_all_tokens_as_targets_change_no_bit(model, text):
    batch = batch_of(text)
    everything = torch.ones_like(batch.ids, dtype=torch.bool)
    assert torch.equal(model.loss(batch.ids, is_target=everything), model.loss(batch.ids))


@pytest.mark.parametrize("fit", [Fit(), Fit(1)], ids=str)
def test_windows_without_a_target_add_nothing(model, text, fit):
    batch = batch_of(text, 4)
    is_target = torch.ones_like(batch.ids, dtype=torch.bool)
    is_target[1:3] = False
    _, found = gradients(model, dataclasses.replace(batch, is_target=is_target), fit)
    rest = Batch(batch.ids[[0, 3]], batch.documents[[0, 3]])
    for left, right in zip(found, gradients(model, rest, Fit())[1], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("fit", [Fit(), Fit(1)], ids=str)
def test_a_batch_without_any_target_is_no_nan(model, text, fit):
    batch = dataclasses.replace(batch_of(text), is_target=torch.zeros(5, WINDOW_TOKENS, dtype=torch.bool))
    nll, found = gradients(model, batch, fit)
    assert nll == 0
    assert all(not gradient.any() for gradient in found)


def test_a_unit_on_answers_alone_learns_them_and_nothing_else(text):
    """Of every document only the second half is to be predicted; a runner without the mask learns both halves."""

    def half(document):
        is_target = np.arange(len(document.tokens)) >= len(document.tokens) // 2
        return dataclasses.replace(document, is_target=is_target)

    answers = dataclasses.replace(text, train=tuple(map(half, text.train)), heldout=tuple(map(half, text.heldout)))
    update, payload = UnitRunner(base(), answers, worker="w0").run(*unit(n_steps=8, total_steps=8))
    plain, other = UnitRunner(base(), text, worker="w0").run(*unit(n_steps=8, total_steps=8))
    assert payload != other
    assert update.heldout_nll_before != plain.heldout_nll_before
    before, after = heldout(update)
    assert after < before


def test_heldout_text_without_targets_gives_no_number(text):
    nothing = [dataclasses.replace(d, is_target=np.zeros(len(d.tokens), dtype=bool)) for d in text.heldout]
    assert heldout_rows(nothing, WINDOW_TOKENS) is None
