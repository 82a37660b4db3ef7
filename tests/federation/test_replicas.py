"""Several workers on one node: which factors a version trains, what travels, and what their updates become."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.federation.facts import SETTINGS
from tests.federation.world import STEP, assert_counted_once, crowd, only, run_world, with_spoil
from tinylora import tensors
from tinylora.config import RunSettings, make_settings
from tinylora.errors import SettingError
from tinylora.federation.campaign import fold
from tinylora.federation.events import NodeAveraged, UnitLeased, UpdateAccepted, UpdateRejected, event_from_json
from tinylora.federation.summary import summarise
from tinylora.federation.units import factors_of
from tinylora.numerics import TorchNumerics

SHARED: dict[str, Any] = {"depth": 1, "min_workers": 4}


def _trained(events, kind: type = UpdateAccepted) -> list:
    return [event for event in only(events, kind) if event.kind == "train"]


def test_replicas_train_b_and_a_in_turn():
    campaign, events, ledger = run_world(crowd(4), replicas="alternate", **SHARED)
    turns = {lease.node_version: lease.factors for lease in _trained(events, UnitLeased)}
    assert turns == {0: ("lora_B",), 1: ("lora_A",), 2: ("lora_B",), 3: ("lora_A",)}
    start = tensors.from_bytes(TorchNumerics().initial(campaign.base, SETTINGS.spec, SETTINGS.seed, ("0",)))
    state = tensors.from_bytes(ledger.get_blob(campaign.nodes["0"].blob))
    assert torch.equal(state["node.0.proj.lora_A"], start["node.0.proj.lora_A"])
    assert state["node.0.proj.lora_B"].unique().tolist() == [10 * STEP]  # two of the four units
    assert [event.mismatch for event in only(events, NodeAveraged)] == [0.0] * 8


def test_an_update_of_one_factor_is_about_half_as_long():
    def sizes(**changes):
        _, events, ledger = run_world(crowd(4), **SHARED, **changes)
        found = (tensors.from_bytes(ledger.get_blob(event.blob)) for event in _trained(events))
        return sum(t.numel() for state in found for name, t in state.items() if name.startswith("node."))

    assert sizes(replicas="alternate") * 2 == sizes()


def test_a_sole_holder_trains_both_factors():
    campaign, events, ledger = run_world(crowd(2), replicas="alternate")
    assert {lease.factors for lease in _trained(events, UnitLeased)} == {()}
    assert_counted_once(campaign, ledger)


def test_all_leases_on_a_version_train_what_the_first_one_does():
    """A second worker comes while the first is at work: it trains both factors, as the first one does."""
    _, events, _ = run_world(crowd(2), replicas="alternate")
    lease = _trained(events, UnitLeased)[0]
    state = fold(events[: events.index(lease) + 1])
    assert state is not None
    late = replace(state.workers[lease.worker], worker="late", unit_id="")
    joined = replace(state, workers={**state.workers, "late": late})
    assert joined.replicas(lease.node) == 2
    assert factors_of(joined, lease.node) == ()
    fresh = replace(joined, nodes={lease.node: replace(joined.nodes[lease.node], factors=None)})
    assert factors_of(fresh, lease.node) == ("lora_B",)


def test_a_factor_that_was_not_asked_for_is_refused():
    def both(unit, made):
        names = [name for name in made if name.endswith("lora_B")]
        return made | {name.replace("lora_B", "lora_A"): torch.zeros(2, 2, 3) for name in names}

    workers = crowd(4)
    _, events, _ = run_world([*workers[:3], with_spoil(workers[3], both)], replicas="alternate", **SHARED)
    rejected = only(events, UpdateRejected)
    assert {event.code.partition(".")[0] for event in rejected} == {"bad_manifest"}
    assert "unexpected tensor node.1.proj.lora_A" in rejected[0].reason


def test_products_turn_the_axes_and_say_so():
    campaign, _, _ = run_world(crowd(3), depth=1, min_workers=3, replicas="product")
    shared = next(node for node in campaign.nodes if sum(w.node == node for w in campaign.workers.values()) == 2)
    alone = next(node for node in campaign.nodes if node != shared)
    assert campaign.nodes[shared].has_new_axes
    assert not campaign.nodes[alone].has_new_axes


def test_outer_momentum_is_state_of_a_node_with_replicas():
    rule: dict[str, Any] = {"outer_lr": 0.7, "outer_momentum": 0.9}
    campaign, events, ledger = run_world(crowd(3), depth=1, min_workers=3, **rule)
    momenta = {event.node: bool(event.momentum) for event in only(events, NodeAveraged)}
    assert sorted(momenta.values()) == [False, True]
    shared = next(node for node, moves in momenta.items() if moves)
    assert campaign.nodes[shared].momentum
    assert "momentum" not in json.dumps([unit["node"] for unit in summarise(events)["units"]])
    again, more, _ = run_world(crowd(3), depth=1, min_workers=3, **rule)
    assert (again, more) == (campaign, events)
    moved = tensors.from_bytes(ledger.get_blob(campaign.nodes[shared].blob))[f"node.{shared}.proj.lora_B"]
    assert moved.unique().numel() == 1
    assert float(moved.flatten()[0]) != 20 * STEP


def test_the_summary_shows_the_mismatch():
    _, events, _ = run_world(crowd(3), depth=1, min_workers=3)
    summary = summarise(events)
    assert {row["mismatch"] for row in summary["averages"] if len(row["contributors"]) == 1} == {None}
    assert {row["mismatch"] for row in summary["averages"] if len(row["contributors"]) == 2} == {0.0}
    assert {row["mismatch"] for row in summary["topology"]["nodes"].values()} == {None, 0.0}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"replicas": "median"}, "replicas: input should be 'mean', 'alternate' or 'product'"),
        ({"replicas": "product", "outer_momentum": 0.9}, "replicas = product: expected outer_lr = 1"),
        ({"replicas": "alternate", "adapter": "tied:A,B"}, "replicas = alternate: expected mean for the adapter tied"),
        ({"outer_lr": 0}, "outer_lr: input should be greater than 0"),
        ({"outer_momentum": 1}, "outer_momentum: input should be less than 1"),
    ],
)
def test_rules_that_make_no_sense(values, sentence):
    with pytest.raises(SettingError, match=f"run.toml: {sentence}"):
        make_settings("run.toml", values)


def test_a_ledger_from_before_there_were_rules_is_read():
    """Fields that came later have defaults: an old run folds to the same state."""
    campaign, events, _ = run_world(crowd(3), depth=1, min_workers=3)
    later = {
        "unit_leased": {"factors", "nodes", "frozen", "prefix_rank"},
        "update_accepted": {"nodes", "max_rank", "max_leaves", "log_volume", "data_note", "data_licence"},
        "lease_expired": {"is_returned"},
        "node_averaged": {"mismatch", "momentum"},
    }
    settings = {"replicas", "outer_lr", "outer_momentum", "where", "path_training", "path_steps", "adapter", "ranks"}
    old = []
    for event in events:
        fields = json.loads(event.model_dump_json())
        for name in later.get(event.type, ()):
            del fields[name]
        for name in settings if event.type == "run_started" else ():
            del fields["settings"][name]
        old.append(event_from_json(json.dumps(fields)))
    state = fold(old)
    assert state is not None
    assert state.nodes == campaign.nodes
    assert state.settings == campaign.settings
    assert isinstance(state.settings, RunSettings)
