"""Two runs under a new root: every leaf computes what it did, and the gate between them is the coordinator's."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundle.test_assemble import IDS, make
from tests.bundle.test_derive import logits, run
from tests.helpers import tiny_base_model
from tests.routing.helpers import topologies
from tests.routing.test_gates import leaf_rows
from tinylora import tensors
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import shared_factors
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, LeafStatistics, inspect, read_bundle, summarise, write_bundle
from tinylora.derive import merge_bundles, merge_files
from tinylora.derive.files import check_size, told
from tinylora.errors import BaseModelError, SettingError
from tinylora.model import TreeModel
from tinylora.routing.gates import DEFAULT_TAU, Gate, Gates, calibrate, histogram, solve_from_summary, solve_gates
from tinylora.routing.modelled import expected_histogram, modelled_tau
from tinylora.routing.sketch import collect
from tinylora.routing.statistics import RouterStatistics, statistics_of
from tinylora.tensors import Tensors
from tinylora.tree import Topology

LORA, WIDE = AdapterSpec("lora", 4), AdapterSpec("lora", 6, {"mlp.up_proj": 3})
NESTED, FROZEN = AdapterSpec("nested", 4), AdapterSpec("nested", 2, is_lower_frozen=True)
TIED = AdapterSpec("tied", 3, {"mlp.up_proj": 1}, ("A", "uv"))


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base_model()


def sums_of(leaf: str, dim: int, seed: int) -> RouterStatistics:
    return statistics_of(*leaf_rows(leaf, 60, dim=dim, seed=seed))


def a_run(base: LoadedBase, name: str, leaves: tuple[str, ...], spec: AdapterSpec = LORA, scale: float = 2.0) -> Bundle:
    """A run with random adapters and gates that were solved from its own statistics."""
    seed = len(name)
    topology, generator = Topology(leaves), torch.Generator().manual_seed(seed)
    drawn = {leaf: init_adapter(base.facts, spec, seed=0, path=leaf) for leaf in leaves}
    nodes = {
        leaf: {part: torch.randn(tensor.shape, generator=generator).bfloat16() / 8 for part, tensor in state.items()}
        for leaf, state in drawn.items()
    }
    sums = {leaf: sums_of(leaf, base.facts.feature_dim, seed) for leaf in leaves}
    return replace(
        make(base),
        run=name,
        topology=topology,
        spec=spec,
        scale=scale,
        nodes=nodes,
        gates=solve_gates(sums, topology),
        shared={part: tensor.bfloat16() for part, tensor in shared_factors(base.facts, spec, seed=seed).items()},
        statistics=summarise(sums),
        contributors=("ann", name),
        licences=(f"licence of {name}",),
        data_notes={leaves[0]: (f"text of {name}",)},
        versions={"router": 3, f"node.{leaves[0]}": 5},
        report={"of": name},
    )


@pytest.mark.parametrize(
    ("one", "other", "kind", "dtype"),
    [
        ((LORA, 2.0), (LORA, 2.0), "lora", "BF16"),
        ((LORA, 2.0), (WIDE, 0.7), "lora", "F32"),
        ((NESTED, 2.0), (FROZEN, 1.0), "nested", "BF16"),
        ((NESTED, 1.0), (LORA, 1.0), "lora", "BF16"),
        ((TIED, 2.0), (LORA, 3.0), "lora", "F32"),
        ((TIED, 2.0), (TIED, 2.0), "lora", "F32"),
    ],
    ids=["alike", "ranks-and-scale", "nested", "nested-and-plain", "tied-and-plain", "tied-of-two-seeds"],
)
def test_every_leaf_computes_what_it_did(
    base: LoadedBase,
    one: tuple[AdapterSpec, float],
    other: tuple[AdapterSpec, float],
    kind: str,
    dtype: str,
    tmp_path: Path,
) -> None:
    first = a_run(base, "a", ("0", "10", "11"), *one)
    second = a_run(base, "other", ("0", "1"), *other)
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for bundle, file in zip((first, second), files, strict=True):
        write_bundle(bundle, file)
    merge_files(*files, tmp_path / "both.safetensors")
    merged = read_bundle(tmp_path / "both.safetensors")
    assert merged.spec.kind == kind
    assert merged.topology == Topology(("00", "010", "011", "10", "11"))
    assert inspect(tmp_path / "both.safetensors")["dtype"] == dtype
    for turn, bundle in (("0", first), ("1", second)):
        for leaf in bundle.topology.leaves:
            expected = logits(bundle, base, leaf)
            torch.testing.assert_close(logits(merged, base, turn + leaf), expected, atol=1e-5, rtol=1e-5)


def test_tied_adapters_with_the_same_frozen_factors_stay_tied(base: LoadedBase) -> None:
    first = a_run(base, "a", ("0", "1"), TIED)
    second = replace(a_run(base, "other", ("0", "1"), TIED), shared=first.shared)
    merged = merge_bundles(first, second)
    assert merged.spec == TIED and merged.shared is first.shared
    torch.testing.assert_close(logits(merged, base, "11"), logits(second, base, "1"), atol=1e-6, rtol=1e-6)


def test_text_of_each_run_finds_its_own_leaf(base: LoadedBase) -> None:
    """Logits of a whole pass, routed hard, are those of the run alone wherever the new root sends the text there."""
    first, second = a_run(base, "a", ("0", "10", "11")), a_run(base, "other", ("0", "1"))
    merged = merge_bundles(first, second)
    for turn, bundle in (("0", first), ("1", second)):
        root = merged.gates.nodes[""]
        fixed = Gate(root.w * 0, 1e3 if turn == "1" else -1e3, 1.0)
        sent = replace(merged, gates=replace(merged.gates, nodes=merged.gates.nodes | {"": fixed}))
        for policy in ("soft", "hard"):
            torch.testing.assert_close(routed(sent, base, policy), routed(bundle, base, policy), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def routed(made: Bundle, base: LoadedBase, policy: str) -> torch.Tensor:
    model = TreeModel.from_bundle(made, base, policy)
    found = model(IDS).logits
    model.detach_adapters()
    return found


# --- the gate of the new root ----------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(topologies(), topologies(), st.integers(0, 1000), st.sampled_from(["leaf", "pooled", "mixed"]))
def test_the_new_gate_is_that_of_one_run_over_all_leaves(base_of_no_size, one, other, seed, kind):
    """Whether covariances are single or pooled, on either side; and the gates below are not touched."""
    trees = {"0": one, "1": other}
    if max(len(leaf) for tree in trees.values() for leaf in tree.leaves) > 8:
        return
    sums = {turn + leaf: sums_of(leaf, 4, seed + int(turn)) for turn, tree in trees.items() for leaf in tree.leaves}
    bundles = []
    for number, (turn, tree) in enumerate(trees.items()):
        own = {leaf: sums[turn + leaf] for leaf in tree.leaves}
        is_pooled = kind == "pooled" or (kind == "mixed" and number == 0)
        gates = solve_gates(own, tree) if tree.inner else Gates({}, 4)
        bundles.append(
            replace(base_of_no_size, run=turn, topology=tree, gates=gates, statistics=summarise(own, pooled=is_pooled))
        )
    merged = merge_bundles(*bundles)
    expected = solve_gates(sums, merged.topology).nodes[""]
    assert np.abs(merged.gates.nodes[""].w - expected.w).max() < 1e-9
    assert abs(merged.gates.nodes[""].b - expected.b) < 1e-9
    assert merged.gates.nodes.keys() == set(merged.topology.inner)
    for turn, bundle in zip("01", bundles, strict=True):
        assert all(merged.gates.nodes[turn + node] is gate for node, gate in bundle.gates.nodes.items())
    assert merged.statistics is not None and merged.statistics.kind == ("leaf" if kind == "leaf" else "pooled")
    again = solve_from_summary(merged.statistics, merged.topology).nodes[""]
    assert np.array_equal(again.w, merged.gates.nodes[""].w)


@pytest.fixture(scope="module")
def base_of_no_size(base: LoadedBase) -> Bundle:
    """A bundle without adapters whose features have four numbers."""
    return replace(make(base), base=base.facts.model_copy(update={"feature_dim": 4}))


def test_a_modelled_temperature_is_that_of_drawn_scores():
    """Normal scores, two leaves on one side: drawn in millions, counted and calibrated."""
    generator = np.random.default_rng(0)
    means = {"00": np.array([-1.0, 0.3]), "01": np.array([-0.2, 0.0]), "1": np.array([1.0, -0.1])}
    covariances = {leaf: np.array([[1.0 + number, 0.2], [0.2, 0.5]]) for number, leaf in enumerate(means)}
    moments = LeafStatistics(
        dict.fromkeys(means, 9.0), means, {k: v[np.triu_indices(2)] for k, v in covariances.items()}
    )
    gate = Gate(np.array([2.0, -1.0]), 0.1, DEFAULT_TAU)
    drawn = np.zeros((2, 128))
    for leaf, mean in means.items():
        scores = gate.scores(generator.multivariate_normal(mean, covariances[leaf], size=400_000))
        drawn += histogram(scores, np.full(len(scores), leaf[0] == "1")) / (2 if leaf[0] == "0" else 1)
    share = drawn / drawn.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(expected_histogram("", gate, moments), share, atol=2e-3)
    expected = calibrate(Gates({"": gate}, 2), {"": share * 2000}).nodes[""].tau
    assert modelled_tau("", gate, moments) == pytest.approx(expected, rel=0.01)
    assert modelled_tau("0", gate, replace(moments, means={"00": means["00"]})) == DEFAULT_TAU


# --- what it costs ---------------------------------------------------------------------------------------------------


def texts_of(kind: int, n: int) -> torch.Tensor:
    """Documents of a kind: half of the tokens from a range of its own, half from anywhere."""
    generator = torch.Generator().manual_seed(100 * kind + n)
    own = torch.randint(10 + 60 * kind, 70 + 60 * kind, (n, 64), generator=generator)
    anywhere = torch.randint(3, 259, (n, 64), generator=generator)
    return torch.where(torch.rand(n, 64, generator=generator) < 0.5, own, anywhere)


def a_small_run(base: LoadedBase, name: str, kinds: tuple[int, int]) -> Bundle:
    """Two leaves that were trained for a moment, and gates that were solved, on texts of a kind each."""
    sums, nodes, tree = {}, {}, Topology(("0", "1"))
    for leaf, kind in zip(tree.leaves, kinds, strict=True):
        texts = texts_of(kind, 40)
        sums[leaf], nodes[leaf] = collect(base.routing_feature, list(texts.numpy())), briefly_trained(base, texts)
    return replace(
        a_run(base, name, tree.leaves), nodes=nodes, statistics=summarise(sums), gates=solve_gates(sums, tree)
    )


def briefly_trained(base: LoadedBase, texts: torch.Tensor) -> Tensors:
    model = TreeModel(base, nodes=("",), spec=LORA, scale=2.0)
    model.load_node("", init_adapter(base.facts, LORA, seed=0, path=""))
    optimiser = torch.optim.AdamW(model.adapter_parameters(), lr=0.03)
    for _ in range(10):
        optimiser.zero_grad()
        model.loss(texts).backward()
        optimiser.step()
    model.detach_adapters()
    return model.node_state("")


def test_a_merged_tree_keeps_what_each_run_had_learnt(base: LoadedBase) -> None:
    """Of what the right run is better than the other one, on held-out text; `benchmarks` has real runs and a base."""
    runs = [a_small_run(base, "one", (0, 1)), a_small_run(base, "other", (2, 3))]
    merged = merge_bundles(*runs)
    for number, made in enumerate(runs):
        heldout = torch.cat([texts_of(2 * number + turn, 8) for turn in (0, 1)])
        for policy in ("soft", "hard", "top2"):
            bundles = (made, merged, runs[1 - number])
            before, after, without = (loss(bundle, base, policy, heldout) for bundle in bundles)
            assert after - before < 0.1 * (without - before)
            assert after == pytest.approx(before, rel=0.01)


@torch.no_grad()
def loss(made: Bundle, base: LoadedBase, policy: str, ids: torch.Tensor) -> float:
    """Mean nats of all predicted tokens but the first few, before which nobody can know where a text belongs."""
    model = TreeModel.from_bundle(made, base, policy)
    nll, _ = model.token_nll(ids)
    model.detach_adapters()
    return float(nll[:, 8:].mean())


# --- what travels, and what is refused -------------------------------------------------------------------------------


def test_both_runs_are_told_of(base: LoadedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, out = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "out"))
    write_bundle(a_run(base, "first", ("0", "1")), one)
    write_bundle(replace(a_run(base, "second", ("",), WIDE, 1.0), policy="soft"), other)
    assert run("merge", one, other, "--out", out) == 0
    said = capsys.readouterr().out
    assert "runs first (below 0) and second (below 1), 3 leaves, 3 adapters of rank 6, BF16" in said
    assert "ranks 4 and 6 and scales 2 and 1 made to fit" in said
    made = read_bundle(out)
    assert made.derived_from == tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in (one, other))
    assert (made.run, made.policy) == ("first+second", "soft")
    assert made.contributors == ("ann", "first", "second")
    assert made.report["merge"]["contributors_of_both"] == ["ann"]
    assert made.licences == ("licence of first", "licence of second")
    assert made.data_notes == {"00": ("text of first",), "1": ("text of second",)}
    assert made.versions == {"node.00": 5, "node.1": 5}
    assert (made.report["first"], made.report["second"]) == ({"of": "first"}, {"of": "second"})
    assert run("merge", one, other, "--out", out, "--name", "ours") == 0
    assert read_bundle(out).run == "ours"
    capsys.readouterr()
    for arguments, code, words in (
        ((one, other, "--out", one), 2, "is the bundle that is read"),
        ((one, other, "--out", other), 2, "is the bundle that is read"),
        ((one, one, "--out", out), 2, "are the same bundle; name two runs"),
        ((one, tmp_path / "nowhere", "--out", out), 5, "no such file"),
    ):
        written = out.read_bytes()
        assert run("merge", *arguments) == code
        assert words in capsys.readouterr().err
        assert out.read_bytes() == written


def test_what_does_not_fit_is_refused_in_a_sentence(base: LoadedBase) -> None:
    fine = a_run(base, "fine", ("0", "1"))
    facts = base.facts
    for changes, error, words in (
        ({"base": facts.model_copy(update={"fingerprint": "f" * 64})}, BaseModelError, "two bases do not fit together"),
        ({"base": facts.model_copy(update={"feature_hash": "f" * 64})}, BaseModelError, "no gate can read both"),
        ({"statistics": None}, SettingError, "the bundle of run other has no statistics"),
        ({"statistics": LeafStatistics({}, {}, pooled=np.eye(3))}, SettingError, "has no statistics"),
        ({"topology": deep(16)}, SettingError, "the tree of run other is 16 deep"),
    ):
        with pytest.raises(error, match=words):
            merge_bundles(fine, replace(a_run(base, "other", ("0", "1")), **changes))


def test_a_bundle_that_no_reader_would_take_is_not_made(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, many = init_adapter(base.facts, LORA, seed=0, path=""), Topology.perfect(13)
    with pytest.raises(SettingError, match="tensors and more: expected at most 65536; cut a subtree first"):
        check_size(replace(make(base), topology=many, nodes=dict.fromkeys(many.leaves, state)))
    small, file = make(base, "0"), tmp_path / "small.safetensors"
    write_bundle(replace(small, derived_from=("0" * 64,) * 2), file)
    n_bytes = tensors.read_file_header(file).n_bytes
    monkeypatch.setattr(tensors, "MAX_HEADER_BYTES", n_bytes)
    check_size(small)
    monkeypatch.setattr(tensors, "MAX_HEADER_BYTES", n_bytes - 1)
    with pytest.raises(SettingError, match=f"a header of {n_bytes} bytes: expected at most {n_bytes - 1}"):
        check_size(small)


def test_reports_that_grow_with_every_operation_are_left_out(base: LoadedBase) -> None:
    report: dict = {}
    for _ in range(40):
        report = told({"cut": {}}, whole=report)
    assert "it was too long" in json.dumps(report)
    assert told({}, whole={"of": ["x"] * 100_000}) == {"whole": {"left_out": "it was too long"}}
    assert told({}, whole={"of": [[]] * 10_000}) == {"whole": {"left_out": "it was too long"}}


def deep(n: int) -> Topology:
    return Topology((*("1" * level + "0" for level in range(n)), "1" * n))
