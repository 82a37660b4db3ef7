"""A part of a tree in one process: what is read of the file, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import tiny_base_dir, tiny_base_model
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle import Bundle, write_bundle
from tinylora.errors import BaseModelError, BundleError, SettingError
from tinylora.routing.gates import Gate, Gates
from tinylora.serving.holder import LeafHolder
from tinylora.serving.messages import error_of, failure_of
from tinylora.tree import Topology

TREE = Topology(("0", "1"))
SPEC = AdapterSpec("lora", 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    base = tiny_base_model()
    gates = Gates({"": Gate(np.ones(base.facts.feature_dim), 0.0, 1.0)}, base.facts.feature_dim)
    nodes = {path: init_adapter(base.facts, SPEC, seed=1, path=path) for path in TREE.leaves}
    bundle = Bundle(
        run="run", topology=TREE, base=base.facts, spec=SPEC, scale=1.0, nodes=nodes, gates=gates,
        projection=base.routing_feature.projection,
    )  # fmt: skip
    write_bundle(bundle, tmp_path / "bundle.safetensors")
    return tmp_path / "bundle.safetensors"


def spoil(file: Path, tensor: str) -> None:
    """Change one byte of a tensor."""
    content = bytearray(file.read_bytes())
    n_header = int.from_bytes(content[:8], "little")
    start = json.loads(content[8 : 8 + n_header])[tensor]["data_offsets"][0]
    content[8 + n_header + start] ^= 1
    file.write_bytes(content)


def test_the_other_leaves_are_not_read(file: Path) -> None:
    spoil(file, next(f"node.1.{name}.lora_A" for name in tiny_base_model().facts.projections))
    holder = LeafHolder.open(file, str(tiny_base_dir()), device="cpu:0", leaves=["0"])
    assert holder.told["nodes"] == ["0"]
    with pytest.raises(BundleError, match="does not fit its sha256"):
        LeafHolder.open(file, str(tiny_base_dir()), device="cpu:0", leaves=["1"])


def test_another_base_is_refused(file: Path) -> None:
    with pytest.raises(BaseModelError, match="name the base that the bundle was trained on"):
        LeafHolder.open(file, str(tiny_base_dir(1)), device="cpu", leaves=["0"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_here_is_refused(file: Path) -> None:
    with pytest.raises(SettingError, match="device cuda:7: torch cannot use it here"):
        LeafHolder.open(file, str(tiny_base_dir()), device="cuda:7", leaves=["0"])


@pytest.mark.parametrize("error", [BundleError("a sentence", rule="sums"), SettingError("another")])
def test_errors_travel(error: Exception) -> None:
    found = error_of(json.loads(json.dumps(failure_of(error, device="cpu", is_out_of_memory=False))))
    assert type(found) is type(error) and str(found) == str(error) and found.rule == getattr(error, "rule", "")


def test_what_is_no_error_of_ours_does_not_become_one() -> None:
    assert type(error_of({"kind": "annotations", "message": "m", "rule": ""})).__name__ == "TinyLoraError"
