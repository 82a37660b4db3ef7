"""Three questions about a federation, asked of whole runs that live in this one process.

    python examples/federations.py --small                 # two minutes on two cores: does it work here?
    python examples/federations.py --out examples          # the run behind README.md: most of an hour of one core

1. What is a tree worth when every worker has one kind of text, and what when all have the same mixture?
2. What does it cost when half of the workers leave in every period?
3. What do three attackers of eight spoil, with the defences and without them?

Everything is the production code: the coordinator's rules, the workers' training, the bundle and its router, on the
small base model that comes with TinyLoRA and on text that this machine has. Only the clock is virtual and the wire is
missing. Open the file as a notebook (every `# %%` is a cell) or run it. Runs that are done lie in OUT/runs and are not
repeated, so it goes on where it was stopped.
"""

# %% What to run, and how large
import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from tinylora import Bundle, RunSettings, Shard, TreeModel, __version__, load_base, tensors
from tinylora.demo.experiment import BASE_DIR
from tinylora.demo.settings import LEARNING_RATE, fedavg_settings
from tinylora.evaluation import best_leaves, evaluate_tree, score_domains
from tinylora.federation.campaign import BENIGN_CODES
from tinylora.federation.events import (
    Event,
    LeaseExpired,
    UpdateAccepted,
    UpdateProbed,
    UpdateRejected,
    WorkerJoined,
    WorkerLost,
    WorkerQuarantined,
)
from tinylora.protocol.documents import Update, WorkUnit, sha256
from tinylora.quality.corpus import deal, read_corpus
from tinylora.shards import shard_of
from tinylora.simulate import Runner, SimulatedWorker, simulate
from tinylora.training import UnitRunner
from tinylora.training.received import open_payload


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    depth: int = 2
    n_workers: int = 8
    leaf_steps: int = 48
    unit_steps: int = 8
    batch_windows: int = 8
    window_tokens: int = 256
    scored_tokens: int = 512
    shard_chars: int = 600_000
    n_documents: int = 18

    def settings(self, seed: int, **changes: Any) -> RunSettings:
        """A run of this size; rank and rate are the demo's. One sweep found the rate, for a tree and one LoRA alike."""
        values: dict[str, Any] = {
            "name": "example",
            "seed": seed,
            "depth": self.depth,
            "rank": 8,
            "alpha": 16.0,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": min(5, self.leaf_steps // 2),
            "leaf_steps": self.leaf_steps,
            "unit_steps": self.unit_steps,
            "batch_windows": self.batch_windows,
            "window_tokens": self.window_tokens,
            "min_workers": self.n_workers,
            "min_sequences": 20,
        }
        return RunSettings.model_validate(values | changes)


FULL = Size()
SMALL = Size(1, 4, 8, 4, batch_windows=2, window_tokens=128, scored_tokens=128, shard_chars=150_000)
TINY = Size(1, 4, 2, 1, batch_windows=1, window_tokens=32, scored_tokens=32, shard_chars=150_000, n_documents=9)
QUESTIONS = ("split", "churn", "attackers")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--small", dest="size", action="store_const", const=SMALL, default=FULL, help="two minutes")
parser.add_argument("--tiny", dest="size", action="store_const", const=TINY, help="seconds; says nothing about quality")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="some of the questions")
parser.add_argument("--out", type=Path, default=Path("federations-out"), help="results.json, pictures/ and runs/")
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
size: Size = options.size
torch.set_num_threads(options.threads)
(options.out / "runs").mkdir(parents=True, exist_ok=True)

# %% The base model, and text that it has not seen: whole files for training, others for scoring
base = load_base(str(BASE_DIR), dtype=torch.bfloat16)
corpus = read_corpus(base, n_domains=2**size.depth, shard_chars=size.shard_chars, n_documents=size.n_documents)
print(f"{base.facts.base_id}; kinds of text: {', '.join(corpus.domains)}")

POLICIES = {"soft": "soft", "hard": "hard", "elastic": "elastic"}
SCORING: dict[str, Any] = {"window_tokens": size.window_tokens, "max_tokens_per_document": size.scored_tokens}
Losses = dict[str, float]
"""Held-out loss in nats per token by kind of text, and `mean` over the kinds."""


def losses_of(rows: Sequence[Any]) -> Losses:
    """Sum the scores of documents up."""
    found = {}
    for domain in corpus.domains:
        mine = [row for row in rows if row.domain == domain]
        found[domain] = math.fsum(row.nll_sum for row in mine) / sum(row.n_tokens for row in mine)
    return found | {"mean": math.fsum(found.values()) / len(found)}


def losses_of_tree(bundle: Bundle) -> dict[str, Losses]:
    """The base, the tree under every policy, and `oracle`: the leaf that is best on other text of the same kind."""
    with TreeModel.from_bundle(bundle, base) as model:
        best = best_leaves(model, corpus.validation, **SCORING)
        scores = evaluate_tree(model, corpus.heldout, leaf_of=best, policies=POLICIES, **SCORING)
    return {name.removeprefix("routed:"): losses_of(rows) for name, rows in scores.items()}


def losses_of_one(bundle: Bundle) -> dict[str, Losses]:
    """A tree of one leaf has no router to try."""
    with TreeModel.from_bundle(bundle, base) as model:
        return {"one LoRA": losses_of(score_domains(model, corpus.heldout, **SCORING))}


# %% One run: simulate, score, and keep what came of it
Scorer = Callable[[Bundle], dict[str, Losses]]


def outcome(
    name: str, settings: RunSettings, workers: Sequence[SimulatedWorker], scorer: Scorer = losses_of_tree
) -> dict[str, Any]:
    """Read what came of a run from OUT/runs, or run it."""
    file = options.out / "runs" / f"{name.replace(' ', '-')}-{settings.seed}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    started, events = time.monotonic(), []
    result = simulate(settings, workers, base, on_event=events.append)
    row = {
        "name": name,
        "seed": settings.seed,
        "finished": result.campaign.finished,
        "virtual_s": round(result.campaign.latest_at_s, 1),
        "losses": scorer(result.bundle),
        "units": count(events),
        "presence": presence(events),
        "seconds": round(time.monotonic() - started, 1),
    }
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    means = ", ".join(f"{system} {losses['mean']:.4f}" for system, losses in row["losses"].items())
    print(f"{name}, seed {settings.seed}: {means} ({row['seconds']} s)", flush=True)
    return row


def count(events: Sequence[Event]) -> dict[str, Any]:
    """What became of the training units: by worker how many were sent, and how many of them did not count."""
    sent: dict[str, int] = {}
    stopped: dict[str, int] = {}
    for event in events:
        if isinstance(event, UpdateAccepted) and event.kind == "train":
            sent[event.worker] = sent.get(event.worker, 0) + 1
        elif isinstance(event, UpdateRejected) and event.code not in BENIGN_CODES:
            sent[event.worker] = sent.get(event.worker, 0) + 1
            stopped[event.worker] = stopped.get(event.worker, 0) + 1
        elif isinstance(event, UpdateProbed) and not event.is_kept:
            stopped[event.worker] = stopped.get(event.worker, 0) + 1
    return {
        "sent": sent,
        "stopped": stopped,
        "tokens": sum(event.tokens for event in events if isinstance(event, UpdateAccepted)),
        "expired": sum(isinstance(event, LeaseExpired) for event in events),
        "quarantined": sorted({event.worker for event in events if isinstance(event, WorkerQuarantined)}),
    }


def presence(events: Sequence[Event]) -> dict[str, dict[str, Any]]:
    """When each worker came, was heard, and went, in virtual seconds."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, WorkerJoined):
            found[event.worker] = {"from": event.at_s, "to": None, "accepted": []}
        elif isinstance(event, WorkerLost):
            found[event.worker]["to"] = event.at_s
        elif isinstance(event, UpdateAccepted) and event.kind == "train":
            found[event.worker]["accepted"].append(event.at_s)
    return found


def crowd(shards: Mapping[str, Shard], **traits: Any) -> list[SimulatedWorker]:
    """One worker for each shard; all are equally fast."""
    return [SimulatedWorker(name, shard, seconds_per_step=1.0, **traits) for name, shard in shards.items()]


# %% Question 1: one kind of text for each worker, a skewed mixture, or the same mixture for all
SPLITS = {"by kind": "halves", "skewed": "dirichlet:0.3", "iid": "iid"}


def ask_split(seed: int) -> list[dict[str, Any]]:
    """A tree, and its peer for the same tokens: one LoRA of the same active rank, averaged over all workers."""
    rows = []
    for name, how in SPLITS.items():
        shards = deal(corpus, how, n_workers=size.n_workers, seed=seed)
        settings = size.settings(seed, min_workers=len(shards))
        rows.append(outcome(f"split {name}", settings, crowd(shards)))
        rows.append(outcome(f"split {name} one", fedavg_settings(settings), crowd(shards), losses_of_one))
    return rows


# %% Question 2: half of the workers leave in every period, and others take their seats
def churning(shards: Mapping[str, Shard], period_s: float) -> list[SimulatedWorker]:
    """Even and odd seats change hands in turns, so that everybody stays for two periods.

    Whoever takes a seat has the same text and another name, and neither adapters nor an optimiser's memory.
    """
    workers = []
    for seat, shard in enumerate(shards.values()):
        changes = [period * period_s for period in range(1, 40) if period % 2 == seat % 2]
        for turn, (begin, end) in enumerate(zip([0.0, *changes[:-1]], changes, strict=True)):
            name = f"seat-{seat}-{turn}"
            workers.append(SimulatedWorker(name, shard, joins_at_s=begin, leaves_at_s=end, seconds_per_step=1.0))
    return workers


def ask_churn(seed: int) -> list[dict[str, Any]]:
    """Units and run are half as long as elsewhere, so that a worker gets through some units before it leaves."""
    shards = deal(corpus, "halves", n_workers=size.n_workers, seed=seed)
    settings = size.settings(seed, leaf_steps=size.leaf_steps // 2, unit_steps=max(1, size.unit_steps // 2))
    period_s = 2.0 + settings.unit_steps
    return [
        outcome("churn calm", settings, crowd(shards)),
        outcome("churn half leave", settings, churning(shards, period_s)),
    ]


# %% Question 3: attackers
@dataclass(frozen=True)
class Saboteur:
    """Trains honestly, and sends its step times `factor`: below 0 it walks back."""

    honest: UnitRunner
    factor: float

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        """The document is made to fit what is sent, so that only the numbers are wrong."""
        update, data = self.honest.run(unit, payload)
        if unit.kind != "train":
            return update, data
        start = open_payload(unit, payload, self.honest.base.facts).adapters
        sent = tensors.from_bytes(data)
        for node, adapter in start.items():
            for name, before in tensors.with_prefix(adapter, f"node.{node}.").items():
                if name in sent:
                    sent[name] = (before + self.factor * (sent[name] - before)).to(sent[name].dtype)
        data = tensors.to_bytes(sent)
        return update.model_copy(update={"payload_sha256": sha256(data), "manifest": tensors.manifest_of(sent)}), data


def shuffled(shard: Shard) -> Shard:
    """The same documents, their tokens in disorder: what is learned of them is wrong and looks like learning."""
    random = np.random.default_rng(0)
    documents = [changed(document, tokens=random.permutation(document.tokens)) for document in shard.train]
    print_of = corpus.tokenizer_fingerprint
    return shard_of(documents, shard.heldout, tokenizer_fingerprint=print_of, name=shard.name)


ATTACKS: dict[str, float | None] = {"ten steps back": -10.0, "one step back": -1.0, "shuffled text": None}
"""Factor of the step; None trains on shuffled text instead. The first is gross, the others move no further than honest
workers do."""
UNDEFENDED: dict[str, Any] = {"probes": 0, "clip": 0.0, "influence_cap": 1e9, "max_leaf_share": 1.0}
"""What settings can turn off. Shapes, hashes, finite numbers and a bound on the length of a step cannot be."""


def hostile_names(names: Sequence[str]) -> list[str]:
    """Three of eight: one of the two holders of every kind of text but one."""
    return list(names)[0 : len(names) - 2 : 2]


def ask_attackers(seed: int) -> list[dict[str, Any]]:
    """Each attack beside an honest run of the same settings, with the defences and without."""
    shards = deal(corpus, "halves", n_workers=size.n_workers, seed=seed)
    rows = []
    for defended, changes in (("defended", {}), ("open", UNDEFENDED)):
        settings = size.settings(seed, **changes)
        honest = crowd(shards)
        rows.append(outcome(f"attack none {defended}", settings, honest))
        for attack, factor in ATTACKS.items():
            workers = [spoilt(worker, settings, factor) for worker in honest]
            rows.append(outcome(f"attack {attack} {defended}", settings, workers))
    return rows


def spoilt(worker: SimulatedWorker, settings: RunSettings, factor: float | None) -> SimulatedWorker:
    """The worker, turned if it is one of the hostile ones."""
    names = [f"worker-{number:02d}" for number in range(size.n_workers)]
    if worker.name not in hostile_names(names) or worker.shard is None:
        return worker
    if factor is None:
        return changed(worker, shard=shuffled(worker.shard))
    runner: Runner = Saboteur(UnitRunner(base.for_run(settings), worker.shard, worker=worker.name), factor)
    return changed(worker, shard=None, runner=runner)


# %% Ask; each run prints its losses when it is done
ASK = {"split": ask_split, "churn": ask_churn, "attackers": ask_attackers}
results = {question: [row for seed in options.seeds for row in ASK[question](seed)] for question in options.only}


# %% Pictures
COLOURS = {"base": "0.6", "one LoRA": "tab:orange", "soft": "tab:blue", "hard": "tab:cyan", "elastic": "tab:purple"}
COLOURS |= {"oracle": "tab:green"}
LABELS = {"soft": "tree, soft", "hard": "tree, hard", "elastic": "tree, elastic", "oracle": "tree, best leaf by hand"}


def gains(rows: Sequence[dict[str, Any]], name: str, system: str) -> list[float]:
    """Nats per token below the base, by seed: what was learned."""
    mine = [row for row in rows if row["name"] == name]
    bare = {row["seed"]: row["losses"]["base"]["mean"] for row in rows if "base" in row["losses"]}
    return [bare[row["seed"]] - row["losses"][system]["mean"] for row in mine if system in row["losses"]]


def bars(axes: Any, groups: Sequence[str], series: Mapping[str, Callable[[str], list[float]]], **style: Any) -> None:
    """Grouped bars of means, with a dot for every seed."""
    width = 0.8 / len(series)
    for index, (label, values_of) in enumerate(series.items()):
        for place, group in enumerate(groups):
            values, x = values_of(group), place + (index - (len(series) - 1) / 2) * width
            first = {"label": LABELS.get(label, label)} if place == 0 else {}
            axes.bar(x, np.mean(values), 0.9 * width, color=style.get("colours", COLOURS).get(label), **first)
            axes.plot([x] * len(values), values, "k.", markersize=4)
    axes.set_xticks(range(len(groups)), groups)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def save(figure: Any, name: str) -> Path:
    """A PNG that is the same bytes for the same numbers."""
    file = options.out / "pictures" / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return file


def draw_split(rows: Sequence[dict[str, Any]]) -> Path:
    """What the tree and its peer learned, by how text was dealt out."""
    figure, axes = plt.subplots(figsize=(9, 4.2))
    series: dict[str, Callable[[str], list[float]]] = {
        "one LoRA": lambda split: gains(rows, f"split {split} one", "one LoRA")
    }
    for system in (*POLICIES, "oracle"):
        series[system] = lambda split, system=system: gains(rows, f"split {split}", system)
    bars(axes, list(SPLITS), series)
    axes.set_ylabel("nats per token below the base (more is better)")
    axes.set_title("What is learned for the same tokens, by how text is dealt to the workers")
    axes.legend(frameon=False, ncols=3, fontsize=9)
    return save(figure, "split")


def draw_churn(rows: Sequence[dict[str, Any]]) -> Path:
    """Who was there, and what the coming and going cost."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 1))
    row = next(row for row in rows if row["name"] == "churn half leave")
    for name, seen in row["presence"].items():
        seat, turn = map(int, name.split("-")[1:])
        end = row["virtual_s"] if seen["to"] is None else seen["to"]
        left.barh(seat, end - seen["from"], left=seen["from"], color=("0.8", "0.65")[turn % 2])
        left.plot(seen["accepted"], [seat] * len(seen["accepted"]), "|", color="tab:blue", markersize=14)
    left.set_xlabel("virtual seconds")
    left.set_ylabel("seat")
    left.set_title("Who sits where; a stroke is an accepted unit")
    series = {
        system: lambda name, system=system: gains(rows, f"churn {name}", system) for system in (*POLICIES, "oracle")
    }
    bars(right, ["calm", "half leave"], series)
    right.set_ylabel("nats per token below the base")
    right.margins(y=0.35)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    return save(figure, "churn")


def draw_attackers(rows: Sequence[dict[str, Any]]) -> Path:
    """What attackers cost under soft routing, and what was stopped."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    cases, colours = ["none", *ATTACKS], {"defended": "tab:green", "open": "tab:red"}

    def cost(case: str, defended: str) -> list[float]:
        clean, found = (gains(rows, f"attack {name} {defended}", "soft") for name in ("none", case))
        return [before - after for before, after in zip(clean, found, strict=True)]

    series = {defended: lambda case, defended=defended: cost(case, defended) for defended in colours}
    bars(left, cases[1:], series, colours=colours)
    left.set_yscale("symlog", linthresh=0.01)
    left.axhline(0, color="k", linewidth=0.8)
    left.set_ylabel("nats per token above the same run without attackers")
    left.set_title("Cost of three attackers of eight (tree, soft)")
    left.legend(frameon=False)

    def share(case: str, who: str) -> list[float]:
        return [stopped_share(row, who) for row in rows if row["name"] == f"attack {case} defended"]

    both = {"hostile": "tab:red", "honest": "tab:blue"}
    bars(right, cases, {who: lambda case, who=who: share(case, who) for who in both}, colours=both)
    right.set_ylim(0, 1)
    right.set_title("Share of units that the defences stopped")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.tick_params(axis="x", labelsize=8)
    return save(figure, "attackers")


def stopped_share(row: Mapping[str, Any], who: str) -> float:
    """Of the units that hostile or honest workers sent, how many did not count."""
    names = sorted(row["presence"])
    hostile = set() if " none " in row["name"] else set(hostile_names(names))
    mine = [name for name in names if (name in hostile) == (who == "hostile")]
    n_sent = sum(row["units"]["sent"].get(name, 0) for name in mine)
    return sum(row["units"]["stopped"].get(name, 0) for name in mine) / n_sent if n_sent else 0.0


DRAW = {"split": draw_split, "churn": draw_churn, "attackers": draw_attackers}
for question, rows in results.items():
    print(DRAW[question](rows))

# %% The numbers behind the pictures
document = {
    "command": f"python examples/federations.py --seeds {' '.join(map(str, options.seeds))}",
    "tinylora": __version__,
    "python": platform.python_version(),
    "torch": torch.__version__,
    "cores": os.cpu_count(),
    "seeds": options.seeds,
    "size": vars(size),
    "domains": list(corpus.domains),
    "settings": size.settings(options.seeds[0]).model_dump(mode="json"),
    "results": results,
}
(options.out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
print(options.out / "results.json")
