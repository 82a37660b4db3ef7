"""Which routers lose least: by feature, rows of the sums, temperature; trained by gradient; fitted to losses.

    python -m benchmarks.routing --work DIR                  # all parts; DIR keeps the trained tree and finished parts
    python -m benchmarks.routing --work DIR --part features  # one part

One tree is trained (8 workers with a kind of text each, depth 3) and kept. Every variant of its router is fitted on the
workers' training text, each worker's sums apart, tempered on their held-out split, and judged by the regret on
documents that no worker has: `validation` to choose by, `heldout` to report. Regret = (routed - oracle) / (base -
oracle) of nats per token, mean over domains; `late` leaves out the first 32 predicted tokens of each document.

The nll of every token under every leaf is computed once; hard and elastic routing only choose among these. Soft and
top2 need a pass of their own. The figures are of one tree and one draw of documents: differences of two points of
regret are noise, and other pairings of the same leaves change `hard` by three.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import write_result
from benchmarks.routing_tree import (
    MAX_TOKENS,
    POLICIES,
    SETTINGS,
    WINDOW,
    Bench,
    Collect,
    Scores,
    padded,
    running_means,
)
from tinylora.base_model import load_base
from tinylora.config import make_settings
from tinylora.demo import experiment
from tinylora.evaluation import score_domains
from tinylora.model import TreeModel
from tinylora.report.systems import mean_nll
from tinylora.routing import sketch
from tinylora.routing.averaged_gates import average_gates
from tinylora.routing.features import RoutingFeature, token_signs
from tinylora.routing.gates import (
    Gate,
    Gates,
    solve_gates,
)
from tinylora.routing.policy import Policy, Router
from tinylora.routing.statistics import PREFIXES, RouterStatistics, statistics_of
from tinylora.shards import batches
from tinylora.tree import NodePath

THRESHOLDS = ("hard", *(f"elastic:{limit}" for limit in (0.4, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9)))

# --- parts -----------------------------------------------------------------------------------------------------------


def rows_part(bench: Bench) -> dict[str, Any]:
    """Which rows of a document enter the sums; embeddings alone, as the product had them."""
    base = bench.base.with_feature(bench.embed_dim)
    variants: dict[str, Collect] = {
        "starts to 256 and all further windows (before)": _all_windows,
        "starts to 256 alone": _starts,
        "starts doubling, root of the windows (now)": sketch.collect,
    }
    table = base.routing_feature.table.double().numpy()
    return {
        name: bench.judge(bench.tempered(bench.linear(table, bench.solve(base.routing_feature, collect))))
        for name, collect in variants.items()
    }


def _all_windows(feature: RoutingFeature, documents: Sequence[np.ndarray]) -> RouterStatistics:
    return _sums(feature, documents, [range(WINDOW, len(d) - WINDOW + 1, WINDOW) for d in documents])


def _starts(feature: RoutingFeature, documents: Sequence[np.ndarray]) -> RouterStatistics:
    return _sums(feature, documents, [range(0) for _ in documents])


def _sums(feature: RoutingFeature, documents: Sequence[np.ndarray], windows: Sequence[range]) -> RouterStatistics:
    """Sums over the prefixes up to 256 of each document and the means of the windows that begin at these places."""
    table, total = feature.table.double().numpy(), RouterStatistics.zero(feature.dim)
    for document, starts in zip(documents, windows, strict=True):
        means = running_means(table[document[:WINDOW]])
        lengths = [length for length in PREFIXES if length <= len(document)] or [len(document)]
        rows = [means[length - 1] for length in lengths]
        rows += [table[document[start : start + WINDOW]].mean(axis=0) for start in starts]
        total += statistics_of(np.stack(rows), np.array(lengths + [WINDOW] * len(starts)))
    return total


def features_part(bench: Bench) -> dict[str, Any]:
    """What the gates read: embeddings, token signs, both, log odds of tokens, and their sums."""
    embedding = bench.base.with_feature(bench.embed_dim).routing_feature
    found: dict[str, Any] = {}
    for dim in (bench.embed_dim, 256, 512):
        feature = bench.base.with_feature(dim).routing_feature
        name = "embedding" if dim == bench.embed_dim else f"embedding+table, {dim} numbers"
        scores = bench.linear(feature.table.double().numpy(), bench.solve(feature))
        found[name] = bench.judge(bench.tempered(scores))
    signs = RoutingFeature(torch.zeros(len(embedding.table), 1))
    signs.table, signs.dim = token_signs(len(embedding.table), 256), 256
    found["token signs alone, 256 numbers"] = bench.judge(
        bench.tempered(bench.linear(signs.table.double().numpy(), bench.solve(signs)))
    )
    by_mean = bench.linear(embedding.table.double().numpy(), bench.solve(embedding))
    for kind in ("tokens", "documents"):
        by_token = log_odds(bench, kind)
        odds = _table_scores(by_token)
        found[f"log odds of {kind}"] = bench.judge(bench.tempered(odds))
        ratio = _spread(bench, by_mean) / _spread(bench, odds)
        found[f"embedding + log odds of {kind}, equal spread"] = bench.judge(
            bench.tempered(_added(by_mean, odds, ratio))
        )
    return found


def _table_scores(by_token: np.ndarray) -> Scores:
    return lambda text: running_means(by_token[text.tokens[:-1]])


def _added(first: Scores, second: Scores, ratio: np.ndarray) -> Scores:
    return lambda text: first(text) + ratio * second(text)


def _spread(bench: Bench, scores: Scores) -> np.ndarray:
    return np.concatenate([scores(text) for text in bench.texts["calibration"]]).std(axis=0)


def log_odds(bench: Bench, kind: str, smoothing: float = 0.5) -> np.ndarray:
    """(vocab, inner): log p_right(v) - log p_left(v), from counts per leaf that workers would have to exchange.

    `tokens` counts occurrences; `documents` the documents in whose first 1,024 tokens a token occurs. Smoothed towards
    the mean over leaves.
    """
    vocab = len(bench.base.routing_feature.table)
    counts = {leaf: np.zeros(vocab) for leaf in bench.leaves}
    for domain, texts in bench.train.items():
        for tokens in texts:
            seen = np.bincount(tokens[:1024], minlength=vocab)
            counts[bench.leaf_of[domain]] += seen > 0 if kind == "documents" else seen
    background = np.sum([c / c.sum() for c in counts.values()], axis=0) + 1e-6
    background = background / background.sum() * vocab * smoothing
    p = {leaf: (c + background) / (c.sum() + vocab * smoothing) for leaf, c in counts.items()}

    def side(node: NodePath) -> np.ndarray:
        return np.log(np.mean([p[leaf] for leaf in bench.topology.leaves_below(node)], axis=0))

    return np.stack([side(node + "1") - side(node + "0") for node in bench.inner], axis=1)


def hidden_part(bench: Bench) -> dict[str, Any]:
    """Running means of the hidden states that enter layer k of the bare base; they cost k layers of a second pass."""
    embedding = bench.base.with_feature(bench.embed_dim).routing_feature
    by_mean = bench.tempered(bench.linear(embedding.table.double().numpy(), bench.solve(embedding)))
    n_layers = bench.base.model.config.num_hidden_layers
    found: dict[str, Any] = {}
    bench.model.detach_adapters()
    try:
        by_layer = {layer: _hidden_scores(bench, layer) for layer in range(1, n_layers)}
    finally:
        bench.model.attach_adapters()
    for layer, scores in by_layer.items():
        alone = bench.tempered(scores)
        cost = {"share_of_a_forward_pass": round(layer / n_layers, 2)}
        found[f"hidden:{layer}"] = bench.judge(alone) | cost
        both = bench.tempered(_added(by_mean, alone, np.ones(len(bench.inner))))
        found[f"embedding + hidden:{layer}"] = bench.judge(both) | cost
    return found


def _hidden_scores(bench: Bench, layer: int) -> Scores:
    """Solved like the product's gates, on states in units of their spread; those of the scored texts are kept."""
    rows: dict[str, list[np.ndarray]] = {domain: [] for domain in bench.domains}
    for domain, texts in bench.train.items():
        for tokens in texts:
            means = running_means(hidden_states(bench, tokens[:1024], layer))
            lengths = [8 * 2**k for k in range(8) if 8 * 2**k <= len(means)] or [len(means)]
            rows[domain].append(means[[length - 1 for length in lengths]])
    stacked = {domain: np.concatenate(blocks) for domain, blocks in rows.items()}
    centre = np.mean([block.mean(axis=0) for block in stacked.values()], axis=0)
    unit = np.sqrt(np.mean([block.var(axis=0) for block in stacked.values()]))
    sums = {
        bench.leaf_of[domain]: statistics_of((block - centre) / unit, np.full(len(block), WINDOW))
        for domain, block in stacked.items()
    }
    gates = solve_gates(sums, bench.topology, tau=1.0)
    w = np.stack([gates.nodes[node].w for node in bench.inner], axis=1) / unit
    b = np.array([gates.nodes[node].b for node in bench.inner]) - centre @ w
    kept = {
        id(text): running_means(hidden_states(bench, text.tokens[:-1], layer)) @ w + b
        for text in chain.from_iterable(bench.texts.values())
    }
    return lambda text: kept[id(text)]


@torch.no_grad()
def hidden_states(bench: Bench, tokens: np.ndarray, layer: int) -> np.ndarray:
    """(token, width): states entering a layer, read in windows as the base reads them."""
    windows = [tokens[start : start + WINDOW].astype(np.int64) for start in range(0, len(tokens), WINDOW)]
    states = bench.base.model.base_model(
        input_ids=padded(windows), use_cache=False, output_hidden_states=True
    ).hidden_states[layer]
    return np.concatenate([states[row, : len(window)].double().numpy() for row, window in enumerate(windows)])


def temperature_part(bench: Bench) -> dict[str, Any]:
    """One temperature for each gate against factors by prefix length; biases by prefix length; where elastic stops."""
    feature = bench.base.routing_feature
    table, gates = feature.table.double().numpy(), bench.solve(feature)
    plain = bench.linear(table, gates)
    one = bench.tempered(plain)
    found: dict[str, Any] = {"a temperature for each gate (now)": bench.judge(one)}
    found["and a factor by prefix length"] = bench.judge(bench.tempered(plain, by_bucket=True))
    found["biases by prefix length"] = bench.judge(bench.tempered(_prefix_biases(bench, plain, gates)))
    for factor in (0.5, 0.7, 1.4, 2.0):
        found[f"temperatures times {factor}"] = bench.judge(_scaled(one, factor), ("soft", "top2"))
    found["where elastic stops"] = {
        policy: bench.judge(one, (policy,)) | {"mean_depth": _mean_depth(bench, one, policy)} for policy in THRESHOLDS
    }
    return found


def _scaled(scores: Scores, factor: float) -> Scores:
    return lambda text: factor * scores(text)


def _prefix_biases(bench: Bench, scores: Scores, gates: Gates) -> Scores:
    """Biases from the leaves' means at each prefix length, which the sums hold, not from their means over all."""
    sums = {bench.leaf_of[d]: sketch.collect(bench.base.routing_feature, texts) for d, texts in bench.train.items()}
    means = {leaf: item.total / np.maximum(item.count, 1)[:, None] for leaf, item in sums.items()}

    def side(node: NodePath) -> np.ndarray:
        return np.mean([means[leaf] for leaf in bench.topology.leaves_below(node)], axis=0)

    moved = [
        -(side(node + "0") + side(node + "1")) / 2 @ gates.nodes[node].w - gates.nodes[node].b for node in bench.inner
    ]
    by_prefix = np.stack(moved, axis=1)
    slots = np.maximum(np.searchsorted(PREFIXES, np.arange(1, MAX_TOKENS + 1), side="right") - 1, 0)
    return lambda text: scores(text) + by_prefix[slots[: text.n]]


def _mean_depth(bench: Bench, scores: Scores, policy: str) -> float:
    """How many turns elastic takes, mean over the held-out tokens."""
    limit = Policy.parse(policy).threshold if policy != "hard" else 0.0
    depths = []
    for text in bench.texts["heldout"]:
        values = scores(text)
        right = 1 / (1 + np.exp(-np.clip(values, -500, 500)))
        p, node, depth = np.ones(text.n), np.full(text.n, "", dtype=object), np.zeros(text.n)
        for _ in range(bench.topology.depth):
            turn = np.array([right[t, bench.inner.index(node[t])] for t in range(text.n)])
            p = p * np.maximum(turn, 1 - turn)
            node = np.array([n + "01"[int(v >= 0.5)] for n, v in zip(node, turn, strict=True)], dtype=object)
            depth += p > limit
        depths.append(depth.mean())
    return round(float(np.mean(depths)), 2)


def gradient_part(bench: Bench) -> dict[str, Any]:
    """Gates trained on the workers' own text through the soft mixture of all leaves, averaged with equal sides."""
    feature = bench.base.routing_feature
    table, gates = feature.table.double().numpy(), bench.solve(feature)
    gates = bench.calibrated(gates, bench.histograms(bench.linear(table, gates)))
    solved = _folded(gates)
    zero = Gates({node: Gate(np.zeros(gates.dim), 0.0, 1.0) for node in bench.inner}, gates.dim)
    found: dict[str, Any] = {"solved, not trained": bench.judge(bench.linear(table, solved))}
    for name, start, anchor, n_rounds in (
        ("from solved", solved, 0.0, 3),
        ("from solved, drawn to it", solved, 0.1, 3),
        ("from zero", zero, 0.0, 6),
    ):
        present = start
        for number in range(n_rounds):
            present = _round(bench, present, solved if anchor else None, anchor, number)
            if number in (0, n_rounds - 1):
                found[f"{name}, {number + 1} rounds"] = bench.judge(bench.linear(table, present))
    return found


def _folded(gates: Gates) -> Gates:
    return replace(gates, nodes={n: Gate(g.w * g.tau, g.b * g.tau, 1.0) for n, g in gates.nodes.items()})


def _round(bench: Bench, gates: Gates, solved: Gates | None, anchor: float, number: int) -> Gates:
    router = Router(bench.base.routing_feature, gates, bench.topology, bench.model.nodes, trainable=True)
    bench.model.router = router
    try:
        contributions = {}
        for domain in bench.domains:
            router.load_state_dict(
                Router(router.feature, gates, bench.topology, router.nodes, trainable=True).state_dict()
            )
            _local_steps(bench.model, router, bench.shards[domain], solved, anchor, number)
            contributions[(domain, bench.leaf_of[domain])] = router.gates()
    finally:
        bench.model.router = bench.told
    return average_gates(contributions, bench.topology, gates)


def _local_steps(
    model: TreeModel, router: Router, shard: Any, solved: Gates | None, anchor: float, number: int, n_steps: int = 6
) -> None:
    size = max(float(router.w.detach().abs().mean()), 0.01)
    optimiser = torch.optim.Adam([{"params": [router.w], "lr": 0.05 * size}, {"params": [router.b], "lr": 0.05}])
    wanted = torch.from_numpy(np.stack([gate.w for gate in solved.nodes.values()])) if solved else None
    rows = batches(shard, window_tokens=WINDOW, batch_windows=4, seed=number)
    for _, (ids, documents, _) in zip(range(n_steps), rows, strict=False):
        loss = model.loss(torch.from_numpy(ids), documents=torch.from_numpy(documents))
        if wanted is not None:
            loss = loss + anchor * ((router.w - wanted).square().sum(1) / wanted.square().sum(1)).mean()
        for parameter, gradient in zip(
            (router.w, router.b), torch.autograd.grad(loss, (router.w, router.b)), strict=True
        ):
            parameter.grad = gradient
        optimiser.step()


def losses_part(bench: Bench) -> dict[str, Any]:
    """Gates fitted to losses instead of to the worker's name, on text that no leaf was trained on.

    The leaves know their own training text by heart, so only other text can say which leaf predicts it best: here the
    calibration and validation documents. They are named truly, or a quarter of them wrongly, as a worker with mixed
    text would; or each goes to the leaf that predicts its first 512 tokens best (the limit T -> 0 of responsibilities).
    Temperatures are fitted on the same documents: compare these rows with each other only.
    """
    feature = bench.base.routing_feature
    table = feature.table.double().numpy()
    splits = ("calibration", "validation")
    texts = [text for split in splits for text in bench.texts[split]]
    nll = [rows[:512, :-1].mean(axis=0) for split in splits for rows in bench.tables[split]]
    best = [bench.leaves[int(row.argmin())] for row in nll]
    draw = np.random.default_rng(0)
    wrong = [bench.leaves[draw.integers(8)] if draw.random() < 0.3 else text.leaf for text in texts]
    named = {"true names": [text.leaf for text in texts], "wrong names": wrong, "least loss": best}
    found: dict[str, Any] = {
        "documents": len(texts),
        "best_leaf_is_another": int(np.sum([b != text.leaf for b, text in zip(best, texts, strict=True)])),
        "named_wrongly": int(np.sum([w != text.leaf for w, text in zip(wrong, texts, strict=True)])),
    }
    for name, leaf_of in named.items():
        sums = {
            leaf: sketch.collect(feature, [t.tokens for t, own in zip(texts, leaf_of, strict=True) if own == leaf])
            for leaf in bench.leaves
        }
        scores = bench.tempered(bench.linear(table, solve_gates(sums, bench.topology)))
        found[name] = {"heldout": bench.judge(scores)["heldout"]}
    return found


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "rows": rows_part,
    "features": features_part,
    "hidden": hidden_part,
    "temperature": temperature_part,
    "gradient": gradient_part,
    "losses": losses_part,
}


def check_product(bench: Bench) -> dict[str, float]:
    """The product's router on the run's own gates, by `evaluation.score_domains`: regret on the held-out documents."""
    base, oracle = bench.bounds("heldout")
    bench.model.router = Router(bench.base.routing_feature, bench.bundle.gates, bench.topology, bench.model.nodes)
    found = {}
    for policy in POLICIES:
        bench.model.policy = Policy.parse(policy)
        rows = score_domains(bench.model, bench.study.heldout, window_tokens=WINDOW, max_tokens_per_document=MAX_TOKENS)
        found[policy] = round(100 * (mean_nll(rows).value - oracle) / (base - oracle), 1)
    bench.model.router = bench.told
    return found


def main() -> None:
    """Measure the parts that are not in the work folder yet, and write the result of all that are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tinylora-routing")
    parser.add_argument("--part", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    settings = make_settings("routing", SETTINGS | {"seed": arguments.seed})
    bench = Bench(arguments.work, load_base(experiment.BASE_DIR, dtype=torch.bfloat16), settings)
    for part in arguments.part:
        started, file = time.monotonic(), arguments.work / f"part-{part}.json"
        if not file.exists():
            file.write_text(json.dumps(PARTS[part](bench)))
        print(f"{part} ({time.monotonic() - started:.0f} s): {file.read_text()}", flush=True)
    done = {part: arguments.work / f"part-{part}.json" for part in PARTS}
    write_result(
        "routing",
        {
            "command": "python -m benchmarks.routing",
            "what": "regret of routers in per cent, over all predicted tokens of a document and behind the first 32",
            "settings": settings.model_dump(mode="json"),
            "nll": {split: dict(zip(("base", "oracle"), bench.bounds(split), strict=True)) for split in bench.texts},
            "product": check_product(bench),
            "parts": {part: json.loads(file.read_text()) for part, file in done.items() if file.exists()},
        },
    )


if __name__ == "__main__":
    main()
