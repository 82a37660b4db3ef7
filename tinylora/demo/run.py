"""`tinylora demo`: a real coordinator, real workers, each its own process, and what came of it.

Everything is written below one folder; nothing outside it is touched:

    bundle.safetensors  report.json  report.md  loss.png  routing.png
    data/   what each worker owns          logs/   one file per process
    run/    the coordinator's directory    home/   the workers' identities
"""

import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from tinylora.demo.experiment import BASE_DIR, Experiment, gather, write_shard
from tinylora.demo.live import Progress, render
from tinylora.demo.processes import Child, Family
from tinylora.demo.settings import demo_settings
from tinylora.errors import StorageError, TinyLoraError
from tinylora.federation.events import UnitLeased
from tinylora.federation.ledger_sqlite import SqliteLedger

OURS = ("bundle.safetensors", "report.json", "report.md", "loss.png", "routing.png", "data", "logs", "run", "home")
_LOOK_EVERY_S = 0.5
_PATIENCE_S = 60.0


def run_demo(
    *, n_workers: int, depth: int, out: Path, seed: int, router_sync: str, leaf_steps: int | None = None
) -> None:
    """Run the demo and print where everything is.

    Raises:
        TinyLoraError: `out` is not writable, this machine has too little text, or a process failed; the sentence names
            the log to read.
    """
    console = Console()
    started = time.monotonic()
    settings = demo_settings(n_workers, depth, seed=seed, router_sync=router_sync, leaf_steps=leaf_steps)
    prepare_folder(out)
    console.print(f"[bold]TinyLoRA demo[/]: {n_workers} workers, a tree of depth {depth}, everything below {out}/")
    experiment = gather(n_workers, depth)
    files = [write_shard(worker, out / "data") for worker in experiment.workers]
    _print_owners(console, experiment)
    changes = settings.model_dump(mode="json")
    with Family(out / "logs") as family:
        address = _start_coordinator(family, out / "run", changes)
        _start_workers(family, address, out, files)
        _watch(console, family, out / "run", started)
        memory_mb = family.peak_memory_mb
    from tinylora.demo.outcome import finish_demo  # late: it brings torch, and the workers need the memory first

    finish_demo(console, out, experiment, settings, started=started, federation_memory_mb=memory_mb)


def prepare_folder(out: Path) -> None:
    """Make an empty place for what the demo writes; files of the same names from an earlier demo are removed.

    Raises:
        StorageError: `out` cannot be written, or is a file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in OURS:
            place = out / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        probe = out / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{out}: cannot write here: {error.strerror}; choose another folder with --out") from None


def _print_owners(console: Console, experiment: Experiment) -> None:
    for worker in experiment.workers:
        n_chars = sum(len(text) for _, text in worker.texts)
        kinds = " + ".join(worker.domains)
        console.print(f"  {worker.name} owns {len(worker.texts)} documents, {n_chars / 1e6:.1f} M characters: {kinds}")


def _start_coordinator(family: Family, directory: Path, settings: dict[str, object]) -> str:
    """Initialise and serve a run; returns its address once it is up."""
    own = [sys.executable, "-m", "tinylora_coordinator"]
    choices = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    init = family.start("coordinator-init", [*own, "init", str(directory), "--base", str(BASE_DIR), *choices])
    _wait_for_end(init)
    port = free_port()
    serve = family.start("coordinator", [*own, "serve", str(directory), "--host", "127.0.0.1", "--port", str(port)])
    _wait_for_port(serve, port)
    return f"http://127.0.0.1:{port}"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start_workers(family: Family, address: str, out: Path, files: Sequence[Path]) -> None:
    token = (out / "run" / "token").read_text(encoding="utf-8").strip()
    for file in files:
        name = file.stem
        command = [sys.executable, "-m", "tinylora_worker", "join", address, "--token", token, "--base", str(BASE_DIR)]
        family.start(name, [*command, "--data", str(file), "--home", str(out / "home" / name), "--name", name])


def _wait_for_end(child: Child) -> None:
    if child.process.wait(_PATIENCE_S):
        raise _failed(child)


def _wait_for_port(child: Child, port: int) -> None:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end and child.is_running:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
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
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while coordinator.is_running:
            events = ledger.events(after=n_events)
            n_events += len(events)
            progress.apply(events)
            if not training_since and any(isinstance(e, UnitLeased) and e.kind == "train" for e in events):
                training_since = time.monotonic()
            now = time.monotonic()
            live.update(render(progress, elapsed_s=now - started, training_s=now - (training_since or now)))
            family.note_memory()
            if not any(worker.is_running for worker in workers) and not progress.is_finished:
                raise _failed(workers[0])
            time.sleep(_LOOK_EVERY_S)
        progress.apply(ledger.events(after=n_events))
        now = time.monotonic()
        live.update(render(progress, elapsed_s=now - started, training_s=now - (training_since or now)))
    if coordinator.process.returncode:
        raise _failed(coordinator)
    for worker in workers:
        worker.process.wait(_PATIENCE_S)
