"""What three hostile workers of ten can do to a run: perplexity against the clean run, and how many are caught.

    python -m benchmarks.byzantine            # writes benchmarks/results/byzantine.json; half an hour of one core

Whole federations on the demo's base and this machine's text, through the production loop on a virtual clock, with the
defences that are on by default, and some without. What no setting turns off is in both: documents, hashes, names and
shapes, finite numbers, possible statistics, and the bound on how far an adapter may move.

Of hostile updates, `stopped` are those that never counted: rejected, or voted down by the probes. A hostile worker is
`caught` when not one of its spoilt updates was ever believed, or it was quarantined.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import attackers
from benchmarks.attackers import Attack, Attacker, Collusion, Watched
from benchmarks.federations import World, cost, demo_world, perplexity, settings_for
from benchmarks.measure import write_result
from tinylora.config import RunSettings
from tinylora.federation.campaign import BENIGN_CODES
from tinylora.federation.events import Event, UpdateAccepted, UpdateProbed, UpdateRejected, WorkerQuarantined
from tinylora.protocol.documents import ProbeResult
from tinylora.simulate import SimulatedWorker, simulate
from tinylora.training import UnitRunner

N_WORKERS, DEPTH = 10, 2
HOSTILE = ("worker-4", "worker-5", "worker-6")
"""Three of ten, on three of the four kinds of text, each of which an honest worker has, too."""
STEPS = {"leaf_steps": 32, "unit_steps": 8, "batch_windows": 4}
"""The default tolerance is for units of fifty steps at three times this rate. They cost strangers up to 0.08 nats when
a leaf learns its own text; honest units of this run cost at most 0.01."""
OFF = {"probes": 0, "clip": 0.0, "influence_cap": 1e9, "max_leaf_share": 1.0}
UNDEFENDED = ("flip",)
"""Attacks that are also tried without defences; the others are stopped by what no setting turns off, or do less."""
MAX_COST, MAX_HONEST_REJECTIONS, MAX_COST_WITHOUT_ATTACKERS = 0.05, 0.02, 0.01


@dataclass(frozen=True)
class Plot:
    """What the hostile workers do."""

    attack: Attack | None = None
    is_text_shuffled: bool = False
    lie: Callable[[ProbeResult], ProbeResult] | None = None
    is_gross: bool = False


PLOTS: Mapping[str, Plot] = {
    **{name: Plot(attack, is_gross=True) for name, attack in attackers.GROSS.items()},
    "random": Plot(attackers.random),
    "alie": Plot(attackers.alie),
    "shuffled text": Plot(is_text_shuffled=True),
    "sly capture": Plot(attackers.sly_capture),
    "votes all bad": Plot(lie=attackers.all_bad),
    "flip, votes all good": Plot(attackers.flip, lie=attackers.all_good, is_gross=True),
}


def main() -> None:
    """Run all plots and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--plots", nargs="+", default=list(PLOTS), choices=list(PLOTS))
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of the defended runs"
    )
    parser.add_argument("--dry", action="store_true", help="write no result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changes = dict(item.split("=", 1) for item in arguments.set)
    result = measure(arguments.seeds, arguments.plots, changes)
    print(result["figure"])
    if not arguments.dry:
        write_result("byzantine", result | {"command": "python -m benchmarks.byzantine"})


def measure(seeds: Sequence[int], plots: Sequence[str], changes: Mapping[str, object]) -> dict[str, Any]:
    """Every plot for every seed, with and without defences, and what came of the goals."""
    world = demo_world(N_WORKERS, DEPTH)
    runs = [row for seed in seeds for row in _runs(world, seed, plots, changes)]
    figure = _figure(runs)
    return {
        "compares": f"perplexity of the routed model with {len(HOSTILE)} of {N_WORKERS} workers hostile and with none",
        "goal": (
            f"cost <= {MAX_COST}, every gross attack caught, honest rejections <= {MAX_HONEST_REJECTIONS}, cost "
            f"without attackers <= {MAX_COST_WITHOUT_ATTACKERS}"
        ),
        "is_met": _is_met(figure),
        "figure": figure,
        "details": {
            "seeds": list(seeds),
            "settings": _settings(world, 0, changes).model_dump(mode="json"),
            "runs": runs,
        },
    }


def _runs(world: World, seed: int, plots: Sequence[str], changes: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    for is_defended in (True, False):
        settings = _settings(world, seed, changes if is_defended else OFF)
        clean: Mapping[str, float] = {}
        for name in ("none", *(plot for plot in plots if is_defended or plot in UNDEFENDED)):
            started = time.monotonic()
            found, told = _run(world, settings, PLOTS.get(name, Plot()))
            clean = clean or found
            row = {"plot": name, "seed": seed, "is_defended": is_defended, "cost": cost(found, clean), **told}
            row |= {"perplexity": found, "is_gross": PLOTS.get(name, Plot()).is_gross}
            print(row | {"seconds": round(time.monotonic() - started)}, flush=True)
            yield row


def _settings(world: World, seed: int, changes: Mapping[str, object]) -> RunSettings:
    return settings_for(world, DEPTH, seed, **{**STEPS, **changes})


def _run(world: World, settings: RunSettings, plot: Plot) -> tuple[dict[str, float], dict[str, Any]]:
    """Perplexities, and what was believed and what was not."""
    is_clean = plot == Plot()
    known = Collusion()
    events: list[Event] = []
    workers = [_worker(world, settings, name, plot, known) for name in world.names]
    result = simulate(settings, workers, world.base, on_event=events.append)
    return perplexity(result.bundle, world), _told(events, () if is_clean else HOSTILE)


def _worker(world: World, settings: RunSettings, name: str, plot: Plot, known: Collusion) -> SimulatedWorker:
    base, shard, is_hostile = world.base.for_run(settings), world.study.shards[name], name in HOSTILE
    facts = base.facts
    if is_hostile and plot.is_text_shuffled:
        shard = attackers.shuffled(shard, tokenizer_fingerprint=facts.tokenizer_fingerprint)
    runner = UnitRunner(base, shard, worker=name)
    if not is_hostile:
        return SimulatedWorker(name, runner=Watched(runner, facts, known, worker=name), seconds_per_step=1.0)
    hostile = Attacker(runner, facts, plot.attack, worker=name, lie=plot.lie, known=known)
    return SimulatedWorker(name, runner=hostile, seconds_per_step=1.0)


def _told(events: Sequence[Event], hostile: Sequence[str]) -> dict[str, Any]:
    """Counts of updates by what became of them; sketches and train units alike, probes not."""
    accepted = {e.unit_id: e for e in events if isinstance(e, UpdateAccepted) and e.kind != "probe"}
    rejected = {e.unit_id: e for e in events if isinstance(e, UpdateRejected) and e.code not in BENIGN_CODES}
    voted_down = {e.unit_id: e for e in events if isinstance(e, UpdateProbed) and not e.is_kept}
    stopped = {**rejected, **voted_down}
    quarantined = sorted({e.worker for e in events if isinstance(e, WorkerQuarantined)})
    sent = {**accepted, **rejected}
    believed = {e.worker for e in accepted.values() if e.kind == "train" and e.unit_id not in stopped}
    return {
        "hostile": _counts(sent, stopped, lambda worker: worker in hostile),
        "honest": _counts(sent, stopped, lambda worker: worker not in hostile),
        "caught": sorted(name for name in hostile if name not in believed or name in quarantined),
        "quarantined": quarantined,
        "codes": sorted(
            {e.code for e in rejected.values()} | {e.code for e in events if isinstance(e, WorkerQuarantined)}
        ),
        "changes": [round(e.change, 4) for e in events if isinstance(e, UpdateProbed) and e.change is not None],
    }


def _counts(sent: Mapping[str, Any], stopped: Mapping[str, Any], is_one: Callable[[str], bool]) -> dict[str, int]:
    mine = [unit for unit, event in sent.items() if is_one(event.worker)]
    return {"updates": len(mine), "stopped": sum(unit in stopped for unit in mine)}


def _figure(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and worst over the seeds."""
    plots = [name for name in dict.fromkeys(row["plot"] for row in runs) if name != "none"]
    figure: dict[str, Any] = {}
    for name in plots:
        rows = [row for row in runs if row["plot"] == name and row["is_defended"]]
        bare = [row["cost"] for row in runs if row["plot"] == name and not row["is_defended"]]
        costs = [row["cost"] for row in rows]
        figure[name] = {
            "cost": {"mean": _short(statistics.fmean(costs)), "worst": _short(max(costs))},
            "caught": f"{min(len(row['caught']) for row in rows)} of {len(HOSTILE)}",
            "is_gross": rows[0]["is_gross"],
        }
        if bare:
            figure[name]["cost_undefended"] = {"mean": _short(statistics.fmean(bare)), "worst": _short(max(bare))}
    honest = [row["honest"] for row in runs if row["is_defended"]]
    clean = [row for row in runs if row["plot"] == "none"]
    without = [_of(clean, seed, True) / _of(clean, seed, False) - 1 for seed in {row["seed"] for row in clean}]
    figure["honest_rejections"] = _short(
        sum(count["stopped"] for count in honest) / sum(count["updates"] for count in honest)
    )
    figure["cost_without_attackers"] = {"mean": _short(statistics.fmean(without)), "worst": _short(max(without))}
    return figure


def _of(clean: Sequence[Mapping[str, Any]], seed: int, is_defended: bool) -> float:
    return next(row["perplexity"]["mean"] for row in clean if row["seed"] == seed and row["is_defended"] == is_defended)


def _short(number: float) -> float:
    return round(number, 5)


def _is_met(figure: Mapping[str, Any]) -> bool:
    plots = [row for row in figure.values() if isinstance(row, dict) and "caught" in row]
    return (
        all(row["cost"]["worst"] <= MAX_COST for row in plots)
        and all(row["caught"].split()[0] == str(len(HOSTILE)) for row in plots if row["is_gross"])
        and figure["honest_rejections"] <= MAX_HONEST_REJECTIONS
        and figure["cost_without_attackers"]["worst"] <= MAX_COST_WITHOUT_ATTACKERS
    )


if __name__ == "__main__":
    main()
