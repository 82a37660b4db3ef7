"""Every kind of adapter through a whole run: units, averages, bundle, model."""

from pathlib import Path

import pytest
import torch

from tests.simulate.test_simulate import _base, _run, _shard
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.shapes import n_adapter_parameters
from tinylora.bundle import inspect, read_bundle, write_bundle
from tinylora.errors import SettingError
from tinylora.evaluation import score_base, score_domains
from tinylora.model import TreeModel


@pytest.mark.parametrize("kind", ["nested:frozen", "tied:uv", "tied:A,B,uv"])
def test_a_run_ends_in_a_bundle_that_is_whole_and_has_learned(tmp_path: Path, kind: str) -> None:
    result = _run(2, adapter=kind, ranks={"mlp.up_proj": 1}, learning_rate=0.02, leaf_steps=8, unit_steps=4)
    file = tmp_path / "bundle.safetensors"
    write_bundle(result.bundle, file, dtype="F32")
    told = inspect(file)
    assert (told["kind"], told["ranks"]) == (kind, {"mlp.up_proj": 1})
    read = read_bundle(file)
    assert read.spec == result.bundle.spec
    assert all(torch.equal(tensor, result.bundle.shared[name]) for name, tensor in read.shared.items())
    assert bool(read.shared) == (kind == "tied:uv")
    n_numbers = sum(tensor.numel() for tensor in read.nodes["0"].values())
    assert n_numbers == n_adapter_parameters(_base().facts, read.spec)

    model, heldout = TreeModel.from_bundle(read, _base()), {"all": _shard(0).train[:4]}
    routed = score_domains(model, heldout, window_tokens=32)
    base = score_base(model, heldout, window_tokens=32)
    model.detach_adapters()
    assert sum(score.nll_sum for score in routed) < sum(score.nll_sum for score in base)


@pytest.mark.parametrize("kind", ["nested", "tied:A", "tied:B", "tied:A,uv", "tied:A,B"])
def test_replicas_of_every_kind_are_averaged(kind: str) -> None:
    result = _run(2, depth=0, adapter=kind, learning_rate=0.02, leaf_steps=2, unit_steps=1)
    assert result.campaign.finished == "every leaf has had its steps"
    start = init_adapter(_base().facts, result.bundle.spec, seed=3, path="")
    assert not any(torch.equal(tensor, start[name]) for name, tensor in result.bundle.nodes[""].items())


def test_adapters_that_do_not_fit_the_base_are_refused_at_once() -> None:
    with pytest.raises(SettingError, match="ranks: head: no such projection"):
        _run(2, ranks={"head": 1})
