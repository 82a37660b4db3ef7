"""What a report says of a run, against the events it was made from."""

import json

import pytest

from tests.federation.world import crowd, only, run_world, with_spoil
from tinylora.federation.events import GatesSolved, UnitLeased, UpdateAccepted
from tinylora.federation.summary import summarise
from tinylora.simulate import FaultPlan


def test_a_report_of_a_run_with_a_loss():
    _, events, _ = run_world(crowd(3), depth=1, min_workers=3, faults=FaultPlan.parse(kill=["1@2"]))
    summary = summarise(events)
    assert json.loads(json.dumps(summary)) == summary
    accepted = only(events, UpdateAccepted)
    assert [unit["unit_id"] for unit in summary["units"]] == [event.unit_id for event in accepted]
    assert summary["finished"] == "every leaf has had its steps"
    assert summary["expired"]["n"] == 1
    assert summary["expired"]["cases"][0]["worker"] == "w1"
    assert summary["rejected"] == {"n": 0, "by_code": {}, "cases": []}


def test_totals_are_the_sums_of_the_units():
    _, events, _ = run_world(crowd(3), depth=2, min_workers=3)
    summary = summarise(events)
    for worker in summary["workers"]:
        mine = [unit for unit in summary["units"] if unit["worker"] == worker["worker"]]
        for field in ("tokens", "bytes_sent", "bytes_received"):
            assert worker[field] == sum(unit[field] for unit in mine)
        assert worker["seconds"] == pytest.approx(sum(unit["seconds"] for unit in mine))
        assert worker["base_loads"] == 1
        assert worker["units"] == len([unit for unit in mine if unit["kind"] == "train"])
        assert worker["node"] == summary["topology"]["assignment"][worker["worker"]]
    assert all(unit["bytes_sent"] > 0 and unit["bytes_received"] > 0 for unit in summary["units"])
    assert {len(unit["leaves"]) for unit in summary["units"] if unit["kind"] == "train"} == {1, 2}


def test_rounds_say_whom_they_reached():
    _, events, _ = run_world(crowd(2), router_period=2)
    summary = summarise(events)
    solved, leases = only(events, GatesSolved), only(events, UnitLeased)
    assert [entry["version"] for entry in summary["rounds"]] == [event.version for event in solved]
    assert [entry["drift"] for entry in summary["rounds"]] == [event.drift for event in solved]
    for entry in summary["rounds"]:
        carriers = [lease.worker for lease in leases if lease.router_version == entry["version"]]
        assert (entry["n_leases"], entry["n_workers"]) == (len(carriers), len(set(carriers)))
    assert len([entry for entry in summary["rounds"] if entry["n_workers"]]) >= 3


def test_nodes_have_their_steps():
    campaign, events, _ = run_world(crowd(3), depth=2, min_workers=3)
    nodes = summarise(events)["topology"]["nodes"]
    assert {node: entry["n_steps"] for node, entry in nodes.items()} == dict.fromkeys(campaign.nodes, 20)
    assert sorted(leaf for entry in nodes.values() for leaf in entry["leaves"]) == ["00", "01", "10", "11"]


def test_a_summary_of_nothing():
    summary = summarise([])
    assert summary["units"] == summary["workers"] == summary["rounds"] == []
    assert summary["topology"]["leaves"] == []


def test_what_others_made_of_the_updates():
    def flip(unit, made):
        return {name: -10 * tensor if name.endswith("lora_B") else tensor for name, tensor in made.items()}

    workers = crowd(4)
    _, events, _ = run_world([*workers[:3], with_spoil(workers[3], flip)], depth=2, min_workers=4, probes=3)
    summary = summarise(events)
    trust = summary["trust"]
    assert json.loads(json.dumps(summary)) == summary
    assert (trust["dropped"], trust["revoked"], trust["erased"]) == (3, [], [])
    assert trust["probed"] == len([unit for unit in summary["units"] if unit["kind"] == "train"])
    assert trust["votes"] == sum(worker["probes"] for worker in summary["workers"])
    assert [(case["worker"], case["code"]) for case in trust["quarantined"]] == [("w3", "strikes")]
    dropped = {worker["worker"]: worker["dropped"] for worker in summary["workers"]}
    assert dropped == {"w0": 0, "w1": 0, "w2": 0, "w3": 3}
