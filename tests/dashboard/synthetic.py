"""Large artificial runs: events and reports that tell one consistent story, from a seed.

    python -m tests.dashboard.synthetic --leaves 512 --workers 200 --hours 3 --out big.jsonl.gz

No tensor and no text: a small discrete simulation of workers that come, train, score each other's updates, vanish, and
return, beside a coordinator that does what `federation.decisions` would, roughly. `federation.campaign.fold` accepts
every event. Losses fall along a curve of each leaf's own; who is bad is refused, and quarantined at the third strike.
"""

import argparse
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tinylora_coordinator.dashboard.recording import Happened, Item, Told, write_recording

from tinylora.config import BaseFacts, ProjectionShape, RunSettings
from tinylora.federation import events as ev
from tinylora.federation.standing import MAX_STRIKES, WINDOW
from tinylora.protocol.documents import ProbeResult, UnitKind
from tinylora.protocol.report import WorkerReport
from tinylora.protocol.standstill import Reason, WorkerState
from tinylora.tree import NodePath, Topology, children, is_under

RUN = "artificial"
UNIT_STEPS = 50
REPORT_EVERY_S, REST_REPORT_S = 10.0, 60.0
"""At work, and otherwise; as the worker's agent does."""
FIRST_REST_S, LONGEST_REST_S = 5.0, 600.0
TOKENS_PER_STEP = 8 * 256
LEAF_BYTES = 1 << 20
GPUS = (
    ("NVIDIA GeForce RTX 3060", 12 << 30, 1.0),
    ("NVIDIA GeForce RTX 4090", 24 << 30, 3.2),
    ("NVIDIA GeForce GTX 1080", 8 << 30, 0.6),
    ("NVIDIA H100 80GB HBM3", 80 << 30, 8.0),
    ("Apple M3", 16 << 30, 0.5),
    ("", 0, 0.1),
)
NOTES = ("Radiology reports, 2019 to 2024", "Old letters", "Kernel mailing list", "Recipes", "", "Court decisions")
FIRST = ("quiet", "hazy", "brave", "lone", "mossy", "swift", "pale", "amber", "grumpy", "wise", "tiny", "bold")
SECOND = ("otter", "fox", "heron", "badger", "newt", "raven", "lynx", "mole", "crane", "hare", "toad", "wren")


@dataclass(frozen=True)
class Plan:
    """What kind of run it is to be."""

    n_leaves: int = 16
    """A power of two."""
    n_workers: int = 8
    hours: float = 1.0
    seed: int = 0
    events_per_s: float = 0.5
    """Of the ledger, on average and about; units are as long as that takes."""
    probes: int = 1
    share_late: float = 0.25
    """Of the workers: come when the tree stands, and divide a subtree where one is to be had."""
    share_bad: float = 0.02
    lost_every_s: float = 3600.0
    """Mean time that a worker stays online."""
    away_s: float = 300.0
    """Mean time that it is away then."""
    share_expired: float = 0.02
    """Of the units."""
    share_rejected: float = 0.005
    share_dropped: float = 0.01
    is_paused_once: bool = True
    is_finished: bool = False
    has_reports: bool = True

    @property
    def seconds(self) -> float:
        """Length of the run."""
        return self.hours * 3600.0

    @property
    def depth(self) -> int:
        """Of the tree."""
        return self.n_leaves.bit_length() - 1

    @property
    def unit_s(self) -> float:
        """Seconds of a usual train unit."""
        events_per_unit = 4 + 2 * self.probes
        return 0.75 * self.n_workers * events_per_unit / self.events_per_s


@dataclass
class _Worker:
    worker: str
    name: str
    gpu: str
    memory_bytes: int
    speed: float
    note: str
    is_bad: bool
    node: NodePath | None = None
    is_online: bool = False
    is_out: bool = False
    unit: ev.UnitLeased | None = None
    is_sketched: bool = False
    misses: int = 0
    rests_until_s: float = 0.0
    results: list[bool] = field(default_factory=list)
    """Of its latest units, whether each is held against it."""
    pause: str = ""
    """Why it holds still, by its owner's word."""
    shard: str = ""


@dataclass
class _Part:
    top: NodePath
    leaves: tuple[NodePath, ...]
    version: int = 0
    steps: int = 0
    trained: dict[NodePath, set[str]] = field(default_factory=dict)
    """By leaf: whose updates of the present version cover it."""
    open: set[str] = field(default_factory=set)
    """Units that are under way on it, or being scored."""
    n_steps: int = 0
    """Of the updates of the present version."""


@dataclass
class _Scored:
    update: ev.UpdateAccepted
    asked: set[str]
    n_votes: int = 0
    changes: list[float] = field(default_factory=list)


class _World:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.out: list[Item] = []
        self.number = 0
        self.n_units = 0
        self.n_blobs = 0
        self.workers = [self._made(number) for number in range(plan.n_workers)]
        self.known = {worker.worker: worker for worker in self.workers}
        self.topology: Topology | None = None
        self.topology_version = self.router_version = 0
        self.n_since_router = 0
        self.contributors: set[str] = set()
        self.parts: dict[NodePath, _Part] = {}
        self.part_of: dict[NodePath, _Part] = {}
        self.scored: dict[str, _Scored] = {}
        self.is_paused = False
        self.leaf_loss: dict[NodePath, tuple[float, float, float]] = {}
        n_rounds = plan.seconds / plan.unit_s * max(1.0, plan.n_workers / plan.n_leaves)
        self.leaf_steps = UNIT_STEPS * max(4, math.ceil(n_rounds))

    def _made(self, number: int) -> _Worker:
        draw = self.random
        gpu, memory, speed = draw.choices(GPUS, weights=(8, 4, 3, 1, 3, 1))[0]
        name = f"{draw.choice(FIRST)}-{draw.choice(SECOND)}-{number}" if number % 10 else ""
        return _Worker(
            f"w-{draw.getrandbits(64):016x}",
            name,
            gpu,
            memory,
            speed * draw.uniform(0.8, 1.25),
            draw.choice(NOTES),
            is_bad=draw.random() < self.plan.share_bad,
            shard=sha256(f"shard {self.plan.seed} {number}".encode()).hexdigest(),
        )

    # --- time and telling -------------------------------------------------------------------------------------------

    def at(self, at_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (max(at_s, self.now), next(self.order), act))

    def later(self, mean_s: float, act: Callable[[], None]) -> None:
        self.at(self.now + self.random.expovariate(1 / mean_s), act)

    def emit(self, event: ev.Event) -> None:
        self.number += 1
        self.out.append(Happened(self.number, round(self.now, 3), event))

    def blob(self) -> str:
        self.n_blobs += 1
        return sha256(f"blob {self.plan.seed} {self.n_blobs}".encode()).hexdigest()

    @property
    def at_s(self) -> float:
        return round(self.now, 3)

    def items(self) -> Iterator[Item]:
        self._begin()
        yield from self._told()
        while self.queue and self.queue[0][0] <= self.plan.seconds:
            self.now, _, act = heapq.heappop(self.queue)
            act()
            yield from self._told()
        if self.plan.is_finished:
            self.now = self.plan.seconds
            self.emit(ev.RunFinished(reason="the operator asked for the end", at_s=self.at_s))
            yield from self._told()

    def _told(self) -> Iterator[Item]:
        told, self.out = self.out, []
        yield from told

    # --- the beginning ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        plan = self.plan
        n_first = max(1, round(plan.n_workers * (1 - plan.share_late)))
        self.n_first = n_first
        settings = RunSettings(
            name=RUN,
            depth=plan.depth,
            seed=plan.seed,
            rank=16,
            leaf_steps=self.leaf_steps,
            unit_steps=UNIT_STEPS,
            probes=plan.probes,
            router_period=max(4, 2 * plan.n_workers),
            min_workers=n_first,
            window_tokens=256,
        )
        self.router_period = settings.router_period
        projection = ProjectionShape(n_layers=16, in_features=2048, out_features=2048)
        base = BaseFacts(
            base_id="example/llama-1b",
            fingerprint="a" * 64,
            tokenizer_fingerprint="b" * 64,
            feature_dim=256,
            feature_hash="c" * 64,
            max_window_tokens=4096,
            projections={"q_proj": projection, "v_proj": projection},
        )
        self.emit(ev.RunStarted(run=RUN, settings=settings, base=base))
        for number, worker in enumerate(self.workers):
            is_late = number >= n_first
            at_s = self.random.uniform(120, max(240.0, plan.seconds / 2)) if is_late else self.random.uniform(1, 60)
            self.at(at_s, lambda worker=worker: self._join(worker))
        if plan.is_paused_once and plan.seconds > 1200:
            self.at(plan.seconds * 0.55, self._pause)
            self.at(plan.seconds * 0.55 + min(180.0, plan.seconds * 0.02), self._resume)

    def _join(self, worker: _Worker) -> None:
        worker.is_online = True
        self.emit(ev.WorkerJoined(worker=worker.worker, name=worker.name, at_s=self.at_s))
        self.later(self.plan.lost_every_s, lambda: self._lose(worker))
        if self.plan.has_reports:
            self.at(self.now + self.random.uniform(0, REPORT_EVERY_S), lambda: self._report(worker))
        self._lease(worker, "sketch", "", seconds=self.random.uniform(5, 40))

    def _set_topology(self) -> None:
        tops = self._tops(self.n_first)
        self.topology = Topology.perfect(self.plan.depth)
        self.topology_version = 1
        first = [worker for worker in self.workers if worker.is_sketched and not worker.is_out]
        for number, worker in enumerate(first):
            worker.node = tops[number % len(tops)]
        for top in tops:
            self._put(_Part(top, self.topology.leaves_below(top)))
        for leaf in self.topology.leaves:
            start = self.random.uniform(2.2, 3.2)
            self.leaf_loss[leaf] = (start, self.random.uniform(0.1, 0.9), self.random.uniform(0.1, 0.5))
        assignment = {worker.worker: worker.node for worker in first if worker.node is not None}
        self.emit(ev.TopologySet(version=1, leaves=self.topology.leaves, assignment=assignment))
        self._solve("the first sketches")
        self._set_to_work()

    def _put(self, part: _Part) -> None:
        self.parts[part.top] = part
        self.part_of |= dict.fromkeys(part.leaves, part)

    def _tops(self, n_workers: int) -> list[NodePath]:
        """Disjoint nodes that cover the tree, one for each worker, or all leaves."""
        tops = [""]
        while len(tops) < min(n_workers, self.plan.n_leaves):
            shallow = min(len(top) for top in tops)
            top = self.random.choice([top for top in tops if len(top) == shallow])
            tops.remove(top)
            tops += children(top)
        return sorted(tops)

    # --- leases -----------------------------------------------------------------------------------------------------

    def _lease(
        self,
        worker: _Worker,
        kind: UnitKind,
        node: NodePath,
        *,
        seconds: float,
        part: _Part | None = None,
        subject: str = "",
        is_adopted: bool = False,
    ) -> None:
        unit_id = f"u{self.n_units:08d}"
        self.n_units += 1
        is_slow = kind != "sketch" and self.random.random() < self.plan.share_expired
        usual_s = seconds * 2.5
        lease = ev.UnitLeased(
            unit_id=unit_id,
            worker=worker.worker,
            kind=kind,
            node=node,
            nonce=f"n{unit_id}",
            topology_version=self.topology_version if kind != "sketch" else 0,
            router_version=self.router_version if kind != "sketch" else 0,
            node_version=part.version if part else 0,
            first_step=part.steps if part and kind == "train" else 0,
            n_steps=UNIT_STEPS if kind == "train" else 0,
            nodes=(node,) if is_adopted else (),
            is_adopted=is_adopted,
            subject=subject,
            at_s=self.at_s,
            deadline_s=round(self.now + usual_s, 3),
            bytes_sent=LEAF_BYTES * (len(part.leaves) if part else 0) + self.random.randrange(3000, 9000),
        )
        worker.unit = lease
        if kind == "train" and part is not None:
            part.open.add(unit_id)
        self.emit(lease)
        if is_slow:
            self.at(self.now + usual_s, lambda: self._expire(worker, unit_id))
        else:
            self.at(self.now + seconds, lambda: self._answer(worker, unit_id))

    def _release(self, worker: _Worker) -> None:
        """Its unit is no more."""
        lease, worker.unit = worker.unit, None
        if lease is not None and lease.kind == "train":
            part = self.part_of[lease.node if lease.node in self.part_of else self._leaf_under(lease.node)]
            part.open.discard(lease.unit_id)
            self._try_average(part)

    def _leaf_under(self, node: NodePath) -> NodePath:
        return next(leaf for leaf in self.part_of if is_under(leaf, node))

    def _expire(self, worker: _Worker, unit_id: str) -> None:
        if worker.unit is None or worker.unit.unit_id != unit_id:
            return
        self.emit(ev.LeaseExpired(unit_id=unit_id, reason="the deadline passed", at_s=self.at_s))
        worker.rests_until_s = self.now + min(FIRST_REST_S * 2.0**worker.misses, LONGEST_REST_S)
        worker.misses += 1
        self.at(worker.rests_until_s + 0.01, self._set_to_work)
        self._release(worker)
        self._set_to_work()

    def _answer(self, worker: _Worker, unit_id: str) -> None:
        lease = worker.unit
        if lease is None or lease.unit_id != unit_id:
            return
        share = 0.6 if worker.is_bad and lease.kind == "train" else self.plan.share_rejected
        if lease.kind != "sketch" and self.random.random() < share:
            self._reject(worker, lease)
        elif lease.kind == "sketch":
            self._accept_sketch(worker, lease)
        elif lease.kind == "probe":
            self._accept_vote(worker, lease)
        else:
            self._accept_training(worker, lease)
        self._set_to_work()

    def _reject(self, worker: _Worker, lease: ev.UnitLeased) -> None:
        code, reason = self.random.choice(
            (
                ("not_finite.node", f"unit {lease.unit_id}, tensor node.{lease.node}.q_proj.lora_B: holds NaN"),
                ("too_far.lora_A", f"unit {lease.unit_id}: an adapter moved by 3.1 (rms), 0.9 at the very most"),
                ("bad_manifest.missing", f"unit {lease.unit_id}: tensor node.{lease.node}.q_proj.lora_A is missing"),
            )
        )
        self.emit(
            ev.UpdateRejected(unit_id=lease.unit_id, worker=worker.worker, code=code, reason=reason, at_s=self.at_s)
        )
        self._release(worker)
        self._strike(worker, reason)

    def _strike(self, worker: _Worker, reason: str) -> None:
        worker.results = [*worker.results, True][-WINDOW:]
        if sum(worker.results) < MAX_STRIKES or worker.is_out:
            return
        why = f"3 of its latest 10 results were refused, the last one: {reason}"
        self.emit(ev.WorkerQuarantined(worker=worker.worker, code="strikes", reason=why, at_s=self.at_s))
        worker.is_out, worker.node = True, None
        for unit, scored in list(self.scored.items()):
            if scored.update.worker == worker.worker:
                self._close(unit)
                self._forget(scored.update)
        for part in self.parts.values():
            for who in part.trained.values():
                who.discard(worker.worker)
        self._release(worker)

    # --- what comes back --------------------------------------------------------------------------------------------

    def _accepted(self, worker: _Worker, lease: ev.UnitLeased, **fields: Any) -> ev.UpdateAccepted:
        seconds = max(0.1, self.now - lease.at_s)
        common: dict[str, Any] = {
            "unit_id": lease.unit_id,
            "worker": worker.worker,
            "kind": lease.kind,
            "node": lease.node,
            "node_version": lease.node_version,
            "router_version": lease.router_version,
            "shard_version": worker.shard,
            "shard_tokens": 3_000_000,
            "tokens": 0,
            "n_steps": lease.n_steps,
            "nodes": lease.nodes,
            "seconds": round(seconds * 0.93, 2),
            "base_loads": 1,
            "blob": self.blob(),
            "bytes_received": self.random.randrange(4000, 9000),
            "at_s": self.at_s,
        }
        return ev.UpdateAccepted.model_validate(common | fields)

    def _accept_sketch(self, worker: _Worker, lease: ev.UnitLeased) -> None:
        self.emit(self._accepted(worker, lease, parts=("statistics",), log_volume=1.0, bytes_received=264_000))
        worker.unit, worker.is_sketched = None, True
        first = self.workers[: self.n_first]
        if self.topology is None:
            if all(other.is_sketched or other.is_out for other in first):
                self._set_topology()
            return
        self._assign(worker)

    def _loss_at(self, leaf: NodePath, steps: float) -> float:
        start, gain, pace = self.leaf_loss[leaf]
        return start - gain * (1 - math.exp(-steps / (pace * self.leaf_steps)))

    def _mean_loss(self, leaves: tuple[NodePath, ...], steps: float) -> float:
        return sum(self._loss_at(leaf, steps) for leaf in leaves) / len(leaves)

    def _accept_training(self, worker: _Worker, lease: ev.UnitLeased) -> None:
        part = self.part_of[lease.nodes[0] if lease.nodes else self._leaf_under(lease.node)]
        leaves = lease.nodes or part.leaves
        before = self._mean_loss(leaves, part.steps) + self.random.gauss(0, 0.01)
        after = self._mean_loss(leaves, part.steps + UNIT_STEPS) + self.random.gauss(0, 0.01)
        curve = [round(self._mean_loss(leaves, part.steps + UNIT_STEPS * i / 5) + 0.1, 4) for i in range(5)]
        is_pending = self.plan.probes > 0
        update = self._accepted(
            worker,
            lease,
            tokens=lease.n_steps * TOKENS_PER_STEP,
            heldout_nll_before=round(before, 4),
            heldout_nll_after=round(after, 4),
            losses=tuple(curve),
            parts=("adapters", "histogram"),
            is_pending=is_pending,
            bytes_received=LEAF_BYTES * len(leaves),
        )
        self.emit(update)
        worker.unit = None
        worker.misses = 0
        if is_pending:
            self.scored[lease.unit_id] = _Scored(update, {worker.worker})
            self.at(self.now + 4 * self.plan.unit_s, lambda: self._settle(lease.unit_id))
            return
        self._believe(update)

    def _believe(self, update: ev.UpdateAccepted) -> None:
        worker = self.known[update.worker]
        worker.results = [*worker.results, False][-WINDOW:]
        part = self.part_of[update.nodes[0] if update.nodes else self._leaf_under(update.node)]
        part.open.discard(update.unit_id)
        for leaf in update.nodes or part.leaves:
            part.trained.setdefault(leaf, set()).add(update.worker)
        part.n_steps = max(part.n_steps, update.n_steps)
        self.n_since_router += 1
        self.contributors.add(update.worker)
        self._try_average(part)
        if self.n_since_router >= self.router_period:
            self._solve(f"{self.n_since_router} updates")

    def _forget(self, update: ev.UpdateAccepted) -> None:
        part = self.part_of[update.nodes[0] if update.nodes else self._leaf_under(update.node)]
        part.open.discard(update.unit_id)
        self._try_average(part)

    def _try_average(self, part: _Part) -> None:
        covered = all(part.trained.get(leaf) for leaf in part.leaves)
        if part.open or not covered:
            return
        part.version += 1
        part.steps += part.n_steps
        who = sorted({worker for workers in part.trained.values() for worker in workers})
        mismatch = round(self.random.uniform(0.001, 0.05), 5) if len(who) > 1 and len(part.leaves) == 1 else None
        part.trained, part.n_steps = {}, 0
        self.emit(
            ev.NodeAveraged(
                node=part.top,
                version=part.version,
                contributors=tuple(who),
                blob=self.blob(),
                n_steps=part.steps,
                mismatch=mismatch,
            )
        )

    # --- votes ------------------------------------------------------------------------------------------------------

    def _accept_vote(self, worker: _Worker, lease: ev.UnitLeased) -> None:
        tokens = 8 * 256
        scored = self.scored[lease.subject]
        is_dropped = self.random.random() < self.plan.share_dropped
        change = self.random.uniform(0.15, 0.6) if is_dropped else self.random.gauss(-0.01, 0.01)
        result = ProbeResult(
            tokens=tokens,
            nll_parent=round(2.8 * tokens, 2),
            nll_current=round(2.5 * tokens, 2),
            nll_candidate=round((2.5 + change) * tokens, 2),
            mass=self._mass(worker),
        )
        self.emit(self._accepted(worker, lease, subject=lease.subject, probe=result, parts=("histogram",), tokens=0))
        worker.unit = None
        scored.n_votes += 1
        scored.changes.append(change)
        if scored.n_votes >= self.plan.probes:
            self._settle(lease.subject)

    def _mass(self, worker: _Worker) -> dict[NodePath, float]:
        """Most of its text goes to its own leaf, and the rest to others near by."""
        assert self.topology is not None
        leaves = self.topology.leaves
        home = next((i for i, leaf in enumerate(leaves) if is_under(leaf, worker.node or "")), 0)
        weights: dict[NodePath, float] = {}
        for number in range(min(8, len(leaves))):
            place = home if number == 0 else (home + int(self.random.gauss(0, len(leaves) / 16))) % len(leaves)
            weights[leaves[place]] = weights.get(leaves[place], 0.0) + (3.0 if number == 0 else self.random.random())
        whole = sum(weights.values()) * 1.0001
        return {leaf: round(weight / whole, 4) for leaf, weight in sorted(weights.items())}

    def _settle(self, unit: str) -> None:
        scored = self.scored.get(unit)
        if scored is None:
            return
        changes = sorted(scored.changes)
        change = changes[len(changes) // 2] if changes else None
        is_kept = change is None or change <= 0.1
        reason = "" if is_kept else f"on the held-out text of {len(changes)} others it costs {change:.4f} nats more"
        update = scored.update
        self.emit(
            ev.UpdateProbed(
                unit_id=unit,
                worker=update.worker,
                node=update.node,
                is_kept=is_kept,
                n_votes=scored.n_votes,
                change=None if change is None else round(change, 5),
                reason=reason or ("nobody could be asked" if change is None else ""),
                at_s=self.at_s,
            )
        )
        self._close(unit)
        if is_kept:
            self._believe(update)
            return
        self._forget(update)
        self._strike(self.known[update.worker], reason)
        self._set_to_work()

    def _close(self, unit: str) -> None:
        """Nobody is asked any more."""
        del self.scored[unit]
        for worker in self.workers:
            if worker.unit is not None and worker.unit.subject == unit:
                worker.unit = None

    # --- who does what ----------------------------------------------------------------------------------------------

    def _is_free(self, worker: _Worker) -> bool:
        is_fit = worker.is_online and not worker.is_out and not worker.pause and self.now >= worker.rests_until_s
        return is_fit and worker.unit is None and worker.is_sketched

    def _set_to_work(self) -> None:
        if self.is_paused or self.topology is None:
            return
        for worker in self.workers:
            if self._is_free(worker):
                _ = self._ask(worker) or self._train(worker) or self._adopt(worker)

    def _ask(self, worker: _Worker) -> bool:
        for unit, scored in self.scored.items():
            n_asked = len(scored.asked) - 1
            if worker.worker in scored.asked or n_asked >= self.plan.probes + 2:
                continue
            if scored.n_votes + self._n_scoring(unit) >= self.plan.probes:
                continue
            scored.asked.add(worker.worker)
            part = self.part_of[self._leaf_under(scored.update.node)]
            seconds = self.plan.unit_s * 0.08 * self.random.uniform(0.5, 2)
            self._lease(worker, "probe", scored.update.node, seconds=seconds, part=part, subject=unit)
            return True
        return False

    def _n_scoring(self, unit: str) -> int:
        return sum(worker.unit is not None and worker.unit.subject == unit for worker in self.workers)

    def _train(self, worker: _Worker) -> bool:
        if worker.node is None:
            return False
        part = self.parts[worker.node]
        waits = any(scored.update.worker == worker.worker for scored in self.scored.values())
        has_done = any(worker.worker in who for who in part.trained.values())
        if part.steps >= self.leaf_steps or has_done or waits:
            return False
        self._lease(worker, "train", part.top, seconds=self._unit_seconds(worker, part), part=part)
        return True

    def _unit_seconds(self, worker: _Worker, part: _Part) -> float:
        slow = 1.0 / math.sqrt(max(worker.speed, 0.25))
        return self.plan.unit_s * slow * len(part.leaves) ** 0.3 * self.random.uniform(0.85, 1.2)

    def _adopt(self, worker: _Worker) -> bool:
        """One leaf that nobody holds who could be counted on."""
        held = {other.node for other in self.workers if other.is_online and not other.is_out and other.node is not None}
        start = self.random.randrange(len(self.parts))
        tops = list(self.parts)
        for top in tops[start:] + tops[:start]:
            part = self.parts[top]
            if top in held or part.open or part.steps >= self.leaf_steps:
                continue
            leaf = next((leaf for leaf in part.leaves if not part.trained.get(leaf)), None)
            if leaf is None:
                continue
            seconds = self._unit_seconds(worker, part)
            self._lease(worker, "train", leaf, seconds=seconds, part=part, is_adopted=True)
            return True
        return False

    def _assign(self, worker: _Worker) -> None:
        """A leaf for one that came late; a subtree that rests is divided for it."""
        resting = [part for part in self.parts.values() if len(part.leaves) > 1 and not part.open and not part.trained]
        single = [part for part in self.parts.values() if len(part.leaves) == 1]
        if resting:
            part = self.random.choice(resting)
            leaf = self.random.choice(part.leaves)
        elif single:
            leaf = self.random.choice(single).top
            part = None
        else:
            self.at(self.now + 20, lambda: self._assign(worker))
            return
        if worker.is_out:
            return
        worker.node = leaf
        self.emit(ev.WorkerAssigned(worker=worker.worker, node=leaf))
        if part is not None:
            self._divide(part, leaf)
        self._set_to_work()

    def _divide(self, part: _Part, taken: NodePath) -> None:
        assert self.topology is not None
        free = [leaf for leaf in part.leaves if leaf != taken]
        holders = [worker for worker in self.workers if worker.node == part.top]
        for number, worker in enumerate(holders):
            worker.node = free[number % len(free)]
        self.topology_version += 1
        self.emit(
            ev.SubtreeDivided(
                node=part.top,
                version=self.topology_version,
                leaves=self.topology.leaves,
                assignment={worker.worker: worker.node for worker in holders if worker.node is not None},
            )
        )
        del self.parts[part.top]
        for leaf in part.leaves:
            self._put(_Part(leaf, (leaf,), version=part.version + 1, steps=part.steps))

    # --- gates, presence, the operator ------------------------------------------------------------------------------

    def _solve(self, reason: str) -> None:
        assert self.topology is not None
        known = sorted(self.contributors) or sorted(w.worker for w in self.workers if w.is_sketched and not w.is_out)
        self.router_version += 1
        self.n_since_router, self.contributors = 0, set()
        drift = 1.0 if self.router_version == 1 else round(0.4 / self.router_version * self.random.uniform(0.5, 1.5), 5)
        accuracy = {node: round(0.99 - 0.2 * self.random.random() ** 2, 4) for node in self.topology.inner}
        self.emit(
            ev.GatesSolved(
                version=self.router_version,
                contributors=tuple(known),
                drift=drift,
                blob=self.blob(),
                reason=reason,
                accuracy=accuracy,
            )
        )

    def _lose(self, worker: _Worker) -> None:
        worker.is_online = False
        self.emit(ev.WorkerLost(worker=worker.worker, at_s=self.at_s))
        self._release(worker)
        self.later(self.plan.away_s, lambda: self._return(worker))
        self._set_to_work()

    def _return(self, worker: _Worker) -> None:
        worker.is_online = True
        worker.misses, worker.rests_until_s = 0, 0.0
        self.emit(ev.WorkerReturned(worker=worker.worker, at_s=self.at_s))
        self.later(self.plan.lost_every_s, lambda: self._lose(worker))
        if self.plan.has_reports:
            self.at(self.now + 1, lambda: self._report(worker))
        if not worker.is_sketched and not worker.is_out:
            self._lease(worker, "sketch", "", seconds=self.random.uniform(5, 40))
        self._set_to_work()

    def _pause(self) -> None:
        self.is_paused = True
        self.emit(ev.RunPaused(at_s=self.at_s))

    def _resume(self) -> None:
        self.is_paused = False
        self.emit(ev.RunResumed(at_s=self.at_s))
        self._set_to_work()

    # --- what workers say of themselves -----------------------------------------------------------------------------

    def _report(self, worker: _Worker) -> None:
        if not worker.is_online:
            return
        self.out.append(Told(self.at_s, worker.worker, self._said(worker)))
        rest_s = REST_REPORT_S if worker.unit is None else REPORT_EVERY_S
        self.at(self.now + rest_s * self.random.uniform(0.8, 1.2), lambda: self._report(worker))

    def _said(self, worker: _Worker) -> WorkerReport:
        """Its word on itself at this moment, and whether its owner wants the machine for a while."""
        self._maybe_pause(worker)
        common: dict[str, Any] = {
            "gpu": worker.gpu,
            "memory_bytes": worker.memory_bytes,
            "note": worker.note,
            "limits": {"vram": "8 GiB"} if worker.memory_bytes > 8 << 30 else {},
        }
        if worker.unit is None:
            waits = Reason.RUN_PAUSED if self.is_paused else Reason.WAITING_FOR_PEERS
            reason = worker.pause or waits
            state = WorkerState.PAUSED if worker.pause else WorkerState.WAITING
            resumes_in_s = 600.0 if reason == Reason.SCHEDULE else None
            return WorkerReport(state=state, reason=Reason(reason), resumes_in_s=resumes_in_s, **common)
        share = (self.now - worker.unit.at_s) / max(1.0, worker.unit.deadline_s - worker.unit.at_s) * 2.5
        pace = TOKENS_PER_STEP * UNIT_STEPS / self.plan.unit_s * math.sqrt(max(worker.speed, 0.25))
        is_training = worker.unit.kind == "train"
        return WorkerReport(
            state=WorkerState.WORKING,
            unit_id=worker.unit.unit_id,
            step=min(worker.unit.n_steps, int(share * worker.unit.n_steps)),
            n_steps=worker.unit.n_steps,
            tokens_per_s=round(pace * self.random.uniform(0.9, 1.1), 1) if is_training else 0.0,
            **common,
        )

    def _maybe_pause(self, worker: _Worker) -> None:
        if worker.pause or worker.unit is not None or self.random.random() > 0.01:
            return
        worker.pause = self.random.choice((Reason.USER_PAUSED, Reason.SCHEDULE, Reason.GPU_BUSY, Reason.BATTERY))
        self.later(300.0, lambda: self._unpause(worker))

    def _unpause(self, worker: _Worker) -> None:
        worker.pause = ""
        self._set_to_work()


def make_run(plan: Plan) -> Iterator[Item]:
    """Events and reports of one artificial run, in the order of time; the same plan gives the same run."""
    if plan.n_leaves & (plan.n_leaves - 1) or not 1 <= plan.n_leaves <= 4096:
        raise ValueError(f"n_leaves: expected a power of two up to 4096, got {plan.n_leaves}")
    return _World(plan).items()


def make_events(plan: Plan) -> list[Happened]:
    """The events alone."""
    return [item for item in make_run(plan) if isinstance(item, Happened)]


def main() -> None:
    """Write one run as a recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=512)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=5.0, help="events in a second, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finished", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    plan = Plan(asked.leaves, asked.workers, asked.hours, asked.seed, asked.rate, is_finished=asked.finished)
    n_lines = write_recording(asked.out, RUN, make_run(plan))
    print(f"{asked.out}: {n_lines} lines, {asked.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
