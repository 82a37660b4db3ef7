"""What fits on a machine: found by real steps at the run's longest window, from the whole batch down.

Every attempt is what a unit does: adapters of the run's kind and rank on the base, forward, backward, AdamW with its
moments, and the copy of the finished step. First for a single leaf: half the windows at once until a step fits, at one
window with gradient checkpointing, then, of nested adapters, with fewer rows. Then for as many leaves as a subtree of
the run may have, with what was found, and half as many until these fit. In main memory, where nobody says no in time,
the first attempt is on one window, and tells with how many to begin.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tinylora.adapters.lora import init_adapter
from tinylora.adapters.prefixes import highest_rank, prefix_spec
from tinylora.adapters.shapes import adapter_shapes
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import shared_factors
from tinylora.base_model import LoadedBase
from tinylora.config import RunSettings
from tinylora.errors import OutOfMemory
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Router
from tinylora.training.batch import Batch
from tinylora.training.fit import Fit
from tinylora.training.losses import hardening
from tinylora.training.memory import Meter, Taken, meter_of
from tinylora.training.optimiser import LossOf, Moments, Optimiser, Schedule, take_step
from tinylora.training.out_of_memory import give_memory_back, is_out_of_memory
from tinylora.tree import NodePath, Topology

log = logging.getLogger(__name__)

MOST_LEAVES = 64
"""Leaves that are tried together; a run with larger subtrees gets these at most from one worker."""
BYTES_PER_NUMBER = 16
"""Of a trained number: itself, its gradient and two moments."""
NF4_BYTES = 4.127 / 8
NEEDS_QUANTISING = "quantise"
"""`rule` of the error where the base would fit in four bits."""
TOO_SMALL = "too_small"
_WINDOW_SEED = 0


@dataclass(frozen=True)
class Sized:
    """What fits, and how it went at that size."""

    fit: Fit
    peak_bytes: int
    """Of this process on the device, for a leaf."""
    free_bytes: int
    """Left at the peak, of what this process may take."""
    tokens_per_s: float
    attempts: tuple[str, ...] = ()
    """What was tried, one sentence each, for the log."""


def find_fit(
    base: LoadedBase,
    settings: RunSettings,
    *,
    limit_bytes: int = 0,
    quantise: str = "",
    max_rank: int = 0,
    max_leaves: int = 0,
    meter: Meter | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Sized:
    """Find by real steps what this machine can train of a run; the base is bare again afterwards.

    Args:
        base: On its device.
        settings: Of the run.
        limit_bytes: That this process may take on the device; 0 is what is free. On a GPU the allocator must know it
            too (`devices.limit_memory`).
        quantise: How the base is loaded.
        max_rank: Highest rank that the owner allows; 0 is any.
        max_leaves: Most leaves that the owner or the device allows together; 0 is any.
        meter: Of memory; None is the device's own.
        clock: Seconds.

    Raises:
        OutOfMemory: A single window with gradient checkpointing does not fit; `rule` says whether nf4 would help.
    """
    search = _Search(base.for_run(settings), settings, meter or meter_of(base.model.device, limit_bytes), clock)
    first = Fit(quantise=quantise, max_rank=_allowed_rank(base, settings, max_rank), max_leaves=max_leaves)
    fit, found = search.leaf(first)
    leaves = search.leaves(fit, found)
    return Sized(
        fit=replace(fit, max_leaves=leaves),
        peak_bytes=found.taken.peak,
        free_bytes=found.taken.free,
        tokens_per_s=found.tokens_per_s,
        attempts=tuple(search.told),
    )


def _allowed_rank(base: LoadedBase, settings: RunSettings, max_rank: int) -> int:
    """The owner's limit where it cuts something off; of adapters without prefixes it stays a limit all the same."""
    return max_rank if 0 < max_rank < highest_rank(settings.spec, base.facts) else 0


@dataclass(frozen=True)
class _Tried:
    """One attempt."""

    is_fit: bool
    taken: Taken
    tokens_per_s: float = 0.0


class _Search:
    """Attempts, one after the other."""

    def __init__(self, base: LoadedBase, settings: RunSettings, meter: Meter, clock: Callable[[], float]) -> None:
        self._base, self._settings, self._meter, self._clock = base, settings, meter, clock
        self._batch_windows = settings.batch_windows
        self.told: list[str] = []

    # --- a leaf ------------------------------------------------------------------------------------------------------

    def leaf(self, fit: Fit) -> tuple[Fit, _Tried]:
        """The most of a batch at once that fits with a single leaf."""
        if self._meter.must_begin_small and self._batch_windows > 1:
            one = self._attempt(replace(fit, micro_windows=1), 1)
            if one.is_fit:
                fit = replace(fit, micro_windows=self._predicted(one.taken))
                if fit.micro_windows == 1:
                    return fit, one
            else:
                fit = replace(fit, micro_windows=1, gradient_checkpointing=True)
        while not (found := self._attempt(fit, 1)).is_fit:
            smaller = fit.step_down(self._batch_windows) or self._fewer_rows(fit)
            if smaller is None:
                raise self._too_large(fit, found.taken)
            fit = smaller
        return fit, found

    def _predicted(self, of_one: Taken) -> int:
        """Windows that should fit at once, by the memory that one takes: the batch, halved often enough; 0 is all."""
        fit, per_window = Fit(), max(1, of_one.peak - of_one.before)
        while fit.windows_at_once(self._batch_windows) > 1:
            if of_one.before + fit.windows_at_once(self._batch_windows) * per_window <= of_one.allowed:
                return fit.micro_windows
            fit = fit.step_down(self._batch_windows) or fit
        return 1

    def _fewer_rows(self, fit: Fit) -> Fit | None:
        """Half the rows of nested adapters; others cannot be cut."""
        rank = fit.max_rank or highest_rank(self._settings.spec, self._base.facts)
        return replace(fit, max_rank=rank // 2) if self._settings.spec.kind == "nested" and rank > 1 else None

    def _too_large(self, fit: Fit, taken: Taken) -> OutOfMemory:
        quantised = taken.peak - saved_by_nf4(self._base)
        would_help = not fit.quantise and self._base.model.device.type != "mps" and quantised <= taken.allowed
        needed = "" if taken.peak > taken.allowed else "more than "
        cure = "load the base quantised (nf4)" if would_help else "choose a run with a smaller base"
        return OutOfMemory(
            f"{self._base.facts.base_id} cannot be trained here: one window of {self._settings.window_tokens} tokens "
            f"with gradient checkpointing needs {needed}{_gib(taken.peak)}, this worker may take {_gib(taken.allowed)} "
            f"of the {self._base.model.device.type}'s memory; close what else uses it, raise the limit, or {cure}",
            rule=NEEDS_QUANTISING if would_help else TOO_SMALL,
        )

    # --- a subtree ---------------------------------------------------------------------------------------------------

    def leaves(self, fit: Fit, leaf: _Tried) -> int:
        """Leaves that fit together at the size that was found for one; 0 where all that the run may ask for do."""
        depth = subtree_depth(self._settings)
        if depth == 0 or fit.max_leaves == 1:
            return fit.max_leaves
        asked = 2**depth
        most = min(fit.max_leaves or asked, asked, MOST_LEAVES)
        for level in range(int(math.log2(most)), 0, -1):
            if self._can_hold(fit, 2**level, leaf.taken) and self._attempt(fit, 2**level).is_fit:
                return 0 if 2**level == asked and not fit.max_leaves else 2**level
        return 1

    def _can_hold(self, fit: Fit, n_leaves: int, of_one: Taken) -> bool:
        """Whether the adapters alone leave a chance: no step is needed to see that a thousand large ones do not fit."""
        shapes = adapter_shapes(self._base.facts, self._spec(fit))
        numbers = sum(math.prod(shape) for shape in shapes.values())
        return of_one.peak + (n_leaves - 1) * numbers * BYTES_PER_NUMBER <= of_one.allowed

    # --- one attempt -------------------------------------------------------------------------------------------------

    def _attempt(self, fit: Fit, n_leaves: int) -> _Tried:
        """Two steps: the first for memory, the second, where the first fits, for time."""
        self._meter.begin()
        failure, seconds, batch = "", 0.0, self._batch(fit)
        try:
            with self._model(fit, n_leaves) as (model, router):
                seconds = self._steps(model, router, batch, fit)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).strip().partition("\n")[0] or type(error).__name__
        taken = self._meter.end()
        give_memory_back()
        is_fit = not failure and taken.is_within
        what = f"{n_leaves} leaves, {fit}" if n_leaves > 1 else str(fit)
        result = f"{_gib(taken.peak)} of {_gib(taken.allowed)}" if not failure else f"out of memory ({failure})"
        self.told.append(f"{what}: {result}{'' if is_fit or failure else ', too much'}")
        log.info("%s", self.told[-1])
        return _Tried(is_fit, taken, batch.ids.numel() / max(1e-9, seconds) if is_fit else 0.0)

    def _steps(self, model: TreeModel, router: Router | None, batch: Batch, fit: Fit) -> float:
        """Seconds of the second step."""
        parameters: list[Tensor] = [*model.adapter_parameters(), *(router.parameters() if router else ())]
        is_half = self._base.model.dtype == torch.float16
        optimiser = Optimiser(parameters, Schedule(1e-6, 0, 2), is_base_half=is_half)
        optimiser.remember(_moments(optimiser))
        seconds = 0.0
        for index in range(2):
            started = self._clock()
            take_step(optimiser, batch, self._loss(model, router, fit), index, index, fit)
            optimiser.copied()
            seconds = self._clock() - started
        return seconds

    def _loss(self, model: TreeModel, router: Router | None, fit: Fit) -> LossOf:
        """As units have it, with all rows of nested adapters, which take the most."""

        def loss_of(batch: Batch, index: int) -> tuple[Tensor, Tensor]:
            model.is_recomputing = fit.gradient_checkpointing
            loss = model.loss(batch.ids, documents=batch.documents) * batch.share_of_targets
            return loss, loss.detach()

        return loss_of if router is None else hardening(loss_of, router, 2)

    def _batch(self, fit: Fit) -> Batch:
        """As many windows as show the peak: with more than two parts, the third is like the second."""
        n_windows = min(self._batch_windows, 2 * fit.windows_at_once(self._batch_windows))
        n_tokens = min(self._settings.window_tokens, self._base.facts.max_window_tokens)
        n_vocabulary = len(self._base.model.get_input_embeddings().weight)
        draw = np.random.default_rng(_WINDOW_SEED)
        ids = torch.from_numpy(draw.integers(0, n_vocabulary, (n_windows, n_tokens)))
        return Batch(ids, torch.zeros_like(ids)).to(self._base.model.device)

    def _spec(self, fit: Fit) -> AdapterSpec:
        """The run's adapters, of nested ones as many rows as fit."""
        spec = self._settings.spec
        return prefix_spec(spec, self._base.facts, fit.max_rank if spec.kind == "nested" else 0)

    @contextmanager
    def _model(self, fit: Fit, n_leaves: int) -> Iterator[tuple[TreeModel, Router | None]]:
        """The base with the adapters of a leaf, of a path, or of a subtree and the gates between its leaves."""
        base, settings = self._base, self._settings
        router = _router(base, n_leaves) if n_leaves > 1 else None
        nodes = tuple(router.nodes) if router else _nodes_of_a_leaf(settings)
        spec = self._spec(fit)
        shared = shared_factors(base.facts, spec, seed=settings.seed)
        model = TreeModel(base, nodes=nodes, spec=spec, scale=settings.scale, router=router, shared=shared)
        try:
            for node in nodes:
                model.load_node(node, init_adapter(base.facts, spec, seed=settings.seed, path=node))
            yield model, router
        finally:
            model.detach_adapters()


def subtree_depth(settings: RunSettings) -> int:
    """Levels of the largest subtree that a run trains as one; 0 where it trains paths, or is one leaf."""
    return settings.depth if settings.where == "leaves" else 0


def saved_by_nf4(base: LoadedBase) -> int:
    """Bytes that the base's linears would take less in four bits than they take now; 0 for those that have fewer."""
    now = base.model.dtype.itemsize
    numbers = sum(shape.n_layers * shape.in_features * shape.out_features for shape in base.facts.projections.values())
    return int(numbers * (now - NF4_BYTES))


def _nodes_of_a_leaf(settings: RunSettings) -> tuple[NodePath, ...]:
    """A leaf's adapter; of a path all, which is the most that is trained at once."""
    return tuple("0" * level for level in range(settings.depth + 1)) if settings.where == "path" else ("",)


def _router(base: LoadedBase, n_leaves: int) -> Router:
    topology = Topology.perfect(int(math.log2(n_leaves)))
    dim = base.facts.feature_dim
    gates = Gates({node: Gate(np.zeros(dim), 0.0, 1.0) for node in topology.inner}, dim)
    return Router(base.routing_feature, gates, topology, nodes=topology.leaves, trainable=True)


def _moments(optimiser: Optimiser) -> Moments:
    """As after a first step, so that the next one finds its moments there, as all but the first do."""
    numbers = optimiser.copied()[0]
    zeros = {name: torch.zeros_like(vector) for name, vector in numbers.items()}
    return Moments(torch.ones(len(optimiser.parameters)), zeros, dict(zeros))


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
