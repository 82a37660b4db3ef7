"""A run whose workers come and go, beside a calm one: half of them leave in every period, and others take their seats.

    python -m benchmarks.churn            # writes benchmarks/results/churn.json; ten minutes of one core

Eight seats, two for each kind of text; whoever takes a seat brings the same text under another name, and has neither
the adapters nor the optimiser's memory of whoever sat there. Everybody stays for two periods, and whatever a worker was
at when it left is lost. Both runs go to their end: every leaf has had its steps. Fewer updates are accepted where
workers come and go, so the calm run is also ended as soon as as many tokens were accepted.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.federations import World, cost, demo_world, perplexity, settings_for
from benchmarks.measure import write_result
from tinylora.config import RunSettings
from tinylora.federation.events import Event, LeaseExpired, UpdateAccepted, WorkerJoined, WorkerLost
from tinylora.simulate import SimulatedWorker, simulate

N_SEATS, DEPTH = 8, 2
N_PERIODS, PERIOD_S = 20, 6.0
STEPS = {"leaf_steps": 96, "unit_steps": 4, "batch_windows": 4}
MAX_COST = 0.02


def main() -> None:
    """Run both for every seed and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dry", action="store_true", help="write no result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.seeds)
    print(result["figure"])
    if not arguments.dry:
        write_result("churn", result | {"command": "python -m benchmarks.churn"})


def measure(seeds: Sequence[int]) -> dict[str, Any]:
    """Perplexity with churn over perplexity without, at equal accepted tokens and at equal steps."""
    world = demo_world(N_SEATS, DEPTH)
    rows = [_compare(world, settings_for(world, DEPTH, seed, **STEPS)) for seed in seeds]
    figure = {
        name: {"mean": round(sum(row[name] for row in rows) / len(rows), 5), "worst": max(row[name] for row in rows)}
        for name in ("cost_at_equal_tokens", "cost_at_equal_steps")
    }
    return {
        "compares": f"perplexity after {N_PERIODS} periods that half of the workers did not outlast, and of a calm run",
        "goal": f"the run ends; cost <= {MAX_COST} at equal accepted tokens",
        "is_met": figure["cost_at_equal_tokens"]["worst"] <= MAX_COST and all(row["is_ended"] for row in rows),
        "figure": figure,
        "details": {"seeds": list(seeds), "period_s": PERIOD_S, "steps": STEPS, "runs": rows},
    }


def churning(world: World) -> list[SimulatedWorker]:
    """Everybody who ever takes part: by seat, one after the other, even seats and odd ones changing in turns."""
    workers = []
    for seat, shard in enumerate(world.study.shards.values()):
        changes = [period * PERIOD_S for period in range(1, N_PERIODS + 1) if period % 2 == seat % 2]
        begins, ends = [0.0, *changes], [*changes, float("inf")]
        for turn, (joins_at_s, leaves_at_s) in enumerate(zip(begins, ends, strict=True)):
            name = f"seat-{seat}-{turn}"
            workers.append(
                SimulatedWorker(name, shard, joins_at_s=joins_at_s, leaves_at_s=leaves_at_s, seconds_per_step=1.0)
            )
    return workers


def _compare(world: World, settings: RunSettings) -> dict[str, Any]:
    calm = [SimulatedWorker(name, shard, seconds_per_step=1.0) for name, shard in world.study.shards.items()]
    churn = _run(world, settings, churning(world))
    whole = _run(world, settings, calm)
    equal = whole if whole["tokens"] == churn["tokens"] else _run(world, settings, calm, at_most_tokens=churn["tokens"])
    row = {
        "seed": settings.seed,
        "is_ended": churn["finished"] == "every leaf has had its steps" and churn["ended_at_s"] > N_PERIODS * PERIOD_S,
        "cost_at_equal_tokens": cost(churn["perplexity"], equal["perplexity"]),
        "cost_at_equal_steps": cost(churn["perplexity"], whole["perplexity"]),
        "churn": churn,
        "calm": whole,
        "calm_at_equal_tokens": equal,
    }
    print(row, flush=True)
    return row


def _run(
    world: World, settings: RunSettings, workers: Sequence[SimulatedWorker], *, at_most_tokens: int = 0
) -> dict[str, Any]:
    started = time.monotonic()
    events: list[Event] = []

    def finish() -> bool:
        return bool(at_most_tokens) and _tokens(events) >= at_most_tokens

    result = simulate(settings, workers, world.base, on_event=events.append, finish=finish)
    return {
        "finished": result.campaign.finished,
        "ended_at_s": result.campaign.latest_at_s,
        "joined": sum(isinstance(event, WorkerJoined) for event in events),
        "left": sum(isinstance(event, WorkerLost) for event in events),
        "units_lost": sum(isinstance(event, LeaseExpired) for event in events),
        "tokens": _tokens(events),
        "perplexity": perplexity(result.bundle, world),
        "seconds": round(time.monotonic() - started),
    }


def _tokens(events: Sequence[Event]) -> int:
    return sum(event.tokens for event in events if isinstance(event, UpdateAccepted))


if __name__ == "__main__":
    main()
