"""Two real runs on the demo base become one bundle: what each run's own held-out text costs before and after.

Eight kinds of text of this machine, four for each run, simulated with the production code; some ten minutes. The merged
bundle is written and read again. Goal: each run's held-out loss within 1 % of before, under every policy.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinylora.base_model import LoadedBase, load_base
from tinylora.bundle import Bundle, read_bundle, write_bundle
from tinylora.demo.corpus import Domain, available_domains
from tinylora.demo.experiment import BASE_DIR, gather
from tinylora.demo.settings import demo_settings
from tinylora.demo.study import Study, study_of
from tinylora.derive import merge_files
from tinylora.evaluation import DocumentScore, score_base, score_domains
from tinylora.model import TreeModel
from tinylora.routing.gates import DEFAULT_TAU, Gates
from tinylora.routing.policy import Router
from tinylora.shards import Document
from tinylora.simulate import SimulatedWorker, simulate

GOAL_PERCENT = 1.0
POLICIES = ("soft", "top2", "hard", "elastic", "hard@window:64", "hard@sequence:32")
OPTIONS: dict[str, Any] = {"window_tokens": 256, "max_tokens_per_document": 512}
N_DOMAINS = 4  # of each run


def measure() -> dict[str, Any]:
    """Change of each run's held-out loss by policy, and how often the new root's gate sends its text to it."""
    torch.set_num_threads(1)
    base = load_base(str(BASE_DIR))
    domains = list(islice(available_domains(), 2 * N_DOMAINS))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{name}.safetensors") for name in ("first", "second", "both")]
        studies = [
            _run(base, domains[:N_DOMAINS], "first", files[0]),
            _run(base, domains[N_DOMAINS:], "second", files[1]),
        ]
        merge_files(files[0], files[1], files[2])
        runs, merged = [read_bundle(file) for file in files[:2]], read_bundle(files[2])
        heldout = [study.heldout for study in studies]
        rows = {policy: _compare(base, runs, merged, heldout, policy) for policy in POLICIES}
        plain = replace(merged, gates=_with_root_tau(merged.gates, DEFAULT_TAU))
        usual = _compare(base, runs, plain, heldout, "soft")
        found = _facts(base, runs, merged, heldout)
    worst = max(row["percent"] for policy in rows.values() for row in policy.values())
    return {
        "goal": f"each run's held-out loss within {GOAL_PERCENT:g} % of before, under every policy",
        "figure": {"worst_percent": worst},
        "is_met": worst <= GOAL_PERCENT,
        "policies": rows,
        "soft_at_usual_temperature": usual,
        **found,
        "settings": {"of": "the demo", "rank": runs[0].spec.rank, "domains": [domain.name for domain in domains]},
    }


def _run(base: LoadedBase, domains: Sequence[Domain], name: str, file: Path) -> Study:
    """Train a run on these domains and write its bundle, as a coordinator would; returns its texts."""
    study = study_of(gather(N_DOMAINS, 2, domains=domains), base)
    settings = demo_settings(N_DOMAINS, 2, seed=0, router_sync="statistics", name=name)
    workers = [SimulatedWorker(worker, shard, seconds_per_step=1.0) for worker, shard in study.shards.items()]
    write_bundle(simulate(settings, workers, base).bundle, file)
    return study


def _compare(
    base: LoadedBase,
    runs: Sequence[Bundle],
    merged: Bundle,
    heldout: Sequence[Mapping[str, Sequence[Document]]],
    policy: str,
) -> dict[str, Any]:
    """Of each run: nats per token on its own text, the mean over its domains, before and after."""
    found = {}
    for run, texts in zip(runs, heldout, strict=True):
        before, after = (_means(_scores(base, bundle, texts, policy)) for bundle in (run, merged))
        by_domain = {domain: _percent(before[domain], after[domain]) for domain in before}
        first, second = (float(np.mean(list(means.values()))) for means in (before, after))
        found[run.run] = {
            "before": round(first, 5),
            "after": round(second, 5),
            "percent": _percent(first, second),
            "by_domain": by_domain,
        }
    return found


def _scores(
    base: LoadedBase,
    bundle: Bundle,
    texts: Mapping[str, Sequence[Document]],
    policy: str,
    score: Callable[..., list[DocumentScore]] = score_domains,
) -> list[DocumentScore]:
    model = TreeModel.from_bundle(bundle, base, policy)
    try:
        return score(model, texts, **OPTIONS)
    finally:
        model.detach_adapters()


def _means(scores: Sequence[DocumentScore]) -> dict[str, float]:
    """Nats per token by domain."""
    domains = dict.fromkeys(item.domain for item in scores)
    own = {domain: [item for item in scores if item.domain == domain] for domain in domains}
    return {
        domain: sum(item.nll_sum for item in items) / sum(item.n_tokens for item in items)
        for domain, items in own.items()
    }


def _percent(before: float, after: float) -> float:
    return round(100 * (after / before - 1), 4)


def _with_root_tau(gates: Gates, tau: float) -> Gates:
    return replace(gates, nodes=gates.nodes | {"": replace(gates.nodes[""], tau=tau)})


def _facts(
    base: LoadedBase, runs: Sequence[Bundle], merged: Bundle, heldout: Sequence[Mapping[str, Sequence[Document]]]
) -> dict[str, Any]:
    """The base's own loss, for scale, and what the new root's gate does with each run's tokens."""
    alone, shares = {}, {}
    for turn, (run, texts) in enumerate(zip(runs, heldout, strict=True)):
        means = _means(_scores(base, run, texts, "soft", score_base))
        alone[run.run] = round(float(np.mean(list(means.values()))), 5)
        shares[run.run] = _share(base, merged, texts, turn)
    return {"base": alone, "tokens_sent_to_their_run": shares, "root_tau": round(merged.gates.nodes[""].tau, 4)}


@torch.no_grad()
def _share(base: LoadedBase, merged: Bundle, texts: Mapping[str, Sequence[Document]], turn: int) -> dict[str, float]:
    """Share of each domain's tokens that the root's gate, taken hard, sends to the run that the domain is of."""
    feature = base.with_feature(merged.base.feature_dim).routing_feature
    router = Router(feature, merged.gates, merged.topology, merged.topology.leaves)
    place, found = merged.topology.inner.index(""), {}
    for domain, documents in texts.items():
        is_right = []
        for document in documents:
            ids = torch.from_numpy(np.asarray(document.tokens[: OPTIONS["max_tokens_per_document"]], dtype=np.int64))
            scores = router.scores(feature(ids[None])[0])[0, :, place]
            is_right.append((scores >= 0) == bool(turn))
        found[domain] = round(float(torch.cat(is_right).double().mean()), 4)
    return found
