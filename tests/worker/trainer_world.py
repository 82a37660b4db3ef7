"""A worker's home with text and units in it, and what an undisturbed runner makes of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinylora_worker.trainer.made import read_made
from tinylora_worker.trainer.process import TrainerProcess
from tinylora_worker.wire.worker_pb2 import LoadRequest, RunEvent

from tests.helpers import tiny_base_dir
from tests.learning import units
from tinylora.flower.outbox import FolderOutbox
from tinylora.protocol.documents import Update, WorkUnit
from tinylora.shards import load_shard
from tinylora.training import UnitRunner

WORKER = "w-1"


@dataclass(frozen=True)
class World:
    """One home."""

    home: Path

    @cached_property
    def data(self) -> Path:
        """A file of 16 texts."""
        file = self.home / "texts.jsonl"
        texts = units.texts("letters", 16)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in texts), encoding="utf-8")
        return file

    @cached_property
    def outbox(self) -> FolderOutbox:
        return FolderOutbox(self.home)

    def request(self, **changes: Any) -> LoadRequest:
        fields: dict[str, Any] = {
            "base": str(tiny_base_dir()),
            "data": [str(self.data)],
            "worker": WORKER,
            "base_fingerprint": units.base().facts.fingerprint,
        }
        return LoadRequest(**(fields | changes))

    def unit(self, unit_id: str, **changes: Any) -> tuple[WorkUnit, bytes, Path]:
        """A unit that has come."""
        unit, payload = units.unit(unit_id=unit_id, **changes)
        return unit, payload, self.outbox.take(unit, payload, b"header")

    def undisturbed(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        """What a runner in this process makes of it."""
        return UnitRunner(units.base(), load_shard([self.data], units.base()), worker=WORKER).run(unit, payload)


def kinds(events: list[RunEvent]) -> list[str | None]:
    """What they are, without repetitions."""
    found = [event.WhichOneof("event") for event in events]
    return [kind for index, kind in enumerate(found) if index == 0 or found[index - 1] != kind]


def steps(trainer: TrainerProcess, folder: Path) -> Iterator[int]:
    """Steps of a unit as they are finished."""
    for event in trainer.run(folder):
        if event.HasField("progress"):
            yield event.progress.step


def made(folder: Path) -> tuple[Update, bytes]:
    """What the trainer has left, without what differs from time to time."""
    update, tensors = read_made(folder)
    return plain(update), tensors.read_bytes()


def plain(update: Update) -> Update:
    return update.model_copy(update={"seconds": 0.0, "base_loads": 0})
