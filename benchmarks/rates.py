"""Learning rates of the demo, for the leaves and for the FedAvg peer, by one sweep on documents that no report scores.

    python -m benchmarks.rates            # writes benchmarks/results/rates.json; a quarter of an hour of two cores

Both systems get the same grid and the same tokens; each is judged by the mean over domains of the nll on the demo's
validation documents, the leaves by the oracle (every domain to its own leaf), so that routing has no say in the choice.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import write_result
from tinylora.base_model import LoadedBase, load_base
from tinylora.bundle import Bundle
from tinylora.config import RunSettings
from tinylora.demo.experiment import BASE_DIR, gather
from tinylora.demo.settings import demo_settings, fedavg_settings
from tinylora.demo.study import Study, study_of
from tinylora.evaluation import score
from tinylora.model import TreeModel
from tinylora.simulate import SimulatedWorker, simulate

GRID = (5e-4, 1e-3, 2e-3)
MAX_TOKENS = 1024


def with_rate(settings: RunSettings, rate: float) -> RunSettings:
    """The same settings at another learning rate."""
    return settings.model_copy(update={"learning_rate": rate})


def train(settings: RunSettings, study: Study, base: LoadedBase) -> tuple[Bundle, dict[str, str]]:
    """A simulated run without faults; also each domain's leaf."""
    workers = [SimulatedWorker(name, shard, seconds_per_step=1.0) for name, shard in study.shards.items()]
    result = simulate(settings, workers, base)
    nodes = {worker.name: worker.node or "" for worker in result.campaign.workers.values()}
    return result.bundle, {study.domains[name][0]: node for name, node in nodes.items()}


def validation_nll(bundle: Bundle, leaf_of: Mapping[str, str], study: Study, base: LoadedBase) -> float:
    """Mean over domains of nats per token on the validation documents, each domain sent to its own leaf."""
    model = TreeModel.from_bundle(bundle, base)
    ratios = []
    for domain, documents in study.validation.items():
        model.route_to(leaf_of[domain])
        rows = score(model, documents, window_tokens=256, max_tokens_per_document=MAX_TOKENS)
        ratios.append(sum(row.nll_sum for row in rows) / sum(row.n_tokens for row in rows))
    model.detach_adapters()
    return sum(ratios) / len(ratios)


def measure(
    n_workers: int, depth: int, *, base_where: Path = BASE_DIR, grid: tuple[float, ...] = GRID
) -> dict[str, Any]:
    """Validation nll of both systems over the grid, and the best rate of each."""
    base = load_base(base_where)
    study = study_of(gather(n_workers, depth), base)
    settings = demo_settings(n_workers, depth, seed=0, router_sync="statistics")
    nll: dict[str, dict[str, float]] = {"leaves": {}, "fedavg_lora": {}}
    for rate in grid:
        for system, chosen in (("leaves", settings), ("fedavg_lora", fedavg_settings(settings))):
            started = time.monotonic()
            bundle, leaf_of = train(with_rate(chosen, rate), study, base)
            nll[system][f"{rate:g}"] = validation_nll(bundle, leaf_of, study, base)
            print(f"{system} {rate:g}: {nll[system][f'{rate:g}']:.4f} ({time.monotonic() - started:.0f} s)", flush=True)
    return {
        "what": "validation nll (nats, mean over domains) by learning rate; leaves by the true domain",
        "settings": settings.model_dump(mode="json"),
        "nll": nll,
        "best": {system: min(rows, key=lambda rate, rows=rows: rows[rate]) for system, rows in nll.items()},
    }


def main() -> None:
    """Sweep and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE_DIR)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--grid", type=float, nargs="+", default=GRID)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.workers, arguments.depth, base_where=arguments.base, grid=tuple(arguments.grid))
    print(json.dumps(result["best"]))
    write_result("rates", result)


if __name__ == "__main__":
    main()
