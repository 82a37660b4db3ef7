"""The next version of the gates, from the statistics, histograms and weights that the run accepted. Numpy only.

Which sums speak for which leaf:

* the sketch of a worker that holds a leaf speaks for that leaf;
* the latest per-leaf sums of a worker that holds a subtree speak for its leaves; until they arrive, its sketch stands
  for each of them, which leaves the gates inside the subtree at zero and those above it as they should be;
* a worker that is gone, or gets no more units, has still written what its leaf was trained on: its sums stay.

Every (worker, shard version, leaf) counts once, because a worker has one sketch and one set of per-leaf sums at a time.

However much text somebody claims to have, it counts for at most `influence_cap` medians over the workers: its sums and
histograms are scaled down to that. Where nobody has so much, the gates are those of the pooled texts, to rounding.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from tinylora.federation.growth import balanced_accuracy
from tinylora.federation.ports import Ledger, Numerics
from tinylora.federation.state import Campaign, Worker
from tinylora.routing.averaged_gates import average_gates
from tinylora.routing.gates import (
    DEFAULT_TAU,
    Gate,
    Gates,
    calibrate,
    drift,
    read_histograms,
    solve_gates,
)
from tinylora.routing.statistics import RouterStatistics, sum_statistics
from tinylora.tree import NodePath, Topology

LeafStatistics = dict[NodePath, Mapping[str, RouterStatistics]]
AnyItem = TypeVar("AnyItem")

STATISTICS_BYTES = 32 << 20
"""Of sums that stay in memory; one worker's take a quarter of a MiB."""
HISTOGRAM_BYTES = 16 << 20


class Sums(Mapping[str, RouterStatistics]):
    """Sums by worker that are read when they are asked for, and kept by nobody.

    Args:
        readers: What reads them, by worker.
    """

    def __init__(self, readers: Mapping[str, Callable[[], RouterStatistics]]) -> None:
        self._readers = dict(sorted(readers.items()))

    def __getitem__(self, worker: str) -> RouterStatistics:
        return self._readers[worker]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


class Recent(Generic[AnyItem]):
    """The items that were asked for last, as many as fit into so many bytes.

    Args:
        limit_bytes: Of all items together.
        make: An item and its size, by name.
    """

    def __init__(self, limit_bytes: int, make: Callable[[str], tuple[AnyItem, int]]) -> None:
        self._limit_bytes = limit_bytes
        self._make = make
        self._kept: dict[str, tuple[AnyItem, int]] = {}
        self.n_bytes = 0

    def __call__(self, name: str) -> AnyItem:
        """The item, made anew where it is not there any more."""
        known = self._kept.pop(name, None)
        if known is None:
            known = self._make(name)
            self.n_bytes += known[1]
        self._kept[name] = known  # the last one is the one that was asked for last
        while self.n_bytes > self._limit_bytes and len(self._kept) > 1:
            self.n_bytes -= self._kept.pop(next(iter(self._kept)))[1]
        return known[0]


class Blobs:
    """What the ledger's blobs say about routing; every version of the gates needs it again, so some stays in memory."""

    def __init__(self, ledger: Ledger, numerics: Numerics) -> None:
        self._ledger = ledger
        self._numerics = numerics
        self.statistics = Recent(STATISTICS_BYTES, self._statistics)
        self.histograms = Recent(HISTOGRAM_BYTES, self._histograms)

    def sketches(self, state: Campaign, workers: Iterable[str]) -> Sums:
        """The sums over the whole shards of these workers."""
        return Sums({name: partial(self._sketch, state.workers[name].sketch) for name in workers})

    def _sketch(self, blob: str) -> RouterStatistics:
        return self.statistics(blob)[""]

    def _statistics(self, blob: str) -> tuple[Mapping[NodePath, RouterStatistics], int]:
        """Sums by path; a sketch has one, named by the root's. Whether they are sums was seen when they came."""
        arrays = self._arrays(blob, "statistics.")
        found = {path: RouterStatistics(**fields) for path, fields in _by_path(arrays).items()}
        return found, sum(array.nbytes for array in arrays.values())

    def _histograms(self, blob: str) -> tuple[dict[NodePath, np.ndarray], int]:
        """Router scores by inner node."""
        arrays = self._arrays(blob, "histogram.")
        return read_histograms(arrays), sum(array.nbytes for array in arrays.values()) + 1

    def gates(self, blob: str) -> Gates:
        """The gates that a run routes by."""
        return Gates.from_arrays(self._arrays(blob, "router."))

    def weights(self, blob: str) -> Gates:
        """Gates by averaged weights, or a worker's contribution to them."""
        prefix = "weights_router."
        return Gates.from_arrays(self._arrays(blob, prefix), prefix, with_tau=False)

    def _arrays(self, blob: str, prefix: str) -> dict[str, np.ndarray]:
        return self._numerics.arrays(self._ledger.get_blob(blob), prefix)


def read_statistics(arrays: Mapping[str, np.ndarray]) -> dict[NodePath, RouterStatistics]:
    """Sums by path from tensors `statistics.<path>.{count,total,scatter}`.

    Raises:
        ProtocolError: Some numbers cannot be sums of anything.
    """
    return {path: RouterStatistics.from_arrays(fields) for path, fields in _by_path(arrays).items()}


def _by_path(arrays: Mapping[str, np.ndarray]) -> dict[NodePath, dict[str, np.ndarray]]:
    grouped: dict[NodePath, dict[str, np.ndarray]] = {}
    for name, array in sorted(arrays.items()):
        _, path, field = name.split(".")
        grouped.setdefault(path, {})[field] = array
    return grouped


def leaf_statistics(state: Campaign, blobs: Blobs) -> LeafStatistics:
    """The sums that speak for each leaf, by worker, none of which counts beyond the run's cap.

    They are read when they are asked for: of many workers, all of them would not fit into memory.
    """
    speakers = {name: worker for name, worker in sorted(state.workers.items()) if worker.node is not None}
    speakers = {name: worker for name, worker in speakers.items() if worker.sketch}
    amounts = {name: blobs.statistics(worker.sketch)[""].n for name, worker in speakers.items()}
    shares = capped_shares(amounts, state.settings.influence_cap)
    readers: dict[NodePath, dict[str, Callable[[], RouterStatistics]]] = {leaf: {} for leaf in state.leaves}
    for name, worker in speakers.items():
        for leaf in state.leaves_below(worker.node or ""):
            readers[leaf][name] = partial(_sums_for, worker, leaf, blobs, shares.get(name, 1.0))
    return {leaf: Sums(own) for leaf, own in readers.items()}


def capped_shares(amounts: Mapping[str, float], cap: float) -> dict[str, float]:
    """What share of its amount counts, for those alone that have more than `cap` medians over all."""
    if not amounts:
        return {}
    most = cap * statistics.median(amounts.values())
    return {name: most / amount for name, amount in amounts.items() if amount > most > 0}


def _sums_for(worker: Worker, leaf: NodePath, blobs: Blobs, share: float) -> RouterStatistics:
    """What speaks for one leaf of a worker's, and that share of it which counts."""
    told = blobs.statistics(worker.leaf_statistics) if worker.leaf_statistics else {}
    is_told = leaf in told and (worker.node != leaf or worker.is_mixed)
    sums = told[leaf] if is_told else blobs.statistics(worker.sketch)[""]
    return sums * share if share < 1 else sums


def next_gates(state: Campaign, blobs: Blobs) -> tuple[dict[str, np.ndarray], float, dict[NodePath, float]]:
    """Tensors of the next router version, how far its gates moved, and how often each was right on held-out text."""
    topology = state.topology or Topology(("",))
    sync = state.settings.router_sync
    old = blobs.gates(state.router.blob) if state.router.blob else None
    weights = _averaged_weights(state, blobs, topology) if sync != "statistics" else None
    gates = weights if weights and sync == "weights" else _solved(state, blobs, topology)
    histograms = _histograms(state, blobs)
    gates = calibrate(gates, histograms)
    arrays = gates.to_arrays()
    if weights:
        arrays |= weights.to_arrays("weights_router.", with_tau=False)
    accuracy = {node: balanced_accuracy(histograms[node]) for node in topology.inner if node in histograms}
    known = {node: value for node, value in accuracy.items() if value is not None}
    return arrays, drift(gates, old), known


def _solved(state: Campaign, blobs: Blobs, topology: Topology) -> Gates:
    by_leaf = leaf_statistics(state, blobs)
    known = {leaf: sum_statistics(items) for leaf, items in by_leaf.items() if items}
    if not known:  # everybody was taken out: nothing is known of any leaf, and the gates are undecided
        blank = Gate(np.zeros(state.base.feature_dim), 0.0, DEFAULT_TAU)
        return Gates(dict.fromkeys(topology.inner, blank), state.base.feature_dim)
    return solve_gates(known, topology)


def _averaged_weights(state: Campaign, blobs: Blobs, topology: Topology) -> Gates:
    """The gates trained by the workers since the last version, averaged; the first version is zero, and undecided."""
    places = {(name, node): blob for name, own in state.router.weights.items() for node, blob in own.items()}
    contributions = {place: blobs.weights(blob) for place, blob in sorted(places.items())}
    present = blobs.weights(state.router.blob) if state.router.blob else Gates({}, state.base.feature_dim)
    return average_gates(contributions, topology, present, clip=state.settings.clip)


def _histograms(state: Campaign, blobs: Blobs) -> dict[NodePath, np.ndarray]:
    """Sum of the workers' latest histograms by inner node.

    Those with all scores in one bin are left out: they were taken when the gate was still zero, or had one side only.
    """
    told = {name: blobs.histograms(worker.histogram) for name, worker in state.workers.items() if worker.histogram}
    total: dict[NodePath, np.ndarray] = {}
    for inner in sorted({inner for histograms in told.values() for inner in histograms}):
        own = {name: histograms[inner] for name, histograms in sorted(told.items()) if inner in histograms}
        amounts = {name: float(counts.sum()) for name, counts in own.items()}
        shares = capped_shares(amounts, state.settings.influence_cap)
        for name, counts in own.items():
            counted = counts * shares[name] if name in shares else counts
            total[inner] = total[inner] + counted if inner in total else counted
    return {inner: counts for inner, counts in total.items() if np.count_nonzero(counts.sum(axis=0)) > 1}
