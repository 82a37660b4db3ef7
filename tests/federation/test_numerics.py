"""Payloads opened: what is measured, averaged and selected, by arithmetic."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.federation.facts import FACTS
from tests.helpers import ramp
from tinylora import tensors
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.errors import ProtocolError
from tinylora.federation.ports import Averaged, Numerics, Round
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


# --- averages --------------------------------------------------------------------------------------------------------


def _pair(seed: int, *, rank: int = 2, path: str = "0", factors: str = "AB") -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"A": (1, rank, 3), "B": (1, 4, rank)}
    drawn = {part: torch.randn(shape, generator=draw) for part, shape in shapes.items()}
    return {f"node.{path}.q.lora_{part}": drawn[part] for part in factors}


def _averaged(updates: dict[str, dict[str, torch.Tensor]], start: dict[str, torch.Tensor], **rule: Any) -> Averaged:
    payloads = {worker: tensors.to_bytes(state) for worker, state in updates.items()}
    names = {worker: worker for worker in payloads}
    return NUMERICS.average({"0": names}, Round(tensors.to_bytes(start), **rule), payloads.__getitem__)


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_average_of_two_leaves_with_different_workers():
    one = tensors.to_bytes(_pair(1) | _pair(2, path="1"))
    two = tensors.to_bytes(_pair(3) | {"histogram.": torch.zeros(1)})
    start = tensors.to_bytes(_pair(4) | _pair(5, path="1"))
    updates = {"0": {"w1": "two", "w0": "one"}, "1": {"w0": "one"}}
    averaged = NUMERICS.average(updates, Round(start), {"one": one, "two": two}.__getitem__)
    mean = tensors.from_bytes(averaged.payload)
    halfway = {name: (tensor + _pair(3)[name]) / 2 for name, tensor in _pair(1).items()}
    assert _same(mean, halfway | _pair(2, path="1"))


class _Payload(bytes):
    """Bytes that are counted while anybody holds them."""

    alive, most = 0, 0

    def __new__(cls, data: bytes):
        cls.alive += 1
        cls.most = max(cls.most, cls.alive)
        return super().__new__(cls, data)

    def __del__(self):
        type(self).alive -= 1


def test_payloads_of_a_round_are_loaded_one_at_a_time():
    """Whatever the rule, also where somebody is clipped and a worker's payload holds two leaves."""
    start = tensors.to_bytes(_pair(0) | _pair(100, path="1"))
    payloads = {f"w{n:02d}": tensors.to_bytes(_pair(n) | _pair(100 + n, path="1")) for n in range(20)}
    payloads["w00"] = tensors.to_bytes({name: 1e3 * tensor for name, tensor in (_pair(1) | _pair(2, path="1")).items()})
    names = {worker: worker for worker in payloads}
    plain = Round(start, previous=start)
    for held in (replace(plain, clip=2.0), replace(plain, outer_lr=0.7), replace(plain, replicas="product")):
        _Payload.alive = _Payload.most = 0
        NUMERICS.average({"0": names, "1": names}, held, lambda name: _Payload(payloads[name]))
        assert (_Payload.alive, _Payload.most) == (0, 1)


def test_one_far_off_does_not_move_the_mean_far():
    updates = {f"w{seed}": {n: t + 0.01 * seed for n, t in _pair(0).items()} for seed in range(1, 6)}
    wild = updates | {"w9": {name: tensor * -1e6 for name, tensor in _pair(0).items()}}
    plain, clipped, unclipped = (
        tensors.from_bytes(_averaged(given, _pair(0), clip=clip).payload)
        for given, clip in ((updates, 3.0), (wild, 3.0), (wild, 0.0))
    )
    assert all((plain[name] - clipped[name]).abs().max() < 0.1 for name in plain)
    assert all((plain[name] - unclipped[name]).abs().max() > 1e3 for name in plain)


def test_a_factor_that_nobody_trained_stays():
    start = _pair(0)
    updates = {f"w{seed}": _pair(seed, factors="B") for seed in (1, 2)}
    averaged = _averaged(updates, start, replicas="alternate")
    mean = tensors.from_bytes(averaged.payload)
    assert torch.equal(mean["node.0.q.lora_A"], start["node.0.q.lora_A"])
    halfway = (_pair(1)["node.0.q.lora_B"] + _pair(2)["node.0.q.lora_B"]) / 2
    assert torch.equal(mean["node.0.q.lora_B"], halfway)
    assert averaged.mismatch == 0.0


def test_rows_that_nobody_trained_stay():
    start = _pair(0, rank=3)
    mean = tensors.from_bytes(_averaged({"small": _pair(1, rank=1), "larger": _pair(2, rank=2)}, start).payload)
    for part, axis in (("A", 1), ("B", 2)):
        name = f"node.0.q.lora_{part}"
        rows = [mean[name].select(axis, row) for row in range(3)]
        assert torch.equal(rows[0], (_pair(1, rank=1)[name].select(axis, 0) + _pair(2)[name].select(axis, 0)) / 2)
        assert torch.equal(rows[1], _pair(2)[name].select(axis, 1))
        assert torch.equal(rows[2], start[name].select(axis, 2))


def test_mismatch_is_told_of_replicas_alone():
    assert _averaged({"w0": _pair(1)}, _pair(0)).mismatch is None
    mean = {name: (tensor + _pair(2)[name]) / 2 for name, tensor in _pair(1).items()}
    dense = [state["node.0.q.lora_B"] @ state["node.0.q.lora_A"] for state in (_pair(1), _pair(2), mean)]
    expected = float((dense[0] / 2 + dense[1] / 2 - dense[2]).norm() / (dense[0] / 2 + dense[1] / 2).norm())
    assert _averaged({"w0": _pair(1), "w1": _pair(2)}, _pair(0)).mismatch == pytest.approx(expected, rel=1e-5)
    nothing = _pair(1) | {"node.0.q.lora_B": torch.zeros(1, 4, 2)}
    assert _averaged({"w0": nothing, "w1": nothing}, _pair(0)).mismatch == 0.0


def test_replicas_of_products_have_the_mean_product():
    common = _pair(0)
    updates = {f"w{seed}": common | _pair(seed, factors="B") for seed in (1, 2)}
    mean = tensors.from_bytes(_averaged(updates, common, replicas="product").payload)
    dense = [state["node.0.q.lora_B"] @ state["node.0.q.lora_A"] for state in (*updates.values(), mean)]
    torch.testing.assert_close(dense[2], (dense[0] + dense[1]) / 2, rtol=1e-5, atol=1e-5)
    alone = tensors.from_bytes(_averaged({"w1": updates["w1"]}, common, replicas="product").payload)
    assert _same(alone, updates["w1"])


def test_an_outer_step_at_rate_one_changes_no_bit():
    updates = {f"w{seed}": _pair(seed) for seed in (1, 2, 3)}
    plain = _averaged(updates, _pair(0))
    assert plain == _averaged(updates, _pair(0), outer_lr=1.0, outer_momentum=0.0)
    assert plain.momentum == b""
    assert plain.payload != _averaged(updates, _pair(0), outer_lr=0.5).payload


def test_momentum_goes_from_round_to_round_and_waits_while_a_holder_is_alone():
    rule: dict[str, Any] = {"outer_lr": 0.7, "outer_momentum": 0.9}
    name, updates = "node.0.q.lora_B", {f"w{seed}": _pair(seed, factors="B") for seed in (1, 2)}
    first = _averaged(updates, _pair(0), **rule)
    alone = _averaged({"w1": updates["w1"]}, _pair(0), momentum=first.momentum, **rule)
    assert alone.momentum == first.momentum
    assert torch.equal(tensors.from_bytes(alone.payload)[name], updates["w1"][name])
    second = _averaged(updates, _pair(0), momentum=first.momentum, **rule)
    downhill = _pair(0)[name] - (updates["w1"][name] + updates["w2"][name]) / 2
    speed = tensors.from_bytes(second.momentum)
    assert speed.keys() == {name}
    torch.testing.assert_close(speed[name], 1.9 * downhill, rtol=1e-5, atol=1e-6)
    expected = _pair(0)[name] - 0.7 * (downhill + 0.9 * 1.9 * downhill)
    torch.testing.assert_close(tensors.from_bytes(second.payload)[name], expected, rtol=1e-5, atol=1e-6)


def test_nodes_begin_as_workers_draw_them():
    spec = AdapterSpec("lora", 2)
    drawn = tensors.from_bytes(NUMERICS.initial(FACTS, spec, 7, ("", "01")))
    for path in ("", "01"):
        own = tensors.strip_prefix(drawn, f"node.{path}.")
        assert _same(own, init_adapter(FACTS, spec, seed=7, path=path))


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
