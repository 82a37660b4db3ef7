"""From tokens to weights of nodes: the router, under any policy.

The posteriors of all leaves are one matrix product away from the gates' scores: with G the log probabilities of turning
right and left at every inner node, log p(leaf) = G @ M, where M marks the turns on the way to each leaf. This holds for
uneven trees, and for a tree that is one leaf.

Everything is causal and goes on from a `RouterState`: the weights of a token depend on the tokens up to it, and are the
same whether the text came in one pass or token by token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tinylora.errors import ShapeMismatch
from tinylora.mixture import Routing
from tinylora.routing.decision import Policy
from tinylora.routing.features import FeatureState, RoutingFeature, document_starts
from tinylora.routing.gates import Gate, Gates
from tinylora.tree import NodePath, Topology, is_under

__all__ = ["Policy", "Router", "RouterState", "reference_posterior"]


@dataclass(frozen=True)
class RouterState:
    """Where a batch of rows stands: their running means, and the weights that were decided last."""

    feature: FeatureState
    held: Float[Tensor, "batch node"]


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
    depths: Float[Tensor, " leaf"]
    below: Float[Tensor, "leaf node"]
    start: Float[Tensor, " node"]

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
        """The tree as matrices of zeros and ones."""
        leaves, inner = self.topology.leaves, self.topology.inner
        turns = [[leaf.startswith(node + turn) for leaf in leaves] for turn in "10" for node in inner]
        tables = {
            "turns": torch.tensor(turns, dtype=torch.float64).reshape(2 * len(inner), len(leaves)),
            "depths": torch.tensor([float(len(leaf)) for leaf in leaves], dtype=torch.float64),
            "below": torch.tensor([[is_under(leaf, node) for node in self.nodes] for leaf in leaves]).double(),
            # The root is on every path, so it needs no decision.
            "start": torch.tensor([node == "" for node in self.nodes]).float(),
        }
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
        state = state or self.initial_state(len(input_ids))
        scores, counts, feature_state = self._read(input_ids, documents, mask, state.feature)
        weights = self.decide(scores, policy)
        if policy.granularity != "token":
            is_decision = counts % policy.size == 0 if policy.granularity == "window" else counts == policy.size
            is_decision = is_decision & (counts > 0) if mask is None else is_decision & (counts > 0) & mask
            starts = None if documents is None else document_starts(documents, mask)
            weights = _hold(weights, is_decision, starts, state.held, self.start)
        held = weights[:, -1].detach() if input_ids.shape[1] else state.held
        return Routing(weights), RouterState(feature_state, held)

    def initial_state(self, batch: int) -> RouterState:
        """Before the first token of `batch` rows."""
        feature = FeatureState.zero(batch, self._reader.dim, self._reader.table.device)
        return RouterState(feature, self.start.expand(batch, -1))

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
        """Weights of every node, decided anew at every token. Gradients pass through `soft` and `top2`."""
        if policy.decision == "soft":
            weights = self.log_posterior(scores).exp() @ self.below
        elif policy.decision == "top2":
            weights = _top2(self.log_posterior(scores)) @ self.below
        else:
            weights = self._hard(scores) @ self.below
            if policy.decision == "elastic":
                weights = weights * (self.log_posterior(scores).exp() @ self.below > policy.threshold)
        return weights.float()

    def _hard(self, scores: Float[Tensor, "batch token inner"]) -> Float[Tensor, "batch token leaf"]:
        """One at the leaf that all gates on its way point to."""
        is_right = (scores >= 0).double()
        return (torch.cat([is_right, 1 - is_right], dim=-1) @ self.turns == self.depths).double()

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


def _gate_of(gates: Gates, node: NodePath, dim: int) -> Gate:
    if node not in gates.nodes:
        raise ShapeMismatch(f"gate of node {node!r}: expected one for every inner node of the tree, got none")
    gate = gates.nodes[node]
    if gate.w.shape != (dim,):
        raise ShapeMismatch(
            f"gate of node {node!r}: expected {dim} weights as the routing feature has, got {gate.w.size}"
        )
    return gate


def _top2(log_posterior: Float[Tensor, "batch token leaf"]) -> Float[Tensor, "batch token leaf"]:
    """The posterior of the two likeliest leaves, and nothing elsewhere, summing to one."""
    top = log_posterior.topk(min(2, log_posterior.shape[-1]), dim=-1)
    return torch.zeros_like(log_posterior).scatter(-1, top.indices, top.values.softmax(dim=-1))


def _hold(
    weights: Float[Tensor, "batch token node"],
    is_decision: Bool[Tensor, "batch token"],
    starts: Bool[Tensor, "batch token"] | None,
    held: Float[Tensor, "batch node"],
    start: Float[Tensor, " node"],
) -> Float[Tensor, "batch token node"]:
    """At each token the weights of the document's last decision; before its first one, `held` or `start`.

    `held` is for the document that the rows came in with, `start` for one that begins within them.
    """
    index = torch.arange(is_decision.shape[1], device=weights.device).expand_as(is_decision)
    last = torch.where(is_decision, index, -1).cummax(dim=1).values if is_decision.shape[1] else index
    before = held.unsqueeze(1).expand_as(weights)
    if starts is not None:
        began = torch.where(starts, index, -1).cummax(dim=1).values
        before = torch.where((began >= 0).unsqueeze(-1), start, before)
        last = torch.where(last >= began, last, -1)
    decided = weights.gather(1, last.clamp(min=0).unsqueeze(-1).expand_as(weights))
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
