"""From tokens to weights of nodes: the router, under any policy.

The posteriors of all leaves are one matrix product away from the gates' scores: with G the log probabilities of turning
right and left at every inner node, log p(leaf) = G @ M, where M marks the turns on the way to each leaf. This holds for
uneven trees, and for a tree that is one leaf. Where one leaf or two are chosen, what comes out is a short list of nodes
for each token (`mixture.routing`), not a weight for every node of the tree: linears then cost what those nodes cost.

Everything is causal and goes on from a `RouterState`: the weights of a token depend on the tokens up to it, and are the
same whether the text came in one pass or token by token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from tinylora.errors import ShapeMismatch
from tinylora.mixture import ByRow, ByToken, Routing, Weighted
from tinylora.mixture.routing import scatter
from tinylora.routing.decision import Policy
from tinylora.routing.features import FeatureState, RoutingFeature, document_starts
from tinylora.routing.gates import Gate, Gates
from tinylora.tree import NodePath, Topology, is_under

__all__ = ["Policy", "Router", "RouterState", "reference_posterior"]


@dataclass(frozen=True)
class Choice:
    """Nodes and how much of each, at every place; places are a batch, or the tokens of one."""

    nodes: Int[Tensor, "*place width"] | None
    """Short lists; None is all nodes of the router, in its order."""
    gates: Float[Tensor, "*place width"] | None
    """None is 1 of each."""

    def at(self, token: int) -> "Choice":
        """Of one token of every row, detached."""
        nodes = None if self.nodes is None else self.nodes[:, token]
        return Choice(nodes, None if self.gates is None else self.gates[:, token].detach())

    def first(self, n_rows: int) -> "Choice":
        """Of the first rows alone."""
        cut = (None if part is None else part[:n_rows] for part in (self.nodes, self.gates))
        return Choice(*cut)

    def listed(self, n_nodes: int, width: int) -> tuple[Tensor, Tensor]:
        """Lists and gates of at least this width."""
        if self.nodes is None:
            assert self.gates is not None
            return torch.arange(n_nodes, device=self.gates.device).expand(self.gates.shape), self.gates
        gates = torch.ones_like(self.nodes, dtype=torch.float32) if self.gates is None else self.gates
        missing = width - gates.shape[-1]
        return (self.nodes, gates) if missing <= 0 else (F.pad(self.nodes, (0, missing)), F.pad(gates, (0, missing)))

    def dense(self, n_nodes: int) -> Float[Tensor, "*place node"]:
        """A weight for every node."""
        nodes, gates = self.listed(n_nodes, 0)
        return gates if self.nodes is None else scatter(nodes, gates, n_nodes)


@dataclass(frozen=True)
class RouterState:
    """Where a batch of rows stands: their running means, and what was decided last."""

    feature: FeatureState
    held: Choice

    def first(self, n_rows: int) -> "RouterState":
        """Of the first rows alone."""
        feature = FeatureState(self.feature.total[:n_rows], self.feature.count[:n_rows])
        return RouterState(feature, self.held.first(n_rows))


class Router(nn.Module):
    """Gates over a topology, and the nodes whose adapters they weigh.

    Args:
        feature: Tokens to features.
        gates: One for each inner node of the topology, at least.
        topology: The tree.
        nodes: Those that carry adapters, in the order of the weights' last axis: leaves, inner nodes, or both.
        trainable: Whether w and b are parameters. The temperatures stay: w and b can say the same.

    Raises:
        ShapeMismatch: A gate is missing or of another size, or a node is not in the tree.
    """

    w: Float[Tensor, "inner feature"]
    b: Float[Tensor, " inner"]
    tau: Float[Tensor, " inner"]
    turns: Float[Tensor, "turn leaf"]
    below: Float[Tensor, "leaf node"]
    signs: Float[Tensor, "inner leaf"]
    minus_depths: Float[Tensor, " leaf"]
    way: Int[Tensor, "leaf width"]
    is_on_way: Float[Tensor, "leaf width"]
    start: Int[Tensor, " width"]
    is_started: Float[Tensor, " width"]

    def __init__(
        self,
        feature: RoutingFeature,
        gates: Gates,
        topology: Topology,
        nodes: Sequence[NodePath],
        *,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.feature, self.topology, self.nodes = feature, topology, tuple(nodes)
        chosen = [_gate_of(gates, node, feature.dim) for node in topology.inner]
        strange = sorted(set(self.nodes) - set(topology.nodes))
        if strange:
            raise ShapeMismatch(
                f"node {strange[0]!r}: no such node; the tree's leaves are {', '.join(topology.leaves)}"
            )
        w = torch.from_numpy(np.array([gate.w for gate in chosen], dtype=np.float64).reshape(-1, feature.dim))
        b = torch.tensor([gate.b for gate in chosen], dtype=torch.float64)
        for name, tensor in (("w", w), ("b", b)):
            if trainable:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.register_buffer("tau", torch.tensor([gate.tau for gate in chosen], dtype=torch.float64))
        self._register_tree()
        self.to(feature.table.device)
        # Gates that stay as they are need not see all numbers of the feature, only what they make of each token.
        self._reader = feature if trainable else feature.through(self.w)

    def _register_tree(self) -> None:
        """The tree as matrices of zeros and ones, and as lists of the nodes on the way to each leaf."""
        leaves, inner = self.topology.leaves, self.topology.inner
        turns = torch.tensor([[leaf.startswith(node + turn) for leaf in leaves] for turn in "10" for node in inner])
        turns = turns.reshape(2 * len(inner), len(leaves)).double()
        upper_first = sorted(range(len(self.nodes)), key=lambda index: len(self.nodes[index]))
        ways = [[index for index in upper_first if is_under(leaf, self.nodes[index])] for leaf in leaves]
        width = max(1, *map(len, ways))
        at_root = [index for index, node in enumerate(self.nodes) if node == ""]
        tables = {
            "turns": turns,
            "below": torch.tensor([[is_under(leaf, node) for node in self.nodes] for leaf in leaves]).double(),
            "signs": (turns[: len(inner)] - turns[len(inner) :]).float(),
            "minus_depths": torch.tensor([-float(len(leaf)) for leaf in leaves]),
            "way": torch.tensor([way + [0] * (width - len(way)) for way in ways]),
            "is_on_way": torch.tensor([[1.0] * len(way) + [0.0] * (width - len(way)) for way in ways]),
            # The root is on every path, so it needs no decision.
            "start": torch.tensor([*at_root, *[0] * width][:width]),
            "is_started": torch.tensor([*[1.0] * len(at_root), *[0.0] * width][:width]),
        }
        self._is_way_full = all(len(way) == width for way in ways)
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        *,
        documents: Int[Tensor, "batch token"] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        state: RouterState | None = None,
        policy: Policy,
    ) -> tuple[Routing, RouterState]:
        """Weights of every node at every token.

        Before the first decision of `window` and `sequence` a token has the path so far: the root's adapter if there is
        one, else the base alone.

        Args:
            input_ids: Tokens.
            documents: Number of the document that each token of a packed row belongs to; see `RoutingFeature`.
            mask: False on padding.
            state: From the pass before, over the same rows.
            policy: How gates become weights.
        """
        known = state or self.initial_state(len(input_ids))
        scores, counts, feature_state = self._read(input_ids, documents, mask, known.feature)
        choice = self.choose(scores, policy)
        if policy.granularity != "token":
            is_decision = counts % policy.size == 0 if policy.granularity == "window" else counts == policy.size
            is_decision = is_decision & (counts > 0) if mask is None else is_decision & (counts > 0) & mask
            starts = None if documents is None else document_starts(documents, mask)
            choice = self._hold(choice, is_decision, starts, known.held)
        held = choice.at(-1) if input_ids.shape[1] else known.held
        decides_once = policy.granularity == "sequence" and state is None and documents is None
        return self._routing(choice, decides_once), RouterState(feature_state, held)

    def _routing(self, choice: Choice, decides_once: bool) -> Routing:
        """What linears are told; rows that begin here and decide once have one list each, from some token on."""
        nodes, gates, n_nodes = choice.nodes, choice.gates, len(self.nodes)
        if nodes is None:
            assert gates is not None
            return Weighted(gates)
        n_tokens = nodes.shape[1]
        if n_tokens == 1:
            return ByRow(nodes[:, 0], None if _is_one(gates) else gates, 1, n_nodes)
        if decides_once and n_tokens and gates is not None:
            # Before the decision there is the root alone, which is the first of every list.
            last = nodes[:, -1]
            gates = gates * (nodes == last[:, None])
            return ByRow(last, None if _is_one(gates) else gates, n_tokens, n_nodes)
        return ByToken(nodes, gates, n_nodes)

    def initial_state(self, batch: int) -> RouterState:
        """Before the first token of `batch` rows."""
        feature = FeatureState.zero(batch, self._reader.dim, self._reader.table.device)
        return RouterState(feature, Choice(self.start.expand(batch, -1), self.is_started.expand(batch, -1)))

    def _read(
        self, input_ids: Tensor, documents: Tensor | None, mask: Tensor | None, state: FeatureState | None
    ) -> tuple[Float[Tensor, "batch token inner"], Int[Tensor, "batch token"], FeatureState]:
        """Scores of every gate at every token, how many tokens they are taken over, and the state after them."""
        means, counts, after = self._reader(input_ids, documents=documents, mask=mask, state=state)
        scores = self.scores(means) if self._reader is self.feature else means + self.b.double()
        return scores, counts, after

    def scores(self, means: Float[Tensor, "batch token feature"]) -> Float[Tensor, "batch token inner"]:
        """Of every gate w · φ + b, without temperature; in float64, as no decision may hang on a batch's shape."""
        return F.linear(means.double(), self.w.double(), self.b.double())

    def log_posterior(self, scores: Float[Tensor, "batch token inner"]) -> Float[Tensor, "batch token leaf"]:
        """Log probability of every leaf, in the order of the topology."""
        logits = scores * self.tau
        return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1) @ self.turns

    def decide(self, scores: Float[Tensor, "batch token inner"], policy: Policy) -> Float[Tensor, "batch token node"]:
        """Weights of every node, decided anew at every token."""
        return self.choose(scores, policy).dense(len(self.nodes))

    def choose(self, scores: Float[Tensor, "batch token inner"], policy: Policy) -> Choice:
        """Nodes of every token, decided anew at each. Gradients pass through `soft` and `top2`."""
        if policy.decision == "soft":
            return Choice(None, (self.log_posterior(scores).exp() @ self.below).float())
        if policy.decision == "top2":
            return self._top2(scores)
        leaf = self._leaf(scores)
        nodes = self.way[leaf]
        if policy.decision == "hard":
            return Choice(nodes, None if self._is_way_full else self.is_on_way[leaf])
        is_sure = (self.log_posterior(scores).exp() @ self.below).gather(-1, nodes) > policy.threshold
        return Choice(nodes, self.is_on_way[leaf] * is_sure)

    def _leaf(self, scores: Float[Tensor, "batch token inner"]) -> Int[Tensor, "batch token"]:
        """The one that all gates on its way point to: as many turns agree as it is deep, and at others fewer."""
        turns = torch.where(scores >= 0, 1.0, -1.0).to(self.signs.dtype)
        return (turns @ self.signs + self.minus_depths).argmax(dim=-1)

    def _top2(self, scores: Float[Tensor, "batch token inner"]) -> Choice:
        """The paths to the two likeliest leaves, by their posterior, which sums to one; a node of both stands twice."""
        log_posterior = self.log_posterior(scores)
        top = log_posterior.topk(min(2, log_posterior.shape[-1]), dim=-1)
        gates = top.values.softmax(dim=-1).float().unsqueeze(-1) * self.is_on_way[top.indices]
        return Choice(self.way[top.indices].flatten(-2), gates.flatten(-2))

    def _hold(
        self,
        fresh: Choice,
        is_decision: Bool[Tensor, "batch token"],
        starts: Bool[Tensor, "batch token"] | None,
        before: Choice,
    ) -> Choice:
        """At each token the document's last decision; before its first one, `before`, or the root where it began here.

        `before` is for the document that the rows came in with.
        """
        start = Choice(self.start, self.is_started)
        n_nodes = len(self.nodes)
        if fresh.nodes is None:
            assert fresh.gates is not None
            return Choice(None, _hold(fresh.gates, is_decision, starts, before.dense(n_nodes), start.dense(n_nodes)))
        width = max(choice.shape[-1] for choice in (fresh.nodes, before.listed(n_nodes, 0)[0]))
        held = zip(*(choice.listed(n_nodes, width) for choice in (fresh, before, start)), strict=True)
        nodes, gates = (_hold(now, is_decision, starts, earlier, at_start) for now, earlier, at_start in held)
        return Choice(nodes, gates)

    def entropy(
        self,
        input_ids: Int[Tensor, "batch token"],
        *,
        documents: Int[Tensor, "batch token"] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        state: RouterState | None = None,
    ) -> Float[Tensor, ""]:
        """Indecision of the gates in nats, summed over gates, the mean over tokens: added to a loss, it hardens them.

        Source:
            Belcak and Wattenhofer 2023, Fast Feedforward Networks, arXiv:2308.14711, section "Hardening".
        """
        before = None if state is None else state.feature
        logits = self._read(input_ids, documents, mask, before)[0] * self.tau
        per_token = (F.softplus(logits) - logits * logits.sigmoid()).sum(dim=-1)
        return per_token.mean() if mask is None else (per_token * mask).sum() / mask.sum().clamp(min=1)

    def gates(self) -> Gates:
        """The gates as they are now, trained or not."""
        w, b, tau = (tensor.detach().double().cpu().numpy().copy() for tensor in (self.w, self.b, self.tau))
        nodes = {node: Gate(w[i], float(b[i]), float(tau[i])) for i, node in enumerate(self.topology.inner)}
        return Gates(nodes, self.feature.dim)


def _is_one(gates: Tensor | None) -> bool:
    """Whether gates are known to be 1; not asked on a GPU, and not where they are trained."""
    if gates is None:
        return True
    return gates.device.type == "cpu" and not gates.requires_grad and bool((gates == 1).all())


def _gate_of(gates: Gates, node: NodePath, dim: int) -> Gate:
    if node not in gates.nodes:
        raise ShapeMismatch(f"gate of node {node!r}: expected one for every inner node of the tree, got none")
    gate = gates.nodes[node]
    if gate.w.shape != (dim,):
        raise ShapeMismatch(
            f"gate of node {node!r}: expected {dim} weights as the routing feature has, got {gate.w.size}"
        )
    return gate


def _hold(
    fresh: Shaped[Tensor, "batch token width"],
    is_decision: Bool[Tensor, "batch token"],
    starts: Bool[Tensor, "batch token"] | None,
    held: Shaped[Tensor, "batch width"],
    start: Shaped[Tensor, " width"],
) -> Shaped[Tensor, "batch token width"]:
    """At each token what stood at the document's last decision; before its first one, `held` or `start`.

    `held` is for the document that the rows came in with, `start` for one that begins within them.
    """
    if starts is None and is_decision.shape[1] == 1:
        return torch.where(is_decision.unsqueeze(-1), fresh, held.unsqueeze(1))
    index = torch.arange(is_decision.shape[1], device=fresh.device).expand_as(is_decision)
    last = torch.where(is_decision, index, -1).cummax(dim=1).values if is_decision.shape[1] else index
    before = held.unsqueeze(1).expand_as(fresh)
    if starts is not None:
        began = torch.where(starts, index, -1).cummax(dim=1).values
        before = torch.where((began >= 0).unsqueeze(-1), start, before)
        last = torch.where(last >= began, last, -1)
    decided = fresh.gather(1, last.clamp(min=0).unsqueeze(-1).expand_as(fresh))
    return torch.where((last >= 0).unsqueeze(-1), decided, before)


def reference_posterior(gates: Gates, means: Sequence[float] | np.ndarray, topology: Topology) -> dict[NodePath, float]:
    """Probability of every leaf for one feature, gate by gate: slow, obvious, and what tests compare with."""
    found = {}
    for leaf in topology.leaves:
        found[leaf] = 1.0
        for level, turn in enumerate(leaf):
            gate = gates.nodes[leaf[:level]]
            score = sum(float(w) * float(x) for w, x in zip(gate.w, means, strict=True)) + gate.b
            signed = gate.tau * score if turn == "1" else -gate.tau * score
            found[leaf] *= 1 / (1 + math.exp(-signed)) if signed > -700 else 0.0
    return found
