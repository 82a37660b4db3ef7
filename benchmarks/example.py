"""Make the recording that comes with TinyLoRA anew: a real run on this machine, with eight workers that come and go.

    python -m benchmarks.example        # some minutes; writes dashboard/example.jsonl.gz in the coordinator's package

Seven workers begin. One comes late, one is killed and comes back, one is paused by its owner, and the operator pauses
the run for a while. What workers say of themselves is written down as the run's own page shows it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tinylora_coordinator.dashboard.recording import Happened, Told, merged, write_recording
from tinylora_coordinator.dashboard.replay import EXAMPLE

from tinylora.demo.experiment import BASE_DIR, Experiment, gather, write_shard
from tinylora.demo.processes import Child, Family
from tinylora.demo.run import free_port, wait_for_ledger
from tinylora.demo.settings import demo_settings, settings_options
from tinylora.federation.events import Event, RunFinished, TopologySet, UnitLeased, UpdateAccepted, WorkerJoined
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.protocol.report import WorkerReport
from tinylora.protocol.standstill import WorkerState
from tinylora.reading.scan import ALLOWANCES

NAMES = ("quiet-otter", "hazy-fox", "brave-heron", "mossy-newt", "amber-lynx", "wise-raven", "tiny-wren", "late-hare")
PAUSED, KILLED, LATE = "hazy-fox", "brave-heron", "late-hare"
DEPTH, LEAF_STEPS, UNIT_STEPS = 3, 48, 8
AT_ONCE = 2
"""Workers that join side by side."""
LOOK_EVERY_S = 0.5
PATIENCE_S = 1500.0
MOST_BYTES = 200_000
COORDINATOR = [sys.executable, "-m", "tinylora_coordinator"]
WORKER = [sys.executable, "-m", "tinylora_worker"]


def main() -> None:
    """Run, and write the recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=EXAMPLE)
    parser.add_argument("--work", type=Path, help="folder for the run itself; a temporary one by default")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tinylora-example-") as folder:
        make(asked.work or Path(folder), asked.out)
    size = asked.out.stat().st_size
    print(f"{asked.out}: {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        sys.exit(f"expected at most {MOST_BYTES} bytes")


def make(root: Path, out: Path) -> None:
    """One run below `root`, recorded in `out`."""
    run = root / "run"
    experiment = gather(len(NAMES), DEPTH)
    files = [write_shard(worker, root / "data") for worker in experiment.workers]
    settings = demo_settings(
        len(NAMES), DEPTH, seed=0, router_sync="statistics", leaf_steps=LEAF_STEPS, unit_steps=UNIT_STEPS,
        name="example", min_workers=len(NAMES) - 1, start_after_s=900.0, router_period=8, probes=2,
    )  # fmt: skip
    _done([*COORDINATOR, "init", str(run), "--base", str(BASE_DIR), *settings_options(settings)])
    made = _done([*COORDINATOR, "token", "create", str(run), "--uses", str(len(NAMES)), "--tag", "lab", "--json"])
    with Family(root / "logs") as family:
        port, page_port = free_port(), free_port()
        ports = ["--port", str(port), "--dashboard-port", str(page_port)]
        serve = family.start("coordinator", [*COORDINATOR, "serve", str(run), *ports])
        wait_for_ledger(serve, run)
        token = json.loads(made)["token"]
        scene = Scene(root, family, f"https://127.0.0.1:{port}", token, experiment, files)
        with Listener(f"http://127.0.0.1:{page_port}") as listener:
            scene.play(serve)
        with SqliteLedger.open_readonly(run) as ledger:
            happened = [Happened(*row) for row in ledger.timed_events()]
    end_s = happened[-1].at_s
    told = [one for one in listener.told if one.at_s <= end_s + 5]
    write_recording(out, settings.run_id, merged(happened, told))


def _done(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# --- what happens ---------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """Workers, and what becomes of them."""

    root: Path
    family: Family
    address: str
    token: str
    experiment: Experiment
    files: Sequence[Path]
    children: dict[str, Child] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    """Workers' ids by their names."""
    has_tree: bool = False
    n_trained: int = 0
    busy: set[str] = field(default_factory=set)
    """Ids of those who train."""

    def play(self, serve: Child) -> None:
        """Until the run is over."""
        acts = self._acts()
        act = next(acts)
        n_events, end_s = 0, time.monotonic() + PATIENCE_S
        ledger = SqliteLedger.open_readonly(self.root / "run")
        while serve.is_running and time.monotonic() < end_s:
            events = ledger.events(after=n_events)
            n_events += len(events)
            for event in events:
                self._note(event)
            self._come()
            if act is not None and act():
                print(f"{n_events} events, {self.n_trained} trained", flush=True)
                act = next(acts, None)
            if any(isinstance(event, RunFinished) for event in events):
                break
            time.sleep(LOOK_EVERY_S)
        ledger.close()
        with suppress(subprocess.TimeoutExpired):
            serve.process.wait(30)

    def _come(self) -> None:
        """One after the other; on a busy machine one may have to try again."""
        for name in NAMES:
            if name == LATE or name in self.ids:
                continue
            if name not in self.children or not self.children[name].is_running:
                self.join(name)
            if sum(other not in self.ids for other in self.children) >= AT_ONCE:
                return

    def _note(self, event: Event) -> None:
        match event:
            case WorkerJoined():
                self.ids[event.name] = event.worker
            case TopologySet():
                self.has_tree = True
            case UnitLeased():
                (self.busy.add if event.kind == "train" else self.busy.discard)(event.worker)
            case UpdateAccepted():
                self.busy.discard(event.worker)
                self.n_trained += event.kind == "train"

    def _acts(self):
        """Each is asked again and again, until it was done."""
        yield self._after(5, lambda: self.join(LATE))
        yield self._after(10, self._kill, lambda: self.ids.get(KILLED) in self.busy)
        yield self._after(14, lambda: self._steer(PAUSED, "pause", "--for", "40s"))
        yield self._after(20, lambda: self._operate("pause"))
        since_s = time.monotonic()
        yield self._after(0, lambda: self._operate("resume"), lambda: time.monotonic() > since_s + 15)
        yield self._after(0, lambda: self.join(KILLED, again=True))

    def _after(
        self, n_trained: int, do: Callable[[], object], when: Callable[[], bool] = lambda: True
    ) -> Callable[[], bool]:
        def act() -> bool:
            if not self.has_tree or self.n_trained < n_trained or not when():
                return False
            do()
            return True

        return act

    def join(self, name: str, *, again: bool = False) -> None:
        """Start a worker."""
        number = NAMES.index(name)
        note = " and ".join(self.experiment.workers[number].domains)
        home = str(self.root / "home" / name)
        if again:
            command = [*WORKER, "run", "--home", home]
        else:
            command = [*WORKER, "join", self.address, "--yes", "--base", str(BASE_DIR), "--home", home, "--name", name]
            command += ["--data", str(self.files[number]), "--note", note]
            command += [word for kind in ALLOWANCES for word in ("--allow", kind)]  # its texts are public
            command += ["--share-log"] if number < 2 else []
        self.children[name] = self.family.start(f"{name}{'-again' if again else ''}", command,
                                                environment={"TINYLORA_TOKEN": self.token})  # fmt: skip

    def _kill(self) -> None:
        self.children[KILLED].process.kill()

    def _steer(self, name: str, *words: str) -> None:
        _done([*WORKER, *words, "--home", str(self.root / "home" / name)])

    def _operate(self, *words: str) -> None:
        _done([*COORDINATOR, *words, str(self.root / "run")])


# --- what workers say -----------------------------------------------------------------------------------------------


class Listener:
    """Looks at the run's page, and writes down what each worker said of itself."""

    def __init__(self, address: str) -> None:
        self.told: list[Told] = []
        self._client = httpx.Client(base_url=address, trust_env=False, timeout=30.0)
        self._heard: dict[str, float] = {}
        self._lines: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            with suppress(httpx.HTTPError):
                for row in self._client.get("/api/v1/workers").json()["workers"]:
                    heard_s = row.get("heard_s")
                    if heard_s is not None and self._heard.get(row["worker"]) != heard_s:
                        self._heard[row["worker"]] = heard_s
                        self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        if row["state"] not in set(WorkerState):
            return
        detail = self._client.get(f"/api/v1/workers/{row['worker']}").json()
        after_s = self._lines.get(row["worker"], -1.0)
        lines = [line for line in detail.get("log", ()) if line["at_s"] > after_s]
        if lines:
            self._lines[row["worker"]] = lines[-1]["at_s"]
        unit = row.get("unit") or {}
        report = WorkerReport(
            state=row["state"],
            reason=row.get("reason", ""),
            detail=row.get("detail", ""),
            resumes_in_s=row.get("resumes_in_s"),
            unit_id=unit.get("unit_id", ""),
            step=unit.get("step") or 0,
            n_steps=unit.get("n_steps", 0),
            tokens_per_s=row.get("tokens_per_s") or 0.0,
            gpu=row.get("gpu", ""),
            memory_bytes=row.get("memory_bytes", 0),
            note=row.get("data_note", ""),
            limits=detail.get("limits", {}),
            log=tuple(line["text"] for line in lines[-8:]),
        )
        self.told.append(Told(row["heard_s"], row["worker"], report))


if __name__ == "__main__":
    main()
