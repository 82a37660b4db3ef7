"""The report's pictures. What cannot be drawn from the outcomes at hand is left out."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylora.quality.plan import LOCAL_STEPS, REPLICAS, nested_ranks, shapes
from tinylora.quality.rows import Results
from tinylora.report.plots import new_figure, save, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes = Any

_HEIGHT_PX = 640


def draw_all(results: Results, rows: Mapping[str, Mapping[str, Any]], out: Path) -> list[Path]:
    """Draw every picture there is something to draw of; returns the files."""
    drawn = []
    for name, draw in PICTURES.items():
        figure, axes = new_figure(height_px=_HEIGHT_PX)
        if draw(axes, results, rows):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=9)
            drawn.append(save(figure, out / f"{name}.png"))
    return drawn


def _loss_against_tokens(axes: Axes, results: Results, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    if "8" not in rows:
        return False
    for name, points in rows["8"]["parts"]["curves"].items():
        axes.plot([tokens for tokens, _ in points], [nll for _, nll in points], "o-", label=name, markersize=4)
    if results.has("base"):
        nll = rows["8"]["parts"]["base on the same documents"]
        axes.axhline(nll, color="gray", linestyle=":", label="base")
    axes.set_title("The gain goes on: loss against tokens trained on by all workers (validation documents)")
    axes.set_xlabel("tokens")
    axes.set_ylabel("nats per token, mean over domains")
    axes.xaxis.set_major_formatter(thousands)
    return True


def _regret_against_prefix(axes: Axes, results: Results, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    if not results.has("base", results.tree):
        return False
    found = {}
    for policy in results.one(results.tree).scored:
        match = re.fullmatch(r"hard@sequence:(\d+)", policy)
        if match:
            found[int(match[1])] = results.first_regret(policy)
    if not found:
        return False
    lengths = sorted(found)
    axes.plot(lengths, [found[n] for n in lengths], "o-", label="one hard decision for the document, at this token")
    for policy, style in (("hard", "--"), ("elastic", "-."), ("top2", ":"), ("soft", "-")):
        axes.axhline(
            results.first_regret(policy), color="gray", linestyle=style, label=f"{policy}, decided at every token"
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.set_ylim(bottom=0)
    axes.set_title("Routing regret over whole documents")
    axes.set_xlabel("tokens read before the decision")
    axes.set_ylabel("share of the oracle's gain that is lost")
    return True


def _perplexity_by_domain(axes: Axes, results: Results, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    rank = results.config.rank
    systems = [("base", "one"), (f"fedavg:{rank}", "one"), (f"pooled:{rank}", "one"), (results.tree, "hard")]
    systems += [(results.tree, "soft"), (results.tree, "oracle")]
    known = [(system, policy) for system, policy in systems if results.has(system)]
    if len(known) < 2:
        return False
    base = results.table(*known[0]).by_domain()
    width = 0.8 / (len(known) - 1)
    for index, (system, policy) in enumerate(known[1:]):
        nll = results.table(system, policy).by_domain()
        places = [number + (index - (len(known) - 2) / 2) * width for number in range(len(base))]
        name = system if policy == "one" else f"{system}, {policy}"
        axes.bar(places, [nll[domain] - base[domain] for domain in base], width, label=name)
    axes.set_xticks(range(len(base)), list(base))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title("What each system gains over the base, by domain of held-out text")
    axes.set_ylabel("log perplexity against the base's [nats per token]")
    return True


def _rank_curve(axes: Axes, results: Results, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    if "6" not in rows:
        return False
    ranks, top = nested_ranks(results.config), results.config.rank
    curves: dict[str, Callable[[int], tuple[str, str]]] = {
        "one LoRA for each rank": lambda rank: (f"side-tree:{rank}", "oracle"),
        "nested, cut to the rank": lambda rank: (f"nested:{top}", f"cut:{rank}"),
        "nested (frozen mode), cut": lambda rank: (f"nested:frozen:{top}", f"cut:{rank}"),
    }
    for name, system in curves.items():
        axes.plot(ranks, [results.table(*system(rank)).mean() for rank in ranks], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_title("Nested adapters: every rank from one training (oracle routing)")
    axes.set_xlabel("rank")
    axes.set_ylabel("nats per token, mean over domains")
    return True


def _depth_against_rank(axes: Axes, results: Results, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    known = [(n, system) for n, system in shapes(results.config).items() if results.has(system)]
    if len(known) < 2:
        return False
    for policy in ("soft", "hard"):
        points = [(n, results.table(system, "one" if n == 1 else policy, n_seeds=1).mean()) for n, system in known]
        axes.plot([n for n, _ in points], [nll for _, nll in points], "o-", label=policy)
    total = results.config.rank * results.config.n_workers
    axes.set_xscale("log", base=2)
    axes.set_xticks([n for n, _ in known], [f"{n} × {total // n}" for n, _ in known])
    axes.set_title(f"Depth against rank at a fixed total rank of {total}")
    axes.set_xlabel("leaves × rank")
    axes.set_ylabel("nats per token, mean over domains")
    return True


def _loss_against_bytes(axes: Axes, results: Results, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    if "14" not in rows:
        return False
    parts = rows["14"]["parts"]
    for n in REPLICAS:
        points = [parts[f"{n} machines, {steps} steps"] for steps in LOCAL_STEPS]
        axes.plot(
            [point["bytes"] / 1e6 for point in points], [point["nll"] for point in points], "o-", label=f"{n} machines"
        )
        for steps, point in zip(LOCAL_STEPS, points, strict=True):
            axes.annotate(f"{steps}", (point["bytes"] / 1e6, point["nll"]), textcoords="offset points", xytext=(4, 4))
    axes.set_xscale("log")
    axes.set_title("Replicas of one adapter: loss against bytes sent (numbers: local steps between averages)")
    axes.set_xlabel("megabytes sent, both ways, all machines together")
    axes.set_ylabel("nats per token, mean over domains")
    return True


Draw = Callable[[Axes, Results, Mapping[str, Mapping[str, Any]]], bool]
PICTURES: dict[str, Draw] = {
    "loss-tokens": _loss_against_tokens,
    "regret-prefix": _regret_against_prefix,
    "gain-domain": _perplexity_by_domain,
    "rank-curve": _rank_curve,
    "depth-rank": _depth_against_rank,
    "loss-bytes": _loss_against_bytes,
}
