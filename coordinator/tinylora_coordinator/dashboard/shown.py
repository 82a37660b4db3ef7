"""From the records of the fold to the documents of the API. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tinylora.tree import NodePath, is_under
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.doing import standstill
from tinylora_coordinator.dashboard.fold import RunFold
from tinylora_coordinator.dashboard.pace import forecast
from tinylora_coordinator.dashboard.records import Worker
from tinylora_coordinator.dashboard.shares import entropy_bits

DEAD_SHARE = 0.1
"""Of an equal share: below that a leaf counts as dead."""
LATELY_S = 60.0
"""How long a worker between two units counts as training still."""


def worker_document(fold: RunFold, worker: Worker) -> doc.Worker:
    """One worker, as the table shows it, but for what depends on the time; see `worker_now`."""
    state, reason, detail = standstill(worker, is_over=bool(fold.head.finished))
    report = worker.report
    is_told = report is not None and worker.is_current
    return doc.Worker(
        worker=worker.worker,
        name=worker.name,
        state=state,
        reason=reason,
        detail=detail,
        resumes_in_s=report.resumes_in_s if report is not None and is_told else None,
        node=worker.node,
        unit=_unit_now(fold, worker),
        gpu=report.gpu if report else "",
        memory_bytes=report.memory_bytes if report else 0,
        tokens_per_s=_rounded(speed(worker), 3),
        heard_s=_rounded(worker.heard_s, 3),
        joined_s=round(worker.joined_s, 3),
        last_accepted_s=_rounded(worker.last_accepted_s, 3),
        n_accepted=worker.n_accepted,
        n_rejected=worker.n_rejected,
        n_expired=worker.n_expired,
        n_lost=worker.n_lost,
        tokens=worker.tokens,
        seconds=round(worker.seconds, 3),
        bytes_sent=worker.bytes_sent,
        bytes_received=worker.bytes_received,
        tags=worker.tags,
        data_note=report.note if report else "",
    )


def speed(worker: Worker) -> float | None:
    """Tokens per second: by its own word, or by its latest update."""
    if worker.report is not None and worker.is_current and worker.report.tokens_per_s > 0:
        return worker.report.tokens_per_s
    return worker.speed


def _unit_now(fold: RunFold, worker: Worker) -> doc.UnitNow | None:
    unit = fold.units.get(worker.unit_id)
    if unit is None or unit.is_pending:
        return None
    report = worker.report
    is_told = report is not None and report.unit_id == unit.unit_id
    return doc.UnitNow(
        unit_id=unit.unit_id,
        kind=unit.kind,
        node=unit.node,
        leased_s=round(unit.leased_s, 3),
        deadline_s=round(unit.deadline_s, 3),
        n_steps=unit.n_steps,
        step=report.step if report is not None and is_told else None,
    )


def node_document(fold: RunFold, path: NodePath) -> doc.Node:
    """One node of the tree, as the overview shows it."""
    is_leaf = fold.is_leaf(path)
    top = fold.top_of(path) if is_leaf or fold.is_trunk(path) else None
    part = fold.parts[top] if top is not None else None
    loss = part.loss if part else None
    has_change = part is not None and part.is_heldout and loss is not None and part.first_loss is not None
    return doc.Node(
        path=path,
        kind="leaf" if is_leaf else "inner",
        state=node_state(fold, path) if is_leaf or part else "router",
        holders=tuple(fold.holders_of(path)),
        mass=fold.mass.get(path),
        loss=_rounded(loss, 4),
        # `has_change` says that both are there.
        change=round(loss - part.first_loss, 4) if has_change else None,  # type: ignore[operator, union-attr]
        version=part.version if part else 0,
        n_steps=part.steps if part else 0,
        accuracy=_rounded(fold.head.accuracy.get(path), 4) if not is_leaf else None,
    )


def node_state(fold: RunFold, path: NodePath) -> doc.NodeState:
    """What goes on at a leaf, or at a node of the trunk."""
    units = [fold.units[unit_id] for unit_id in fold.units_on.get(path, ())]
    at_work = ("working", "waiting", "starting")
    if any(not unit.is_pending and _state_of(fold, unit.worker) in at_work for unit in units):
        return "working"
    if any(unit.is_pending for unit in units):
        return "pending"
    top = fold.top_of(path)
    if top is not None and fold.is_done(top):
        return "done"
    return _of_holders(_state_of(fold, worker) for worker in _reliant(fold, path))


def _reliant(fold: RunFold, path: NodePath) -> list[str]:
    """Workers by whom this node moves on: who holds it, and of a node of the trunk all below."""
    if fold.is_leaf(path):
        return fold.holders_of(path)
    return [worker for node, held in fold.holders_at.items() if is_under(node, path) for worker in held]


def _of_holders(states: Iterable[str]) -> doc.NodeState:
    known = set(states)
    if not known:
        return "unassigned"
    if known <= {"lost", "out"}:
        return "lost"
    return "paused" if known <= {"lost", "out", "paused", "leaving"} else "waiting"


def _state_of(fold: RunFold, worker: str) -> str:
    """Of a worker; to its nodes it is all the same whether it was lost or has left: they wait for somebody else."""
    known = fold.workers.get(worker)
    if known is None or (known.is_joined and not known.is_online and not known.out):
        return "lost"
    return known.shown_state[0]


class Moving(NamedTuple):
    """What of the run's head goes on changing while nothing happens."""

    pace: tuple[tuple[float, float], ...]
    """Moments of the progress; none where there is no end to forecast."""
    tokens_per_s: float
    """Of workers that train."""
    resting: tuple[tuple[float, float], ...]
    """Of workers between two units: tokens per second, and when they sent the last one."""


def moving(fold: RunFold) -> Moving:
    """What it takes to bring the run's head up to date at any moment."""
    head = fold.head
    is_on = not head.finished and not head.is_paused and head.training_s is not None
    at_work, resting = list[float](), list[tuple[float, float]]()
    for worker in fold.workers.values():
        state, tokens_per_s = worker.shown_state[0], speed(worker)
        if not tokens_per_s:
            continue
        unit = fold.units.get(worker.unit_id)
        if state == "working" and (unit is None or unit.kind == "train"):
            at_work.append(tokens_per_s)
        elif state in ("working", "waiting") and worker.last_trained_s is not None:
            resting.append((tokens_per_s, worker.last_trained_s))
    return Moving(tuple(head.pace) if is_on else (), math.fsum(at_work), tuple(resting))


def run_document(fold: RunFold) -> doc.Run:
    """The head of every page, without what depends on the time; see `run_now`."""
    head = fold.head
    workers = [worker for worker in fold.workers.values() if worker.is_joined and not worker.out]
    return doc.Run(
        run=head.run,
        phase="waiting",
        finished=head.finished,
        base_id=head.base_id,
        adapter=head.adapter,
        rank=head.rank,
        depth=head.depth,
        leaf_steps=head.leaf_steps,
        n_events=head.n_events,
        topology_version=head.topology_version,
        router_version=head.router_version,
        n_leaves=len(head.leaves),
        progress=round(head.progress, 6),
        n_workers=len(workers),
        n_online=sum(worker.is_online for worker in workers),
        n_working=sum(worker.shown_state[0] == "working" for worker in workers),
        n_accepted=head.n_accepted,
        n_rejected=head.n_rejected,
        n_expired=head.n_expired,
        tokens=head.tokens,
        bytes_sent=head.bytes_sent,
        bytes_received=head.bytes_received,
        loss=_rounded(head.loss, 4),
    )


def run_now(run: doc.Run, moves: Moving, now_s: float, /, **further: object) -> doc.Run:
    """The head of every page at this moment.

    Args:
        run: As `run_document` gives it.
        moves: Of the same state.
        now_s: Seconds of the run's clock.
        **further: Fields that others know.
    """
    ahead = forecast(moves.pace, now_s)
    resting = math.fsum(tokens_per_s for tokens_per_s, was_s in moves.resting if now_s - was_s <= LATELY_S)
    timely: dict[str, object] = {
        "clock_s": round(now_s, 3),
        "eta_s": round(ahead.eta_s, 1) if ahead else None,
        "eta_low_s": round(ahead.low_s, 1) if ahead else None,
        "eta_high_s": round(ahead.high_s, 1) if ahead else None,
        "tokens_per_s": round(moves.tokens_per_s + resting, 3),
    }
    return run.model_copy(update=timely | further)


def worker_now(worker: doc.Worker, now_s: float) -> doc.Worker:
    """A worker at this moment: that it goes on by itself comes nearer."""
    if worker.resumes_in_s is None or worker.heard_s is None:
        return worker
    left_s = round(max(0.0, worker.resumes_in_s - (now_s - worker.heard_s)), 1)
    return worker.model_copy(update={"resumes_in_s": left_s})


def routing_document(
    nodes: Mapping[str, doc.Node],
    workers: Mapping[str, doc.Worker],
    source: doc.MassSource,
    versions: tuple[doc.RouterRow, ...],
    taus: Mapping[str, float],
) -> doc.Routing:
    """Where the text goes, from what is shown of the nodes.

    Args:
        nodes: As they are shown.
        workers: As they are shown.
        source: Where the shares are from.
        versions: Of the routers.
        taus: Sharpness of gates, as far as it is known.
    """
    leaves = [node for node in nodes.values() if node.kind == "leaf" and node.mass is not None]
    gates = [node for node in nodes.values() if node.kind == "inner"]
    shares = [leaf.mass or 0.0 for leaf in leaves]
    return doc.Routing(
        source=source,
        leaves=tuple(
            doc.LeafShare(path=leaf.path, mass=share, data_notes=data_notes(leaf.holders, workers))
            for leaf, share in zip(leaves, shares, strict=True)
        ),
        gates=tuple(
            doc.GateRow(path=gate.path, right=_right(nodes, gate.path), accuracy=gate.accuracy, tau=taus.get(gate.path))
            for gate in gates
        ),
        versions=versions,
        entropy_bits=round(entropy_bits(shares), 6) if shares else None,
        max_entropy_bits=round(math.log2(len(leaves)), 6) if leaves else 0.0,
        n_dead=sum(share < DEAD_SHARE / len(leaves) for share in shares),
    )


def data_notes(holders: Iterable[str], workers: Mapping[str, doc.Worker]) -> tuple[str, ...]:
    """What the holders' owners say of their text, each thing once."""
    return tuple(dict.fromkeys(note for name in holders if name in workers and (note := workers[name].data_note)))


def _right(nodes: Mapping[str, doc.Node], path: NodePath) -> float | None:
    here, right = nodes[path].mass, nodes[path + "1"].mass if path + "1" in nodes else None
    return round(min(1.0, right / here), 6) if here and right is not None else None


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)
