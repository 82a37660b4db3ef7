"""`tinylora demo`: a real coordinator, real workers, each its own process, and what came of it.

Everything is written below one folder; nothing outside it is touched:

    bundle.safetensors  report.json  report.md  loss.png  routing.png
    events.jsonl        the run, recorded: `tinylora-coordinator replay` shows it again
    data/   what each worker owns          logs/   one file per process
    run/    the coordinator's directory    home/   the workers' identities
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from tinylora.demo.experiment import BASE_DIR, Experiment, gather, write_shard
from tinylora.demo.live import Progress, describe, render
from tinylora.demo.page import open_page
from tinylora.demo.places import prepare_folder
from tinylora.demo.processes import Child, Family
from tinylora.demo.settings import demo_settings, settings_options
from tinylora.errors import StorageError, TinyLoraError
from tinylora.federation.campaign import fold
from tinylora.federation.events import Event, UnitLeased
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.reading.scan import ALLOWANCES

RECORDING = "events.jsonl"
OURS = (
    *("bundle.safetensors", "report.json", "report.md", "loss.png", "routing.png", RECORDING),
    *("data", "logs", "run", "home"),
)
_LOOK_EVERY_S = 0.5
_PATIENCE_S = 300.0  # for a process to start or end; a busy machine may need minutes to import torch


def run_demo(
    *,
    n_workers: int,
    depth: int,
    out: Path,
    seed: int,
    router_sync: str,
    leaf_steps: int | None = None,
    open_browser: bool | None = None,
) -> None:
    """Run the demo and print where everything is.

    Args:
        n_workers: Worker processes.
        depth: Of the tree.
        out: Folder for everything it writes.
        seed: Of the run.
        router_sync: As of the run's settings.
        leaf_steps: The same; None: as many as fit into three minutes.
        open_browser: Whether a browser is opened on the live page; None: where there is a desktop.

    Raises:
        TinyLoraError: `out` is not writable, this machine has too little text, or a process failed; the sentence names
            the log to read.
    """
    console = Console()
    started = time.monotonic()
    settings = demo_settings(n_workers, depth, seed=seed, router_sync=router_sync, leaf_steps=leaf_steps)
    prepare_folder(out, OURS)
    console.print(f"[bold]TinyLoRA demo[/]: {n_workers} workers, a tree of depth {depth}, everything below {out}/")
    experiment = gather(n_workers, depth)
    files = [write_shard(worker, out / "data") for worker in experiment.workers]
    _print_owners(console, experiment)
    with Family(out / "logs") as family:
        page_port = free_port()
        address, token = _start_coordinator(family, out / "run", settings_options(settings), n_workers, page_port)
        page = f"http://127.0.0.1:{page_port}/"
        console.print(f"dashboard: {page}", highlight=False)
        open_page(page, is_wanted=open_browser, is_terminal=console.is_terminal)
        _start_workers(family, address, token, out, experiment, files)
        _watch(console, family, out / "run", started)
        recorder = _record(family, out)
        _finish(console, family, experiment, out, started)
        _wait_for_end(recorder)
    console.print(f"  {out / RECORDING}: the run, to be looked at again with", highlight=False)
    console.print(f"  tinylora-coordinator replay {out / RECORDING}", highlight=False)


def _finish(console: Console, family: Family, experiment: Experiment, out: Path, started: float) -> None:
    """Baselines, scores, report; torch is imported only now, so that it takes no memory beside the workers."""
    import torch

    from tinylora.base_model import load_base
    from tinylora.bundle import read_bundle
    from tinylora.demo.outcome import Finished, print_outcome, write_outcome
    from tinylora.demo.study import study_of

    torch.set_num_threads(os.cpu_count() or 1)
    ledger = SqliteLedger.open_readonly(out / "run")
    campaign = fold(ledger.events())
    if campaign is None:
        raise TinyLoraError(f"{out / 'run'}: the coordinator wrote no events; see {out / 'logs'}")
    base = load_base(BASE_DIR)

    def peak_memory_mb() -> float:
        family.note_memory()
        return family.peak_memory_mb

    report = write_outcome(
        Finished(campaign, ledger, read_bundle(out / "run" / "bundle.safetensors")),
        study_of(experiment, base),
        base,
        out,
        how=" ".join(["tinylora", *sys.argv[1:]]),
        started=started,
        peak_memory_mb=peak_memory_mb,
        say=console.print,
    )
    print_outcome(console, report, out)


def _print_owners(console: Console, experiment: Experiment) -> None:
    for worker in experiment.workers:
        n_chars = sum(len(text) for _, text in worker.texts)
        kinds = " + ".join(worker.domains)
        console.print(f"  {worker.name} owns {len(worker.texts)} documents, {n_chars / 1e6:.1f} M characters: {kinds}")


def _start_coordinator(
    family: Family, directory: Path, options: list[str], n_workers: int, page_port: int
) -> tuple[str, str]:
    """Initialise and serve a run; returns its address once it is up, and a token for all workers."""
    own = [sys.executable, "-m", "tinylora_coordinator"]
    init = family.start("coordinator-init", [*own, "init", str(directory), "--base", str(BASE_DIR), *options])
    _wait_for_end(init)
    token = _make_token([*own, "token", "create", str(directory), "--uses", str(n_workers), "--json"])
    port = free_port()
    ports = ["--host", "127.0.0.1", "--port", str(port), "--dashboard-port", str(page_port)]
    serve = family.start("coordinator", [*own, "serve", str(directory), *ports])
    wait_for_ledger(serve, directory)
    return f"https://127.0.0.1:{port}", token


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _make_token(command: list[str]) -> str:
    """What `token create --json` prints; it is in no log."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    if done.returncode != 0:
        raise TinyLoraError(f"coordinator-token stopped; it said: {done.stderr.strip()}")
    return json.loads(done.stdout)["token"]


def _start_workers(
    family: Family, address: str, token: str, out: Path, experiment: Experiment, files: Sequence[Path]
) -> None:
    secret = {"TINYLORA_TOKEN": token}  # not among the arguments, which every process list shows
    for worker, file in zip(experiment.workers, files, strict=True):
        name = file.stem
        command = [sys.executable, "-m", "tinylora_worker", "join", address, "--yes", "--base", str(BASE_DIR)]
        options = ["--data", str(file), "--home", str(out / "home" / name), "--name", name]
        options += ["--note", " and ".join(worker.domains)]
        options += [word for kind in ALLOWANCES for word in ("--allow", kind)]  # its texts are public
        family.start(name, [*command, *options], environment=secret)


def _record(family: Family, out: Path) -> Child:
    """Begin to write the recording; a process beside what follows."""
    command = [sys.executable, "-m", "tinylora_coordinator", "record", str(out / "run"), "--out", str(out / RECORDING)]
    return family.start("recorder", command)


def _wait_for_end(child: Child) -> None:
    try:
        is_bad = child.process.wait(_PATIENCE_S) != 0
    except subprocess.TimeoutExpired:
        is_bad = True
    if is_bad:
        raise _failed(child)


def wait_for_ledger(child: Child, directory: Path) -> None:
    """The coordinator has begun the run: its port is open long before that, and whoever asks there simply waits.

    Raises:
        TinyLoraError: It ended, or took too long.
    """
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end and child.is_running:
        with suppress(StorageError), SqliteLedger.open_readonly(directory) as ledger:
            if ledger.events():
                return
        time.sleep(0.1)
    raise _failed(child)


def _failed(child: Child) -> TinyLoraError:
    return TinyLoraError(f"{child.name} stopped; the end of {child.log_file} says:\n{child.last_log_lines()}")


def _watch(console: Console, family: Family, run_directory: Path, started: float) -> None:
    """Show the run until the coordinator and the workers have ended.

    Raises:
        TinyLoraError: The coordinator failed, or every worker did.
    """
    coordinator, *workers = family.children[1:]
    ledger = SqliteLedger.open_readonly(run_directory)
    progress, n_events, training_since = Progress(), 0, 0.0
    with Live(console=console, refresh_per_second=4) as live:
        while coordinator.is_running:
            events = ledger.events(after=n_events)
            n_events += len(events)
            _take_in(console, progress, events)
            if not training_since and any(isinstance(e, UnitLeased) and e.kind == "train" for e in events):
                training_since = time.monotonic()
            now = time.monotonic()
            live.update(render(progress, elapsed_s=now - started, training_s=now - (training_since or now)))
            family.note_memory()
            if not any(worker.is_running for worker in workers) and not progress.is_finished:
                raise _failed(workers[0])
            time.sleep(_LOOK_EVERY_S)
        _take_in(console, progress, ledger.events(after=n_events))
        now = time.monotonic()
        live.update(render(progress, elapsed_s=now - started, training_s=now - (training_since or now)))
    if not console.is_terminal:
        console.print()  # the picture ends without a line break
    if coordinator.process.returncode:
        raise _failed(coordinator)
    for worker in workers:
        _wait_for_end(worker)


def _take_in(console: Console, progress: Progress, events: Sequence[Event]) -> None:
    """Into the picture; and as lines where there is no terminal to draw on, such as a log."""
    for event in events:
        progress.apply([event])
        if not console.is_terminal:
            for line in describe(event, progress):
                console.print(line, highlight=False)
