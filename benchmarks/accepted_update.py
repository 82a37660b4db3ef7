"""What it costs the coordinator to accept an update, over hashing and copying the update's bytes once.

The loop of a real run with the durable ledger takes in the updates of two workers, one leaf each: document, lease,
signature, hash, names and shapes, finite numbers, distance from the start, blob and event on disk. The adapters are
those of a base of 16 layers and hidden size 2048 at rank 8. The other side is `sha256(payload)` and one copy.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.measure import Rounds as Times
from tinylora import tensors
from tinylora.adapters.shapes import adapter_manifest
from tinylora.config import BaseFacts, ProjectionShape, RunSettings
from tinylora.federation.decisions import decide
from tinylora.federation.events import RunStarted, UpdateAccepted
from tinylora.federation.loop import Rounds
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import Update, WorkUnit, sha256
from tinylora.protocol.envelope import sign
from tinylora.routing.statistics import PREFIXES, statistics_of
from tinylora.tensors import Tensors

GOAL = 5.0
N_UPDATES = 16
N_WARM_UP = 4
HIDDEN, INTERMEDIATE, N_LAYERS = 2048, 5632, 16
SHAPES = {
    **dict.fromkeys(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"], (HIDDEN, HIDDEN)),
    **dict.fromkeys(["mlp.gate_proj", "mlp.up_proj"], (HIDDEN, INTERMEDIATE)),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}
FACTS = BaseFacts(
    base_id="benchmark",
    fingerprint="a" * 64,
    tokenizer_fingerprint="b" * 64,
    feature_dim=256,
    feature_hash="c" * 64,
    max_window_tokens=2048,
    projections={
        name: ProjectionShape(n_layers=N_LAYERS, in_features=n_in, out_features=n_out)
        for name, (n_in, n_out) in SHAPES.items()
    },
)
SETTINGS = RunSettings(
    depth=1, rank=8, unit_steps=10, leaf_steps=1000, min_workers=2, min_sequences=1, probes=0, clip=0
)


def measure() -> dict[str, Any]:
    """Ratio of CPU times, and what the rest of the loop adds per update."""
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="tinylora-bench-") as folder:
        run = _Run(Path(folder))
        for _ in range((N_WARM_UP + N_UPDATES) // 2 + 1):
            run.step()
    ours, other, rest = (values[N_WARM_UP:] for values in (run.taking_s, run.plain_s, run.rest_s))
    times = Times(tuple(ours), tuple(other))
    ratio = times.ratio()
    return {
        "compares": "coordinator CPU from reply to durable acceptance with one sha256 and one copy of the payload",
        "goal": f"<= {GOAL}",
        "is_met": ratio["median"] <= GOAL,
        "figure": {"ratio": ratio},
        "details": {
            "payload_bytes": run.payload_bytes,
            "updates": len(ours),
            **times.seconds(),
            "loop_between_updates_s": float(np.median(rest)),
        },
    }


class _StillClock:
    def now(self) -> float:
        return 0.0

    def wait(self, seconds: float) -> None:
        raise RuntimeError(f"nothing to do for {seconds} s: the run got stuck")


@dataclass
class _Worker:
    """Holds a key, and answers with numbers drawn at random."""

    name: str
    number: int
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))

    @property
    def info(self) -> WorkerInfo:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        key = self.key.public_key().public_bytes(serialization.Encoding.PEM, form)
        return WorkerInfo(self.name, self.name, key)

    def answer(self, unit: WorkUnit) -> Reply:
        made = self._sketch() if unit.kind == "sketch" else self._adapter(unit)
        payload = tensors.to_bytes(made)
        update = Update(
            unit_id=unit.unit_id,
            run=unit.run,
            kind=unit.kind,
            worker=self.name,
            nonce=unit.nonce,
            node=unit.node,
            topology_version=unit.topology_version,
            router_version=unit.router_version,
            node_version=unit.node_version,
            shard_version=sha256(self.name.encode()),
            shard_tokens=1_000_000,
            n_steps=unit.n_steps,
            manifest=tensors.manifest_of(made),
            payload_sha256=sha256(payload),
        )
        return Reply(self.name, unit.unit_id, sign(update, self.key).to_json(), payload)

    def _sketch(self) -> Tensors:
        random = np.random.Generator(np.random.Philox(self.number))
        rows = random.standard_normal((600, FACTS.feature_dim)) + self.number
        sums = statistics_of(rows, np.resize(np.array(PREFIXES), len(rows)))
        return {f"statistics..{name}": torch.from_numpy(array) for name, array in sums.to_arrays().items()}

    def _adapter(self, unit: WorkUnit) -> Tensors:
        random = torch.Generator().manual_seed(unit.first_step)
        shapes = adapter_manifest(FACTS, unit.spec, path=unit.node)
        return {name: torch.randn(shape, generator=random) * 1e-3 for name, (_, shape) in shapes.items()}


class _Run:
    """Two workers and the loop, one step at a time; CPU seconds of each train update are noted."""

    def __init__(self, folder: Path) -> None:
        self.crowd = {name: _Worker(name, number) for number, name in enumerate(("w0", "w1"))}
        self.sent: list[tuple[str, WorkUnit]] = []
        self.taking_s: list[float] = []
        self.plain_s: list[float] = []
        self.rest_s: list[float] = []
        self.payload_bytes = 0
        self.n_accepted = 0
        self.rounds = Rounds(SqliteLedger(folder), self, _StillClock(), TorchNumerics(), on_event=self._note)
        self.rounds.open(RunStarted(run="benchmark", settings=SETTINGS, base=FACTS))
        self.step()

    def workers(self) -> Sequence[WorkerInfo]:
        return [worker.info for worker in self.crowd.values()]

    def poll(self) -> Sequence[Reply]:
        return ()

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        self.sent.append((worker, unit))

    def step(self) -> None:
        """Let the loop do all it wants to do, then answer every unit that it sent."""
        start = time.process_time()
        while commands := decide(self.rounds.state, 0.0, self.workers()):
            for command in commands:
                self.rounds.execute(command)
        between_s = time.process_time() - start
        sent, self.sent = self.sent, []
        for worker, unit in sent:
            reply = self.crowd[worker].answer(unit)
            if unit.kind == "train":
                self._take(reply, between_s / len(sent))
            else:
                self.rounds.take_in([reply])

    def _take(self, reply: Reply, between_s: float) -> None:
        plain_s = _cpu_seconds(lambda: (sha256(reply.payload), bytearray(reply.payload)))
        before = self.n_accepted
        taking_s = _cpu_seconds(lambda: self.rounds.take_in([reply]))
        if self.n_accepted != before + 1:
            raise RuntimeError(f"the update of {reply.unit_id} was not accepted")
        self.plain_s.append(plain_s)
        self.taking_s.append(taking_s)
        self.rest_s.append(between_s)
        self.payload_bytes = len(reply.payload)

    def _note(self, event: object) -> None:
        if isinstance(event, UpdateAccepted):
            self.n_accepted += 1


def _cpu_seconds(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start
