"""`UnitRunner`: one worker's base, shard and optimiser memory, and the units that it carries out one after the other.

The base is loaded once and stays; adapters are put in front of its linears for a unit and taken away after it, so that
several runners of one process (a simulation) can share a base. A unit's result depends on the unit, its payload, the
shard, the worker's name, and on AdamW's moments if this runner trained the same adapters before. The moments before and
after a node's last unit are kept: a unit that has to be repeated gives the same bytes again. A restarted worker begins
with fresh moments, as does whoever takes over a node.

A unit trains the adapters of `unit.trained` and applies those of `unit.frozen`: a leaf; the leaves of a subtree through
their soft mixture; a node of the trunk, or a leaf beside its frozen ancestors; or all nodes of a path.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from tinylora.adapters.prefixes import prefix_spec
from tinylora.adapters.tied import shared_factors
from tinylora.base_model import LoadedBase, loads
from tinylora.errors import DataError, ProtocolError
from tinylora.model import TreeModel
from tinylora.protocol.documents import ProbeResult, Update, WorkUnit, only_factors, sha256
from tinylora.protocol.envelope import sign as sign_update
from tinylora.reading.documents import TokensOf, sampled
from tinylora.routing.averaged_gates import local_gate_steps
from tinylora.routing.features import RoutingFeature
from tinylora.routing.gates import Gate, Gates, solve_gates
from tinylora.routing.policy import Router
from tinylora.routing.sketch import collect, document_features, sketch
from tinylora.routing.statistics import RouterStatistics
from tinylora.shards import Document, Shard, batches, check_size, spaced_windows
from tinylora.tensors import Tensors, manifest_of, to_bytes, with_prefix
from tinylora.training import probing, sending, split
from tinylora.training.batch import Batch
from tinylora.training.fit import Fit
from tinylora.training.losses import loss_for, mean_nll
from tinylora.training.optimiser import Moments, OnStep, Optimiser, Schedule, take_steps, thin
from tinylora.training.out_of_memory import Fitting, OnStepDown
from tinylora.training.received import Received, check_unit, open_payload
from tinylora.training.snapshot import Identity, Snapshot
from tinylora.tree import NodePath, Topology, is_under

log = logging.getLogger(__name__)

N_HELDOUT_WINDOWS = 8
N_LOSSES = 10
"""Points of the loss curve that an update carries."""
MAX_REMEMBERED = 4
WHOLE = Fit()
"""What a machine does that holds everything."""
CERTAIN = 1e4
"""Score of a gate that leaves nothing to chance."""
MAX_DEALT_DOCUMENTS = 2**15
"""Documents that are told apart by their features at once, evenly sampled: 64 MiB of features of 256 numbers."""
MAX_SKETCHED_DOCUMENTS = 2**16
"""Documents that a sketch reads, evenly sampled, each standing for as many as it takes: minutes, whatever the shard."""
LOCAL_GATE_STEPS = 10
"""Between two averages: with one label at hand, more steps pull a gate away from those who are absent."""


@dataclass(frozen=True)
class Work:
    """What came out of a unit, before it is written down as an update."""

    tensors: Tensors
    losses: tuple[float, ...] = ()
    nll_before: float | None = None
    nll_after: float | None = None
    log_volume: float | None = None
    probe: ProbeResult | None = None
    seconds_before: float = 0.0
    """Busy time of an earlier run of the unit, which this one went on from."""


@dataclass(frozen=True)
class Dealt:
    """A shard's documents and the leaf that each belongs to, by its full path."""

    documents: Sequence[Document]
    leaf_of: list[NodePath]

    def by_leaf(self) -> dict[NodePath, list[Document]]:
        """The documents of each leaf."""
        found: dict[NodePath, list[Document]] = {leaf: [] for leaf in sorted(set(self.leaf_of))}
        for document, leaf in zip(self.documents, self.leaf_of, strict=True):
            found[leaf].append(document)
        return found


class UnitRunner:
    """Carries out units of work on one shard.

    Args:
        base: The resident base model.
        shard: The worker's text.
        worker: Identity of the worker; its order of batches follows from it, so that replicas read different text.
        sign: Makes the raw signature of `envelope.signed_bytes`; None leaves updates unsigned.
        clock: Seconds, for the busy time that an update reports.
        on_step: Called after every optimiser step.
        threads: CPU threads of torch in this process; None leaves them as they are.
        max_rank: Highest rank that this machine can train; 0 is any. Of nested adapters it gets a prefix then.
        fit: What a step is cut into from the start; its `max_rank` counts where `max_rank` is 0.
        on_step_down: Called when memory ran out and less is computed at once from now on.
    """

    def __init__(
        self,
        base: LoadedBase,
        shard: Shard,
        *,
        worker: str,
        sign: Callable[[bytes], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_step: OnStep | None = None,
        threads: int | None = None,
        max_rank: int = 0,
        fit: Fit = WHOLE,
        on_step_down: OnStepDown | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.base, self.shard, self.worker = base, shard, worker
        self._sign, self._clock, self._on_step, self._max_rank = sign, clock, on_step, max_rank or fit.max_rank
        self._fitting = Fitting(fit, on_step_down)
        self._feature = base.routing_feature
        self._device = base.model.device
        self._memory = Memory()
        self._latest: Snapshot | None = None
        self._started = 0.0
        self._heldout: tuple[RoutingFeature, np.ndarray] | None = None

    @property
    def fit(self) -> Fit:
        """How this machine trains by now: smaller than at first if memory ran out."""
        return self._fitting.fit

    @property
    def latest(self) -> Snapshot | None:
        """The unit under way after its last finished step; None where there is none that has steps.

        It may be read from any thread at any time, and written down while the next step is taken. When a unit fails
        in the middle its last one stays until the next unit begins.
        """
        return self._latest

    def run(self, unit: WorkUnit, payload: bytes, resume: Snapshot | None = None) -> tuple[Update, bytes]:
        """Carry out one unit; returns the update, signed if this runner can, and its payload.

        Args:
            unit: The unit.
            payload: Its tensors.
            resume: Where an earlier run of the same unit came to. One that does not fit is refused in the log, and the
                unit starts over.

        Raises:
            BaseModelError: The unit is for another base or tokenizer.
            ProtocolError: The unit contradicts itself or its payload, or asks for more than this machine takes.
            OutOfMemory: However little is computed at once, a step does not fit.
            DataError: The shard is too small for the unit, or has no held-out text to score an update on.
        """
        self._started, self._latest = self._clock(), None
        self._follow(unit)
        check_unit(unit, self.base.facts, max_rank=self._max_rank, max_leaves=self.fit.max_leaves)
        received = open_payload(unit, payload, self.base.facts)
        if unit.kind == "sketch":
            work = self._sketch(unit)
        elif unit.kind == "train":
            work = self._train(unit, received, resume)
        else:
            work = self._probe(unit, received)
        answer = self._write(unit, work, work.seconds_before + self._clock() - self._started)
        self._latest = None
        return answer

    def _follow(self, unit: WorkUnit) -> None:
        """Have the routing feature of the unit's run; the base in memory stays."""
        if unit.feature_dim not in (0, self.base.facts.feature_dim):
            self.base = self.base.with_feature(unit.feature_dim)
            self._feature = self.base.routing_feature

    def _write(self, unit: WorkUnit, work: Work, seconds: float) -> tuple[Update, bytes]:
        payload = to_bytes(work.tensors)
        n_steps = unit.n_steps if unit.kind == "train" else 0
        update = Update(
            unit_id=unit.unit_id,
            run=unit.run,
            kind=unit.kind,
            worker=self.worker,
            nonce=unit.nonce,
            node=unit.node,
            topology_version=unit.topology_version,
            router_version=unit.router_version,
            node_version=unit.node_version,
            shard_version=self.shard.version,
            shard_tokens=self.shard.n_tokens,
            tokens=n_steps * unit.batch_windows * unit.window_tokens,
            n_steps=n_steps,
            seconds=max(0.0, seconds),
            base_loads=loads(),
            max_rank=self._max_rank,
            max_leaves=self.fit.max_leaves,
            heldout_nll_before=work.nll_before,
            heldout_nll_after=work.nll_after,
            log_volume=work.log_volume,
            losses=work.losses,
            probe=work.probe,
            manifest=manifest_of(work.tensors),
            payload_sha256=sha256(payload),
        )
        return (update if self._sign is None else sign_update(update, self._sign)), payload

    # --- sketch ------------------------------------------------------------------------------------------------------

    def _sketch(self, unit: WorkUnit) -> Work:
        window_tokens = unit.window_tokens or self.base.facts.max_window_tokens
        check_size(self.shard, window_tokens=window_tokens, min_windows=max(1, unit.sketch_min_sequences))
        documents = sampled(self.shard.train, MAX_SKETCHED_DOCUMENTS)
        sums, log_volume = sketch(self._feature, TokensOf(documents))
        n_for_each = float(round(len(self.shard.train) / len(documents)))  # whole, as counts of rows are
        return Work(sending.statistics_tensors({"": sums * n_for_each}), log_volume=log_volume)

    def _sums(self, documents: Sequence[Document]) -> RouterStatistics:
        return collect(self._feature, TokensOf(documents))

    def _features(self, documents: Sequence[Document]) -> np.ndarray:
        return document_features(self._feature, TokensOf(documents))

    # --- scoring others ----------------------------------------------------------------------------------------------

    def _probe(self, unit: WorkUnit, received: Received) -> Work:
        """Another worker's update beside what it would replace, on own held-out text."""
        rows = self._rows_like(unit, received)
        if rows is None:
            raise DataError(f"unit {unit.unit_id}: this shard has no held-out text to score an update on")
        topology, features = Topology(unit.topology_leaves), self._heldout_features()
        mass = probing.shares(features, received.present, topology)
        above = {node: received.adapters[node] for node in unit.frozen}
        current = {node: received.adapters[node] for node, version in unit.trained.items() if version}
        router = None
        if unit.is_subtree:
            gates = _moved(received.present, "", above=unit.node)
            router = Router(self._feature, pointing_to(unit.node, gates), around(unit), nodes=unit.applied)
        with self._tree(unit, replace(received, adapters=above), router) as model:
            result = probing.score(model, rows, current, received.candidates, mass, self._fitting)
        tensors = probing.histograms(features, received.present, unit.home) if unit.home is not None else {}
        return Work(tensors, probe=result)

    def _rows_like(self, unit: WorkUnit, received: Received) -> Batch | None:
        """Windows of those held-out documents that the gates would most likely send to the unit's node."""
        documents = sampled(self.shard.heldout, MAX_DEALT_DOCUMENTS)
        if not documents:
            return None
        n_tokens = unit.probe_windows * unit.window_tokens
        features = self._features(documents)
        chosen = split.nearest(documents, features, received.present, unit.node, min_tokens=n_tokens)
        rows = heldout_rows(chosen, unit.window_tokens, unit.probe_windows)
        return None if rows is None else rows.to(self._device)

    def _heldout_features(self) -> np.ndarray:
        """What the router sees of the held-out text: the same for every probe of a run."""
        if self._heldout is None or self._heldout[0] is not self._feature:
            self._heldout = self._feature, probing.features_of(self._feature, self.shard.heldout)
        return self._heldout[1]

    # --- training ----------------------------------------------------------------------------------------------------

    def _train(self, unit: WorkUnit, received: Received, resume: Snapshot | None) -> Work:
        if unit.is_adopted:
            return self._train_on(unit, received, self._nearest(unit, received), resume)[0]
        work, dealt, trained = self._train_on(unit, received, self.shard, resume)
        tensors = self._routing_tensors(unit, received, dealt, trained)
        return replace(work, tensors=work.tensors | tensors)

    def _nearest(self, unit: WorkUnit, received: Received) -> Shard:
        """That part of the shard which is most like the leaf's own text, as far as the gates can tell."""
        documents = sampled(self.shard.train, MAX_DEALT_DOCUMENTS)
        chosen = split.nearest(
            documents, self._features(documents), received.present, unit.node, min_tokens=2 * unit.window_tokens
        )
        return replace(self.shard, train=chosen)

    def _train_on(
        self, unit: WorkUnit, received: Received, shard: Shard, resume: Snapshot | None
    ) -> tuple[Work, Dealt, Gates]:
        """Train what the unit says, the gates between its leaves included; also whose text is whose afterwards."""
        check_size(shard, window_tokens=unit.window_tokens)
        if unit.is_subtree:
            return self._train_subtree(unit, received, shard, resume)
        with self._tree(unit, received, None) as model:
            work = self._fit(unit, model, shard, None, resume)
        return work, Dealt(shard.train, [unit.node] * len(shard.train)), Gates({}, self._feature.dim)

    @contextmanager
    def _tree(self, unit: WorkUnit, received: Received, router: Router | None) -> Iterator[TreeModel]:
        """The base with the unit's adapters on it; bare again afterwards."""
        spec = prefix_spec(unit.spec, self.base.facts, unit.prefix_rank)
        shared = shared_factors(self.base.facts, spec, seed=unit.seed)
        model = TreeModel(self.base, nodes=unit.applied, spec=spec, scale=unit.scale, router=router, shared=shared)
        try:
            for node, state in received.adapters.items():
                model.load_node(node, state)
            yield model
        finally:
            model.detach_adapters()

    def _fit(
        self, unit: WorkUnit, model: TreeModel, shard: Shard, router: Router | None, resume: Snapshot | None
    ) -> Work:
        """Take the unit's steps; held-out loss before and after, and what was trained of its adapters."""
        heldout = heldout_rows(self.shard.heldout, unit.window_tokens)
        parameters = model.adapter_parameters(tuple(unit.trained), unit.factors or None)
        optimiser = Optimiser(
            [*parameters, *(router.parameters() if router else ())],
            Schedule(unit.learning_rate, unit.warmup_steps, unit.total_steps),
            is_base_half=self.base.model.dtype == torch.float16,
        )
        start = self._resumed(unit, optimiser, resume) or self._begun(unit, model, optimiser, heldout)
        self._latest = start
        losses = take_steps(
            optimiser,
            self._batches(unit, shard, start.n_steps),
            loss_for(unit, model, router, lambda: self.fit.gradient_checkpointing),
            node=unit.node,
            first_step=unit.first_step,
            n_steps=unit.n_steps,
            losses=start.losses,
            fitting=self._fitting,
            undo=lambda: self._undo(optimiser),
            on_finished=lambda losses: self._keep(start, optimiser, losses),
            on_step=self._on_step,
        )
        self._memory.keep(unit, start.before, optimiser.moments())
        tensors: Tensors = {}
        for node in unit.trained:
            tensors |= with_prefix(only_factors(model.node_state(node), unit.factors), f"node.{node}.")
        nll_after = self._heldout_nll(model, heldout)
        return Work(tensors, thin(losses, N_LOSSES), start.nll_before, nll_after, seconds_before=start.seconds)

    def _begun(self, unit: WorkUnit, model: TreeModel, optimiser: Optimiser, heldout: Batch | None) -> Snapshot:
        """The unit before its first step."""
        nll_before = self._heldout_nll(model, heldout)
        before = self._memory.recall(unit)
        optimiser.remember(before)
        identity = Identity.of(unit, self.shard.version, self.worker)
        return Snapshot(identity, self.fit, 0.0, (), nll_before, optimiser.copied()[0], before, before)

    def _resumed(self, unit: WorkUnit, optimiser: Optimiser, resume: Snapshot | None) -> Snapshot | None:
        """Parameters and moments put back as they were at `resume`; None, and nothing done, where it does not fit."""
        if resume is None:
            return None
        try:
            identity = Identity.of(unit, self.shard.version, self.worker)
            resume.check(identity, optimiser.parameters, unit.n_steps)
        except ProtocolError as error:
            log.warning("%s; the unit starts over", error)
            return None
        optimiser.restore(resume.parameters, resume.moments)
        self._fitting.fit = self.fit.smaller(resume.fit)
        return replace(resume, fit=self.fit)

    def _keep(self, start: Snapshot, optimiser: Optimiser, losses: tuple[float, ...]) -> None:
        """Make the step that was just taken the one to go on from."""
        parameters, moments = optimiser.copied()
        seconds = start.seconds + self._clock() - self._started
        self._latest = Snapshot(
            start.identity, self.fit, seconds, losses, start.nll_before, parameters, moments, start.before
        )

    def _undo(self, optimiser: Optimiser) -> None:
        """Be as after the last finished step again."""
        if self._latest is not None:
            optimiser.restore(self._latest.parameters, self._latest.moments)

    def _batches(self, unit: WorkUnit, shard: Shard, n_taken: int) -> Iterator[Batch]:
        rows = batches(
            shard,
            window_tokens=unit.window_tokens,
            batch_windows=unit.batch_windows,
            seed=order_seed(unit.seed, self.worker),
            first_step=unit.first_step + n_taken,
        )
        return (Batch.of(found, self._device) for found in rows)

    def _heldout_nll(self, model: TreeModel, rows: Batch | None) -> float | None:
        """Mean nats of the tokens that are to be predicted; None where there are none."""
        if rows is None:
            return None
        batch = rows.to(self._device)
        return self._fitting.attempt(len(batch), lambda fit: mean_nll(model, batch, fit))

    # --- a subtree ---------------------------------------------------------------------------------------------------

    def _train_subtree(
        self, unit: WorkUnit, received: Received, shard: Shard, resume: Snapshot | None
    ) -> tuple[Work, Dealt, Gates]:
        """Leaves and gates together through the soft mixture, which hardens towards the unit's end."""
        inside = Topology(tuple(_inside(leaf, unit.node) for leaf in unit.leaves))
        documents = split.pieces(sampled(shard.train, MAX_DEALT_DOCUMENTS), len(unit.leaves))
        documents = sampled(documents, MAX_DEALT_DOCUMENTS)
        features = self._features(documents)
        leaf_of, gates = self._begin(unit, received, inside, documents, features)
        router = Router(self._feature, pointing_to(unit.node, gates), around(unit), nodes=unit.applied, trainable=True)
        with self._tree(unit, received, router) as model:
            work = self._fit(unit, model, shard, router, resume)
        trained = _moved(router.gates(), "", above=unit.node)
        hardened = split.by_gates(features, trained, inside)
        if set(hardened) == set(inside.leaves):  # otherwise a leaf would be left without text, and later without sums
            leaf_of = hardened
        return work, Dealt(documents, [unit.node + leaf for leaf in leaf_of]), _moved(trained, unit.node)

    def _begin(
        self,
        unit: WorkUnit,
        received: Received,
        inside: Topology,
        documents: Sequence[Document],
        features: np.ndarray,
    ) -> tuple[list[NodePath], Gates]:
        """Whose text is whose at first, and gates that say so: the run's, or balanced halves where it has none yet."""
        present = received.present.nodes
        known = {node: present.get(unit.node + node) for node in inside.inner}
        solved = {node: gate for node, gate in known.items() if gate is not None and gate.w.any()}
        if len(solved) == len(known):
            gates = Gates(solved, self._feature.dim)
            leaf_of = split.by_gates(features, gates, inside)
            if set(leaf_of) == set(inside.leaves):
                return leaf_of, gates
        sizes = np.array([len(document.tokens) for document in documents])
        dealt = Dealt(documents, split.deal(features, sizes, inside))
        sums = {leaf: self._sums(members) for leaf, members in dealt.by_leaf().items()}
        return dealt.leaf_of, solve_gates(sums, inside)

    # --- what is told about routing ----------------------------------------------------------------------------------

    def _routing_tensors(self, unit: WorkUnit, received: Received, dealt: Dealt, trained: Gates) -> Tensors:
        """Router scores of held-out text; sums of each leaf of a subtree; gates, where the run averages weights."""
        heldout = sampled(self.shard.heldout, MAX_DEALT_DOCUMENTS)
        leaf_of = [unit.node] * len(heldout)
        if unit.is_subtree and heldout:
            inside = Topology(tuple(_inside(leaf, unit.node) for leaf in unit.leaves))
            below = split.by_gates(self._features(heldout), _moved(trained, "", above=unit.node), inside)
            leaf_of = [unit.node + leaf for leaf in below]
        tensors = sending.histogram_tensors(received.present, self._feature, heldout, leaf_of)
        if unit.is_subtree:
            sums = {leaf: self._sums(members) for leaf, members in dealt.by_leaf().items()}
            tensors |= sending.statistics_tensors(sums)
        if unit.router_sync != "statistics":
            tensors |= sending.gate_tensors(self._stepped(unit, received, dealt, trained))
        return tensors

    def _stepped(self, unit: WorkUnit, received: Received, dealt: Dealt, trained: Gates) -> Gates:
        """Gates above the unit's node after a few local steps, and those of its subtree as the mixture trained them."""
        topology = Topology(unit.topology_leaves)
        blank = Gate(np.zeros(self._feature.dim), 0.0, 1.0)
        start = {
            inner: received.averaged.nodes.get(inner, blank) for inner in sending.gates_in_line(topology, unit.node)
        }
        rows, leaves = sending.prefix_rows(self._feature, dealt.documents, dealt.leaf_of)
        rate = 4 / (1 + float(np.mean(np.sum(rows**2, axis=1)))) if len(rows) else 0.0  # 1 / smoothness: never diverges
        stepped = local_gate_steps(Gates(start, self._feature.dim), rows, leaves, topology, LOCAL_GATE_STEPS, rate)
        return Gates(start | stepped.nodes | trained.nodes, self._feature.dim)


# --- a subtree in its tree -------------------------------------------------------------------------------------------


def around(unit: WorkUnit) -> Topology:
    """The smallest tree with the unit's leaves at their places: they, and a sibling at every turn on the way."""
    siblings = [unit.node[:level] + ("1" if turn == "0" else "0") for level, turn in enumerate(unit.node)]
    return Topology((*unit.leaves, *siblings))


def pointing_to(node: NodePath, gates: Gates) -> Gates:
    """A subtree's gates, named from its top on, at their place in the tree, and gates above that all point to it.

    With a score of 10,000 either way a sigmoid is exactly 0 or 1, and passes no gradient: whatever is above the subtree
    takes every token.
    """
    zero = np.zeros(gates.dim)
    above = {node[:level]: Gate(zero, CERTAIN if turn == "1" else -CERTAIN, 1.0) for level, turn in enumerate(node)}
    return Gates(above | _moved(gates, node).nodes, gates.dim)


def heldout_rows(
    documents: Sequence[Document], window_tokens: int, most_windows: int = N_HELDOUT_WINDOWS
) -> Batch | None:
    """A few windows, evenly spaced over the held-out text, with document numbers; None where there is no such text."""
    rows = spaced_windows(documents, window_tokens, most_windows)
    batch = None if rows is None else Batch.of(rows)
    return batch if batch is not None and batch.n_targets else None


def order_seed(seed: int, worker: str) -> int:
    """Seed of a worker's own order of batches: replicas of a leaf must not read the same windows in step."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{worker}".encode()).digest()[:7], "big")


# --- memory ----------------------------------------------------------------------------------------------------------


class Memory:
    """AdamW's moments of the adapters that were trained last, before and after each one's last unit, by step."""

    def __init__(self) -> None:
        self._moments: dict[tuple[object, ...], dict[int, Moments | None]] = {}

    def recall(self, unit: WorkUnit) -> Moments | None:
        """The latest moments from before the unit's first step; None where this process has not come that way.

        They may be older than the step: others trained the node meanwhile, or its other factor had its turn.
        """
        kept = {} if unit.has_new_axes else self._moments.get(_key(unit), {})
        return kept[max(steps)] if (steps := [step for step in kept if step <= unit.first_step]) else None

    def keep(self, unit: WorkUnit, before: Moments | None, after: Moments) -> None:
        """Remember a unit's two ends, and forget what was not trained for the longest time."""
        self._moments.pop(_key(unit), None)
        self._moments[_key(unit)] = {unit.first_step: before, unit.first_step + unit.n_steps: after}
        while len(self._moments) > MAX_REMEMBERED:
            del self._moments[next(iter(self._moments))]


def _key(unit: WorkUnit) -> tuple[object, ...]:
    return unit.run, unit.node, tuple(unit.trained), unit.factors, unit.spec, unit.prefix_rank


def _inside(path: NodePath, top: NodePath) -> NodePath:
    """The name of a node within the subtree of `top`, where `top` is the root."""
    return path.removeprefix(top)


def _moved(gates: Gates, onto: NodePath, *, above: NodePath = "") -> Gates:
    """Gates renamed: those under `above` to the same places under `onto`."""
    nodes = {onto + _inside(node, above): gate for node, gate in gates.nodes.items() if is_under(node, above)}
    return Gates(nodes, gates.dim)
