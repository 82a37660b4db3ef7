"""One fixed set of updates in many orders of arrival (a hundred: `make slow`), on one thread or four: one bundle."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.federation.facts import DIM, FACTS, SETTINGS
from tests.federation.world import FakeRunner
from tinylora.bundle import write_bundle
from tinylora.federation.decisions import decide
from tinylora.federation.events import RunStarted
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import Rounds
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import WorkUnit, sha256
from tinylora.release import make_bundle
from tinylora.routing.features import feature_hash

BASE = FACTS.model_copy(update={"feature_hash": feature_hash(None, DIM, DIM)})


def _uneven(unit: WorkUnit, made: dict) -> dict:
    """Numbers of which no two sums in different orders are alike."""
    draw = torch.Generator().manual_seed(int(sha256(f"{unit.unit_id}".encode())[:8], 16))
    return {
        name: t + torch.rand(t.shape, generator=draw) * 1e-3 if name.startswith("node.") else t
        for name, t in made.items()
    }


@dataclass
class _Waves:
    """Workers that all answer at once, and a network that delivers in any order."""

    n: int
    waiting: list[tuple[str, WorkUnit, bytes]] = field(default_factory=list)
    at_s: float = 0.0

    def now(self) -> float:
        return self.at_s

    def wait(self, seconds: float) -> None:
        self.at_s += seconds

    def workers(self) -> list[WorkerInfo]:
        return [WorkerInfo(f"w{i}", f"w{i}") for i in range(self.n)]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        self.waiting.append((worker, unit, payload))

    def poll(self) -> list[Reply]:
        return []

    def answers(self) -> list[Reply]:
        """To all units that are out."""
        sent, self.waiting = self.waiting, []
        runners = {
            f"w{i}": FakeRunner(f"w{i}", (2.0 * i, 0, 0, 0), spoil=_uneven, has_histograms=True) for i in range(self.n)
        }
        made = [(worker, unit.unit_id, *runners[worker].run(unit, payload)) for worker, unit, payload in sent]
        return [Reply(worker, unit_id, update.to_json(), data) for worker, unit_id, update, data in made]


def _bundle_hash(tmp_path, n: int, seed: int, **changes: Any) -> str:
    shuffle, waves = random.Random(seed), _Waves(n)
    ledger = MemoryLedger()
    rounds = Rounds(ledger, waves, waves, TorchNumerics())
    settings = SETTINGS.model_copy(update={"min_workers": n, "leaf_steps": 5, "router_period": 1000, **changes})
    rounds.open(RunStarted(run="test", settings=settings, base=BASE))
    while not rounds.state.finished:
        while commands := decide(rounds.state, waves.at_s, waves.workers()):
            for command in commands:
                rounds.execute(command)
        answers = waves.answers()
        shuffle.shuffle(answers)
        for answer in answers:
            rounds.take_in([answer])
        waves.at_s += 1.0
    file = tmp_path / "bundle.safetensors"
    write_bundle(make_bundle(rounds.state, ledger), file)
    return sha256(file.read_bytes())


@pytest.mark.parametrize("n_orders", [8, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("n", "changes"),
    [
        (3, {"depth": 2, "probes": 2}),  # a subtree
        (5, {"depth": 1, "where": "path", "probes": 2, "router_sync": "both"}),  # replicas and a trunk
    ],
    ids=["subtree", "replicas and trunk"],
)
def test_any_order_of_arrival_gives_one_bundle(tmp_path, n, changes, n_orders):
    threads = torch.get_num_threads()
    try:
        found = set()
        for seed in range(n_orders):
            torch.set_num_threads((1, 4)[seed % 2])
            found.add(_bundle_hash(tmp_path, n, seed, **changes))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
