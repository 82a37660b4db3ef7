"""Events in one sentence each, for the feed of the page. Pure.

Not every event is worth one: leases and answers to probes come by the dozen, and change what is seen elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tinylora.federation.events import (
    BundlePublished,
    Event,
    GatesSolved,
    LeafSplit,
    LeaseExpired,
    LeavesMerged,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SplitKept,
    SubtreeDivided,
    TopologySet,
    UnitLeased,
    UpdateAccepted,
    UpdateProbed,
    UpdateRejected,
    WorkerAssigned,
    WorkerErased,
    WorkerJoined,
    WorkerLost,
    WorkerQuarantined,
    WorkerReturned,
    WorkerRevoked,
)
from tinylora.protocol.plain import plain
from tinylora.tree import NodePath
from tinylora_coordinator.dashboard.documents import Tone
from tinylora_coordinator.dashboard.records import Unit, Worker

MAX_TEXT = 300


class Sentence(NamedTuple):
    """What happened, for people."""

    text: str
    tone: Tone = "plain"
    node: NodePath | None = None
    worker: str = ""


def sentence(event: Event, workers: Mapping[str, Worker], units: Mapping[str, Unit]) -> Sentence | None:
    """What to say of an event, or nothing.

    Args:
        event: What happened.
        workers: As they were before it.
        units: Open ones before it.
    """
    said = _say(event, workers, units)
    if said is None or (said.text.isascii() and said.text.isprintable() and len(said.text) <= MAX_TEXT):
        return said
    return said._replace(text=plain(said.text, at_most=MAX_TEXT))


def _say(event: Event, workers: Mapping[str, Worker], units: Mapping[str, Unit]) -> Sentence | None:
    def who(worker: str) -> str:
        known = workers.get(worker)
        return (known.name if known else "") or worker

    match event:
        case WorkerJoined():
            return Sentence(f"{event.name or event.worker} joined", "good", worker=event.worker)
        case WorkerLost():
            return _lost(event, who(event.worker), workers.get(event.worker), units)
        case WorkerReturned():
            return Sentence(f"{who(event.worker)} is back", "good", worker=event.worker)
        case UnitLeased() if event.is_adopted and event.kind == "train":
            text = f"{who(event.worker)} trains {_name(event.node)} in place of somebody who left"
            return Sentence(text, node=event.node, worker=event.worker)
        case LeaseExpired():
            return _expired(event, units.get(event.unit_id), who)
        case UpdateAccepted():
            return _accepted(event, who(event.worker))
        case UpdateProbed() if not event.is_kept:
            text = f"{who(event.worker)}: an update of {_name(event.node)} does not count: {event.reason}"
            return Sentence(text, "bad", event.node, event.worker)
        case UpdateRejected():
            tone: Tone = "bad" if event.is_proven else "warn"
            return Sentence(f"an update of {who(event.worker)} was refused: {event.reason}", tone, worker=event.worker)
        case WorkerQuarantined():
            text = f"{who(event.worker)} gets no more units: {event.reason}"
            return Sentence(text, "bad", worker=event.worker)
        case WorkerRevoked():
            because = f": {event.reason}" if event.reason else ""
            return Sentence(f"the operator removed {who(event.worker)}{because}", "bad", worker=event.worker)
        case WorkerErased():
            return Sentence(f"everything that {who(event.worker)} sent was erased", "warn", worker=event.worker)
        case WorkerAssigned():
            text = f"{who(event.worker)} now holds {_name(event.node)}"
            return Sentence(text, node=event.node, worker=event.worker)
        case _:
            return _of_run(event)


def _of_run(event: Event) -> Sentence | None:
    match event:
        case RunStarted():
            return Sentence(f"run {event.run} begins")
        case RunPaused():
            return Sentence("paused: no more units are given out", "warn")
        case RunResumed():
            return Sentence("resumed", "good")
        case RunFinished():
            return Sentence(f"finished: {event.reason}", "good")
        case TopologySet():
            n_leaves, n_workers = len(event.leaves), len(event.assignment)
            return Sentence(f"the tree is set: {_count(n_leaves, 'leaf', 'leaves')}, {_count(n_workers, 'worker')}")
        case GatesSolved():
            by = _count(len(event.contributors), "worker")
            return Sentence(f"routers version {event.version}: {by}, moved {event.drift:.1%}")
        case LeafSplit():
            text = f"{_name(event.node)} stopped at loss {event.heldout_nll:.3f} and splits in two"
            return Sentence(text, node=event.node)
        case SplitKept():
            return Sentence(f"the split of {_name(event.node)} pays and stays", "good", event.node)
        case LeavesMerged():
            return Sentence(f"the leaves below {_name(event.node)} are one again: {event.reason}", node=event.node)
        case BundlePublished():
            return Sentence(f"a bundle was written: {event.sha256[:12]}, {event.bytes / 1e6:,.1f} MB", "good")
        case SubtreeDivided():
            return Sentence(f"the leaves below {_name(event.node)} go to workers of their own", node=event.node)
        case _:
            return None


def _lost(event: WorkerLost, name: str, worker: Worker | None, units: Mapping[str, Unit]) -> Sentence:
    unit = units.get(worker.unit_id) if worker else None
    if unit is not None and unit.kind == "train":
        text = f"{name} went offline and left {_name(unit.node)} unfinished"
        return Sentence(text, "warn", unit.node, event.worker)
    return Sentence(f"{name} went offline", "warn", worker.node if worker else None, event.worker)


def _expired(event: LeaseExpired, unit: Unit | None, who: Callable[[str], str]) -> Sentence | None:
    if unit is None or unit.kind != "train":
        return None
    if event.is_returned:
        text = f"{who(unit.worker)} gave {_name(unit.node)} back"
        return Sentence(text, "plain", unit.node, unit.worker)
    text = f"{who(unit.worker)} lost the lease of {_name(unit.node)}: {event.reason}"
    return Sentence(text, "warn", unit.node, unit.worker)


def _accepted(event: UpdateAccepted, name: str) -> Sentence | None:
    if event.kind == "sketch":
        return Sentence(f"{name} described its text ({event.shard_tokens:,} tokens)", worker=event.worker)
    if event.kind == "probe":
        return None
    loss = event.heldout_nll_after if event.heldout_nll_after is not None else (event.losses or (None,))[-1]
    said = f", loss {loss:.3f}" if loss is not None else ""
    waits = ", others score it" if event.is_pending else ""
    text = f"{name} trained {_name(event.node)}: +{_count(event.n_steps, 'step')}{said}{waits}"
    return Sentence(text, "plain" if event.is_pending else "good", event.node, event.worker)


def _name(node: NodePath) -> str:
    return node or "root"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
