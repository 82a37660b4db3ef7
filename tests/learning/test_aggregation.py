"""Averages of replicas: arithmetic one can do on paper, order independence, pass-through, and refusals."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylora.aggregation import average_nodes
from tinylora.errors import ProtocolError, ShapeMismatch


def _update(*values: float) -> dict[str, torch.Tensor]:
    return {"node.0.q.lora_A": torch.tensor(values, dtype=torch.float32)}


def test_mean_of_two_is_halfway():
    mean = average_nodes({"b": _update(1.0, 3.0), "a": _update(3.0, 7.0)})
    assert torch.equal(mean["node.0.q.lora_A"], torch.tensor([2.0, 5.0]))


def test_weights_are_relative():
    updates = {"a": _update(0.0), "b": _update(4.0)}
    mean = average_nodes(updates, {"a": 30.0, "b": 10.0})
    assert torch.equal(mean["node.0.q.lora_A"], torch.tensor([1.0]))


def test_single_contributor_passes_bit_by_bit():
    update = _update(0.1, -0.0, 1e-45)
    mean = average_nodes({"w": update}, {"w": 3.0})
    assert mean["node.0.q.lora_A"].numpy().tobytes() == update["node.0.q.lora_A"].numpy().tobytes()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_any_order_gives_the_same_bits(values):
    names = ["w1", "w2", "w3", "w4"]
    updates = {name: _update(value, value / 3) for name, value in zip(names, values, strict=True)}
    results = {
        average_nodes({name: updates[name] for name in order})["node.0.q.lora_A"].numpy().tobytes()
        for order in itertools.permutations(names)
    }
    assert len(results) == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_equals_the_float64_mean(n_workers, seed):
    random = np.random.default_rng(seed)
    values = {f"w{index}": random.normal(size=(2, 3)).astype(np.float32) for index in range(n_workers)}
    mean = average_nodes({worker: {"x": torch.from_numpy(value)} for worker, value in values.items()})
    expected = np.mean([value.astype(np.float64) for value in values.values()], axis=0).astype(np.float32)
    np.testing.assert_allclose(mean["x"].numpy(), expected, rtol=1e-7, atol=1e-12)


def test_shape_mismatch_names_tensor_and_worker():
    with pytest.raises(ShapeMismatch, match=r"lora_A of worker zed: expected float32 \(2,\).*got float32 \(3,\)"):
        average_nodes({"ann": _update(1, 2), "zed": _update(1, 2, 3)})


def test_missing_tensor_is_named():
    with pytest.raises(ShapeMismatch, match=r"worker zed lacks tensor node\.0\.q\.lora_A"):
        average_nodes({"ann": _update(1), "zed": {}})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_useless_weight_is_refused(weight):
    with pytest.raises(ProtocolError, match="worker b: expected a positive weight"):
        average_nodes({"a": _update(1), "b": _update(2)}, {"a": 1.0, "b": weight})


def test_no_updates_is_refused():
    with pytest.raises(ProtocolError, match="at least one"):
        average_nodes({})
