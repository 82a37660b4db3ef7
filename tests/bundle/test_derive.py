"""Bundles made from bundles: what they compute, and what is refused."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bundle.test_assemble import IDS, TREE
from tests.bundle.test_assemble import make as make_lora
from tests.helpers import tiny_base_model
from tinylora import cli
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import shared_factors
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, LeafStatistics, check_base, inspect, pack, read_bundle, verify, write_bundle
from tinylora.command_line import exit_code_of
from tinylora.derive import cut_bundle, leaf_state, mush_bundle
from tinylora.errors import SettingError
from tinylora.model import TreeModel
from tinylora.tensors import Tensors
from tinylora.tree import Topology

NESTED = AdapterSpec("nested", 4, {"mlp.up_proj": 2})


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base_model()


def bundle(base: LoadedBase, spec: AdapterSpec = NESTED, paths: tuple[str, ...] = TREE.leaves) -> Bundle:
    """Random adapters, so that every part of them shows."""
    generator = torch.Generator().manual_seed(0)
    drawn = {path: init_adapter(base.facts, spec, seed=0, path=path) for path in paths}
    nodes = {
        path: {name: torch.randn(tensor.shape, generator=generator) / 6 for name, tensor in state.items()}
        for path, state in drawn.items()
    }
    shared = shared_factors(base.facts, spec, seed=3)
    return replace(make_lora(base), spec=spec, nodes=nodes, shared=shared)


@torch.no_grad()
def logits(made: Bundle, base: LoadedBase, leaf: str, rank: int | None = None) -> torch.Tensor:
    model = TreeModel.from_bundle(made, base)
    model.route_to(leaf)
    model.use_rank(rank)
    found = model(IDS).logits
    model.detach_adapters()
    return found


@torch.no_grad()
def summed_logits(base: LoadedBase, updates: list[tuple[float, Tensors]], scale: float) -> torch.Tensor:
    """The slow way: dense updates added to the base's weights, taken back afterwards."""
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    for projection, names in base.linears.items():
        for layer, name in enumerate(names):
            for weight, state in updates:
                update = state[f"{projection}.lora_B"][layer] @ state[f"{projection}.lora_A"][layer]
                base.model.get_submodule(name).weight += weight * scale * update
    found = base.model(input_ids=IDS, use_cache=False).logits
    base.model.load_state_dict(before)
    return found


# --- cut --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3])
def test_a_cut_bundle_is_the_prefix_of_the_whole_one(base: LoadedBase, rank: int) -> None:
    whole = bundle(base)
    small = cut_bundle(whole, rank, {})
    assert (small.scale, small.spec.kind, small.spec.rank) == (whole.scale, "nested", 4)
    assert small.spec.rank_of("mlp.up_proj") == min(2, rank)
    assert small.nodes["10"]["mlp.down_proj.lora_A"].shape[1] == rank
    for leaf in TREE.leaves:
        torch.testing.assert_close(logits(small, base, leaf), logits(whole, base, leaf, rank), atol=1e-5, rtol=1e-5)
    again = cut_bundle(small, 1, {})
    assert torch.equal(again.nodes["0"]["mlp.up_proj.lora_A"], whole.nodes["0"]["mlp.up_proj.lora_A"][:, :1])


def test_single_projections_get_ranks_of_their_own(base: LoadedBase) -> None:
    small = cut_bundle(bundle(base), 3, {"mlp.down_proj": 1, "self_attn.q_proj": 4})
    assert {name: small.spec.rank_of(name) for name in ("mlp.down_proj", "self_attn.q_proj", "mlp.up_proj")} == {
        "mlp.down_proj": 1,
        "self_attn.q_proj": 4,
        "mlp.up_proj": 2,
    }
    assert small.report["cut"]["ranks"]["mlp.down_proj"] == 1


def test_cutting_by_command(base: LoadedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    write_bundle(bundle(base), file, dtype="F32")
    before = file.read_bytes()
    assert run("cut", file, "--rank", 2, "--ranks", "mlp.up_proj=1", "--out", out) == 0
    assert "3 adapters cut to rank 2" in capsys.readouterr().out
    assert file.read_bytes() == before
    told = inspect(out)
    assert (told["kind"], told["dtype"], told["rank"], told["ranks"]["mlp.up_proj"]) == ("nested", "F32", 4, 1)
    assert verify(out)[1] == "3 leaves, 3 nodes with an adapter of rank 2"
    assert out.stat().st_size < 0.7 * file.stat().st_size
    check_base(read_bundle(out), base.facts)
    plain = tmp_path / "plain.safetensors"
    write_bundle(bundle(base, AdapterSpec("lora", 4)), plain)
    for arguments, words in (
        (("cut", file, "--rank", 5, "--out", out), "rank 5: expected 1 to 4"),
        (("cut", file, "--rank", 2, "--ranks", "head=1", "--out", out), "head: no such projection"),
        (("cut", file, "--rank", 2, "--ranks", "mlp.up_proj=3", "--out", out), "expected a rank from 1 to 2, got 3"),
        (("cut", file, "--rank", 2, "--ranks", "mlp.up_proj", "--out", out), "expected projection=rank"),
        (("cut", file, "--rank", 2, "--out", tmp_path / "." / file.name), "is the bundle that is read"),
        (("cut", plain, "--rank", 2, "--out", out), "plain LoRAs, whose first rows were not trained"),
    ):
        written = out.read_bytes()
        assert run(*arguments) == 2
        assert words in capsys.readouterr().err
        assert out.read_bytes() == written
    assert run("cut", plain, "--rank", 2, "--out", out, "--force") == 0
    assert inspect(out)["kind"] == "lora"


def test_tied_adapters_have_no_prefixes(base: LoadedBase) -> None:
    tied = bundle(base, AdapterSpec("tied", 4, trained=("A", "B")))
    with pytest.raises(SettingError, match="kind tied:A,B, whose prefixes are no adapters"):
        cut_bundle(tied, 2, {}, is_forced=True)


# --- subtrees ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [("0", "10", "11"), ("", "1", "10", "11", "0"), ("", "10", "0")], ids=len)
@pytest.mark.parametrize("spec", [NESTED, AdapterSpec("tied", 3, {"mlp.up_proj": 1}, ("A", "uv"))], ids=str)
def test_a_subtree_is_what_the_whole_tree_is_below_it(
    base: LoadedBase, spec: AdapterSpec, paths: tuple[str, ...]
) -> None:
    """Leaf by leaf, and by its gates where the whole tree's way to the subtree is fixed."""
    whole = told_of(bundle(base, spec, paths))
    small = cut_bundle(whole, subtree="1")
    assert small.topology == Topology(("0", "1"))
    for leaf in small.topology.leaves:
        torch.testing.assert_close(logits(small, base, leaf), logits(whole, base, "1" + leaf), atol=1e-5, rtol=1e-5)
    root = whole.gates.nodes[""]
    fixed = replace(whole.gates, nodes=whole.gates.nodes | {"": replace(root, w=root.w * 0, b=1e3)})
    expected = routed(replace(whole, gates=fixed), base)
    torch.testing.assert_close(routed(small, base), expected, atol=1e-5, rtol=1e-5)
    assert np.array_equal(small.gates.nodes[""].w, whole.gates.nodes["1"].w)
    assert small.statistics is not None and whole.statistics is not None
    assert small.statistics.counts == {"0": 20.0, "1": 30.0}
    assert np.array_equal(small.statistics.covariances["1"], whole.statistics.covariances["11"])
    assert small.data_notes == {"1": ("notes of 11",)}
    assert (small.run, small.contributors, small.licences) == (whole.run, whole.contributors, whole.licences)
    assert small.versions == {"router": 4, "node.": 3, "node.1": 7}


def test_a_leaf_and_the_root_are_subtrees_too(base: LoadedBase) -> None:
    whole = bundle(base, paths=("", "1", "0", "10", "11"))
    leaf = cut_bundle(whole, subtree="10")
    assert (leaf.topology.leaves, leaf.gates.nodes, leaf.spec.rank) == (("",), {}, 12)
    torch.testing.assert_close(logits(leaf, base, ""), logits(whole, base, "10"), atol=1e-5, rtol=1e-5)
    same = cut_bundle(whole, subtree="")
    assert same.topology == whole.topology and same.spec == whole.spec
    assert all(same.nodes[path] is whole.nodes[path] for path in whole.nodes)


def test_subtree_and_rank_together(base: LoadedBase) -> None:
    whole = bundle(base, paths=("", "1", "0", "10", "11"))
    small = cut_bundle(whole, 2, subtree="1")
    assert (small.spec.kind, small.spec.rank) == ("lora", 4)
    for leaf in "01":
        torch.testing.assert_close(logits(small, base, leaf), logits(whole, base, "1" + leaf, 2), atol=1e-5, rtol=1e-5)
    assert small.report["cut"]["subtree"] == "1"


def test_cutting_a_subtree_by_command(base: LoadedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    whole = told_of(bundle(base, paths=("", "1", "0", "10", "11")))
    write_bundle(whole, file)
    assert run("cut", file, "--subtree", "1", "--out", out) == 0
    assert "subtree '1', 2 leaves, 3 adapters of rank 8, BF16" in capsys.readouterr().out
    made = read_bundle(out)
    assert made.derived_from == (hashlib.sha256(file.read_bytes()).hexdigest(),)
    read = read_bundle(file)
    assert torch.equal(logits(made, base, "0"), logits(cut_bundle(read, subtree="1"), base, "0"))
    for arguments, words in (
        (("--subtree", "2"), "subtree '2': no such node; the leaves of the tree are '0', '10', '11'"),
        (("--subtree", "111"), "subtree '111': no such node"),
        ((), "nothing to cut: expected --subtree, --rank or --ranks"),
    ):
        written = out.read_bytes()
        assert run("cut", file, "--out", out, *arguments) == 2
        assert words in capsys.readouterr().err
        assert out.read_bytes() == written
    for place, words in ((tmp_path, "not a file"), (tmp_path / "no" / "where", "there is no folder")):
        assert run("cut", file, "--subtree", "1", "--out", place) == 8
        assert words in capsys.readouterr().err


def told_of(made: Bundle) -> Bundle:
    """With all that a bundle tells of its leaves."""
    generator, dim = np.random.default_rng(5), made.base.feature_dim
    statistics = LeafStatistics(
        {"0": 10.0, "10": 20.0, "11": 30.0},
        {leaf: generator.normal(size=dim) for leaf in TREE.leaves},
        {leaf: pack(np.diag(generator.uniform(1, 2, size=dim))) for leaf in TREE.leaves},
    )
    return replace(
        made,
        policy="hard",
        statistics=statistics,
        contributors=("ann", "ben"),
        licences=("mit",),
        data_notes={"0": ("notes of 0",), "11": ("notes of 11",)},
        versions={"router": 4, "node.0": 2, "node.1": 3, "node.11": 7},
    )


@torch.no_grad()
def routed(made: Bundle, base: LoadedBase) -> torch.Tensor:
    model = TreeModel.from_bundle(made, base, "hard")
    found = model(IDS).logits
    model.detach_adapters()
    return found


# --- mush -------------------------------------------------------------------------------------------------------------


SPECS = [NESTED, AdapterSpec("lora", 2), AdapterSpec("tied", 3, {"mlp.up_proj": 1}, ("A", "uv"))]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("how", "weight"), [("uniform", 0.5), ("concat", 1.0)])
def test_a_mushed_bundle_is_the_sum_of_dense_updates(
    base: LoadedBase, spec: AdapterSpec, how: str, weight: float
) -> None:
    """With ancestors: leaf 10 has an adapter of its own and one of node 1."""
    whole = bundle(base, spec, ("1", "0", "10"))
    made = mush_bundle(whole, how, leaves=("0", "10"))
    assert made.relative_error == 0.0
    assert (made.bundle.topology.leaves, made.bundle.spec.kind, made.bundle.scale) == (("",), "lora", whole.scale)
    assert made.bundle.spec.rank == 3 * spec.rank
    states = {path: leaf_state(replace(whole, nodes={path: whole.nodes[path]}), path) for path in whole.nodes}
    expected = summed_logits(base, [(weight, state) for state in states.values()], whole.scale)
    torch.testing.assert_close(logits(made.bundle, base, ""), expected, atol=1e-4, rtol=1e-4)
    model = TreeModel.from_bundle(made.bundle, base)
    routed = model(IDS).logits
    model.detach_adapters()
    torch.testing.assert_close(routed, expected, atol=1e-4, rtol=1e-4)


def test_one_leaf_alone_can_be_taken_out(base: LoadedBase) -> None:
    whole = bundle(base)
    made = mush_bundle(whole, leaves=["10"]).bundle
    torch.testing.assert_close(logits(made, base, ""), logits(whole, base, "10"), atol=1e-5, rtol=1e-5)


def test_a_rank_compresses_and_says_what_was_lost(base: LoadedBase) -> None:
    whole = bundle(base)
    errors = [mush_bundle(whole, rank=rank).relative_error for rank in (2, 6, 12)]
    assert errors[0] > errors[1] > 0.01
    assert errors[2] < 1e-6
    assert mush_bundle(whole, rank=6).bundle.spec.rank == 6


def test_mushing_by_command(base: LoadedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "whole.safetensors", tmp_path / "one.safetensors"
    write_bundle(bundle(base, paths=("0", "10")), file)
    assert run("mush", file, "--out", out) == 0
    assert "leaves 0, 10 in one adapter of rank 8, uniform, exact" in capsys.readouterr().out
    assert run("mush", file, "--out", out, "--how", "concat", "--rank", 3, "--leaves", "0,10") == 0
    assert "rank 3, concat, relative error 0." in capsys.readouterr().out
    assert inspect(out)["leaves"] == [""]
    for arguments, words in (
        (("--how", "average"), "how 'average': expected uniform or concat"),
        (("--leaves", "0,01"), "leaf '01': no such leaf; the bundle has '0', '10', '11'"),
        (("--leaves", "0,0"), "expected leaves, each once, got '0', '0'"),
        (("--leaves", "0,11"), "leaf '11': nobody has trained it"),
        (("--rank", 0), "rank 0: expected 1 to 1024"),
        (("--out", file), "is the bundle that is read"),
    ):
        written = out.read_bytes()
        assert run("mush", file, "--out", out, *arguments) == 2
        assert words in capsys.readouterr().err
        assert out.read_bytes() == written
    assert run("mush", tmp_path / "nowhere", "--out", out) == 5


def test_what_cannot_be_mushed_is_refused(base: LoadedBase) -> None:
    with pytest.raises(SettingError, match="the bundle of run run has no trained leaf"):
        mush_bundle(bundle(base, paths=()))
    wide = bundle(base, AdapterSpec("lora", 500), ("0", "10", "11"))
    with pytest.raises(SettingError, match=r"rank 1500 in all: expected at most 1024; add --rank"):
        mush_bundle(wide)


def run(*arguments: object) -> int:
    """`tinylora` with these arguments, in this process."""
    return exit_code_of(lambda: cli.app([str(each) for each in arguments], standalone_mode=True))
