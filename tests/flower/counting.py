"""A trainer that only counts: every step adds `STEP` to each number of B. Light, because child processes import it too.

So a finished leaf says how many steps were counted for it, whoever trained it, and however often units were lost.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tests.federation.facts import DIM, FACTS, RANK
from tinylora import tensors
from tinylora.adapters.shapes import adapter_manifest
from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts
from tinylora.federation.campaign import Campaign
from tinylora.federation.ports import Ledger
from tinylora.flower.identity import Identity
from tinylora.protocol.documents import Update, WorkUnit, sha256
from tinylora.protocol.envelope import sign
from tinylora.routing.gates import N_BINS
from tinylora.routing.statistics import PREFIXES, statistics_of
from tinylora.tensors import Tensors

STEP = 2.0**-12


class CountingTrainer:
    """Does units in no time; its text lies around `centre`. Signs its updates if it has a key."""

    def __init__(self, who: Identity | str, centre: float = 0.0, *, facts: BaseFacts = FACTS, rank: int = RANK) -> None:
        self._identity = who if isinstance(who, Identity) else None
        self._worker = who.worker if isinstance(who, Identity) else who
        self._centre, self._facts, self._rank = centre, facts, rank

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        """An honest update."""
        if unit.kind == "sketch":
            made = _sketch(self._centre)
        else:
            made = _count(unit, tensors.from_bytes(payload), self._facts, self._rank)
        result = tensors.to_bytes(made)
        update = Update(
            unit_id=unit.unit_id,
            run=unit.run,
            kind=unit.kind,
            worker=self._worker,
            nonce=unit.nonce,
            node=unit.node,
            topology_version=unit.topology_version,
            router_version=unit.router_version,
            node_version=unit.node_version,
            shard_version=sha256(self._worker.encode()),
            shard_tokens=10_000,
            tokens=unit.n_steps * unit.batch_windows * unit.window_tokens,
            n_steps=unit.n_steps,
            base_loads=1,
            losses=(3.0, 2.0) if unit.kind == "train" else (),
            manifest=tensors.manifest_of(made),
            payload_sha256=sha256(result),
        )
        return (sign(update, self._identity.sign) if self._identity else update), result


def _sketch(centre: float) -> Tensors:
    return _sums("", [centre, 0.0, 0.0, 0.0])


def _sums(path: str, centre: Sequence[float]) -> Tensors:
    rows = np.asarray(centre) + np.random.default_rng(0).standard_normal((60, DIM))
    arrays = statistics_of(rows, np.resize(np.array(PREFIXES), 60)).to_arrays()
    return {f"statistics.{path}.{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def _count(unit: WorkUnit, given: Tensors, facts: BaseFacts, rank: int) -> Tensors:
    made: Tensors = {}
    for leaf in unit.leaves:
        for name, (_, shape) in adapter_manifest(facts, AdapterSpec("lora", rank), path=leaf).items():
            start = given.get(name, torch.zeros(shape))
            made[name] = start + unit.n_steps * STEP if name.endswith("B") else start
        if len(unit.leaves) > 1:
            made |= _sums(leaf, [float(int(leaf or "0", 2)), 0.0, 0.0, 0.0])
    gates = [name.split(".")[1] for name in given if name.startswith("router.") and name.endswith(".w")]
    return made | {f"histogram.{gate}": torch.ones(2, N_BINS, dtype=torch.float64) for gate in gates}


def assert_counted_once(campaign: Campaign, ledger: Ledger) -> None:
    """Every leaf of a finished run has had its steps exactly: none lost, none twice."""
    assert campaign.finished == "every leaf has had its steps"
    for top, node in campaign.nodes.items():
        found = tensors.from_bytes(ledger.get_blob(node.blob))
        for leaf in campaign.leaves_below(top):
            b = found[f"node.{leaf}.proj.lora_B"]
            torch.testing.assert_close(b, torch.full_like(b, campaign.settings.leaf_steps * STEP), rtol=0, atol=1e-6)
