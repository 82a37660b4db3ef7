"""A bundle judged on your own files: held-out loss under every policy, and beside it what the policy costs.

Tokens per second are those of scoring whole documents on this machine, one system after the other; it shows when the
machine is busy.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tinylora.errors import SettingError
from tinylora.evaluation import DocumentScore, score_base, score_domains, score_leaves
from tinylora.model import TreeModel
from tinylora.reading.layouts import text_in
from tinylora.report.costs import costs_at_a_token
from tinylora.report.systems import by_domain, comparison, regrets, system_row
from tinylora.routing.decision import Decision, named_policies
from tinylora.shards import Document, load_documents
from tinylora.tree import NodePath

Heldout = Mapping[str, Sequence[Document]]


def evaluate_bundle(
    file: Path,
    base_where: str | Path,
    data: Sequence[Path],
    *,
    policies: Sequence[str] = ("soft",),
    with_oracle: bool = False,
    text_column: str = "text",
    window_tokens: int | None = None,
    max_tokens_per_document: int | None = None,
    threads: int = 2,
    quantise: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Held-out loss of a bundle under its policies, and of its base, on text that nobody trained on.

    Args:
        file: The bundle.
        base_where: Its base, as `load_base` takes it.
        data: Files or folders; each is a domain, and counts once however long it is.
        policies: As `named_policies` reads them.
        with_oracle: Also the best single leaf of each domain, and the regret of every policy against it. The leaf is
            chosen on the text that is scored, so it is better by luck, too, and the regret rather too high.
        text_column: Column of JSONL and Parquet files that holds the text.
        window_tokens: Tokens that are read at once; None is the base's window.
        max_tokens_per_document: Only the beginning of longer documents is scored.
        threads: Of the CPU.
        quantise: As in `load_base`.
        clock: Seconds.

    Returns:
        `systems` (`base`, `routed:<policy>`, `oracle`), `comparison` of each with the base, `regret` by policy,
        `oracle_leaf` by domain, `window_tokens`.

    Raises:
        SettingError: No data was named, or a policy is unknown.
    """
    if not data:
        raise SettingError("eval: no text was named; give files or folders with --data, once for each kind of text")
    wanted = named_policies(policies)
    torch.set_num_threads(threads)
    model = TreeModel.from_pretrained(base_where, file, quantise=quantise)
    base = model.base
    heldout = {
        name: load_documents([path], base, columns=text_in(text_column)) for name, path in _domains(data).items()
    }
    window = min(window_tokens or base.facts.max_window_tokens, base.facts.max_window_tokens)
    options = {"window_tokens": window, "max_tokens_per_document": max_tokens_per_document}
    timed = _Timed(model, heldout, options, clock)
    timed.warm_up()
    scores, rows = {}, {}

    def judge(name: str, decision: Decision | None, scorer: Callable[..., list[DocumentScore]], *more: Any) -> None:
        scores[name] = timed(scorer, *more)
        costs = costs_at_a_token(model, decision)
        rows[name] = system_row(scores[name], active_rank=costs["active_rank"]) | costs
        rows[name]["tokens_per_s"] = timed.tokens_per_s

    judge("base", None, score_base)
    for name, model.policy in wanted.items():
        judge(f"routed:{name}", model.policy.decision, score_domains)
    leaf_of = _best_leaves(model, heldout, options) if with_oracle else {}
    if with_oracle:
        judge("oracle", "hard", score_leaves, leaf_of)
    return {
        "systems": rows,
        "comparison": {name: comparison(found, scores["base"]) for name, found in scores.items() if name != "base"},
        "regret": regrets(rows),
        "oracle_leaf": leaf_of,
        "window_tokens": window,
    }


def _domains(data: Sequence[Path]) -> dict[str, Path]:
    """Each path under its last name, or whole where two end alike."""
    names = [path.name or str(path) for path in data]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, data, strict=True)}


class _Timed:
    """Scores documents, and keeps the tokens per second of the last time."""

    def __init__(self, model: TreeModel, heldout: Heldout, options: dict[str, Any], clock: Callable[[], float]) -> None:
        self.model, self.heldout, self.options, self.clock = model, heldout, options, clock
        self.tokens_per_s: float | None = None

    def warm_up(self) -> None:
        """The first pass of a process is slow, whoever makes it."""
        first = {name: list(documents)[:1] for name, documents in self.heldout.items()}
        score_domains(self.model, first, **self.options | {"max_tokens_per_document": 64})

    def __call__(self, scorer: Callable[..., list[DocumentScore]], *arguments: Any) -> list[DocumentScore]:
        start = self.clock()
        found = scorer(self.model, self.heldout, *arguments, **self.options)
        seconds = self.clock() - start
        n_tokens = sum(item.n_tokens for item in found)
        self.tokens_per_s = n_tokens / seconds if seconds > 0 else None
        return found


def _leaves(model: TreeModel) -> tuple[NodePath, ...]:
    return model.router.topology.leaves if model.router is not None else model.nodes[-1:]


def _best_leaves(model: TreeModel, heldout: Heldout, options: dict[str, Any]) -> dict[str, NodePath]:
    """Every leaf on every domain, and of each domain the leaf that predicts it best."""
    nll: dict[str, dict[NodePath, float]] = {domain: {} for domain in heldout}
    for leaf in _leaves(model):
        found = score_leaves(model, heldout, dict.fromkeys(heldout, leaf), **options)
        for domain, members in by_domain(found).items():
            nll[domain][leaf] = sum(item.nll_sum for item in members)
    return {domain: min(losses, key=lambda leaf: (losses[leaf], leaf)) for domain, losses in nll.items()}
