"""The rows of the report: outcomes in, one verdict each. Pure.

Every row is a dictionary with `what`, `value`, `ci` (95 %), `unit`, `goal`, `met` (None where there is only something
to tell), `seeds`, `active_rank`, `total_rank`, `tokens_per_s`, and `parts`, the numbers behind it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tinylora.config import RunSettings
from tinylora.quality.compare import Interval, Table, difference, regret, table
from tinylora.quality.config import QualityConfig
from tinylora.quality.jobs import Outcome, Scored, mean_nll
from tinylora.quality.plan import (
    ALPHAS,
    LOCAL_STEPS,
    REPLICAS,
    RULES,
    TIED,
    nested_ranks,
)

Row = dict[str, Any]
MAX_REGRET = {"soft": 0.06, "top2": 0.09, "hard or elastic": 0.20}


class Results:
    """Outcomes by system, and the comparisons that rows are made of."""

    def __init__(self, config: QualityConfig, outcomes: Sequence[Outcome]) -> None:
        self.config = config
        self.outcomes: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            self.outcomes.setdefault(outcome.job.system, []).append(outcome)

    def has(self, *systems: str) -> bool:
        """Whether all of these were trained."""
        return all(system in self.outcomes for system in systems)

    def one(self, system: str) -> Outcome:
        """The first seed's outcome."""
        return self.outcomes[system][0]

    def scored(self, system: str, policy: str = "one") -> Scored:
        """The first seed's scores."""
        return self.one(system).scored[policy]

    def table(self, system: str, policy: str = "one", *, n_seeds: int | None = None) -> Table:
        """Scores of all seeds, or of the first ones."""
        return table([outcome.scored[policy].scores for outcome in self.outcomes[system][:n_seeds]])

    def against(self, left: tuple[str, str], right: tuple[str, str]) -> Interval:
        """`left` minus `right`, (system, policy) each, as the relative change of perplexity."""
        a, b = self.table(*left), self.table(*right)
        if a.n_seeds != b.n_seeds:
            a, b = self.table(*left, n_seeds=1), self.table(*right, n_seeds=1)
        return difference(a, b, n_draws=self.config.n_bootstrap).as_ppl_change()

    def regret(self, system: str, policy: str, base: str) -> Interval:
        """Regret of a policy."""
        routed, oracle = self.table(system, policy), self.table(system, "oracle")
        return regret(routed, oracle, self.table(base), n_draws=self.config.n_bootstrap)

    def first_regret(self, policy: str) -> float:
        """Regret of a policy of the tree, of its first seed, without an interval."""
        routed, oracle, base = (
            self.table(*system, n_seeds=1).mean()
            for system in ((self.tree, policy), (self.tree, "oracle"), ("base", "one"))
        )
        return (routed - oracle) / (base - oracle)

    @cached_property
    def tree(self) -> str:
        """The federated tree's name."""
        return f"tree:{self.config.rank}"

    def row(self, system: str, policy: str, interval: Interval | None, *, value: float | None = None) -> Row:
        """What every row has, filled from the system it is about."""
        outcome = self.one(system)
        scored = outcome.scored[policy]
        found = value if interval is None else interval.value
        return {
            "value": found,
            "ci": None if interval is None else [interval.low, interval.high],
            "seeds": len(self.outcomes[system]),
            "active_rank": scored.active_rank,
            "total_rank": outcome.total_rank,
            "tokens_per_s": round(scored.tokens_per_s),
            "policy": policy,
        }


def make_rows(results: Results) -> dict[str, Row]:
    """Every row whose systems were trained, by its number."""
    rows = {}
    for number in sorted(set(results.config.rows) & MAKERS.keys()):
        needs, maker = MAKERS[number]
        if results.has(*needs(results.config)):
            rows[str(number)] = maker(results)
    return rows


def _shown(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


# --- rows 1 to 5 -----------------------------------------------------------------------------------------------------


def _row_1(results: Results) -> Row:
    rank, tree = results.config.rank, results.tree
    parts = {
        "hard": results.against((tree, "hard"), (f"fedavg:{rank}", "one")),
        "elastic": results.against((tree, "elastic"), (f"fedavg:{rank}", "one")),
        "top2": results.against((tree, "top2"), (f"fedavg:{2 * rank}", "one")),
    }
    best = min(("hard", "elastic"), key=lambda name: parts[name].value)
    met = all(parts[name].value <= -0.05 and parts[name].high < 0 for name in (best, "top2"))
    return {
        "what": "federated tree against FedAvg LoRA of equal active rank, change of perplexity (the worse of hard or "
        "elastic against rank r, and top2 against rank 2r)",
        "unit": "relative change of perplexity",
        "goal": "<= -0.05, interval excludes 0",
        "met": met,
        **results.row(tree, best, max((parts[best], parts["top2"]), key=lambda part: part.value)),
        "parts": {name: _shown(part) for name, part in parts.items()},
    }


def _row_2(results: Results) -> Row:
    total = results.config.rank * results.config.n_workers
    interval = results.against((results.tree, "soft"), (f"fedavg:{total}", "one"))
    return {
        "what": f"soft tree of {results.config.n_workers} leaves against FedAvg LoRA of equal total rank {total}",
        "unit": "relative change of perplexity",
        "goal": "< 0, interval excludes 0",
        "met": interval.high < 0,
        **results.row(results.tree, "soft", interval),
        "parts": {},
    }


def _row_3(results: Results) -> Row:
    rank = results.config.rank
    peers = {"pooled active": f"pooled:{rank}", "pooled total": f"pooled:{rank * results.config.n_workers}"}
    peers |= {"full": "full"}
    parts = {
        f"{policy} against {name}": results.against((results.tree, policy), (peer, "one"))
        for policy in ("hard", "elastic", "top2", "soft")
        for name, peer in peers.items()
    }
    best = min(("hard", "elastic"), key=lambda policy: parts[f"{policy} against pooled active"].value)
    interval = parts[f"{best} against pooled active"]
    return {
        "what": "federated tree against one LoRA on pooled data (equal active rank, equal total rank) and against "
        "training the base on fully",
        "unit": "relative change of perplexity",
        "goal": "reported; below 0 against pooled data at equal active rank",
        "met": interval.high < 0,
        **results.row(results.tree, best, interval),
        "parts": {name: _shown(part) for name, part in parts.items()},
    }


def _row_4(results: Results) -> Row:
    policies = [name for name in results.one(results.tree).scored if name != "oracle"]
    common = [name for name in policies if all(name in each.scored for each in results.outcomes[results.tree])]
    parts = {policy: results.regret(results.tree, policy, "base") for policy in common}
    worst = min(("hard", "elastic"), key=lambda policy: parts[policy].value)
    met = (
        parts["soft"].value <= MAX_REGRET["soft"]
        and parts["top2"].value <= MAX_REGRET["top2"]
        and parts[worst].value <= MAX_REGRET["hard or elastic"]
    )
    return {
        "what": "routing regret over whole documents, (routed - oracle) / (base - oracle)",
        "unit": "share of the oracle's gain that is lost",
        "goal": "soft <= 0.06, top2 <= 0.09, hard or elastic <= 0.20",
        "met": met,
        **results.row(results.tree, "soft", parts["soft"]),
        "parts": {name: _shown(part) for name, part in parts.items()},
    }


def _row_5(results: Results) -> Row:
    rank = results.config.rank
    parts = {
        policy: results.against((results.tree, policy), (f"central:{rank}", policy))
        for policy in ("soft", "top2", "hard", "oracle")
    }
    replicated = f"replicated-tree:{rank}"
    if results.has(replicated):
        parts["two workers for each leaf, soft"] = results.against((replicated, "soft"), (f"central:{rank}", "soft"))
    return {
        "what": "federated tree against the same tree trained in one place on labelled text",
        "unit": "relative change of perplexity",
        "goal": "within 0.01",
        "met": abs(parts["soft"].value) <= 0.01,
        **results.row(results.tree, "soft", parts["soft"]),
        "parts": {name: _shown(part) for name, part in parts.items()},
    }


# --- adapters --------------------------------------------------------------------------------------------------------


def _row_6(results: Results) -> Row:
    config = results.config
    parts: dict[str, Any] = {}
    worst: Interval | None = None
    for kind in ("nested", "nested:frozen"):
        for rank in nested_ranks(config):
            name = f"{kind}:{config.rank}"
            interval = results.against((name, f"cut:{rank}"), (f"side-tree:{rank}", "oracle"))
            parts[f"{kind} cut to {rank}"] = _shown(interval)
            if kind == "nested":
                worst = interval if worst is None or interval.value > worst.value else worst
    separate_s = sum(results.one(f"side-tree:{rank}").train_seconds for rank in nested_ranks(config))
    nested_s = results.one(f"nested:{config.rank}").train_seconds
    saving = separate_s / max(nested_s, 1e-9)
    assert worst is not None
    return {
        "what": "leaves trained once with nested ranks and cut, against leaves trained at each rank (oracle routing)",
        "unit": "relative change of perplexity at the worst rank",
        "goal": "<= 0.01 at every rank; one nested training takes 4 to 7 times less than one for each rank",
        "met": worst.value <= 0.01 and saving >= 4,
        **results.row(f"nested:{config.rank}", "oracle", worst),
        "parts": parts | {"time of one training for each rank over one nested": saving},
    }


def _row_7(results: Results) -> Row:
    config = results.config
    plain = f"side-tree:{config.rank}"
    whole = results.one(plain).n_parameters
    parts: dict[str, Any] = {}
    for kind in TIED:
        name = f"{kind}:{config.rank}"
        change = results.against((name, "oracle"), (plain, "oracle"))
        share = results.one(name).n_parameters / whole
        parts[kind] = {"share of LoRA's parameters": share, "perplexity against LoRA": _shown(change)}
    paper = paper_tied_count(n_layers=32, width=4096, rank=8)
    return {
        "what": "tied adapters (A and B shared by all layers) against plain LoRA of the same rank, oracle routing",
        "unit": "share of LoRA's parameters, for the paper's shape",
        "goal": "0.525 M of 4.194 M = 0.125; the six configurations reported",
        "met": paper[0] == 524_544 or round(paper[0] / paper[1], 3) == 0.125,
        **results.row(f"tied:A,B,uv:{config.rank}", "oracle", None, value=paper[0] / paper[1]),
        "parts": parts | {"paper's shape": {"tied:A,B,uv": paper[0], "lora": paper[1]}},
    }


def paper_tied_count(*, n_layers: int, width: int, rank: int) -> tuple[int, int]:
    """Trained numbers of `tied:A,B,uv` and of LoRA on a fused query, key and value projection, by our own shapes."""
    from tinylora.adapters.shapes import n_adapter_parameters
    from tinylora.adapters.spec import AdapterSpec
    from tinylora.config import BaseFacts, ProjectionShape

    facts = BaseFacts(
        base_id="paper",
        fingerprint="0" * 64,
        tokenizer_fingerprint="0" * 64,
        feature_dim=1,
        feature_hash="0" * 64,
        max_window_tokens=8,
        projections={"qkv": ProjectionShape(n_layers=n_layers, in_features=width, out_features=3 * width)},
    )
    tied, plain = (n_adapter_parameters(facts, AdapterSpec.parse(kind, rank)) for kind in ("tied:A,B,uv", "lora"))
    return tied, plain


# --- learning --------------------------------------------------------------------------------------------------------


def _row_8(results: Results) -> Row:
    rank = results.config.rank
    tree, peer = results.one(f"long-tree:{rank}"), results.one(f"long-fedavg:{rank}")
    curves = {
        "tree, soft": [(point.tokens, point.nll["soft"]) for point in tree.curve],
        "tree, hard": [(point.tokens, point.nll["hard"]) for point in tree.curve],
        "one LoRA, FedAvg": [(point.tokens, point.nll["one"]) for point in peer.curve],
    }
    last = {name: points[-1][1] for name, points in curves.items()}
    falls = {name: _fall(points) for name, points in curves.items()}
    gap = math.expm1(last["tree, hard"] - min(nll for _, nll in curves["one LoRA, FedAvg"]))
    return {
        "what": "loss against tokens, tree and one LoRA, until both are flat (validation documents)",
        "unit": "relative change of perplexity at the end, hard tree against the one LoRA's best",
        "goal": "the tree's plateau is lower",
        "met": gap < 0,
        **results.row(f"long-tree:{rank}", "hard", None, value=gap),
        "parts": {
            "curves": curves,
            "fall over the last quarter of the tokens": falls,
            "base on the same documents": mean_nll(results.scored("base-validation")),
        },
    }


def _fall(points: Sequence[tuple[int, float]]) -> float:
    """Nats that the loss fell over the last quarter of the points."""
    start = max(0, len(points) - 1 - max(1, len(points) // 4))
    return points[start][1] - points[-1][1]


def _row_9(results: Results) -> Row:
    rank = results.config.rank
    tree, peer = f"iid-tree:{rank}", f"iid-fedavg:{rank}"
    parts = {
        "IID, soft": results.against((tree, "soft"), (peer, "one")),
        "IID, hard": results.against((tree, "hard"), (peer, "one")),
        "domain split, soft": results.against((results.tree, "soft"), (f"fedavg:{rank}", "one")),
        "domain split, hard": results.against((results.tree, "hard"), (f"fedavg:{rank}", "one")),
    }
    return {
        "what": "tree against FedAvg LoRA of equal active rank, where every worker has the same mixture of text",
        "unit": "relative change of perplexity",
        "goal": "IID: within 0.01 of FedAvg",
        "met": parts["IID, soft"].value <= 0.01,
        **results.row(tree, "soft", parts["IID, soft"]),
        "parts": {name: _shown(part) for name, part in parts.items()},
    }


def _row_10(results: Results) -> Row:
    default = RunSettings().replicas
    parts: dict[str, Any] = {}
    worst: Interval | None = None
    for alpha in ALPHAS:
        for rule in RULES:
            name, plain = f"replicas:{alpha:g}:{rule}", f"replicas:{alpha:g}:mean"
            interval = results.against((name, "one"), (plain, "one"))
            parts[f"Dirichlet {alpha:g}, {rule}"] = {
                "nll": results.table(name).mean(),
                "against FedAvg": _shown(interval),
                "mismatch, first and last": [*results.one(name).mismatch[:1], *results.one(name).mismatch[-1:]],
                "bytes": results.one(name).bytes_sent,
            }
            if rule == default:
                worst = interval if worst is None or interval.value > worst.value else worst
    assert worst is not None
    return {
        "what": f"replicas of one leaf on skewed text: the default rule ({default}) against FedAvg of A and B",
        "unit": "relative change of perplexity, the worst of three skews",
        "goal": "never worse",
        "met": worst.value <= 0,
        **results.row(f"replicas:{ALPHAS[0]:g}:{default}", "one", worst),
        "parts": parts,
    }


def _row_11(results: Results) -> Row:
    grown = f"grown-tree:{results.config.rank}"
    parts = {policy: results.against((grown, policy), (results.tree, policy)) for policy in ("soft", "hard", "oracle")}
    outcome = results.one(grown)
    return {
        "what": "a tree that grew from one leaf while workers came, against the tree that was there from the start",
        "unit": "relative change of perplexity, soft",
        "goal": "reported either way",
        "met": None,
        **results.row(grown, "soft", parts["soft"]),
        "parts": {name: _shown(part) for name, part in parts.items()}
        | {"leaves at the end": len(outcome.facts["leaves"]), "changes": outcome.facts["changes"]}
        | {"tokens": outcome.tokens},
    }


def _row_12(results: Results) -> Row:
    dropped = f"dropped-tree:{results.config.rank}"
    parts = {
        policy: results.against((dropped, policy), (results.tree, policy)) for policy in ("soft", "hard", "oracle")
    }
    outcome, whole = results.one(dropped), results.one(results.tree)
    return {
        "what": "half of the updates lost, nobody gets more time for it",
        "unit": "relative change of perplexity, soft",
        "goal": "<= 0.02",
        "met": parts["soft"].value <= 0.02,
        **results.row(dropped, "soft", parts["soft"]),
        "parts": {name: _shown(part) for name, part in parts.items()}
        | {"share of the tokens that counted": outcome.tokens / max(1, whole.tokens)},
    }


def _row_13(results: Results) -> Row:
    rank = results.config.rank
    kept = {
        policy: _gain(results, "nf4-base", f"nf4-tree:{rank}", policy) / _gain(results, "base", f"side-tree:{rank}", to)
        for policy, to in (("oracle", "oracle"), ("hard", "hard"))
    }
    loss = results.against(("nf4-base", "one"), ("base", "one"))
    return {
        "what": "leaves trained and used on an nf4 base: share of the gain on the bf16 base, each against its own base",
        "unit": "share of the gain in nats",
        "goal": ">= 0.90",
        "met": kept["oracle"] >= 0.9,
        **results.row(f"nf4-tree:{rank}", "oracle", None, value=kept["oracle"]),
        "parts": kept | {"nf4 base against bf16 base": _shown(loss)},
    }


def _gain(results: Results, base: str, tree: str, policy: str) -> float:
    return results.table(base, n_seeds=1).mean() - results.table(tree, policy, n_seeds=1).mean()


def _row_14(results: Results) -> Row:
    parts: dict[str, Any] = {}
    for n in REPLICAS:
        for steps in LOCAL_STEPS:
            name = f"machines:{n}:{steps}"
            outcome = results.one(name)
            parts[f"{n} machines, {steps} steps"] = {
                "nll": results.table(name).mean(),
                "bytes": outcome.bytes_sent,
                "tokens": outcome.tokens,
            }
    best = min(parts, key=lambda name: parts[name]["nll"])
    return {
        "what": "how many machines for how long before averaging: replicas of one adapter on IID text",
        "unit": "nats, the best of the table",
        "goal": "shown as a table",
        "met": None,
        **results.row(f"machines:{REPLICAS[0]}:{LOCAL_STEPS[0]}", "one", None, value=parts[best]["nll"]),
        "parts": parts,
    }


def _row_15(results: Results) -> Row:
    name = f"searched:{results.config.rank}"
    parts = {
        "ranks by layer against one rank": results.against((name, "searched"), (name, "uniform")),
        "ranks by layer against all ranks": results.against((name, "searched"), (name, "whole")),
    }
    facts = results.one(name).facts
    return {
        "what": "nested leaves pruned to a quarter of their parameters and trained on: ranks chosen by layer against "
        "one rank for all (three domains)",
        "unit": "relative change of perplexity",
        "goal": "reported",
        "met": None,
        **results.row(name, "searched", parts["ranks by layer against one rank"]),
        "parts": {label: _shown(part) for label, part in parts.items()} | {"ranks": facts["plans"]},
    }


def _row_16(results: Results) -> Row:
    rank = results.config.rank
    tree, peer = f"bloom-tree:{rank}", f"bloom-fedavg:{rank}"
    parts = {policy: results.against((tree, policy), (peer, "one")) for policy in ("soft", "top2", "hard", "oracle")}
    return {
        "what": "a federated run on a small trained BLOOM: tree against FedAvg LoRA of the same rank",
        "unit": "relative change of perplexity, soft",
        "goal": "< 0",
        "met": parts["soft"].high < 0,
        **results.row(tree, "soft", parts["soft"]),
        "parts": {name: _shown(part) for name, part in parts.items()}
        | {"base": results.table("bloom-base").mean(), "fedavg": results.table(peer).mean()},
    }


def leaf_memory_row(measured: Mapping[str, Any]) -> Row:
    """Row 17, from what `python -m benchmarks leaf_memory` measured."""
    ratio, details = measured["figure"]["ratio"], measured["details"]
    return {
        "what": "memory per added leaf at inference over the leaf's own bytes",
        "value": ratio,
        "ci": None,
        "unit": "ratio",
        "goal": "within 0.10 of 1",
        "met": abs(ratio - 1) <= 0.1,
        "seeds": 1,
        "active_rank": details["rank"],
        "total_rank": details["rank"],
        "tokens_per_s": None,
        "parts": {name: details[name] for name in ("held_as", "leaf_mib_held", "growth_mib", "leaf_mib_in_file")},
    }


def _peers(*systems: str) -> Callable[[QualityConfig], tuple[str, ...]]:
    """Names with {r}, {2r} and {total} filled in."""

    def names(config: QualityConfig) -> tuple[str, ...]:
        fill = {"r": config.rank, "r2": 2 * config.rank, "total": config.rank * config.n_workers}
        return tuple(system.format(**fill) for system in systems)

    return names


def _nested_systems(config: QualityConfig) -> tuple[str, ...]:
    kinds = tuple(f"{kind}:{config.rank}" for kind in ("nested", "nested:frozen"))
    return (*kinds, *(f"side-tree:{rank}" for rank in nested_ranks(config)))


def _tied_systems(config: QualityConfig) -> tuple[str, ...]:
    return (f"side-tree:{config.rank}", *(f"{kind}:{config.rank}" for kind in TIED))


MAKERS: Mapping[int, tuple[Callable[[QualityConfig], tuple[str, ...]], Callable[[Results], Row]]] = {
    1: (_peers("tree:{r}", "fedavg:{r}", "fedavg:{r2}"), _row_1),
    2: (_peers("tree:{r}", "fedavg:{total}"), _row_2),
    3: (_peers("tree:{r}", "pooled:{r}", "pooled:{total}", "full"), _row_3),
    4: (_peers("base", "tree:{r}"), _row_4),
    5: (_peers("tree:{r}", "central:{r}"), _row_5),
    6: (_nested_systems, _row_6),
    7: (_tied_systems, _row_7),
    8: (_peers("long-tree:{r}", "long-fedavg:{r}", "base-validation"), _row_8),
    9: (_peers("iid-tree:{r}", "iid-fedavg:{r}", "tree:{r}", "fedavg:{r}"), _row_9),
    10: (lambda config: tuple(f"replicas:{a:g}:{rule}" for a in ALPHAS for rule in RULES), _row_10),
    11: (_peers("tree:{r}", "grown-tree:{r}"), _row_11),
    12: (_peers("tree:{r}", "dropped-tree:{r}"), _row_12),
    13: (_peers("base", "nf4-base", "nf4-tree:{r}", "side-tree:{r}"), _row_13),
    14: (lambda config: tuple(f"machines:{n}:{steps}" for n in REPLICAS for steps in LOCAL_STEPS), _row_14),
    15: (_peers("searched:{r}"), _row_15),
    16: (_peers("bloom-base", "bloom-tree:{r}", "bloom-fedavg:{r}"), _row_16),
}
