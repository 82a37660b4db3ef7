"""A federation without a model: workers whose text is a cloud of features, and whose training only counts steps.

Every step adds `STEP` to each number of B. So the adapter of a leaf says how many steps were counted for it: after a
run it is `leaf_steps * STEP` everywhere, whoever trained it and however often units were lost, repeated or shared.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tests.federation.facts import DIM, FACTS, RANK, SETTINGS
from tinylora import tensors
from tinylora.adapters.prefixes import prefix_spec
from tinylora.adapters.shapes import adapter_manifest
from tinylora.adapters.spec import AdapterSpec
from tinylora.config import RunSettings
from tinylora.federation.campaign import Campaign
from tinylora.federation.events import Event
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.ports import Ledger
from tinylora.protocol.documents import ProbeResult, Update, WorkUnit, only_factors, sha256
from tinylora.routing.gates import N_BINS
from tinylora.routing.statistics import PREFIXES, RouterStatistics, statistics_of
from tinylora.simulate import FaultPlan, SimulatedWorker, run_simulated
from tinylora.tensors import Tensors

STEP = 2.0**-12


def cloud(centre: Sequence[float], *, n: int = 60, spread: float = 1.0, seed: str = "") -> RouterStatistics:
    """Sums over rows scattered around a centre."""
    digest = hashlib.sha256(f"{list(centre)}/{seed}".encode()).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    rows = np.asarray(centre, dtype=np.float64) + spread * random.standard_normal((n, DIM))
    return statistics_of(rows, np.resize(np.array(PREFIXES), n))


def statistics_tensors(items: dict[str, RouterStatistics]) -> Tensors:
    """As they travel."""
    return {
        f"statistics.{path}.{name}": torch.from_numpy(np.ascontiguousarray(array))
        for path, item in items.items()
        for name, array in item.to_arrays().items()
    }


@dataclass
class FakeRunner:
    """A worker whose text lies around `centre`; `spoil` may change an update on its way out."""

    worker: str
    centre: Sequence[float] = (0.0,) * DIM
    spread: float = 1.0
    shard_tokens: int = 10_000
    spoil: Callable[[WorkUnit, Tensors], Tensors] | None = None
    max_rank: int = 0
    max_leaves: int = 0
    mass: dict[str, float] | None = None
    """Of its text by leaf, as a probe tells it."""
    has_histograms: bool = False
    """Off where temperatures do not matter: fitting them takes most of such a run's time."""

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        """Count steps, and tell where the text lies."""
        if unit.kind == "probe":
            return self._probe(unit, tensors.from_bytes(payload))
        made = self._sketch() if unit.kind == "sketch" else self._train(unit, tensors.from_bytes(payload))
        made = self.spoil(unit, made) if self.spoil else made
        update, data = answer(unit, made, worker=self.worker, shard_tokens=self.shard_tokens)
        return update.model_copy(update=self._limits), data

    def _probe(self, unit: WorkUnit, given: Tensors) -> tuple[Update, bytes]:
        """The more steps an adapter has, the better: 1 nat less for 4096 / 100 of them."""
        tokens = max(1, unit.probe_windows * (unit.window_tokens - 1))
        current, candidate = (_level(given, prefix) for prefix in ("node.", "candidate."))
        result = ProbeResult(
            tokens=tokens,
            nll_parent=5.0 * tokens,
            nll_current=(5.0 - 100 * current) * tokens,
            nll_candidate=(5.0 - 100 * candidate) * tokens,
            mass=self.mass or {},
        )
        update, data = answer(unit, {}, worker=self.worker, shard_tokens=self.shard_tokens)
        return update.model_copy(update={"probe": result, **self._limits}), data

    @property
    def _limits(self) -> dict[str, int]:
        return {"max_rank": self.max_rank, "max_leaves": self.max_leaves}

    def _sketch(self) -> Tensors:
        return statistics_tensors({"": self.sums})

    @property
    def sums(self) -> RouterStatistics:
        """Of the whole text."""
        return cloud(self.centre, spread=self.spread, seed=self.worker)

    def _train(self, unit: WorkUnit, given: Tensors) -> Tensors:
        made: Tensors = {}
        spec = prefix_spec(AdapterSpec("lora", RANK), FACTS, unit.prefix_rank)
        for path in unit.trained:
            adapter = only_factors(adapter_manifest(FACTS, spec, path=path), unit.factors)
            for name, (_, shape) in adapter.items():
                start = given.get(name, torch.zeros(shape))
                made[name] = start + unit.n_steps * STEP if name.endswith("B") else start
        gates = [name.split(".")[1] for name in given if name.startswith("router.") and name.endswith(".w")]
        for gate in gates:
            if self.has_histograms:
                made[f"histogram.{gate}"] = self._histogram(unit, gate)
            if unit.router_sync != "statistics":
                made[f"weights_router.{gate}.w"] = torch.full((DIM,), float(len(unit.node)), dtype=torch.float64)
                made[f"weights_router.{gate}.b"] = torch.ones(1, dtype=torch.float64)
        if len(unit.leaves) > 1 and set(unit.leaves) <= unit.trained.keys():
            parts = {leaf: cloud(_nudge(self.centre, leaf), seed=self.worker + leaf) for leaf in unit.leaves}
            made |= statistics_tensors(parts)
        return made

    def _histogram(self, unit: WorkUnit, gate: str) -> torch.Tensor:
        counts = torch.zeros(2, N_BINS, dtype=torch.float64)
        for leaf in unit.leaves:
            if leaf.startswith(gate):
                side = int(leaf[len(gate)])
                counts[side, N_BINS // 2 + (3 if side else -3)] += 10
                counts[side, N_BINS // 2] += 1
        return counts


def _level(given: Tensors, prefix: str) -> float:
    """What the B of these adapters hold on average."""
    found = [tensor.mean().item() for name, tensor in given.items() if name.startswith(prefix) and name.endswith("B")]
    return sum(found) / len(found) if found else 0.0


def _nudge(centre: Sequence[float], leaf: str) -> list[float]:
    return [number + 0.5 * int(leaf[-1]) for number in centre]


def answer(unit: WorkUnit, made: Tensors, *, worker: str, shard_tokens: int = 10_000) -> tuple[Update, bytes]:
    """An honest update around these tensors."""
    payload = tensors.to_bytes(made)
    update = Update(
        unit_id=unit.unit_id,
        run=unit.run,
        kind=unit.kind,
        worker=worker,
        nonce=unit.nonce,
        node=unit.node,
        topology_version=unit.topology_version,
        router_version=unit.router_version,
        node_version=unit.node_version,
        shard_version=sha256(worker.encode()),
        shard_tokens=shard_tokens,
        tokens=unit.n_steps * unit.batch_windows * unit.window_tokens,
        n_steps=unit.n_steps,
        base_loads=1,
        losses=(3.0, 2.0) if unit.kind == "train" else (),
        manifest=tensors.manifest_of(made),
        payload_sha256=sha256(payload),
    )
    return update, payload


def crowd(n: int, **traits: Any) -> list[SimulatedWorker]:
    """Workers w0, w1, ... whose texts lie on a line, neighbours two apart; all are equally fast."""
    return [
        SimulatedWorker(name, runner=FakeRunner(name, (2.0 * number, 0.0, 0.0, 0.0), **traits), seconds_per_step=1.0)
        for number, name in enumerate(f"w{number}" for number in range(n))
    ]


def run_world(
    workers: Sequence[SimulatedWorker],
    settings: RunSettings = SETTINGS,
    *,
    faults: FaultPlan | None = None,
    ledger: Ledger | None = None,
    **changes: Any,
) -> tuple[Campaign, tuple[Event, ...], Ledger]:
    """A run to its end: its state, all events, and the ledger."""
    kept = ledger or MemoryLedger()
    runners = [worker.runner for worker in workers if worker.runner]
    chosen = settings.model_copy(update=changes)
    campaign = run_simulated(kept, chosen, workers, FACTS, runners, faults)
    return campaign, tuple(kept.events()), kept


def only(events: Sequence[Event], kind: type) -> list:
    """Events of one type."""
    return [event for event in events if isinstance(event, kind)]


def with_spoil(worker: SimulatedWorker, spoil: Callable[[WorkUnit, Tensors], Tensors]) -> SimulatedWorker:
    """The same worker, spoiling its updates."""
    runner = worker.runner
    assert isinstance(runner, FakeRunner)
    return replace(worker, runner=replace(runner, spoil=spoil))


def assert_counted_once(campaign: Campaign, ledger: Ledger) -> None:
    """Every adapter of a finished run has had its steps exactly: none lost, none twice."""
    for top, node in campaign.nodes.items():
        assert node.steps == campaign.budget(top)
        found = tensors.from_bytes(ledger.get_blob(node.blob))
        for path in campaign.adapters_of(top):
            for part, expected in (("A", 0.0), ("B", campaign.budget(top) * STEP)):
                tensor = found[f"node.{path}.proj.lora_{part}"]
                torch.testing.assert_close(tensor, torch.full_like(tensor, expected), rtol=0, atol=1e-6)
