"""A trainer's process without torch: everything around the work is the real one, the work only counts steps.

    python fake_trainer.py            in place of `python -m tinylora_worker.trainer`

Each step takes `step_s`, and leaves a line in HOME/steps; HOME/fake.json tells how it is to behave, read at each step:

    step_s     seconds of a step
    crash_at   end with SIGKILL before this step, each time it comes there
    load       "DataError" and the like: what loading ends with
    work       a module whose `work` makes the update; without it the payload is turned around
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tinylora_worker.trainer.checkpoint import Checkpoint
from tinylora_worker.trainer.child import main
from tinylora_worker.trainer.made import write_made
from tinylora_worker.wire.worker_pb2 import (
    Done,
    Fit,
    Loaded,
    LoadEvent,
    LoadRequest,
    Progress,
    RunEvent,
    SizeReply,
    SizeRequest,
)

from tinylora.flower.outbox import CHECKPOINT, PAYLOAD, UNIT
from tinylora.protocol.documents import Update, WorkUnit, sha256

FAKE, STEPS = "fake.json", "steps"
Work = Callable[[str, WorkUnit, bytes], tuple[Update, bytes]]


class Counted:
    """A snapshot that knows only how many steps were finished."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def to_bytes(self) -> bytes:
        """The file."""
        return str(self.n_steps).encode()


class FakeSession:
    """In place of `trainer.session.Session`."""

    def __init__(self, home: Path, *, checkpoint_every_s: float = 0.1, crash: Callable[[], None] | None = None) -> None:
        self._home, self._every_s, self._crash = home, checkpoint_every_s, crash or die
        self._checkpoint: Checkpoint | None = None
        self._worker, self._work = "", reverse

    def _told(self, name: str, otherwise: Any) -> Any:
        file = self._home / FAKE
        return json.loads(file.read_text()).get(name, otherwise) if file.exists() else otherwise

    def write_down(self) -> bool:
        """The last finished step is on disk."""
        return self._checkpoint is not None and self._checkpoint.write()

    def load(self, request: LoadRequest, tell: Callable[[LoadEvent], None]) -> LoadEvent:
        """Nothing to load."""
        self._worker = request.worker
        if kind := self._told("load", ""):
            raise getattr(importlib.import_module("tinylora.errors"), kind)("as told")
        if module := self._told("work", ""):
            self._work = importlib.import_module(module).work
        facts = Path(request.base).read_text()
        return LoadEvent(loaded=Loaded(base_facts_json=facts, device="fake", dtype="fp32", device_kind="cpu"))

    def size(self, request: SizeRequest, *_: Any) -> SizeReply:
        """Everything fits."""
        return SizeReply(fit=Fit(micro_windows=1))

    def run(self, folder: Path, tell: Callable[[RunEvent], None]) -> RunEvent:
        """Do the unit in this folder; returns the last event."""
        event = RunEvent()
        for event in self.steps(folder):
            if event.HasField("progress"):
                tell(event)
        return event

    def steps(self, folder: Path) -> Iterator[RunEvent]:
        """Count the unit's steps from the checkpoint on."""
        unit = WorkUnit.from_json((folder / UNIT).read_text())
        file = folder / CHECKPOINT
        counted = Counted(int(file.read_text()) if file.exists() else 0)
        self._checkpoint = checkpoint = Checkpoint(folder, lambda: counted)
        with checkpoint.every(self._every_s):
            for step in range(counted.n_steps, unit.n_steps):
                self._step(unit, step)
                counted.n_steps = step + 1
                told = Progress(node=unit.node, step=step + 1, n_steps=unit.n_steps, loss=1.0, tokens_per_s=8.0)
                yield RunEvent(progress=told)
        update, result = self._work(self._worker, unit, (folder / PAYLOAD).read_bytes())
        write_made(folder, update, result)
        self._checkpoint = None
        yield RunEvent(done=Done(payload_sha256=update.payload_sha256))

    def _step(self, unit: WorkUnit, step: int) -> None:
        if self._told("crash_at", -1) == step:
            self._crash()
        time.sleep(self._told("step_s", 0.0))
        with (self._home / STEPS).open("a") as out:
            out.write(f"{unit.unit_id} {step} {os.getpid()}\n")


def die() -> None:
    """As from a fault that no program survives."""
    os.kill(os.getpid(), signal.SIGKILL)


def reverse(worker: str, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
    """A unit's work: its payload turned around."""
    result = payload[::-1]
    return made_of(worker, unit, result), result


def made_of(worker: str, unit: WorkUnit, result: bytes) -> Update:
    """The update to a result."""
    return Update(
        unit_id=unit.unit_id,
        run=unit.run,
        kind=unit.kind,
        worker=worker,
        nonce=unit.nonce,
        node=unit.node,
        shard_version="d" * 64,
        tokens=7,
        n_steps=unit.n_steps,
        base_loads=1,
        payload_sha256=sha256(result),
    )


if __name__ == "__main__":
    session = ModuleType("tinylora_worker.trainer.session")
    session.Session, session.is_out_of_memory = FakeSession, lambda error: False  # type: ignore[attr-defined]
    sys.modules[session.__name__] = session
    main()
