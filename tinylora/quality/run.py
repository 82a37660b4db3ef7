"""`tinylora report`: does what is missing of a configuration's jobs, then writes tables and pictures from all of them.

Jobs run in processes of one thread each: on few cores that is faster than threads inside a step. Whatever a process has
finished is on disk; a report that was stopped goes on where it was.
"""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import connection
from pathlib import Path

import torch

from tinylora.errors import SettingError, StorageError
from tinylora.quality.config import QualityConfig, Rate
from tinylora.quality.jobs import Context, Job, Outcome, Scored, mean_nll, read_outcome, run_job, write_outcome
from tinylora.quality.plan import tuning_jobs

Say = Callable[[str], None]
_context: Context | None = None


def open_folder(out: Path, config: QualityConfig) -> None:
    """Make `out` the folder of this configuration.

    Rows and seeds may be added later; anything else would mix numbers that cannot be compared.

    Raises:
        SettingError: The folder holds a report of another configuration.
        StorageError: It cannot be written.
    """
    file = out / "config.json"
    wanted = _fixed(config.model_dump(mode="json"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if file.exists():
            found = _fixed(json.loads(file.read_text(encoding="utf-8")))
            wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
            if wrong:
                key = wrong[0]
                raise SettingError(
                    f"{out}: holds a report of another configuration: {key} is {found.get(key)!r} there and "
                    f"{wanted.get(key)!r} now; choose another folder with --out, or remove it"
                )
        file.write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{out}: cannot write here: {error.strerror}; choose another folder with --out") from None


_MAY_CHANGE = ("rows", "seeds", "rates", "tuning", "n_bootstrap")
"""Every job carries its own rate, and is compared with what is on disk."""


def _fixed(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in _MAY_CHANGE}


def do_jobs(config: QualityConfig, jobs: Sequence[Job], out: Path, *, n_processes: int, say: Say) -> list[Outcome]:
    """The outcomes of all jobs, in their order; those on disk are read, the others made and written.

    Raises:
        SettingError: The folder holds another configuration's outcome of a job.
        TinyLoraError: A job failed; what was done until then stays.
    """
    known = {_key(job): read_outcome(out, job) for job in jobs}
    missing = [job for job in jobs if known[_key(job)] is None]
    say(f"{len(jobs)} jobs, {len(jobs) - len(missing)} of them are done")
    started = time.monotonic()
    for number, outcome in enumerate(_work(config, missing, out, n_processes), start=1):
        write_outcome(out, outcome)
        known[_key(outcome.job)] = outcome
        nll = ", ".join(f"{name} {mean_nll(scored):.4f}" for name, scored in list(outcome.scored.items())[:4])
        say(
            f"[{number}/{len(missing)}, {time.monotonic() - started:.0f} s] {outcome.job.system} seed "
            f"{outcome.job.seed}: {nll} ({outcome.train_seconds:.0f} s of training)"
        )
    return [outcome for job in jobs if (outcome := known[_key(job)]) is not None]


def _key(job: Job) -> tuple[str, int, str, float, float]:
    return job.system, job.seed, job.on, job.rate.learning_rate, job.rate.scale


def _work(config: QualityConfig, jobs: Sequence[Job], out: Path, n_processes: int) -> Iterator[Outcome]:
    if not jobs:
        return
    if n_processes == 1:
        torch.set_num_threads(1)
        context = Context(config, out)
        yield from (run_job(context, job) for job in jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in whatever state they are
    with ProcessPoolExecutor(min(n_processes, len(jobs)), spawn, _begin, (config, out)) as pool:
        futures: list[Future[Outcome]] = [pool.submit(_do, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _begin(config: QualityConfig, out: Path) -> None:
    global _context
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _context = Context(config, out)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process that lost its parent would otherwise finish its job for nobody, minutes long."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _do(job: Job) -> Outcome:
    if _context is None:
        raise RuntimeError("a job was given to a process without a context")
    return run_job(_context, job)


def tune(config: QualityConfig, out: Path, *, n_processes: int, say: Say) -> dict[str, Rate]:
    """The best rate of every system on validation documents, by short trainings over the configuration's grid."""
    grids = tuning_jobs(config)
    outcomes = do_jobs(config, [job for grid in grids.values() for job in grid], out, n_processes=n_processes, say=say)
    found: dict[str, Rate] = {}
    for key in grids:
        mine = [outcome for outcome in outcomes if outcome.job.rate_key == key]
        best = min(mine, key=lambda outcome: mean_nll(_judged(outcome)))
        found[key] = best.job.rate
        row = ", ".join(
            f"{o.job.rate.learning_rate:g}/{o.job.rate.scale:g} {mean_nll(_judged(o)):.4f}"
            for o in sorted(mine, key=lambda o: (o.job.rate.scale, o.job.rate.learning_rate))
        )
        say(f"{key}: {row}")
    return found


def _judged(outcome: Outcome) -> Scored:
    """By the oracle where there is one, so that routing has no say in a rate."""
    return outcome.scored["oracle" if "oracle" in outcome.scored else "one"]
