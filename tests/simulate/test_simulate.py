"""A small federation on a real base model: it learns, it can be repeated bit by bit, and faults do not stop it."""

import functools
from dataclasses import replace
from typing import Any

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
    probes=0,
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


def _workers(n: int, **traits: Any) -> list[SimulatedWorker]:
    return [SimulatedWorker(f"w{i}", shard=_shard(i), **traits) for i in range(n)]


def _run(n: int, faults: FaultPlan | None = None, **changes: object) -> SimulationResult:
    settings = RunSettings(**(SETTINGS.model_dump() | {"min_workers": n, **changes}))
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


# --- rules of replicas, paths, ranks, losses -------------------------------------------------------------------------

RULES: dict[str, dict[str, Any]] = {
    "alternate": {"replicas": "alternate"},
    "product": {"replicas": "product"},
    "outer": {"outer_lr": 0.7, "outer_momentum": 0.9},
    "cascade": {"where": "path"},
    "joint": {"where": "path", "path_training": "joint"},
    "nested": {"adapter": "nested"},
    "alternating cascade": {"where": "path", "replicas": "alternate", "router_sync": "both"},
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_and_gives_the_same_bytes_again(rule):
    first, second = (_run(3, unit_steps=2, **RULES[rule]) for _ in range(2))
    assert first.campaign.finished == "every leaf has had its steps"
    assert to_bytes(first.bundle) == to_bytes(second.bundle)
    assert list(first.ledger.events()) == list(second.ledger.events())
    trunk = {""} if "where" in RULES[rule] else set()
    assert set(first.bundle.nodes) == {"0", "1"} | trunk
    for state in first.bundle.nodes.values():
        assert all(bool(tensor.any()) for name, tensor in state.items() if name.endswith("lora_B"))


def test_mismatch_is_there_for_plain_means_and_gone_where_factors_take_turns():
    def mismatches(**rule):
        averages = summarise(_run(3, unit_steps=2, **rule).ledger.events())["averages"]
        return [row["mismatch"] for row in averages if len(row["contributors"]) > 1]

    plain = mismatches()
    assert len(plain) == 3 and all(0 < gap < 0.5 for gap in plain)
    assert max(mismatches(replicas="alternate")) < 1e-6
    assert plain == mismatches(outer_lr=1.0, outer_momentum=0.0)


@pytest.mark.parametrize(("n", "mode"), [(1, "cascade"), (1, "joint"), (3, "cascade"), (3, "joint")])
def test_subtrees_on_paths_learn(n, mode):
    result = _run(n, depth=2, where="path", path_training=mode, router_sync="both")
    assert result.campaign.finished == "every leaf has had its steps"
    assert {"00", "01", "10", "11"} <= set(result.bundle.nodes)
    assert ("" in result.bundle.nodes) == (n > 1)


def test_workers_of_different_rank_train_prefixes_of_one_leaf():
    settings = RunSettings(**(SETTINGS.model_dump() | {"min_workers": 3, "depth": 0, "adapter": "nested", "rank": 4}))
    small, *others = _workers(3)
    workers = [replace(small, max_rank=1), *others]
    first, second = (simulate(settings, workers, _base()) for _ in range(2))
    assert to_bytes(first.bundle) == to_bytes(second.bundle)
    units = [unit for unit in summarise(first.ledger.events())["units"] if unit["kind"] == "train"]
    assert {(unit["worker"], unit["prefix_rank"]) for unit in units} == {("w0", 1), ("w1", 0), ("w2", 0)}
    sizes = {unit["worker"]: unit["bytes_received"] for unit in units}
    assert sizes["w0"] < sizes["w1"] / 2
    assert all(tensor.shape[1 if name.endswith("A") else 2] == 4 for name, tensor in first.bundle.nodes[""].items())


def test_a_worker_of_too_low_a_rank_is_told_so_and_trains_nothing():
    settings = SETTINGS.model_copy(update={"min_workers": 1, "depth": 0})
    small, other = _workers(2)
    result = simulate(settings, [replace(small, max_rank=1), other], _base())
    assert "trains adapters up to rank 1, this run's have rank 2" in result.campaign.workers["w0"].refusal
    assert result.bundle.contributors == ("w1",)


def test_half_of_the_updates_lost_by_chance():
    first, second = (_run(3, FaultPlan(drop=0.5), unit_steps=1) for _ in range(2))
    assert first.campaign.finished == "every leaf has had its steps"
    assert to_bytes(first.bundle) == to_bytes(second.bundle)
    expired = summarise(first.ledger.events())["expired"]
    assert expired["n"] > 3
    assert {case["kind"] for case in expired["cases"]} == {"train"}


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
