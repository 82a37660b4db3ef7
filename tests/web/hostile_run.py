"""A recording in which every worker's name, GPU, note, limits and log are strangers' texts, as they arrive."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tinylora_coordinator.dashboard.recording import Happened, Item, Told, write_recording

from tests.dashboard.synthetic import RUN, Plan, make_run
from tests.hostile.texts import SHOWN
from tinylora.federation.events import WorkerJoined

TEXTS = list(SHOWN.values())


def write_hostile(file: Path) -> tuple[Path, int]:
    """Write it; returns the file, and how many workers there are."""
    plan = Plan(n_leaves=16, n_workers=len(TEXTS), hours=0.5, share_late=0.0)
    write_recording(file, RUN, _poisoned(make_run(plan)))
    return file, len(TEXTS)


def _poisoned(items: Iterator[Item]) -> Iterator[Item]:
    texts: dict[str, str] = {}
    for item in items:
        match item:
            case Happened(event=WorkerJoined() as event):
                text = texts.setdefault(event.worker, TEXTS[len(texts)])
                yield replace(item, event=event.model_copy(update={"name": text}))
            case Told(worker=worker, report=report):
                text = texts.get(worker, TEXTS[0])
                said = {"gpu": text, "note": text, "detail": text, "limits": {"schedule": text}, "log": (text,)}
                yield replace(item, report=report.model_copy(update=said))
            case _:
                yield item
