"""The tree of a run as one bundle, from its state and its blobs. The same accepted updates give the same bytes."""

import json
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch

from tinylora import tensors
from tinylora.adapters.tied import shared_factors
from tinylora.bundle import Bundle, LeafStatistics, StatisticsKind, summarise
from tinylora.errors import DataError
from tinylora.federation.campaign import Campaign, apply, fold
from tinylora.federation.events import BundlePublished, WorkerRevoked
from tinylora.federation.ports import Ledger
from tinylora.federation.removal import revoked
from tinylora.federation.routers import Blobs, leaf_statistics, next_gates
from tinylora.numerics import TorchNumerics
from tinylora.routing.gates import Gates
from tinylora.routing.statistics import sum_statistics
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, is_under

Arrays: TypeAlias = dict[str, np.ndarray]


def assemble_bundle(ledger: Ledger, **options: Any) -> Bundle:
    """The bundle of the run that a ledger holds; options are those of `make_bundle`.

    Raises:
        DataError: The ledger is empty, or the run has no tree yet.
    """
    campaign = fold(ledger.events())
    if campaign is None:
        raise DataError("ledger: no run was started here, so there is nothing to release")
    return make_bundle(campaign, ledger, **options)


def make_bundle(
    campaign: Campaign,
    ledger: Ledger,
    *,
    projection: torch.Tensor | None = None,
    policy: str = "soft",
    statistics: StatisticsKind = "leaf",
    report: dict[str, Any] | None = None,
    is_router_averaged: bool = False,
    without: str = "",
    leaf: NodePath | None = None,
) -> Bundle:
    """The run's tree as it stands: a node that nobody trained has no adapter, so every prefix of a run is usable.

    Args:
        campaign: State of the run.
        ledger: Its blobs.
        projection: (feature, embedding), where the base's embeddings are wider than the routing feature.
        policy: How a reader should route unless told otherwise.
        statistics: What to tell of how the leaves' texts look to the router; see `bundle.summarise`.
        report: To travel in the bundle; it should hold no time, duration or host.
        is_router_averaged: Whether to take the averaged weights that `router_sync = "both"` keeps for comparison.
        without: A worker whose share is left out, as if it were revoked now; the ledger stays as it is.
        leaf: Read the adapters on the way to this leaf alone; the others are missing, as if nobody had trained them.

    Raises:
        DataError: The run has no tree yet, keeps no averaged weights, or does not know the worker to leave out.
    """
    topology = campaign.topology  # that of a run without one of its workers is no other
    if topology is None or not campaign.router.blob:
        raise DataError(
            f"run {campaign.run}: no tree was set, because no worker was sketched"
            + (f" ({campaign.finished})" if campaign.finished else "")
        )
    blobs = Blobs(ledger, TorchNumerics())
    solved = None
    if without:
        campaign, solved = _without(campaign, blobs, without)
    return Bundle(
        run=campaign.run,
        topology=topology,
        base=campaign.base,
        spec=campaign.settings.spec,
        shared=shared_factors(campaign.base, campaign.settings.spec, seed=campaign.settings.seed),
        scale=campaign.settings.scale,
        nodes=_adapters(campaign, ledger, leaf),
        gates=_gates(campaign, blobs, solved, is_averaged=is_router_averaged),
        policy=policy,
        projection=projection,
        statistics=None if statistics == "none" else _statistics(campaign, blobs, is_pooled=statistics == "pooled"),
        contributors=_contributors(campaign),
        data_notes=data_notes(campaign),
        licences=licences(campaign),
        versions=_versions(campaign),
        report=json.loads(json.dumps(report or {})),
    )


def described(campaign: Campaign, ledger: Ledger, *, sha256: str, n_bytes: int) -> BundlePublished:
    """The event that names a file made of the run as it stands: of which log it is, by its length and its hash."""
    return BundlePublished(
        sha256=sha256,
        bytes=n_bytes,
        n_events=campaign.n_events,
        log_sha256=ledger.chain_at(campaign.n_events),
        router_version=campaign.router.version,
        at_s=campaign.latest_at_s,
    )


def record(campaign: Campaign, ledger: Ledger, made: BundlePublished) -> Campaign:
    """Name a bundle in the log, unless it is named there already; returns the state after that.

    Raises:
        DiskFull: There is no room; nothing was written.
    """
    if made.sha256 in campaign.bundles:
        return campaign
    ledger.append([made], made.at_s)
    return apply(campaign, made)


def _adapters(campaign: Campaign, ledger: Ledger, leaf: NodePath | None) -> dict[NodePath, Tensors]:
    adapters: dict[NodePath, Tensors] = {}
    for top, node in sorted(campaign.nodes.items()):
        if not node.blob or (leaf is not None and not is_under(leaf, top)):
            continue
        found = tensors.from_bytes(ledger.get_blob(node.blob))
        for path in campaign.adapters_of(top):
            if leaf is None or is_under(leaf, path):
                adapters[path] = tensors.strip_prefix(found, f"node.{path}.")
    return adapters


def _without(campaign: Campaign, blobs: Blobs, worker: str) -> tuple[Campaign, Arrays | None]:
    """The state had this worker been revoked by now, and the tensors of the gates that would have been solved then."""
    if worker not in campaign.workers:
        raise DataError(f"run {campaign.run}: no worker {worker!r}; known: {', '.join(sorted(campaign.workers))}")
    after = revoked(campaign, WorkerRevoked(worker=worker))
    if not after.router.has_news:
        return after, None
    arrays, _, _ = next_gates(after, blobs)
    return replace(after, router=replace(after.router, version=after.router.version + 1)), arrays


def _gates(campaign: Campaign, blobs: Blobs, solved: Arrays | None, *, is_averaged: bool) -> Gates:
    """The gates as they are in the ledger, or as they were just solved."""
    blob, dim = campaign.router.blob, campaign.base.feature_dim
    if not is_averaged:
        found = Gates.from_arrays(solved) if solved is not None else blobs.gates(blob)
    elif campaign.settings.router_sync == "statistics":
        raise DataError(f"run {campaign.run}: keeps no averaged weights; it was run with router_sync = statistics")
    else:
        prefix = "weights_router."
        found = Gates.from_arrays(solved, prefix, with_tau=False) if solved is not None else blobs.weights(blob)
    return replace(found, dim=dim)


def _statistics(campaign: Campaign, blobs: Blobs, *, is_pooled: bool) -> LeafStatistics | None:
    by_leaf = leaf_statistics(campaign, blobs)
    sums = {leaf: sum_statistics(items) for leaf, items in by_leaf.items() if items}
    return summarise(sums, pooled=is_pooled)


def _contributors(campaign: Campaign) -> tuple[str, ...]:
    """Workers of whom an update was accepted, sketches included, and that were not taken out again."""
    taken_out = ("revoked", "erased")
    return tuple(
        name
        for name, worker in sorted(campaign.workers.items())
        if worker.n_accepted and worker.standing not in taken_out
    )


def data_notes(campaign: Campaign) -> dict[NodePath, tuple[str, ...]]:
    """What those who hold each leaf said of their text, each thing once; leaves without a word are missing."""
    holders = [worker for _, worker in sorted(campaign.workers.items()) if worker.node is not None and worker.data_note]
    found = {
        leaf: tuple(dict.fromkeys(worker.data_note for worker in holders if is_under(leaf, worker.node or "")))
        for leaf in campaign.leaves
    }
    return {leaf: notes for leaf, notes in found.items() if notes}


def licences(campaign: Campaign) -> tuple[str, ...]:
    """Licences of text that the bundle was made of, in its owners' words."""
    found = {campaign.workers[name].data_licence for name in _contributors(campaign)}
    return tuple(sorted(found - {""}))


def _versions(campaign: Campaign) -> dict[str, int]:
    nodes = {f"node.{top}": node.version for top, node in sorted(campaign.nodes.items())}
    return {"topology": campaign.topology_version, "router": campaign.router.version, **nodes}
