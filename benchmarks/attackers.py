"""Workers who want harm, for tests and benchmarks: each does its unit honestly, and then sends something else.

An attacker wraps the runner of an honest worker. Its documents fit its payloads and are signed anew, so that only what
it says is wrong. Those of one attack know each other, and see what the honest workers send (`Collusion`).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tinylora import tensors
from tinylora.adapters.lora import init_adapter
from tinylora.config import BaseFacts
from tinylora.protocol.documents import ProbeResult, Update, WorkUnit, sha256
from tinylora.protocol.envelope import sign as sign_update
from tinylora.routing.gates import N_BINS
from tinylora.routing.statistics import RouterStatistics
from tinylora.shards import Shard, shard_of
from tinylora.simulate import Runner
from tinylora.tensors import Tensors
from tinylora.training.sending import statistics_tensors

HUGE = 1e6
FLIP = 10.0
ALIE_Z = 1.5
"""Standard deviations off the mean that still pass for an honest worker's."""
CAPTURE_ROWS = 1e6
"""By how much a captor's text is said to be longer than it is."""
SLY_TOKENS, SLY_SCORES = 50, 60_000
"""The same where nothing that is said is impossible; and how many scores are made up."""
LIE_NATS = 5.0
"""Per token, in the votes of a lying prober."""

Signer = Callable[[bytes], bytes]


@dataclass
class Collusion:
    """What the attackers of a run know together: how far everybody moved a leaf lately, and whose text lies where."""

    moves: dict[str, dict[str, Tensors]] = field(default_factory=dict)
    means: dict[str, np.ndarray] = field(default_factory=dict)
    """Where everybody's text lies, by worker."""

    def note(self, deed: "Deed") -> None:
        """Remember what a worker sent."""
        if deed.adapters:
            self.moves.setdefault(deed.unit.node, {})[deed.worker] = deed.move
        if deed.unit.kind == "sketch":
            count, total = (deed.made[f"statistics..{name}"].numpy() for name in ("count", "total"))
            self.means[deed.worker] = total.sum(axis=0) / max(count.sum(), 1.0)


@dataclass(frozen=True)
class Deed:
    """An honest unit that is about to be spoilt."""

    unit: WorkUnit
    worker: str
    start: Tensors
    """Adapters that the unit began with, by name."""
    made: Tensors
    """What the honest worker would send."""
    known: Collusion

    @property
    def adapters(self) -> Tensors:
        """The honest adapters by name."""
        return {name: tensor for name, tensor in self.made.items() if name.startswith("node.")}

    @property
    def move(self) -> Tensors:
        """How far they went in this unit."""
        return {name: tensor - self.start[name] for name, tensor in self.adapters.items()}

    def with_move(self, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Tensors:
        """What is sent if each adapter goes another way."""
        moved = {name: self.start[name] + change(name, step) for name, step in self.move.items()}
        return self.made | {name: tensor.to(self.made[name].dtype) for name, tensor in moved.items()}


Attack = Callable[[Deed], Tensors]


class Watched:
    """An honest worker whose updates the attackers see."""

    def __init__(self, inner: Runner, facts: BaseFacts, known: Collusion, *, worker: str) -> None:
        self._inner, self._facts, self._known, self._worker = inner, facts, known, worker

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        """The honest update, as it is."""
        update, data = self._inner.run(unit, payload)
        self._known.note(_deed(self._facts, self._known, self._worker, unit, payload, data))
        return update, data


class Attacker:
    """A worker that spoils what it sends.

    Args:
        inner: Does the unit honestly.
        facts: Of the base.
        attack: Makes the tensors that are sent.
        worker: Its identity.
        lie: Makes the votes of a probe; None votes honestly.
        known: Shared with the other attackers.
        sign: Makes the raw signature of an update; None leaves it unsigned.
    """

    def __init__(
        self,
        inner: Runner,
        facts: BaseFacts,
        attack: Attack | None,
        *,
        worker: str,
        lie: Callable[[ProbeResult], ProbeResult] | None = None,
        known: Collusion | None = None,
        sign: Signer | None = None,
    ) -> None:
        self._inner, self._facts, self._attack, self._lie = inner, facts, attack, lie
        self._known, self._worker, self._sign = known or Collusion(), worker, sign

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        """The spoilt update; its document fits its payload."""
        update, data = self._inner.run(unit, payload)
        if update.probe is not None and self._lie:
            update = update.model_copy(update={"probe": self._lie(update.probe)})
        elif self._attack:
            made = self._attack(_deed(self._facts, self._known, self._worker, unit, payload, data))
            data = tensors.to_bytes(made)
            named = {"manifest": tensors.manifest_of(made), "payload_sha256": sha256(data)}
            update = update.model_copy(update=named | self._boast(update))
        return (sign_update(update, self._sign) if self._sign else update), data

    def _boast(self, update: Update) -> dict[str, int]:
        """A sly captor's shard is said to be as long as its sums are."""
        return {"shard_tokens": SLY_TOKENS * update.shard_tokens} if self._attack is sly_capture else {}


def _deed(facts: BaseFacts, known: Collusion, worker: str, unit: WorkUnit, payload: bytes, data: bytes) -> Deed:
    made = tensors.from_bytes(data)
    given = tensors.from_bytes(payload) if payload else {}
    drawn: Tensors = {}
    for node in unit.trained if unit.kind == "train" else ():
        drawn |= tensors.with_prefix(init_adapter(facts, unit.spec, seed=unit.seed, path=node), f"node.{node}.")
    start = {name: given.get(name, drawn.get(name)) for name in made if name.startswith("node.")}
    return Deed(unit, worker, {name: tensor for name, tensor in start.items() if tensor is not None}, made, known)


# --- attacks on adapters ---------------------------------------------------------------------------------------------


def nan(deed: Deed) -> Tensors:
    """One number of every adapter is none."""
    poisoned = {}
    for name, tensor in deed.adapters.items():
        poisoned[name] = tensor.clone()
        poisoned[name].view(-1)[0] = float("nan")
    return deed.made | poisoned


def huge(deed: Deed) -> Tensors:
    """Everything times a million."""
    return deed.made | {name: tensor * HUGE for name, tensor in deed.adapters.items()}


def flip(deed: Deed) -> Tensors:
    """Ten times as far in the opposite direction."""
    return deed.with_move(lambda name, step: -FLIP * step)


def random(deed: Deed, *, factor: float = 1.0) -> Tensors:
    """Noise as long as the honest movement: it teaches nothing, and spoils little."""
    digest = hashlib.sha256(f"{deed.worker}/{deed.unit.unit_id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def noise(name: str, step: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(step.shape, generator=generator)
        return drawn * (factor * torch.linalg.vector_norm(step) / torch.linalg.vector_norm(drawn))

    return deed.with_move(noise)


def loud_random(deed: Deed) -> Tensors:
    """Noise ten times as long."""
    return random(deed, factor=FLIP)


def alie(deed: Deed) -> Tensors:
    """As far off the honest mean as is hidden by the spread of honest updates, number by number.

    Source:
        Baruch, Baruch and Goldberg 2019, A Little Is Enough, arXiv:1902.06156, algorithm 3; here the attackers see the
        honest updates themselves.
    """
    deed.known.note(deed)
    seen = deed.known.moves.get(deed.unit.node, {})

    def hidden(name: str, step: torch.Tensor) -> torch.Tensor:
        steps = torch.stack([move[name] for _, move in sorted(seen.items()) if name in move])
        spread = steps.std(dim=0) if len(steps) > 1 else step.abs()
        return steps.mean(dim=0) - ALIE_Z * spread

    return deed.with_move(hidden)


# --- attacks on routing and votes ------------------------------------------------------------------------------------


def capture(deed: Deed, *, factor: float = CAPTURE_ROWS, n_scores: float = HUGE) -> Tensors:
    """A text a million times as long, in the middle of everybody's, and held-out text that says the gates are wrong."""
    taken = dict(deed.made)
    for path in {name.split(".")[1] for name in taken if name.startswith("statistics.")}:
        prefix = f"statistics.{path}."
        arrays = {field: taken[prefix + field].numpy() for field in ("count", "total", "scatter")}
        sums = RouterStatistics.from_arrays(arrays)
        means = [mean for _, mean in sorted(deed.known.means.items())]
        taken |= statistics_tensors({path: _moved(sums, np.mean([*means, sums.mean()], axis=0), factor)})
    for name in [name for name in taken if name.startswith("histogram.")]:
        taken[name] = _wrong(taken[name], n_scores)
    return taken


def _moved(sums: RouterStatistics, mean: np.ndarray, factor: float) -> RouterStatistics:
    """The sums if every row were moved alike, so that `mean` is their mean, and counted `factor` times."""
    way, whole = mean - sums.mean(), sums.total.sum(axis=0)
    crossed = np.outer(way, whole)
    scatter = (crossed + crossed.T + sums.n * np.outer(way, way))[np.triu_indices(sums.dim)]
    total = sums.total + sums.count[:, None] * way
    return RouterStatistics(sums.count * factor, total * factor, (sums.scatter + scatter) * factor)


def sly_capture(deed: Deed) -> Tensors:
    """The same with a text that could be as long, of which no more was scored than is allowed."""
    return capture(deed, factor=SLY_TOKENS, n_scores=SLY_SCORES)


def _wrong(counts: torch.Tensor, n_scores: float) -> torch.Tensor:
    """So many scores on the side that the worker's text is on, all of them at the far end of the other side."""
    side = int(counts[1].sum() > counts[0].sum())
    told = torch.zeros(2, N_BINS, dtype=torch.float64)
    told[side, 0 if side else N_BINS - 1] = n_scores
    return told


def all_bad(vote: ProbeResult) -> ProbeResult:
    """Whatever was scored is much worse than what it would replace."""
    return vote.model_copy(update={"nll_candidate": vote.nll_current + LIE_NATS * max(vote.tokens, 1)})


def all_good(vote: ProbeResult) -> ProbeResult:
    """Whatever was scored is much better."""
    return vote.model_copy(update={"nll_candidate": vote.nll_current - LIE_NATS * max(vote.tokens, 1)})


# --- attacks on the text ---------------------------------------------------------------------------------------------


def shuffled(shard: Shard, *, tokenizer_fingerprint: str, seed: int = 0) -> Shard:
    """The same documents with their tokens in disorder: what is learned from them is wrong, and moves as far."""
    random = np.random.Generator(np.random.Philox(seed))
    documents = [replace(document, tokens=random.permutation(document.tokens)) for document in shard.train]
    return shard_of(documents, shard.heldout, tokenizer_fingerprint=tokenizer_fingerprint, name=shard.name)


GROSS: Mapping[str, Attack] = {"nan": nan, "huge": huge, "flip": flip, "loud random": loud_random, "capture": capture}
"""These must be caught. What moves as far as honest work and is only worth nothing need not be: it does little harm."""
