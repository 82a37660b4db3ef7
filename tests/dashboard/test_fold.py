"""The projection's fold against the campaign's, which decides, and against the report's tables, which count."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from tinylora_coordinator.dashboard.fold import RunFold
from tinylora_coordinator.dashboard.fold.sums import reckon_mass
from tinylora_coordinator.dashboard.recording import Happened
from tinylora_coordinator.dashboard.shares import entropy_bits, measured_shares, text_shares, with_inner
from tinylora_coordinator.dashboard.shown import node_document, worker_document

from tests.dashboard.runs import WORLDS, Row, rows_of
from tests.dashboard.synthetic import Plan, make_run
from tinylora.federation.campaign import Campaign, apply
from tinylora.federation.events import WorkerRevoked
from tinylora.federation.summary import summarise
from tinylora.tree import is_under


@cache
def rows(name: str) -> Sequence[Row]:
    if name in WORLDS:
        return rows_of(name, kill="w1@10")
    plan = Plan(n_leaves=4, n_workers=6, hours=0.5, seed=3, share_bad=0.2, lost_every_s=400.0, share_dropped=0.05)
    found = [item for item in make_run(plan) if isinstance(item, Happened)]
    return tuple((number, item.at_s, item.event) for number, item in enumerate(found, 1))


def folded(given: Sequence[Row]) -> RunFold:
    fold = RunFold()
    for row in given:
        fold.apply(*row)
    return fold


ALL = [*sorted(WORLDS), "artificial"]


@pytest.mark.parametrize("name", ALL)
def test_after_every_event_it_agrees_with_the_campaign(name: str) -> None:
    fold, campaign = RunFold(), None
    for number, at_s, event in rows(name):
        fold.apply(number, at_s, event)
        campaign = apply(campaign, event)
        if number % 11 == 0 or event.type not in ("unit_leased", "update_accepted", "worker_joined"):
            assert what_we_say(fold) == what_the_campaign_says(campaign), (number, event)


@pytest.mark.parametrize("name", ["probes", "growing", "artificial"])
def test_whoever_is_revoked_it_agrees(name: str) -> None:
    given = rows(name)
    for share in (0.5, 0.9):
        fold, campaign = RunFold(), None
        for row in given[: int(share * len(given))]:
            fold.apply(*row)
            campaign = apply(campaign, row[2])
        assert campaign is not None
        for worker in sorted(campaign.workers)[:2]:
            event = WorkerRevoked(worker=worker, reason="noise", at_s=fold.head.latest_s)
            fold.apply(fold.head.n_events + 1, fold.head.latest_s, event)
            campaign = apply(campaign, event)
            assert what_we_say(fold) == what_the_campaign_says(campaign)


def what_we_say(fold: RunFold) -> dict[str, Any]:
    head = fold.head
    return {
        "parts": {top: (part.version, part.blob, part.steps) for top, part in fold.parts.items()},
        "done": {top: fold.is_done(top) for top in fold.parts},
        "waiting": {top: sorted((told.worker, told.node) for told in part.waiting) for top, part in fold.parts.items()},
        "workers": {
            name: (worker.name, worker.node, worker.is_online, worker.standing, bool(worker.out), worker.shard_tokens)
            for name, worker in fold.workers.items()
        },
        "at": {name: worker.unit_id for name, worker in fold.workers.items()},
        "leases": {unit.unit_id for unit in fold.units.values() if not unit.is_pending},
        "pending": {unit.unit_id for unit in fold.units.values() if unit.is_pending},
        "trials": set(fold.trials),
        "leaves": fold.leaves,
        "versions": (head.topology_version, head.router_version),
        "accuracy": head.accuracy,
        "over": (head.is_paused, head.finished),
        "progress": pytest.approx(head.progress, abs=1e-8),
        "n": head.n_events,
    }


def what_the_campaign_says(campaign: Campaign) -> dict[str, Any]:
    return {
        "parts": {top: (node.version, node.blob, node.steps) for top, node in campaign.nodes.items()},
        "done": {top: campaign.is_done(top) for top in campaign.nodes},
        "waiting": {
            top: sorted((told.worker, told.node) for told in node.contributions) for top, node in campaign.nodes.items()
        },
        "workers": {
            name: (
                worker.name,
                worker.node,
                worker.is_online,
                worker.standing,
                bool(worker.refusal),
                worker.shard_tokens,
            )
            for name, worker in campaign.workers.items()
        },
        "at": {name: worker.unit_id for name, worker in campaign.workers.items()},
        "leases": set(campaign.leases),
        "pending": set(campaign.pending),
        "trials": set(campaign.trials),
        "leaves": campaign.leaves,
        "versions": (campaign.topology_version, campaign.router.version),
        "accuracy": campaign.router.accuracy,
        "over": (campaign.is_paused, campaign.finished),
        "progress": _progress(campaign),
        "n": campaign.n_events,
    }


def _progress(campaign: Campaign) -> float:
    shares = []
    for leaf in campaign.leaves:
        way = campaign.way_to(leaf) if campaign.is_cascade else (campaign.top_of(leaf),)
        done = sum(min(campaign.nodes[top].steps, campaign.budget(top)) for top in way)
        shares.append(min(1.0, done / campaign.settings.leaf_steps))
    return sum(shares) / len(shares) if shares else 0.0


@pytest.mark.parametrize("name", ALL)
def test_counts_are_those_of_the_report(name: str) -> None:
    fold, tables = folded(rows(name)), summarise(event for _, _, event in rows(name))
    for row in tables["workers"]:
        worker = worker_document(fold, fold.workers[row["worker"]])
        assert worker.name == row["name"]
        assert (worker.tokens, worker.n_lost) == (row["tokens"], row["lost"])
        assert worker.seconds == pytest.approx(row["seconds"], abs=1e-2)
        assert (worker.bytes_sent, worker.bytes_received) == (row["bytes_sent"], row["bytes_received"])
    head = fold.head
    assert head.n_accepted == len(tables["units"])
    assert head.n_rejected == tables["rejected"]["n"]
    assert head.tokens == sum(unit["tokens"] for unit in tables["units"])
    returned = sum(event.type == "lease_expired" and event.is_returned for _, _, event in rows(name))
    assert head.n_expired == tables["expired"]["n"] - returned


@pytest.mark.parametrize("name", ALL)
def test_what_is_shown_of_nodes_follows_from_holders_and_leases(name: str) -> None:
    given = rows(name)
    for share in (0.3, 0.8):
        fold, campaign = RunFold(), None
        for row in given[: int(share * len(given))]:
            fold.apply(*row)
            campaign = apply(campaign, row[2])
        assert campaign is not None
        for leaf in campaign.leaves:
            node = node_document(fold, leaf)
            holders = sorted(
                name for name, one in campaign.workers.items() if one.node is not None and is_under(leaf, one.node)
            )
            assert list(node.holders) == holders
            is_under_way = any(
                leaf in campaign.trained_by(lease) for lease in campaign.leases.values() if lease.kind == "train"
            )
            assert (node.state == "working") == is_under_way
            if node.state == "pending":
                assert any(leaf in campaign.trained_by(one.update) for one in campaign.pending.values())
            if node.state == "unassigned":
                assert not holders
            assert node.n_steps == campaign.nodes[campaign.top_of(leaf)].steps
        for inner in campaign.topology.inner if campaign.topology else ():
            assert (node_document(fold, inner).state == "router") == (
                inner not in campaign.nodes or not campaign.is_trunk(inner)
            )


def test_losses_are_those_of_the_last_round() -> None:
    given = rows("artificial")
    fold, campaign = RunFold(), None
    for row in given:
        fold.apply(*row)
        campaign = apply(campaign, row[2])
    assert campaign is not None
    known = {top: node.history[-1] for top, node in campaign.nodes.items() if node.history}
    assert known
    for top, loss in known.items():
        assert fold.parts[top].loss == pytest.approx(loss)
    for leaf in campaign.leaves:
        node = node_document(fold, leaf)
        first = fold.parts[fold.top_of(leaf) or ""].first_loss
        if node.change is not None and node.loss is not None and first is not None:
            assert node.change == pytest.approx(node.loss - first, abs=2e-4)


@pytest.mark.parametrize("name", ["leaves", "artificial"])
def test_shares_are_reckoned_from_what_workers_measured(name: str) -> None:
    fold = folded(rows(name))
    reckon_mass(fold, fold.head.latest_s)
    leaves = {leaf: fold.mass[leaf] for leaf in fold.leaves}
    assert sum(leaves.values()) == pytest.approx(1.0, abs=1e-4)
    for inner in fold.inner:
        assert fold.mass[inner] == pytest.approx(sum(leaves[leaf] for leaf in fold.leaves_below(inner)), abs=1e-4)
    sums = dict.fromkeys(fold.leaves, 0.0)
    for worker, told in fold.measured.items():
        if told.topology_version == fold.head.topology_version:
            for leaf, share in told.mass.items():
                sums[leaf] += fold.workers[worker].shard_tokens * share
    if fold.head.mass_source == "probes":
        assert leaves == pytest.approx({leaf: one / sum(sums.values()) for leaf, one in sums.items()}, abs=1e-5)


# --- shares, by hand -------------------------------------------------------------------------------------------------


class _Holder:
    def __init__(self, node: str | None, shard_tokens: int) -> None:
        self.node, self.shard_tokens = node, shard_tokens


def test_text_of_a_subtree_counts_equally_for_its_leaves() -> None:
    holders = [_Holder("0", 300), _Holder("1", 100), _Holder(None, 999)]
    assert text_shares(("00", "01", "1"), holders) == {"00": 0.375, "01": 0.375, "1": 0.25}
    assert text_shares(("00", "01", "1"), []) is None


def test_measured_shares_weigh_by_text() -> None:
    told = [(3.0, {"0": 1.0}), (1.0, {"0": 0.5, "1": 0.5, "gone": 1.0})]
    shares = measured_shares(("0", "1"), told)
    assert shares is not None
    assert shares == {"0": 0.875, "1": 0.125}
    assert with_inner(shares) == {"": 1.0, "0": 0.875, "1": 0.125}


@pytest.mark.parametrize(("shares", "bits"), [([0.5, 0.5], 1.0), ([1.0, 0.0], 0.0), ([0.25] * 4, 2.0), ([], 0.0)])
def test_entropy(shares: list[float], bits: float) -> None:
    assert entropy_bits(shares) == pytest.approx(bits)
