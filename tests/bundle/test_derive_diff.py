"""What differs between two bundles, against dense updates; and a bundle drawn for people."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bundle.test_derive import run
from tests.bundle.test_derive_merge import LORA, TIED, WIDE, a_run
from tests.helpers import tiny_base_model
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, write_bundle
from tinylora.derive import diff, drop_leaf
from tinylora.derive.comparing import differs, in_words, update_norm
from tinylora.derive.paths import plain_states
from tinylora.routing.gates import Gate
from tinylora.tensors import Tensors
from tinylora.tree import Topology

LEAVES = ("0", "10", "11")


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base_model()


@pytest.fixture(scope="module")
def made(base: LoadedBase) -> Bundle:
    return a_run(base, "run", LEAVES)


def dense(bundle: Bundle, path: str) -> dict[str, torch.Tensor]:
    """The updates themselves, by projection."""
    (state,) = plain_states(bundle, [path])
    names = [name.removesuffix(".lora_A") for name in state if name.endswith("A")]
    return {name: bundle.scale * state[f"{name}.lora_B"].double() @ state[f"{name}.lora_A"].double() for name in names}


def norm(updates: dict[str, torch.Tensor]) -> float:
    return float(sum(update.square().sum() for update in updates.values())) ** 0.5


def moved(state: Tensors) -> Tensors:
    return {name: tensor.float() + 0.01 * (name.endswith("lora_A")) for name, tensor in state.items()}


@pytest.mark.parametrize("spec", [LORA, WIDE, TIED], ids=str)
def test_a_node_changes_by_its_update_not_by_its_factors(base: LoadedBase, spec: AdapterSpec) -> None:
    one = a_run(base, "run", LEAVES, spec)
    other = replace(one, nodes=one.nodes | {"10": moved(one.nodes["10"])})
    before, after = dense(one, "10"), dense(other, "10")
    expected = norm({name: after[name] - before[name] for name in before}) / norm(before)
    found = diff(one, other)
    assert found["nodes"]["changed"] == {"10": pytest.approx(expected, rel=1e-6)}
    assert found["n_same_nodes"] == 2
    (state,) = plain_states(one, ["10"])
    assert one.scale * update_norm(state) == pytest.approx(norm(before), rel=1e-6)


def test_the_same_function_in_other_factors_is_no_change(base: LoadedBase, made: Bundle) -> None:
    """Twice A and half of B, at twice the rank and half the scale: powers of two, so that not a bit is lost."""
    other = replace(
        made,
        scale=made.scale / 2,
        nodes={
            path: {name: tensor.float() * (4 if name.endswith("A") else 0.5) for name, tensor in state.items()}
            for path, state in made.nodes.items()
        },
    )
    assert all(change < 1e-7 for change in diff(made, other)["nodes"]["changed"].values())
    assert diff(made, other)["fields"] == {"scale": [2.0, 1.0]}


def test_everything_else_that_differs_is_named(base: LoadedBase, made: Bundle) -> None:
    gate = made.gates.nodes["1"]
    turned = Gate(np.roll(gate.w, 1), gate.b, gate.tau)
    other = replace(
        drop_leaf(made, "0", keeps_gates=True),
        run="other",
        policy="hard" if made.policy != "hard" else "soft",
        contributors=("ann", "zoe"),
        data_notes={"0": ("another text",)},
        gates=replace(made.gates, nodes=made.gates.nodes | {"1": turned}),
    )
    found = diff(made, other)
    assert differs(found) and set(found["fields"]) == {"run", "policy"}
    assert found["nodes"] == {"removed": ["0"], "added": [], "changed": {}}
    cosine = gate.w @ turned.w / (gate.w @ gate.w)
    assert found["gates"]["changed"]["1"]["degrees"] == pytest.approx(np.degrees(np.arccos(cosine)))
    assert made.statistics is not None and other.statistics is not None
    before, after = made.statistics.covariance, other.statistics.covariance
    change = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert found["statistics"]["covariance"] == {"change": pytest.approx(change)}
    assert found["statistics"]["removed"] == ["0"] and not found["statistics"]["changed"]
    assert found["contributors"] == {"removed": ["run"], "added": ["zoe"]}
    assert found["versions"] == {"node.0": [5, None]}
    assert found["report"] == ["drop", "of", "whole"]
    assert json.loads(json.dumps(found)).keys() == found.keys()
    words = "\n".join(in_words(found))
    for part in ("nodes removed: 0", "gate 1: drift", "contributors added: zoe", "said of the text of 0: changed"):
        assert part in words
    wider = replace(made, topology=Topology((*LEAVES[:2], "110", "111")))
    assert diff(made, wider)["leaves"] == {"removed": ["11"], "added": ["110", "111"]}


def test_a_node_that_was_zero_has_no_share(made: Bundle) -> None:
    nothing = {name: tensor * 0 for name, tensor in made.nodes["0"].items()}
    found = diff(replace(made, nodes=made.nodes | {"0": nothing}), made)
    assert found["nodes"]["changed"] == {"0": None} and differs(found)
    assert "node 0: was zero, is not" in in_words(found)


def test_comparing_by_command(made: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, same, other = (tmp_path / f"{name}.safetensors" for name in ("one", "same", "other"))
    write_bundle(made, one)
    write_bundle(made, same)
    write_bundle(drop_leaf(made, "0"), other)
    assert run("diff", one, same, "--exit-code") == 0
    assert capsys.readouterr().out == "the same file\n"
    assert run("diff", one, other) == 0
    assert "nodes removed: 0" in capsys.readouterr().out
    assert run("diff", one, other, "--exit-code", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["nodes"]["removed"] == ["0"] and not found["is_same_file"]
    write_bundle(made, other, dtype="F32")
    assert run("diff", one, other) == 0
    assert capsys.readouterr().out == "dtype: BF16 -> F32\n"
    assert run("diff", one, tmp_path / "nowhere") == 5


def test_a_bundle_is_drawn(made: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bundle.safetensors"
    write_bundle(replace(drop_leaf(made, "11"), data_notes={"0": tuple("abcde")}), file)
    assert run("inspect", file) == 0
    said = capsys.readouterr().out
    size = f"{2 * sum(tensor.numel() for tensor in made.nodes['0'].values()) / 1024:.1f} KiB"
    tree = [
        "3 leaves, 2 adapters",
        "root",
        f"├─ 0  leaf  {size}, version 5",
        '│    "a"',
        '│    "b"',
        '│    "c"',
        "│    and 2 more",
        "└─ 1",
        f"   ├─ 10  leaf  {size}",
        "   └─ 11  leaf  no adapter of its own, no statistics",
    ]
    assert said.splitlines()[-len(tree) :] == tree
    assert "of 2 of 3 leaves, each with its covariance" in said
    assert run("inspect", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["node_bytes"].keys() == {"0", "10"} and told["leaves"] == list(LEAVES)
    write_bundle(a_run(tiny_base_model(), "alone", ("",)), file)
    assert run("inspect", file) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("root  leaf")
