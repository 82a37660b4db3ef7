"""Runs that start as one leaf: splits that pay and that do not, workers that come late, siblings that are alike."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from tests.federation.facts import DIM, SETTINGS
from tests.federation.world import STEP, FakeRunner, run_world
from tinylora import tensors
from tinylora.config import make_settings
from tinylora.errors import SettingError
from tinylora.federation.campaign import fold
from tinylora.federation.events import (
    LeafSplit,
    LeavesMerged,
    NodeAveraged,
    SplitKept,
    SubtreeDivided,
    UnitLeased,
)
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.summary import summarise
from tinylora.protocol.documents import Update, WorkUnit
from tinylora.simulate import SimulatedWorker

GROWING = SETTINGS.model_copy(
    update={"grow": True, "depth": 2, "leaf_steps": 60, "unit_steps": 2, "min_workers": 1, "min_sequences": 1}
)


@dataclass
class Judged(FakeRunner):
    """A worker whose held-out loss is what a test says."""

    nll: Callable[[WorkUnit], float] = lambda unit: 2.0

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        update, data = super().run(unit, payload)
        return update.model_copy(update={"heldout_nll_after": self.nll(unit)}), data


def by_depth(*losses: float) -> Callable[[WorkUnit], float]:
    """A loss that depends on nothing but how deep the trained leaves are."""
    return lambda unit: losses[min(len(unit.leaves[0]), len(losses) - 1)] if unit.leaves else 2.0


def crowd(n: int, nll: Callable[[WorkUnit], float], *, every_s: float = 0.0, **traits) -> list[SimulatedWorker]:
    return [
        SimulatedWorker(
            f"w{i}",
            runner=Judged(f"w{i}", (2.0 * i, 0.0, 0.0, 0.0)[:DIM], nll=nll, **traits),
            joins_at_s=every_s * i,
            seconds_per_step=1.0,
        )
        for i in range(n)
    ]


def grown(workers, settings=GROWING):
    state, _, ledger = run_world(workers, settings)
    return state, ledger


def events_of(ledger, kind) -> list:
    return [event for event in ledger.events() if isinstance(event, kind)]


def counted(state, ledger) -> dict[str, float]:
    """Steps that stand in each leaf's B, and that they are the same everywhere in it."""
    found = {}
    for top, node in state.nodes.items():
        named = tensors.from_bytes(ledger.get_blob(node.blob))
        for leaf in state.leaves_below(top):
            values = torch.cat(
                [t.flatten() for n, t in named.items() if n.startswith(f"node.{leaf}.") and n[-1] == "B"]
            )
            assert (values == values[0]).all()
            found[leaf] = float(values[0]) / STEP
    return found


def test_a_run_starts_as_one_leaf_and_grows_while_splits_pay():
    state, ledger = grown(crowd(4, by_depth(2.0, 1.9, 1.8)))
    assert state.leaves == ("00", "01", "10", "11") and state.finished == "every leaf has had its steps"
    assert [event.node for event in events_of(ledger, LeafSplit)] == ["", "0", "1"]
    assert len(events_of(ledger, SplitKept)) == 3 and not state.trials
    assert counted(state, ledger) == dict.fromkeys(state.leaves, 60.0), "no step is lost or counted twice by a split"
    assert {worker.node for worker in state.workers.values()} == set(state.leaves)


def test_neighbours_stay_together():
    state, _ = grown(crowd(4, by_depth(2.0, 1.9, 1.8)))
    sides = {name: (worker.node or "?")[0] for name, worker in state.workers.items()}
    assert sides["w0"] == sides["w1"] != sides["w2"] == sides["w3"]


def test_children_begin_as_the_parents_function():
    _, ledger = grown(crowd(2, by_depth(2.0, 1.9)), GROWING.model_copy(update={"depth": 1}))
    split = events_of(ledger, LeafSplit)[0]
    before = [event for event in events_of(ledger, NodeAveraged) if event.node == ""][-1]
    parent = tensors.strip_prefix(tensors.from_bytes(ledger.get_blob(before.blob)), "node..")
    both = tensors.from_bytes(ledger.get_blob(split.blob))
    for child in ("0", "1"):
        state = tensors.strip_prefix(
            {n: t for n, t in both.items() if n.startswith(f"node.{child}.")}, f"node.{child}."
        )
        assert state.keys() == parent.keys()
        assert all(torch.equal(state[name], parent[name]) for name in parent)


def test_a_split_that_does_not_pay_is_folded_back_and_not_tried_again():
    state, ledger = grown(crowd(2, by_depth(2.0, 2.0)))
    merged = events_of(ledger, LeavesMerged)
    assert len(events_of(ledger, LeafSplit)) == len(merged) == 1 and "went from 2.0000 to 2.0000" in merged[0].reason
    assert state.leaves == ("",) and state.barren == {""}
    n_trial = merged[0].n_steps - next(e.n_steps for e in reversed(events_of(ledger, NodeAveraged)[:5]) if e.node == "")
    assert counted(state, ledger) == {"": 60.0 - n_trial}, "the steps of the trial are gone, all others are there"
    before = next(e for e in ledger.events() if isinstance(e, LeafSplit))
    at = list(ledger.events()).index(before)
    earlier = fold(ledger.events()[:at])
    assert earlier is not None and merged[0].blob == earlier.nodes[""].blob, "the parent is back, bit by bit"


def test_a_leaf_that_improves_is_left_alone():
    losses = iter(range(1000))
    state, ledger = grown(crowd(2, lambda unit: 2.0 * 0.98 ** next(losses)))
    assert state.leaves == ("",) and not events_of(ledger, LeafSplit)


def test_a_leaf_with_little_text_is_left_alone():
    state, _ = grown(crowd(1, by_depth(2.0, 1.0), shard_tokens=64), GROWING.model_copy(update={"min_sequences": 5}))
    assert state.leaves == ("",)


def test_a_lone_worker_holds_both_children_of_its_leaf():
    state, ledger = grown(crowd(1, by_depth(2.0, 1.9)), GROWING.model_copy(update={"depth": 1}))
    assert state.leaves == ("0", "1") and state.workers["w0"].node == "" and list(state.nodes) == [""]
    assert state.workers["w0"].leaf_statistics, "it tells whose text is whose"
    assert counted(state, ledger) == {"0": 60.0, "1": 60.0}


def test_a_tree_grows_to_eight_leaves_while_workers_come():
    settings = GROWING.model_copy(update={"depth": 3, "leaf_steps": 100, "unit_steps": 2})
    state, ledger = grown(crowd(8, by_depth(*(2.0 - 0.1 * depth for depth in range(9))), every_s=9.0), settings)
    assert len(state.leaves) == 8 and state.finished == "every leaf has had its steps"
    assert set(counted(state, ledger).values()) == {100.0}
    changes = summarise(ledger.events())["topology"]["changes"]
    assert [change["type"] for change in changes].count("leaf_split") == 7
    assert summarise(ledger.events())["topology"]["leaves"] == list(state.leaves)


def test_siblings_whose_gate_cannot_tell_them_apart_become_one():
    workers = crowd(2, by_depth(2.0, 1.9, 1.8), has_histograms=True)
    for worker in workers:
        worker.runner.centre = (0.0,) * DIM  # type: ignore[union-attr]
        worker.runner._histogram = lambda unit, gate: _coin()  # type: ignore[union-attr]
    state, ledger = grown(workers, GROWING.model_copy(update={"depth": 1}))
    merged = events_of(ledger, LeavesMerged)
    assert [event.node for event in merged] == [""] and "a coin" in merged[0].reason
    assert state.leaves == ("",)
    halves = [event.n_steps for event in events_of(ledger, NodeAveraged) if event.node in ("0", "1")][-2:]
    assert merged[0].n_steps == max(halves), "the new leaf goes on where the further of the two was"


def _coin() -> torch.Tensor:
    from tinylora.routing.gates import N_BINS

    counts = torch.zeros(2, N_BINS, dtype=torch.float64)
    counts[:, N_BINS // 2 - 3] = counts[:, N_BINS // 2 + 3] = 10
    return counts


def test_a_subtree_is_divided_when_others_come_to_hold_its_leaves():
    settings = GROWING.model_copy(update={"depth": 1, "leaf_steps": 80})
    state, ledger = grown(crowd(2, by_depth(2.0, 1.9), every_s=40.0), settings)
    divided = events_of(ledger, SubtreeDivided)
    assert [event.node for event in divided] == [""]
    assert {worker.node for worker in state.workers.values()} == {"0", "1"} and set(state.nodes) == {"0", "1"}
    assert state.workers["w0"].is_mixed and not state.workers["w1"].is_mixed
    assert counted(state, ledger) == {"0": 80.0, "1": 80.0}
    later = [lease for lease in events_of(ledger, UnitLeased) if lease.worker == "w0"][-1]
    assert later.is_adopted, "it trains its leaf on those of its documents that are nearest"


def test_a_grown_run_is_a_fold_of_its_events_and_goes_on_after_a_crash():
    state, ledger = grown(crowd(4, by_depth(2.0, 1.9, 1.8)))
    assert fold(ledger.events()) == state
    at = next(i for i, event in enumerate(ledger.events()) if isinstance(event, LeafSplit)) + 1
    half = MemoryLedger()
    for event in ledger.events():
        for blob in (getattr(event, "blob", ""), getattr(event, "momentum", "")):
            if blob:
                half.put_blob(ledger.get_blob(blob))
    half.append(ledger.events()[:at], 0.0)
    again, _, _ = run_world(crowd(4, by_depth(2.0, 1.9, 1.8)), GROWING, ledger=half)
    assert again.leaves == state.leaves and again.finished == state.finished
    assert counted(again, half) == dict.fromkeys(again.leaves, 60.0)


def test_a_trunk_does_not_grow():
    with pytest.raises(SettingError, match=r'grow: expected where = "leaves"'):
        make_settings("run.toml", {"grow": True, "where": "path"})
