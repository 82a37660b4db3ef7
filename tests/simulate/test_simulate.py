"""A small federation on a real base model: it learns, it can be repeated bit by bit, and faults do not stop it."""

import functools

import pytest
import torch

from tests.helpers import tiny_base_model
from tinylora import tensors
from tinylora.bundle import to_bytes
from tinylora.config import RunSettings
from tinylora.errors import DataError, SettingError
from tinylora.federation.summary import summarise
from tinylora.shards import Shard, make_shard
from tinylora.simulate import FaultPlan, SimulatedWorker, SimulationResult, simulate

KINDS = (
    "the cat sat on the mat and the dog ran far away from the cat. ",
    "def f(x):\n    return x * (x + 1)\n\nclass A:\n    pass\n",
    "0123 4567 8901 2345 6789 1029 3847 5610 9283 7465\n",
    "<p><b>QUICK</b> <i>BROWN</i> FOX; JUMPS! OVER? THE: LAZY</p>\n",
)
SETTINGS = RunSettings(
    name="small",
    depth=1,
    rank=2,
    alpha=4,
    leaf_steps=6,
    unit_steps=3,
    batch_windows=2,
    window_tokens=32,
    min_sequences=4,
    warmup_steps=1,
    router_period=2,
    seed=3,
)


@functools.cache
def _base():
    return tiny_base_model()


@functools.cache
def _shard(number: int) -> Shard:
    base = _base()
    text = KINDS[number % len(KINDS)]
    texts = [(f"{number}/{i}", text[i % 7 :] * (6 + i % 3)) for i in range(12)]
    from tinylora.base_model import encode

    return make_shard(
        texts,
        lambda one: encode(base.tokenizer, one),
        tokenizer_fingerprint=base.facts.tokenizer_fingerprint,
        name=f"w{number}",
    )


def _workers(n: int) -> list[SimulatedWorker]:
    return [SimulatedWorker(f"w{i}", shard=_shard(i)) for i in range(n)]


def _run(n: int, faults: FaultPlan | None = None, **changes: object) -> SimulationResult:
    settings = SETTINGS.model_copy(update={"min_workers": n, **changes})
    return simulate(settings, _workers(n), _base(), faults)


def test_two_simulations_with_one_seed_are_the_same_bytes():
    faults = FaultPlan.parse(kill=["1@2:4"], silent=["0@1"], delay=["2@1:3"])
    first, second = (_run(3, faults, router_sync="both") for _ in range(2))
    assert to_bytes(first.bundle) == to_bytes(second.bundle)
    assert list(first.ledger.events()) == list(second.ledger.events())


def test_another_seed_is_another_bundle():
    assert to_bytes(_run(2).bundle) != to_bytes(_run(2, seed=4).bundle)


@pytest.mark.parametrize(("n", "depth"), [(3, 0), (4, 1), (1, 1), (3, 2)])
def test_leaves_subtrees_and_replicas_learn(n, depth):
    result = _run(n, depth=depth)
    assert result.campaign.finished == "every leaf has had its steps"
    assert len(result.bundle.nodes) == 2**depth
    assert result.bundle.contributors == tuple(f"w{i}" for i in range(n))
    for state in result.bundle.nodes.values():
        assert all(bool(tensor.any()) for name, tensor in state.items() if name.endswith("lora_B"))
    trained = [unit for unit in summarise(result.ledger.events())["units"] if unit["kind"] == "train"]
    assert all(unit["base_loads"] == trained[0]["base_loads"] for unit in trained)
    assert all(len(unit["losses"]) > 0 for unit in trained)


def test_a_killed_worker_does_not_stop_it():
    result = _run(2, FaultPlan.parse(kill=["1@1"]))
    units = summarise(result.ledger.events())["units"]
    assert result.campaign.finished == "every leaf has had its steps"
    assert {unit["worker"] for unit in units if unit["is_adopted"]} == {"w0"}
    assert set(result.bundle.nodes) == {"0", "1"}


@pytest.mark.parametrize("sync", ["weights", "both"])
def test_routers_by_weights(sync):
    result = _run(2, router_sync=sync)
    assert set(result.bundle.gates.nodes) == {""}
    assert result.bundle.gates.nodes[""].w.any()


def test_one_holder_passes_through_bit_by_bit():
    result = _run(2)
    events = list(result.ledger.events())
    for event in events:
        if event.type == "node_averaged" and event.version == 2:
            averaged = tensors.from_bytes(result.ledger.get_blob(event.blob))
            (update,) = [
                e for e in events if e.type == "update_accepted" and e.node == event.node and e.node_version == 1
            ]
            own = tensors.from_bytes(result.ledger.get_blob(update.blob))
            assert averaged.keys() == {name for name in own if name.startswith("node.")}
            assert all(torch.equal(tensor, own[name]) for name, tensor in averaged.items())


def test_a_shard_that_is_too_small_is_declined_by_its_worker():
    with pytest.raises(DataError, match="no tree was set"):
        _run(1, min_sequences=10_000)


def test_a_worker_without_anything():
    with pytest.raises(SettingError, match="expected a shard or a runner"):
        simulate(SETTINGS, [SimulatedWorker("w0")], _base())
