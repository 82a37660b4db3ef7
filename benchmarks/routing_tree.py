"""One trained tree for studies of its router: its texts, what every token costs under every leaf, regrets.

The nll of every token under every leaf and the base is computed once; hard and elastic routing only choose among these.
Soft and top2 need a pass of their own. See `benchmarks.routing`.
"""

import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, read_bundle, write_bundle
from tinylora.config import RunSettings
from tinylora.demo import experiment
from tinylora.demo.study import Study, study_of
from tinylora.evaluation import LATE_TOKENS
from tinylora.mixture import Routing, Weighted
from tinylora.model import TreeModel
from tinylora.routing import sketch
from tinylora.routing.features import RoutingFeature
from tinylora.routing.gates import (
    DEFAULT_TAU,
    N_BINS,
    Gate,
    Gates,
    calibrate,
    histogram,
    solve_gates,
)
from tinylora.routing.policy import Policy, Router, RouterState
from tinylora.routing.statistics import RouterStatistics
from tinylora.simulate import SimulatedWorker, simulate
from tinylora.tree import NodePath, is_under

MAX_TOKENS = 768  # of each scored document
WINDOW = 256
STRIDE = 4  # of the positions that temperatures are fitted on
POLICIES = ("soft", "top2", "hard", "elastic")
BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512)  # where prefix lengths get temperatures of their own
SETTINGS: dict[str, object] = {
    "name": "routing",
    "depth": 3,
    "rank": 16,
    "alpha": 32.0,
    "learning_rate": 2e-3,
    "leaf_steps": 200,
    "unit_steps": 50,
    "router_period": 8,
    "min_workers": 8,
    "min_sequences": 100,
}


@dataclass(frozen=True, eq=False)
class Text:
    """One document of a known domain: `tokens[:-1]` are read, `tokens[1:]` predicted."""

    domain: str
    leaf: NodePath
    tokens: np.ndarray

    @property
    def n(self) -> int:
        """Predicted tokens."""
        return len(self.tokens) - 1


Scores: TypeAlias = Callable[[Text], np.ndarray]
"""Scores of all gates, (token, inner), at every token that is read."""
Collect: TypeAlias = Callable[[RoutingFeature, Sequence[np.ndarray]], RouterStatistics]


# --- the tree, and what every token costs under every leaf -----------------------------------------------------------


def prepare(work: Path, base: LoadedBase, settings: RunSettings) -> tuple[Bundle, dict[str, NodePath], Study]:
    """The trained tree, from `work` if it is there; also each domain's leaf, and all text."""
    experiment.N_SCORED_DOCUMENTS, experiment.N_VALIDATION_DOCUMENTS = 26, 10
    study = study_of(experiment.gather(8, 3), base)
    if not (work / "leaf_of.json").exists():
        workers = [SimulatedWorker(name, shard, seconds_per_step=1.0) for name, shard in study.shards.items()]
        result = simulate(settings, workers, base)
        leaf_of = {study.domains[worker.name][0]: worker.node for worker in result.campaign.workers.values()}
        write_bundle(result.bundle, work / "tree.safetensors", dtype="F32")
        (work / "leaf_of.json").write_text(json.dumps(leaf_of))
    return read_bundle(work / "tree.safetensors"), json.loads((work / "leaf_of.json").read_text()), study


class Told(Router):
    """A router that routes as it is told: the weights of the next pass are set from outside."""

    told: Tensor

    def forward(self, input_ids: Tensor, *, state: RouterState | None = None, **_: Any) -> tuple[Routing, RouterState]:
        """What it was told."""
        return Weighted(self.told), state or self.initial_state(len(input_ids))


class Bench:
    """The tree on its base, the texts, and the tables of nll."""

    def __init__(self, work: Path, base: LoadedBase, settings: RunSettings) -> None:
        self.work, self.settings = work, settings
        self.bundle, self.leaf_of, self.study = prepare(work, base, settings)
        self.base = base.for_run(settings)
        self.topology = self.bundle.topology
        self.leaves, self.inner = self.topology.leaves, self.topology.inner
        self.domains = sorted(self.leaf_of)
        self.shards = {self.study.domains[name][0]: shard for name, shard in self.study.shards.items()}
        self.train = {domain: [d.tokens for d in self.shards[domain].train] for domain in self.domains}
        self.texts = {
            "calibration": self._texts({domain: shard.heldout for domain, shard in self.shards.items()}),
            "validation": self._texts(self.study.validation),
            "heldout": self._texts(self.study.heldout),
        }
        self.model = TreeModel.from_bundle(self.bundle, self.base)
        self.told = Told(self.base.routing_feature, self._flat_gates(), self.topology, self.model.nodes)
        self.model.router = self.told
        self.tables = {split: self._table(split) for split in self.texts}

    def _flat_gates(self) -> Gates:
        """Gates whose temperature is 1: scores come tempered."""
        dim = self.base.facts.feature_dim
        return Gates({node: Gate(np.zeros(dim), 0.0, 1.0) for node in self.inner}, dim)

    def _texts(self, documents: Mapping[str, Iterable[Any]]) -> list[Text]:
        found = [
            Text(domain, self.leaf_of[domain], np.asarray(document.tokens[:MAX_TOKENS], dtype=np.int64))
            for domain in self.domains
            for document in documents[domain]
        ]
        return [text for text in found if text.n > 0]

    def _table(self, split: str) -> list[np.ndarray]:
        """Of each text (token, leaf + base): its nll under every leaf, left to right, and under the base, last."""
        file = self.work / f"nll-{split}.pkl"
        if not file.exists():
            texts = self.texts[split]
            columns = []
            for node in (*self.leaves, None):
                weights = [np.tile([float(other == node) for other in self.model.nodes], (text.n, 1)) for text in texts]
                columns.append(self.nll(texts, weights))
            file.write_bytes(pickle.dumps([np.stack(rows, axis=1) for rows in zip(*columns, strict=True)]))
        return pickle.loads(file.read_bytes())

    def nll(self, texts: Sequence[Text], weights: Sequence[np.ndarray], *, batch: int = 16) -> list[np.ndarray]:
        """Nats of every predicted token, read in windows, with these weights (token, node) of the adapters."""
        found: list[list[np.ndarray]] = [[] for _ in texts]
        order = sorted(range(len(texts)), key=lambda index: -texts[index].n)
        for group in (order[start : start + batch] for start in range(0, len(order), batch)):
            for start in range(0, texts[group[0]].n, WINDOW):
                here = [index for index in group if texts[index].n > start]
                self.told.told = padded([weights[i][start : start + WINDOW] for i in here]).float()
                nll, _ = self.model.token_nll(padded([texts[i].tokens[start : start + WINDOW + 1] for i in here]))
                for row, index in enumerate(here):
                    found[index].append(nll[row, : min(WINDOW, texts[index].n - start)].double().numpy())
        return [np.concatenate(parts) for parts in found]

    # --- judging -----------------------------------------------------------------------------------------------------

    def mean(self, split: str, nll: Sequence[np.ndarray], skip: int = 0) -> float:
        """Mean over domains of nats per token, without the first `skip` of each document."""
        ratios = []
        for domain in self.domains:
            kept = [n[skip:] for text, n in zip(self.texts[split], nll, strict=True) if text.domain == domain]
            ratios.append(sum(n.sum() for n in kept) / sum(len(n) for n in kept))
        return float(np.mean(ratios))

    def bounds(self, split: str, skip: int = 0) -> tuple[float, float]:
        """Nll of the base and of the oracle."""
        oracle = [
            table[:, self.leaves.index(text.leaf)]
            for text, table in zip(self.texts[split], self.tables[split], strict=True)
        ]
        base = [table[:, -1] for table in self.tables[split]]
        return self.mean(split, base, skip), self.mean(split, oracle, skip)

    def regret(self, split: str, nll: Sequence[np.ndarray], skip: int = 0) -> float:
        """0 is as good as the oracle, 1 as bad as the base."""
        base, oracle = self.bounds(split, skip)
        return (self.mean(split, nll, skip) - oracle) / (base - oracle)

    def decide(self, scores: np.ndarray, policy: str) -> np.ndarray:
        """Weights of the nodes, (token, node), from tempered scores."""
        return self.told.decide(torch.from_numpy(scores)[None], Policy.parse(policy))[0].numpy()

    def routed(self, split: str, scores: Sequence[np.ndarray], policy: str) -> list[np.ndarray]:
        """Nll under a policy: read off the tables where one leaf or none takes each token, by a pass otherwise."""
        weights = [self.decide(item, policy) for item in scores]
        if policy in ("soft", "top2"):
            return self.nll(self.texts[split], weights)
        order = [self.model.nodes.index(leaf) for leaf in self.leaves]
        chosen = [np.where(w.any(axis=1), w[:, order].argmax(axis=1), len(order)) for w in weights]
        return [table[np.arange(len(table)), c] for table, c in zip(self.tables[split], chosen, strict=True)]

    def judge(self, scores: Scores, policies: Sequence[str] = POLICIES) -> dict[str, Any]:
        """Regrets in per cent on both splits, all tokens and late ones; log loss and accuracy of the posterior."""
        row: dict[str, Any] = {}
        for split in ("validation", "heldout"):
            found = [scores(text) for text in self.texts[split]]
            nll = {policy: self.routed(split, found, policy) for policy in policies}
            row[split] = {
                policy: {
                    "all": round(100 * self.regret(split, n), 1),
                    "late": round(100 * self.regret(split, n, LATE_TOKENS - 1), 1),
                }
                for policy, n in nll.items()
            } | self._posterior(split, found)
        return row

    def _posterior(self, split: str, scores: Sequence[np.ndarray]) -> dict[str, float]:
        log_p = [self.told.log_posterior(torch.from_numpy(item)).numpy() for item in scores]
        true = [self.leaves.index(text.leaf) for text in self.texts[split]]
        return {
            "log_loss": round(self.mean(split, [-item[:, leaf] for item, leaf in zip(log_p, true, strict=True)]), 3),
            "accuracy": round(
                self.mean(split, [item.argmax(1) == leaf for item, leaf in zip(log_p, true, strict=True)]), 3
            ),
        }

    # --- fitting -----------------------------------------------------------------------------------------------------

    def solve(self, feature: RoutingFeature, collect: Collect = sketch.collect) -> Gates:
        """Gates from the sums of every worker's training text, as the product solves them."""
        sums = {self.leaf_of[domain]: collect(feature, texts) for domain, texts in self.train.items()}
        return solve_gates(sums, self.topology, tau=DEFAULT_TAU)

    def histograms(self, scores: Scores) -> dict[tuple[NodePath, int], np.ndarray]:
        """Scores of the calibration texts by true side, for every gate and bucket of prefix lengths."""
        found = {(node, b): np.zeros((2, N_BINS)) for node in self.inner for b in range(len(BUCKETS))}
        for text in self.texts["calibration"]:
            values, buckets = scores(text)[::STRIDE], _buckets(text.n)[::STRIDE]
            for index, node in enumerate(self.inner):
                for b in set(buckets.tolist()) if is_under(text.leaf, node) else ():
                    here = values[buckets == b, index]
                    found[node, b] += histogram(here, np.full(len(here), text.leaf[len(node)] == "1"))
        return found

    def tempered(self, scores: Scores, *, by_bucket: bool = False) -> Scores:
        """With the product's temperature of each gate; `by_bucket` with a factor for each prefix length, too."""
        by_place = self.histograms(scores)
        blank = Gates({node: Gate(np.zeros(1), 0.0, DEFAULT_TAU) for node in self.inner}, 1)
        tau = {node: gate.tau for node, gate in self.calibrated(blank, by_place).nodes.items()}
        factors = _bucket_factors(by_place, tau) if by_bucket else np.ones(len(BUCKETS))
        row = np.array([tau[node] for node in self.inner])
        return lambda text: scores(text) * row * factors[_buckets(text.n)][:, None]

    def calibrated(self, gates: Gates, by_place: Mapping[tuple[NodePath, int], np.ndarray]) -> Gates:
        """As the product does it, which knows no buckets."""
        return calibrate(
            gates,
            {node: np.sum([by_place[node, b] for b in range(len(BUCKETS))], axis=0) for node in self.inner},
        )

    def linear(self, table: np.ndarray, gates: Gates) -> Scores:
        """Scores of gates on the running mean of a table's rows."""
        w = np.stack([gates.nodes[node].w for node in self.inner], axis=1)
        b = np.array([gates.nodes[node].b for node in self.inner])
        by_token = table @ w  # what the gates see of each entry of the vocabulary
        return lambda text: running_means(by_token[text.tokens[:-1]]) + b

    @cached_property
    def embed_dim(self) -> int:
        """Width of the base's embeddings."""
        return int(self.base.model.get_input_embeddings().weight.shape[1])


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    """One row each, filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)


def _buckets(n_tokens: int) -> np.ndarray:
    return np.searchsorted(BUCKETS, np.arange(1, n_tokens + 1), side="right") - 1


def _bucket_factors(by_place: Mapping[tuple[NodePath, int], np.ndarray], tau: Mapping[NodePath, float]) -> np.ndarray:
    """For each bucket of prefix lengths the common factor of all temperatures with the least log loss.

    Found by `calibrate` itself: a histogram of scores that are tempered already asks for a temperature near 1.
    """
    factors = []
    for b in range(len(BUCKETS)):
        grid = np.exp(np.linspace(-3, 2, 101))
        losses = [sum(_log_loss(by_place[node, b], tau[node] * f) for node in tau) for f in grid]
        factors.append(float(grid[int(np.argmin(losses))]))
    return np.array(factors)


def _log_loss(counts: np.ndarray, tau: float) -> float:
    """Both sides weighing the same; nothing where one was not seen."""
    n = counts.sum(axis=1)
    if not n.all():
        return 0.0
    logits = tau * np.sinh((np.arange(N_BINS) - (N_BINS - 1) / 2) * 2 / N_BINS * np.arcsinh(60.0))
    left, right = counts / n[:, None]
    return float(np.logaddexp(0, logits) @ left + np.logaddexp(0, -logits) @ right) * 2 / (1 / n[0] + 1 / n[1])


def running_means(rows: np.ndarray) -> np.ndarray:
    """Means of the rows so far."""
    return np.cumsum(rows, axis=0) / np.arange(1, len(rows) + 1)[:, None]
