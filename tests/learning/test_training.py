"""Units of work: what a worker answers to each kind, bit for bit again when asked again, and what it refuses."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.helpers import WINDOW_TOKENS
from tests.learning.units import TOPOLOGY, base, documents, shard, unit
from tinylora.adapters.lora import AdapterLinear, init_adapter
from tinylora.adapters.shapes import adapter_manifest
from tinylora.adapters.spec import AdapterSpec
from tinylora.errors import BaseModelError, DataError, ProtocolError, ShapeMismatch
from tinylora.model import TreeModel
from tinylora.protocol.documents import Update, sha256
from tinylora.protocol.envelope import SIGNED_WITH, verify
from tinylora.routing.gates import N_BINS, Gate, Gates, solve_gates
from tinylora.routing.sketch import collect, document_features
from tinylora.routing.statistics import RouterStatistics
from tinylora.tensors import from_bytes, strip_prefix, with_prefix
from tinylora.training import UnitRunner
from tinylora.training.runner import heldout_rows
from tinylora.training.split import by_gates
from tinylora.tree import Topology

LORA = AdapterSpec("lora", 2)
LORA_4 = AdapterSpec("lora", 4)


def heldout(update):
    """Held-out loss before and after, where there is held-out text."""
    assert update.heldout_nll_before is not None and update.heldout_nll_after is not None
    return update.heldout_nll_before, update.heldout_nll_after


def windows(found, window_tokens):
    rows = heldout_rows(found, window_tokens)
    assert rows is not None
    return rows.ids, rows.documents


def runner(worker="w0", text=None, **options):
    return UnitRunner(base(), text or shard("letters"), worker=worker, **options)


def run(one, *arguments, **changes):
    update, payload = one.run(*unit(*arguments, **changes))
    return update, from_bytes(payload)


def adapters(payload):
    return {name: tensor for name, tensor in payload.items() if name.startswith("node.")}


def gate_payload(prefix="router.", nodes=("",), seed=0):
    random = np.random.default_rng(seed)
    dim = base().facts.feature_dim
    gates = Gates({node: Gate(random.normal(size=dim), 0.1, 0.35) for node in nodes}, dim)
    arrays = gates.to_arrays(prefix, with_tau=prefix == "router.")
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


# --- sketch ----------------------------------------------------------------------------------------------------------


def test_a_sketch_is_the_sums_of_the_training_documents():
    one = runner()
    update, payload = run(one, "sketch", "")
    expected = collect(base().routing_feature, [document.tokens for document in one.shard.train]).to_arrays()
    assert sorted(payload) == ["statistics..count", "statistics..scatter", "statistics..total"]
    for name, array in expected.items():
        np.testing.assert_array_equal(payload[f"statistics..{name}"].numpy(), array)
    assert (update.kind, update.tokens, update.n_steps) == ("sketch", 0, 0)
    assert update.shard_version == one.shard.version


def test_a_small_shard_is_not_sketched():
    one = runner()
    n_windows = one.shard.n_windows(WINDOW_TOKENS)
    run(one, "sketch", "", sketch_min_sequences=n_windows)
    with pytest.raises(DataError, match=f"{n_windows} windows of 64, needed are {n_windows + 1}"):
        run(one, "sketch", "", sketch_min_sequences=n_windows + 1)


# --- a leaf ----------------------------------------------------------------------------------------------------------


def test_a_leaf_unit_learns_and_says_what_it_did():
    seen = []
    one = runner(on_step=lambda *step: seen.append(step), clock=itertools.count(10.0, 0.5).__next__)
    update, payload = run(one, n_steps=16, total_steps=16, first_step=0)
    assert update.manifest == adapter_manifest(base().facts, LORA, path="0")
    before, after = heldout(update)
    assert after < before - 0.1
    assert update.losses[-1] < update.losses[0]
    assert (update.tokens, update.n_steps, update.seconds) == (16 * 2 * WINDOW_TOKENS, 16, 8.5)
    assert update.base_loads >= 1
    assert len(update.losses) == 10
    assert [step[:2] for step in seen] == [("0", index) for index in range(16)]
    assert all(speed > 0 for _, _, _, speed in seen)
    assert Update.from_json(update.to_json()) == update
    assert all(tensor.dtype == torch.float32 for tensor in adapters(payload).values())


def test_the_first_version_begins_from_the_seed_alike_for_all():
    untouched = 1e-30  # of a learning rate: AdamW then moves nothing that float32 can show
    payloads = [run(runner(worker), learning_rate=untouched)[1] for worker in ("w0", "w1")]
    expected = with_prefix(init_adapter(base().facts, LORA, seed=3, path="0"), "node.0.")
    for payload in payloads:
        for name, tensor in expected.items():
            torch.testing.assert_close(payload[name], tensor, rtol=0, atol=1e-25)


def test_a_later_version_begins_from_the_payload():
    state = with_prefix(init_adapter(base().facts, LORA, seed=9, path="0"), "node.0.")
    _, payload = run(runner(), "train", "0", state, node_version=4, learning_rate=1e-30)
    for name, tensor in state.items():
        torch.testing.assert_close(payload[name], tensor, rtol=0, atol=1e-25)


def test_bf16_payloads_are_taken():
    state = with_prefix(init_adapter(base().facts, LORA, seed=9, path="0"), "node.0.")
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    _, payload = run(runner(), "train", "0", state, node_version=4, learning_rate=1e-30)
    assert torch.equal(payload["node.0.mlp.up_proj.lora_A"], state["node.0.mlp.up_proj.lora_A"].float())


def test_a_fresh_worker_gives_the_same_bytes():
    updates = [runner().run(*unit(router_sync="both")) for _ in range(2)]
    assert updates[0][1] == updates[1][1]
    assert updates[0][0].losses == updates[1][0].losses


def test_a_unit_that_is_repeated_gives_the_same_bytes():
    one = runner()
    first = one.run(*unit())
    state = adapters(from_bytes(first[1]))
    second = one.run(*unit("train", "0", state, node_version=1, first_step=4))
    assert one.run(*unit("train", "0", state, node_version=1, first_step=4))[1] == second[1]
    assert one.run(*unit())[1] == first[1]


def test_two_units_are_one_long_one():
    long = adapters(run(runner(), n_steps=8)[1])
    one = runner()
    half = adapters(run(one, n_steps=4)[1])
    rest = adapters(run(one, "train", "0", half, n_steps=4, first_step=4, node_version=1)[1])
    assert all(torch.equal(long[name], rest[name]) for name in long)


def test_a_restarted_worker_goes_on_with_fresh_moments():
    half = adapters(run(runner(), n_steps=4)[1])
    changes = {"n_steps": 4, "first_step": 4, "node_version": 1}
    restarted = [adapters(run(runner(), "train", "0", half, **changes)[1]) for _ in range(2)]
    assert all(torch.equal(restarted[0][name], restarted[1][name]) for name in half)
    assert any(not torch.equal(half[name], restarted[0][name]) for name in half)


def test_replicas_read_different_text():
    first, second = (run(runner(worker), n_steps=1)[0] for worker in ("w0", "w1"))
    assert first.heldout_nll_before == second.heldout_nll_before
    assert first.losses != second.losses


def test_the_base_is_bare_and_frozen_after_a_unit():
    run(runner())
    assert not any(isinstance(module, AdapterLinear) for module in base().model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base().model.parameters())


def test_the_base_is_bare_after_a_unit_that_failed():
    def stop(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(runner(on_step=stop))
    run(runner())


def test_heldout_windows_are_few_and_from_everywhere():
    found = documents("letters", 40, n_words=30)
    ids, numbers = windows(found, 64)
    assert ids.shape == numbers.shape == (8, 64)
    assert int(numbers.max()) == 39
    assert heldout_rows([], 64) is None
    ids, _ = windows(found[:1], 10_000)
    assert ids[0].tolist() == found[0].tokens.tolist()


def test_without_heldout_text_there_are_no_heldout_numbers():
    text = dataclasses.replace(shard("letters"), heldout=())
    update, payload = run(runner(text=text), "train", "0", gate_payload())
    assert update.heldout_nll_before is update.heldout_nll_after is None
    assert not strip_prefix(payload, "histogram.")


# --- what a leaf's unit tells of routing -----------------------------------------------------------------------------


def test_histograms_score_heldout_text_at_the_gates_above():
    one, payload = runner(), gate_payload()
    _, sent = run(one, "train", "10", gate_payload(nodes=("", "1")))
    scores = strip_prefix(sent, "histogram.")
    assert sorted(scores) == ["", "1"]
    n_positions = sum(-(-len(document.tokens) // 4) for document in one.shard.heldout)
    assert scores[""].shape == (2, N_BINS)
    assert scores[""].sum(dim=1).tolist() == [0, n_positions]
    assert scores["1"].sum(dim=1).tolist() == [n_positions, 0]
    assert "histogram." not in run(one, "train", "0")[1]
    assert sorted(strip_prefix(run(one, "train", "0", payload)[1], "histogram.")) == [""]


def test_locally_stepped_gates_lean_to_their_own_side():
    dim = base().facts.feature_dim
    one = runner()
    features = document_features(base().routing_feature, [document.tokens for document in one.shard.train])
    for node, sign in (("0", -1), ("10", 1)):
        sent = strip_prefix(run(one, "train", node, router_sync="weights")[1], "weights_router.")
        assert sorted(sent) == ([".b", ".w"] if node == "0" else [".b", ".w", "1.b", "1.w"])
        assert sent[".w"].shape == (dim,)
        scores = features @ sent[".w"].numpy() + float(sent[".b"])
        assert (np.sign(scores) == sign).all()
    assert not strip_prefix(run(one, router_sync="statistics")[1], "weights_router.")


def test_stepped_gates_begin_from_the_averaged_ones():
    payload = gate_payload("weights_router.")
    sent = run(runner(), "train", "0", payload, router_sync="weights")[1]
    moved = sent["weights_router..w"] - payload["weights_router..w"]
    assert 0 < moved.norm() < payload["weights_router..w"].norm()


# --- a subtree -------------------------------------------------------------------------------------------------------

TWO_KINDS = ("letters", "digits")


def _kinds_by_leaf(payload, nodes=("10", "11")):
    """Means of the sums that a subtree's unit sent, and those of the two kinds of text."""
    sums = {
        leaf: RouterStatistics.from_arrays(
            {name: tensor.numpy() for name, tensor in strip_prefix(payload, f"statistics.{leaf}.").items()}
        )
        for leaf in nodes
    }
    return {leaf: item.mean() for leaf, item in sums.items()}, sums


def test_a_subtree_unit_trains_all_leaves_and_sends_their_sums():
    one = runner(text=shard(*TWO_KINDS))
    update, payload = run(one, "train", "1", n_steps=10, total_steps=10)
    expected = adapter_manifest(base().facts, LORA, path="10") | adapter_manifest(base().facts, LORA, path="11")
    assert {name: entry for name, entry in update.manifest.items() if name.startswith("node.")} == expected
    before, after = heldout(update)
    assert after < before
    assert all(payload[f"node.{leaf}.mlp.up_proj.lora_B"].abs().max() > 0 for leaf in ("10", "11"))
    _, sums = _kinds_by_leaf(payload)
    whole = collect(base().routing_feature, [document.tokens for document in one.shard.train])
    np.testing.assert_allclose(sums["10"].total + sums["11"].total, whole.total, rtol=1e-12)


def test_a_subtree_tells_kinds_of_text_apart():
    text = shard(*TWO_KINDS, n=24)
    _, payload = run(runner(text=text), "train", "1")
    _, sums = _kinds_by_leaf(payload)
    gates = solve_gates({leaf.removeprefix("1"): item for leaf, item in sums.items()}, Topology(("0", "1")))
    features = document_features(base().routing_feature, [document.tokens for document in text.train])
    sides = by_gates(features, gates, Topology(("0", "1")))
    kinds = [document.name.partition("-")[0] for document in text.train]
    assert {(kind, side) for kind, side in zip(kinds, sides, strict=True)} in (
        {("letters", "0"), ("digits", "1")},
        {("letters", "1"), ("digits", "0")},
    )


def test_a_restarted_worker_deals_its_text_as_before():
    text = shard(*TWO_KINDS)
    first, second = (runner(text=text).run(*unit("train", "1"))[1] for _ in range(2))
    assert first == second


def test_later_units_keep_the_run_s_gates_and_send_their_histograms():
    one = runner(text=shard(*TWO_KINDS))
    _, first = run(one, "train", "1", n_steps=4)
    _, sums = _kinds_by_leaf(first)
    gates = solve_gates(sums, Topology(TOPOLOGY))
    arrays = {name: torch.from_numpy(np.array(array)) for name, array in gates.to_arrays().items()}
    _, second = run(one, "train", "1", adapters(first) | arrays, node_version=1, first_step=4, router_version=2)
    _, again = _kinds_by_leaf(second)
    for leaf in ("10", "11"):
        np.testing.assert_array_equal(again[leaf].count, sums[leaf].count)
    scores = strip_prefix(second, "histogram.")
    assert sorted(scores) == ["", "1"]
    assert scores["1"].sum(dim=1).min() > 0
    assert scores[""][0].sum() == 0


def test_a_subtree_sends_its_trained_gates_where_weights_are_averaged():
    one = runner(text=shard(*TWO_KINDS))
    _, payload = run(one, "train", "1", router_sync="both")
    assert sorted(strip_prefix(payload, "weights_router.")) == [".b", ".w", "1.b", "1.w"]
    assert payload["weights_router.1.w"].abs().max() > 0


@pytest.mark.parametrize("node", ["", "1"])
def test_uneven_subtrees_can_be_held(node):
    _, payload = run(runner(text=shard(*TWO_KINDS)), "train", node)
    leaves = [leaf for leaf in TOPOLOGY if leaf.startswith(node)]
    _, sums = _kinds_by_leaf(payload, leaves)
    assert all(item.n > 0 for item in sums.values())


def test_one_long_document_can_be_a_subtree():
    text = shard("letters", n=1, n_words=600)
    _, payload = run(runner(text=text), "train", "1")
    assert all(item.n > 0 for item in _kinds_by_leaf(payload)[1].values())


def test_equal_leaves_begin_as_one():
    """B is zero at first, so the mixture of new leaves is the base, whatever the gates say."""
    one = runner(text=shard(*TWO_KINDS))
    update, _ = run(one, "train", "1")
    ids, numbers = windows(one.shard.heldout, WINDOW_TOKENS)
    plain = TreeModel(base(), nodes=(), spec=LORA, scale=2.0)
    with torch.no_grad():
        assert update.heldout_nll_before == pytest.approx(plain.loss(ids, documents=numbers).item(), abs=1e-5)
    plain.detach_adapters()


# --- an adopted leaf -------------------------------------------------------------------------------------------------


def test_an_adopted_leaf_is_trained_on_the_nearest_text_and_nothing_is_told_of_it():
    text = shard(*TWO_KINDS, n=24)
    feature = base().routing_feature
    kinds = {kind: [d.tokens for d in text.train if d.name.startswith(kind)] for kind in TWO_KINDS}
    gates = solve_gates(
        {"0": collect(feature, kinds["letters"]), "1": collect(feature, kinds["digits"])}, Topology(("0", "1"))
    )
    payload = {name: torch.from_numpy(np.array(array)) for name, array in gates.to_arrays().items()}
    one = runner(text=text)
    update, sent = run(one, "train", "0", payload, is_adopted=True, router_sync="both", n_steps=8)
    assert sent.keys() == adapters(sent).keys()
    only_letters = dataclasses.replace(text, train=tuple(d for d in text.train if d.name.startswith("letters")))
    reference, _ = run(runner(text=only_letters), "train", "0", payload, n_steps=8)
    other, _ = run(
        runner(text=text), "train", "1", payload, n_steps=8, is_adopted=True, topology_leaves=("0", "1"), leaves=("1",)
    )
    assert update.shard_version == text.version
    assert abs(update.losses[-1] - reference.losses[-1]) < abs(other.losses[-1] - reference.losses[-1])


# --- signatures ------------------------------------------------------------------------------------------------------


def test_updates_are_signed_over_document_and_payload_hash():
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    update, _ = run(runner(sign=lambda data: key.sign(data, SIGNED_WITH)), "sketch", "")
    verify(update, public)
    with pytest.raises(ProtocolError):
        verify(update.model_copy(update={"nonce": "other"}), public)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base_fingerprint": "0" * 64}, BaseModelError, "expected the base 000000000000, this worker has"),
        ({"tokenizer_fingerprint": "0" * 64}, BaseModelError, "expected the tokenizer 000000000000"),
        ({"feature_hash": "0" * 64}, ProtocolError, "expected the routing feature 000000000000"),
        ({"window_tokens": WINDOW_TOKENS + 1}, ProtocolError, "windows of 65 tokens, but .* attends to 64"),
        ({"payload_sha256": "0" * 64}, ProtocolError, "payload: expected sha256 000000000000"),
        ({"leaves": ("0", "10")}, ProtocolError, r"expected \('0',\) below node '0'"),
        ({"topology_leaves": ("0", "10")}, ProtocolError, "topology_leaves: .* an inner node lacks a child"),
        ({"n_steps": 0}, ProtocolError, "n_steps: expected more than 0"),
        ({"rank": 0}, ProtocolError, "rank: expected more than 0"),
        ({"adapter": "mora"}, ProtocolError, "adapter 'mora': expected one of lora, nested"),
        ({"ranks": {"mlp.up_proj": 3}}, ProtocolError, "mlp.up_proj = 3: expected 1 to 2"),
        ({"ranks": {"head": 1}}, ProtocolError, "ranks: head: no such projection"),
        ({"kind": "probe"}, ProtocolError, "probe_windows: expected more than 0"),
        ({"node_version": 1}, ShapeMismatch, r"tensor node\.0\.mlp\.down_proj\.lora_A is missing"),
        ({"manifest": {"router..w": ("F64", (32,))}}, ShapeMismatch, r"tensor router\.\.w is missing"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused_in_a_sentence(changes, error, message):
    with pytest.raises(error, match=message):
        runner().run(*unit(**changes))


def test_a_payload_of_another_rank_is_refused_by_name():
    state = with_prefix(init_adapter(base().facts, LORA_4, seed=1, path="0"), "node.0.")
    with pytest.raises(
        ShapeMismatch, match=r"node\.0\.mlp\.down_proj\.lora_A: expected F32 \(2, 2, 48\), got F32 \(2, 4"
    ):
        runner().run(*unit("train", "0", state, node_version=1))


def test_nan_in_a_payload_is_refused_by_name():
    payload = gate_payload()
    payload["router..w"][3] = float("nan")
    with pytest.raises(ProtocolError, match=r"router\.\.w: expected finite numbers, got 1 of 256"):
        runner().run(*unit("train", "0", payload))


def test_a_truncated_payload_is_refused():
    order, payload = unit("train", "0", gate_payload())
    with pytest.raises(ProtocolError, match="altered on its way"):
        runner().run(order, payload[:-1])


def test_no_payload_at_all_is_an_empty_one():
    order, _ = unit("sketch", "", payload_sha256=sha256(b""))
    assert runner().run(order, b"")[0].kind == "sketch"


def test_a_shard_without_a_window_is_said():
    text = shard("letters", n=2, n_words=3)
    with pytest.raises(DataError, match="too small"):
        run(runner(text=text))
