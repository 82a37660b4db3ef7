"""The tree of a run as one bundle, from its state and its blobs. The same accepted updates give the same bytes."""

import json
from dataclasses import replace
from typing import Any

import torch

from tinylora import tensors
from tinylora.adapters.tied import shared_factors
from tinylora.bundle import Bundle, summarise
from tinylora.errors import DataError
from tinylora.federation.campaign import Campaign, fold
from tinylora.federation.ports import Ledger
from tinylora.federation.routers import Blobs, leaf_statistics
from tinylora.numerics import TorchNumerics
from tinylora.routing.gates import Gates
from tinylora.routing.statistics import sum_statistics
from tinylora.tensors import Tensors
from tinylora.tree import NodePath


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
    with_statistics: bool = True,
    report: dict[str, Any] | None = None,
    is_router_averaged: bool = False,
) -> Bundle:
    """The run's tree as it stands: a node that nobody trained has no adapter, so every prefix of a run is usable.

    Args:
        campaign: State of the run.
        ledger: Its blobs.
        projection: (feature, embedding), where the base's embeddings are wider than the routing feature.
        policy: How a reader should route unless told otherwise.
        with_statistics: Whether to tell what the leaves' texts look like to the router.
        report: To travel in the bundle; it should hold no time, duration or host.
        is_router_averaged: Whether to take the averaged weights that `router_sync = "both"` keeps for comparison.

    Raises:
        DataError: The run has no tree yet, or keeps no averaged weights.
    """
    if campaign.topology is None or not campaign.router.blob:
        raise DataError(
            f"run {campaign.run}: no tree was set, because no worker was sketched"
            + (f" ({campaign.finished})" if campaign.finished else "")
        )
    blobs = Blobs(ledger, TorchNumerics())
    return Bundle(
        run=campaign.run,
        topology=campaign.topology,
        base=campaign.base,
        spec=campaign.settings.spec,
        shared=shared_factors(campaign.base, campaign.settings.spec, seed=campaign.settings.seed),
        scale=campaign.settings.scale,
        nodes=_adapters(campaign, ledger),
        gates=_gates(campaign, blobs, is_averaged=is_router_averaged),
        policy=policy,
        projection=projection,
        statistics=_statistics(campaign, blobs) if with_statistics else None,
        contributors=_contributors(campaign),
        versions=_versions(campaign),
        report=json.loads(json.dumps(report or {})),
    )


def _adapters(campaign: Campaign, ledger: Ledger) -> dict[NodePath, Tensors]:
    adapters: dict[NodePath, Tensors] = {}
    for top, node in sorted(campaign.nodes.items()):
        found = tensors.from_bytes(ledger.get_blob(node.blob)) if node.blob else {}
        for path in campaign.adapters_of(top) if node.blob else ():
            adapters[path] = tensors.strip_prefix(found, f"node.{path}.")
    return adapters


def _gates(campaign: Campaign, blobs: Blobs, *, is_averaged: bool) -> Gates:
    if not is_averaged:
        return replace(blobs.gates(campaign.router.blob), dim=campaign.base.feature_dim)
    if campaign.settings.router_sync == "statistics":
        raise DataError(f"run {campaign.run}: keeps no averaged weights; it was run with router_sync = statistics")
    return replace(blobs.weights(campaign.router.blob), dim=campaign.base.feature_dim)


def _statistics(campaign: Campaign, blobs: Blobs) -> Any:
    by_leaf = leaf_statistics(campaign, blobs)
    return summarise({leaf: sum_statistics(items) for leaf, items in by_leaf.items() if items})


def _contributors(campaign: Campaign) -> tuple[str, ...]:
    """Workers of whom an update was accepted, sketches included."""
    return tuple(sorted(name for name, worker in campaign.workers.items() if worker.n_accepted))


def _versions(campaign: Campaign) -> dict[str, int]:
    nodes = {f"node.{top}": node.version for top, node in sorted(campaign.nodes.items())}
    return {"topology": campaign.topology_version, "router": campaign.router.version, **nodes}
