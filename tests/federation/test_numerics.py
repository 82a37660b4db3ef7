"""Payloads opened: what is measured, averaged and selected, by arithmetic."""

import numpy as np
import pytest
import torch

from tests.helpers import ramp
from tinylora import tensors
from tinylora.errors import ProtocolError
from tinylora.federation.ports import Numerics
from tinylora.numerics import TorchNumerics

NUMERICS = TorchNumerics()


def _payload(**values: torch.Tensor) -> bytes:
    return tensors.to_bytes({f"node.0.q.lora_{part}": value for part, value in values.items()})


def test_it_is_what_the_loop_asks_for():
    assert isinstance(NUMERICS, Numerics)


def test_distance_from_the_start():
    start, moved = _payload(A=torch.ones(2, 4), B=torch.zeros(3)), _payload(A=torch.ones(2, 4) * 1.5, B=torch.zeros(3))
    assert NUMERICS.measure(moved, start).delta_rms == pytest.approx(0.5)
    assert NUMERICS.measure(start, start).delta_rms == 0.0


def test_without_a_start_b_counts_from_zero_and_a_only_beyond_any_draw():
    assert NUMERICS.measure(_payload(A=torch.ones(5), B=torch.full((4,), 0.25)), None).delta_rms == 0.25
    assert NUMERICS.measure(_payload(A=torch.full((4,), 3.0), B=torch.zeros(4)), None).delta_rms == 2.0


def test_one_tensor_among_many_is_not_averaged_away():
    poked = torch.zeros(4)
    poked[0] = 100.0
    assert NUMERICS.measure(_payload(A=torch.zeros(100_000), B=poked), None).delta_rms == 50.0


def test_numbers_so_large_that_their_norm_overflows_are_finite_and_far():
    facts = NUMERICS.measure(_payload(B=torch.full((4,), 3e38)), None)
    assert facts.not_finite == ""
    assert facts.delta_rms > 1e30


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_tensor_that_is_not_finite_is_named(value):
    assert (
        NUMERICS.measure(_payload(A=torch.zeros(3), B=torch.tensor([0.0, value])), None).not_finite == "node.0.q.lora_B"
    )


def test_average_of_two_leaves_with_different_workers():
    one = tensors.to_bytes({"node.0.q.lora_B": torch.tensor([1.0, 2.0]), "node.1.q.lora_B": torch.tensor([8.0, 8.0])})
    two = tensors.to_bytes({"node.0.q.lora_B": torch.tensor([3.0, 4.0]), "histogram.": torch.zeros(1)})
    mean = tensors.from_bytes(NUMERICS.average({"0": {"w1": two, "w0": one}, "1": {"w0": one}}))
    assert mean.keys() == {"node.0.q.lora_B", "node.1.q.lora_B"}
    assert mean["node.0.q.lora_B"].tolist() == [2.0, 3.0]
    assert mean["node.1.q.lora_B"].tolist() == [8.0, 8.0]


def test_selecting_by_prefix_does_not_confuse_paths():
    payload = tensors.to_bytes({f"router.{path}.w": ramp(2) for path in ("", "0", "00", "01", "1")})
    kept = tensors.from_bytes(NUMERICS.select([payload], ["router..", "router.0."]))
    assert sorted(kept) == ["router..w", "router.0.w"]
    assert tensors.from_bytes(NUMERICS.select([payload], [])) == {}
    assert tensors.from_bytes(NUMERICS.select([], ["router."])) == {}


def test_arrays_go_in_and_come_out():
    arrays = {"router..w": np.arange(3.0), "router..b": np.array([0.5])}
    payload = NUMERICS.pack(arrays)
    assert payload == NUMERICS.pack(dict(reversed(arrays.items())))
    back = NUMERICS.arrays(payload, "router.")
    assert back.keys() == arrays.keys()
    assert all((back[name] == array).all() for name, array in arrays.items())
    assert NUMERICS.read_manifest(payload) == {"router..b": ("F64", (1,)), "router..w": ("F64", (3,))}


def test_no_payload_at_all():
    for call in (lambda: NUMERICS.read_manifest(b""), lambda: NUMERICS.measure(b"\0" * 9, None)):
        with pytest.raises(ProtocolError):
            call()
