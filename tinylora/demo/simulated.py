"""`tinylora simulate`: a whole federation in one process, and the same files as the demo."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tinylora.base_model import load_base
from tinylora.demo.experiment import BASE_DIR, gather
from tinylora.demo.live import Progress, describe
from tinylora.demo.outcome import Finished, print_outcome, write_outcome
from tinylora.demo.places import prepare_folder
from tinylora.demo.settings import demo_settings
from tinylora.demo.study import study_of, study_of_paths
from tinylora.errors import SettingError
from tinylora.federation.events import Event
from tinylora.report import peak_memory_mb
from tinylora.simulate import FaultPlan, SimulatedWorker, simulate

FILES = ("bundle.safetensors", "report.json", "report.md", "loss.png", "routing.png")


def run_simulated(
    *,
    n_workers: int,
    depth: int,
    out: Path,
    seed: int,
    base_where: str | None = None,
    data: Sequence[Path] = (),
    rank: int | None = None,
    adapter: str | None = None,
    leaf_steps: int | None = None,
    router_sync: str = "both",
    text_column: str = "text",
    kill: Sequence[str] = (),
    silent: Sequence[str] = (),
    delay: Sequence[str] = (),
    drop: float = 0.0,
    threads: int = 2,
    quantise: str | None = None,
    is_quiet: bool = False,
) -> dict[str, Any]:
    """Simulate, write bundle, report and pictures into `out`, and return the report.

    With `data`, its i-th path is worker i's shard and a domain of the report, and there are as many workers as paths.
    Equal arguments on one machine write equal bundles; `threads` is one of them, for the order of sums depends on it.

    Raises:
        SettingError: A number is out of range, or a fault is of nobody.
        DataError: Text is missing or too little.
        BaseModelError: The base cannot be loaded.
        StorageError: `out` cannot be written.
    """
    console, started = Console(stderr=is_quiet), time.monotonic()
    n_workers = len(data) or n_workers
    if n_workers < 1:
        raise SettingError(f"workers {n_workers}: expected at least 1")
    choices = {"rank": rank, "adapter": adapter, "leaf_steps": leaf_steps, "name": "simulation"}
    settings = demo_settings(n_workers, depth, seed=seed, router_sync=router_sync, **choices)
    faults = FaultPlan.parse(kill=kill, silent=silent, delay=delay, drop=drop)
    prepare_folder(out, FILES)
    torch.set_num_threads(threads)
    experiment = None if data else gather(n_workers, depth)
    base = load_base(base_where or str(BASE_DIR), quantise=quantise)
    window_tokens = min(settings.window_tokens, base.facts.max_window_tokens)
    settings = settings.model_copy(update={"window_tokens": window_tokens})
    study = study_of(experiment, base) if experiment else study_of_paths(data, base, text_column=text_column)
    progress = Progress()

    def tell(event: Event) -> None:
        progress.apply([event])
        for line in describe(event, progress):
            console.print(line, highlight=False)

    workers = [SimulatedWorker(name, shard) for name, shard in study.shards.items()]
    result = simulate(settings, workers, base, faults, tell)
    report = write_outcome(
        Finished(result.campaign, result.ledger, result.bundle),
        study,
        base,
        out,
        how=" ".join(["tinylora", *sys.argv[1:]]),
        started=started,
        peak_memory_mb=peak_memory_mb,
        say=lambda text: console.print(text),
    )
    print_outcome(console, report, out)
    return report
