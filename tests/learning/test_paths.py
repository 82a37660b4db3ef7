"""Units on paths, of single factors, and of prefixes: what is trained, what is applied, what comes back."""

import pytest
import torch

from tests.learning.test_training import adapters, gate_payload, heldout, run, runner
from tests.learning.units import TOPOLOGY, base, shard, unit
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.nested import cut
from tinylora.adapters.prefixes import prefix_spec
from tinylora.adapters.shapes import adapter_manifest
from tinylora.adapters.spec import AdapterSpec
from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.routing.gates import Gate, Gates
from tinylora.tensors import Tensors, from_bytes, manifest_of, strip_prefix, with_prefix
from tinylora.training.runner import around, pointing_to

SPEC = AdapterSpec("lora", 2)


def node_payload(*nodes: str, scale: float = 0.05, spec: AdapterSpec = SPEC) -> Tensors:
    """Adapters that do something, for some nodes."""
    draw = torch.Generator().manual_seed(5)
    found: Tensors = {}
    for node in nodes:
        state = init_adapter(base().facts, spec, seed=9, path=node)
        noisy = {name: t + scale * torch.randn(t.shape, generator=draw) for name, t in state.items()}
        found |= with_prefix(noisy, f"node.{node}.")
    return found


def nodes_in(payload: Tensors) -> set[str]:
    return {name.split(".")[1] for name in adapters(payload)}


# --- paths -----------------------------------------------------------------------------------------------------------


def test_a_leaf_is_trained_beside_its_frozen_ancestors():
    trunk = node_payload("", "1")
    update, sent = run(runner(), "train", "10", trunk, nodes=("10",), frozen=("", "1"), n_steps=6)
    assert nodes_in(sent) == {"10"}
    before, after = heldout(update)
    assert after < before
    alone, _ = run(runner(), "train", "10")
    assert heldout(alone)[0] != before  # the ancestors are at work


def test_ancestors_that_add_nothing_change_nothing():
    zero = {name: torch.zeros_like(t) if name.endswith("lora_B") else t for name, t in node_payload("", "1").items()}
    _, beside = run(runner(), "train", "10", zero, nodes=("10",), frozen=("", "1"))
    _, alone = run(runner(), "train", "10")
    for name, tensor in adapters(alone).items():
        torch.testing.assert_close(beside[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_node_of_the_trunk_begins_from_the_seed_and_comes_back_alone():
    _, sent = run(runner(), "train", "10", nodes=("",), node_versions=(0,), learning_rate=1e-30)
    assert nodes_in(sent) == {""}
    for name, tensor in with_prefix(init_adapter(base().facts, SPEC, seed=3, path=""), "node..").items():
        torch.testing.assert_close(sent[name], tensor, rtol=0, atol=1e-25)


def test_a_whole_path_is_trained_at_once_each_node_from_its_version():
    given = node_payload("", "10")
    versions = {"nodes": ("", "1", "10"), "node_versions": (3, 0, 2), "node_version": 2}
    _, still = run(runner(), "train", "10", given, learning_rate=1e-30, **versions)
    assert nodes_in(still) == {"", "1", "10"}
    fresh = with_prefix(init_adapter(base().facts, SPEC, seed=3, path="1"), "node.1.")
    for name, tensor in (given | fresh).items():
        torch.testing.assert_close(still[name], tensor, rtol=0, atol=1e-25)
    _, moved = run(runner(), "train", "10", given, **versions)
    assert all(not torch.equal(moved[name], still[name]) for name in still if name.endswith("lora_B"))


def test_what_it_tells_of_routing_is_that_of_its_leaf():
    gates = gate_payload(nodes=("", "1"))
    options = {"nodes": ("",), "node_versions": (0,), "router_sync": "both"}
    _, sent = run(runner(), "train", "10", gates, **options)
    _, leaf = run(runner(), "train", "10", gates, router_sync="both")
    told = {name for name in leaf if not name.startswith("node.")}
    assert told == {name for name in sent if not name.startswith("node.")}
    assert all(torch.equal(sent[name], leaf[name]) for name in told)


def test_a_subtree_s_holder_trains_the_trunk_without_dealing_out_its_text():
    text = shard("letters", "digits")
    _, sent = run(runner(text=text), "train", "1", gate_payload(), nodes=("",), node_versions=(0,))
    assert nodes_in(sent) == {""}
    assert not strip_prefix(sent, "statistics.")
    assert sorted(strip_prefix(sent, "histogram.")) == [""]


def test_a_subtree_is_trained_beside_a_trunk_that_takes_every_token():
    text = shard("letters", "digits")
    zero = {name: torch.zeros_like(t) if name.endswith("lora_B") else t for name, t in node_payload("").items()}
    parts = {"nodes": ("10", "11"), "frozen": ("",)}
    _, beside = run(runner(text=text), "train", "1", zero, **parts)
    update, alone = run(runner(text=text), "train", "1")
    assert beside.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(beside[name], tensor, rtol=1e-3, atol=1e-5)
    busy, _ = run(runner(text=text), "train", "1", node_payload(""), **parts)
    assert heldout(busy)[0] != heldout(update)[0]


def test_a_subtree_and_its_trunk_are_trained_jointly():
    text = shard("letters", "digits")
    joint = {"nodes": ("", "10", "11"), "node_versions": (0, 0, 0)}
    update, sent = run(runner(text=text), "train", "1", n_steps=10, total_steps=10, **joint)
    assert nodes_in(sent) == {"", "10", "11"}
    before, after = heldout(update)
    assert after < before
    assert sorted({name.split(".")[1] for name in sent if name.startswith("statistics.")}) == ["10", "11"]


def test_gates_above_a_subtree_leave_nothing_to_chance():
    order, _ = unit("train", "1")
    assert around(order) == around(order.model_copy(update={"topology_leaves": ("00", "01", "10", "11")}))
    assert around(order).leaves == TOPOLOGY
    dim = base().facts.feature_dim
    own = Gate(torch.ones(dim).double().numpy(), 0.5, 2.0)
    gates = pointing_to("01", Gates({"": own}, dim))
    assert gates.nodes["01"] == own
    assert [gates.nodes[node].b for node in ("", "0")] == [-1e4, 1e4]


# --- factors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "other"), [("lora_A", "lora_B"), ("lora_B", "lora_A")])
def test_one_factor_is_trained_beside_the_other(factor, other):
    given = node_payload("0")
    update, sent = run(runner(), "train", "0", given, node_version=1, factors=(factor,))
    assert {name.rpartition(".")[2] for name in adapters(sent)} == {factor}
    assert sent.keys() == {name for name in given if name.endswith(factor)}
    assert all(not torch.equal(sent[name], given[name]) for name in adapters(sent))
    before, after = heldout(update)
    assert after < before
    assert update.manifest == manifest_of(sent)


def test_a_factor_s_moments_wait_for_its_turn():
    one = runner()
    first = one.run(*unit(factors=("lora_B",)))
    state = node_payload("0")
    turn = {"first_step": 4, "node_version": 1}
    one.run(*unit("train", "0", state, factors=("lora_A",), **turn))
    again = unit("train", "0", state, factors=("lora_B",), first_step=8, node_version=2)
    continued = one.run(*again)
    assert continued[1] != runner().run(*again)[1]
    assert one.run(*again)[1] == continued[1]
    assert one.run(*unit(factors=("lora_B",)))[1] == first[1]


def test_turned_axes_are_trained_with_fresh_moments():
    one, state = runner(), node_payload("0")
    one.run(*unit())
    turned = unit("train", "0", state, first_step=4, node_version=1, has_new_axes=True)
    assert one.run(*turned)[1] == runner().run(*turned)[1]


# --- prefixes --------------------------------------------------------------------------------------------------------

NESTED = {"adapter": "nested", "rank": 4}


def test_a_prefix_begins_as_the_whole_does():
    order = unit(prefix_rank=2, learning_rate=1e-30, **NESTED)
    sent = adapters(from_bytes(runner(max_rank=2).run(*order)[1]))
    whole = AdapterSpec("nested", 4)
    small = prefix_spec(whole, base().facts, 2)
    expected = cut(init_adapter(base().facts, whole, seed=3, path="0"), whole, small.ranks)
    assert manifest_of(sent) == adapter_manifest(base().facts, small, path="0")
    for name, tensor in with_prefix(expected, "node.0.").items():
        torch.testing.assert_close(sent[name], tensor, rtol=0, atol=1e-25)


def test_nested_units_learn_and_say_what_their_machine_can_do():
    update, _ = run(runner(max_rank=2), "train", "0", prefix_rank=2, n_steps=8, **NESTED)
    before, after = heldout(update)
    assert after < before
    assert update.max_rank == 2
    assert run(runner(), "sketch", "")[0].max_rank == 0
    first, second = (run(runner(), "train", "0", **NESTED)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_rank": 1}, "a prefix of 1 rows of an adapter of kind lora; only prefixes of nested ones"),
        ({"rank": 8}, "adapters of rank 8, this worker trains rank 4 at most"),
        ({"nodes": ("1",)}, "node '1' is neither on the way to '0' nor a leaf below it"),
        ({"nodes": ("0",), "frozen": ("0",)}, "expected each node once and a version of each"),
        ({"nodes": ("",), "node_versions": (1, 2)}, "expected each node once and a version of each"),
        (
            {"node": "1", "leaves": ("10", "11"), "nodes": ("10",)},
            "expected all leaves of the subtree, or nodes of one",
        ),
    ],
)
def test_units_that_contradict_themselves(changes, message):
    with pytest.raises(ProtocolError, match=message):
        runner(max_rank=4).run(*unit(**changes))


def test_a_frozen_ancestor_that_is_not_there_is_named():
    with pytest.raises(ShapeMismatch, match=r"tensor node\.\.mlp\.down_proj\.lora_A is missing"):
        runner().run(*unit(nodes=("0",), frozen=("",)))
