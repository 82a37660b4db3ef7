"""What should happen next, from the state of the run, the time and who is online. Pure: `decide` returns commands.

The questions are asked in a fixed order, and the first that has an answer gives the commands; the loop executes them
and asks again. So each question may rely on all before it being settled:

    who came, went, returned → who gets no more units → which leases are overdue → which votes are complete → is the run
    over → can the tree be set → which nodes can move on → does the tree change its shape → are new gates due → who
    needs a leaf → who gets which unit: first probes, because updates wait for them
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tinylora.federation.deadlines import SHORTEST_DEADLINE_S
from tinylora.federation.growing import Growth, growing, is_held_back
from tinylora.federation.ports import WorkerInfo
from tinylora.federation.probing import Ask, Settle, asked, settled
from tinylora.federation.routing_share import captured
from tinylora.federation.standing import is_on_probation, why_quarantine
from tinylora.federation.state import Campaign, Worker
from tinylora.protocol.documents import UnitKind
from tinylora.tree import NodePath, are_in_line

PATIENCE_S = 3600.0
"""A run in which nothing went forward for so long, and nobody is at work, ends with what it has."""


@dataclass(frozen=True)
class Welcome:
    """Write down a worker that was never seen before."""

    info: WorkerInfo


@dataclass(frozen=True)
class Return:
    """Write down that a lost worker is back."""

    worker: str


@dataclass(frozen=True)
class Lose:
    """Write down that a worker is gone, and free its lease."""

    worker: str


@dataclass(frozen=True)
class Expire:
    """Take a lease back."""

    unit_id: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """Give a worker nothing more, and take out what it taught the routers."""

    worker: str
    code: str
    reason: str


@dataclass(frozen=True)
class SetTopology:
    """Cluster the sketches into the tree and hand out its nodes."""

    workers: tuple[str, ...]


@dataclass(frozen=True)
class Average:
    """Make a node's next version from the updates that wait for it."""

    top: NodePath


@dataclass(frozen=True)
class Solve:
    """Make the next version of the gates."""

    reason: str


@dataclass(frozen=True)
class Assign:
    """Give a worker without a node the nearest of these leaves."""

    worker: str
    leaves: tuple[NodePath, ...]


@dataclass(frozen=True)
class Give:
    """Lease a unit."""

    worker: str
    kind: UnitKind
    node: NodePath = ""
    is_adopted: bool = False


@dataclass(frozen=True)
class Adopt:
    """Lease an orphaned node to the worker among these whose text is nearest to it."""

    node: NodePath
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Finish:
    """End the run."""

    reason: str


Command: TypeAlias = (
    Welcome
    | Return
    | Lose
    | Quarantine
    | Expire
    | Settle
    | SetTopology
    | Average
    | Growth
    | Solve
    | Assign
    | Ask
    | Give
    | Adopt
    | Finish
)


def decide(
    state: Campaign,
    now: float,
    online: Sequence[WorkerInfo],
    *,
    since_s: float = 0.0,
    patience_s: float = PATIENCE_S,
    rejoin_s: float = 0.0,
) -> list[Command]:
    """The next commands; none when there is nothing to do but wait.

    Args:
        state: The run so far.
        now: The coordinator's clock.
        online: Workers that the transport can reach.
        since_s: When this process took up the run: time before it is nobody's fault.
        patience_s: After so long without progress, and with nobody at work, the run ends.
        rejoin_s: For so long after that, nobody who had a unit is taken for lost: they have yet to find this process.
    """
    if state.finished:
        return []
    return (
        _presence(state, online, is_rejoining=now < since_s + rejoin_s)
        or _standing(state)
        or _overdue(state, now)
        or list(settled(state, now))
        or _end(state, now, max(since_s, state.progress_at_s) + patience_s)
        or _topology(state, now)
        or _averages(state)
        or _growth(state)
        or _gates(state)
        or _leasing(state, now)
    )


def wakes_at(
    state: Campaign, now: float, *, since_s: float = 0.0, patience_s: float = PATIENCE_S, rejoin_s: float = 0.0
) -> float:
    """When `decide` may answer differently although nothing arrives; always later than `now`."""
    times = [lease.deadline_s for lease in state.leases.values()]
    times += [worker.rests_until_s for worker in state.workers.values() if worker.is_online and not worker.refusal]
    times += [max(since_s, state.progress_at_s) + patience_s, since_s + rejoin_s]
    if state.topology is None and state.first_sketch_at_s is not None:
        times += [state.first_sketch_at_s + state.settings.start_after_s, _sketching_until_s(state)]
    return min((time for time in times if time > now), default=math.inf)


# --- who is there ----------------------------------------------------------------------------------------------------


def _presence(state: Campaign, online: Sequence[WorkerInfo], *, is_rejoining: bool) -> list[Command]:
    infos = {info.worker: info for info in online}
    gone = [
        Lose(name)
        for name, worker in sorted(state.workers.items())
        if worker.is_online and name not in infos and not (is_rejoining and worker.unit_id)
    ]
    back = [Return(name) for name in sorted(infos) if name in state.workers and not state.workers[name].is_online]
    new = [Welcome(infos[name]) for name in sorted(infos) if name not in state.workers]
    return [*gone, *back, *new]


def _standing(state: Campaign) -> list[Command]:
    reasons = ((name, why_quarantine(worker)) for name, worker in sorted(state.workers.items()))
    found: list[Command] = [Quarantine(name, *why) for name, why in reasons if why is not None]
    return found or [Quarantine(name, "routing_capture", reason) for name, reason in captured(state)]


def _overdue(state: Campaign, now: float) -> list[Command]:
    overdue = sorted(unit for unit, lease in state.leases.items() if lease.deadline_s <= now)
    return [Expire(unit, "the deadline passed") for unit in overdue]


# --- the end ---------------------------------------------------------------------------------------------------------


def _end(state: Campaign, now: float, patient_until_s: float) -> list[Command]:
    if state.topology and all(state.is_done(top) for top in state.nodes):
        is_settled = not state.router.n_updates and not state.router.has_news
        return _growth(state) or [Finish("every leaf has had its steps") if is_settled else Solve("the end")]
    if state.workers and now >= patient_until_s and not state.leases and not state.is_paused:
        return [Finish(f"nobody could go on; {_missing(state)}")]
    return []


def _missing(state: Campaign) -> str:
    if not state.topology:
        n_sketched = sum(bool(worker.sketch) for worker in state.workers.values())
        return f"{n_sketched} of {state.settings.min_workers} workers were sketched, so the tree was never set"
    steps = [
        f"node {top or 'root'} has had {node.steps} of {state.budget(top)} steps"
        for top, node in sorted(state.nodes.items())
        if not state.is_done(top)
    ]
    return "; ".join(steps)


# --- the start -------------------------------------------------------------------------------------------------------


def _topology(state: Campaign, now: float) -> list[Command]:
    if state.topology or state.first_sketch_at_s is None:
        return []
    sketched = tuple(sorted(name for name, worker in state.workers.items() if worker.sketch and not worker.refusal))
    is_patience_over = now >= state.first_sketch_at_s + state.settings.start_after_s
    is_complete = len(sketched) >= state.settings.min_workers and not _is_sketching(state, now)
    return [SetTopology(sketched)] if sketched and (is_patience_over or is_complete) else []


def _is_sketching(state: Campaign, now: float) -> bool:
    """Whether further sketches will be there in a moment: those who came together should enter the tree together."""
    return now < _sketching_until_s(state) and any(lease.kind == "sketch" for lease in state.leases.values())


def _sketching_until_s(state: Campaign) -> float:
    """After twice the slowest sketch so far, an open one is not waited for."""
    slowest_s = max(state.observed_s.get("sketch", (0.0,)))
    return (state.first_sketch_at_s or 0.0) + max(SHORTEST_DEADLINE_S, 2 * slowest_s)


def _growth(state: Campaign) -> list[Command]:
    return list(growing(state))


# --- nodes and gates -------------------------------------------------------------------------------------------------


def _averages(state: Campaign) -> list[Command]:
    return [Average(top) for top in sorted(state.nodes) if _is_round_over(state, top)]


def _is_round_over(state: Campaign, top: NodePath) -> bool:
    """No lease on the part's version is open, no update of it pending, and each adapter was trained by somebody."""
    paths = state.adapters_of(top)
    is_settled = not state.open_leases(paths) and not state.pending_on(top)
    return is_settled and all(_is_trained(state, top, path) for path in paths)


def _is_trained(state: Campaign, top: NodePath, path: NodePath) -> bool:
    return any(path in state.trained_by(update) for update in state.waiting(top))


def _gates(state: Campaign) -> list[Command]:
    if state.topology is None:
        return []
    router = state.router
    if router.version == 0:
        return [Solve("the first sketches")]
    if router.has_news:
        return [Solve("new statistics")]
    if router.n_updates >= state.settings.router_period:
        return [Solve(f"{router.n_updates} updates")]
    return []


# --- work ------------------------------------------------------------------------------------------------------------


def _leasing(state: Campaign, now: float) -> list[Command]:
    """Nothing while the operator has the run paused."""
    if state.is_paused:
        return []
    return list(asked(state, now)) or _assignments(state, now) or _work(state, now) or _adoption(state, now)


def _assignments(state: Campaign, now: float) -> list[Command]:
    """A leaf for the first worker without one: an orphan if there is any, else any that is not done."""
    homeless = [name for name, worker in sorted(state.workers.items()) if _is_homeless(worker, now)]
    held = [top for top in sorted(state.nodes) if not state.is_trunk(top) and not state.is_done(top)]
    unfinished = tuple(leaf for top in held for leaf in state.leaves_below(top))
    if not homeless or not unfinished:
        return []
    orphans = tuple(leaf for leaf in unfinished if not _has_holder(state, leaf, now))
    return [Assign(homeless[0], orphans or unfinished)]


def _is_homeless(worker: Worker, now: float) -> bool:
    return worker.node is None and bool(worker.sketch) and worker.is_fit(now)


def _has_holder(state: Campaign, node: NodePath, now: float) -> bool:
    """Whether somebody who can be counted on trains this node, though perhaps busy elsewhere for a while."""
    return any(_holds(state, worker, node) and worker.is_fit(now) for worker in state.workers.values())


def _holds(state: Campaign, worker: Worker, node: NodePath) -> bool:
    """A leaf is held with the subtree that it is in; a node of the trunk by all who hold something below it.

    Who cannot train a whole subtree any more holds nothing of it: its leaves find others, one at a time.
    """
    return worker.node is not None and are_in_line(worker.node, node) and state.can_hold(worker, worker.node)


def _work(state: Campaign, now: float) -> list[Command]:
    """A sketch for everybody whose text is unknown, and their own node for the others."""
    free = [worker for _, worker in sorted(state.workers.items()) if worker.is_free(now)]
    sketches = [Give(worker.worker, "sketch") for worker in free if worker.needs_sketch]
    waiting = _waiting_by_worker(state)
    own = [
        Give(worker.worker, "train", worker.node, is_adopted=worker.is_mixed)
        for worker in free
        if worker.node is not None
        and not worker.needs_sketch
        and state.can_hold(worker, worker.node)
        and _has_own_work(state, worker.node, waiting.get(worker.worker, ()))
    ]
    return [*sketches, *own]


def _waiting_by_worker(state: Campaign) -> dict[str, list[tuple[NodePath, NodePath]]]:
    """By worker, of its updates that count or may: the part that waits for it, and the node that it trained."""
    found: dict[str, list[tuple[NodePath, NodePath]]] = {}
    for top, node in state.nodes.items():
        for update in node.contributions:
            found.setdefault(update.worker, []).append((top, update.node))
    for pending in state.pending.values():
        for top in state.parts_of(pending.update):
            found.setdefault(pending.update.worker, []).append((top, pending.update.node))
    return found


def _has_own_work(state: Campaign, node: NodePath, waiting: Sequence[tuple[NodePath, NodePath]]) -> bool:
    """There is something left to train, and its worker did not contribute to the present round of any of it yet."""
    parts = tuple(top for top in state.stage(node) if not is_held_back(state, top))
    return bool(parts) and not any(top in parts and are_in_line(node, trained) for top, trained in waiting)


def _adoption(state: Campaign, now: float) -> list[Command]:
    """The first orphaned node goes to somebody idle; to one on probation only where there is nobody else."""
    idle = [worker for _, worker in sorted(state.workers.items()) if worker.is_free(now) and not worker.needs_sketch]
    proven = [worker for worker in idle if not is_on_probation(worker)]
    candidates = tuple(worker.worker for worker in proven or idle)
    if not candidates:
        return []
    orphans = _orphans(state, now)
    return [Adopt(orphans[0], candidates)] if orphans else []


def _orphans(state: Campaign, now: float) -> list[NodePath]:
    """Nodes that wait for their next steps, and nobody who can be counted on holds them or is at work on them."""
    return [
        path
        for top in sorted(state.nodes)
        if state.is_due(top) and not is_held_back(state, top)
        for path in state.adapters_of(top)
        if not _is_trained(state, top, path) and not state.open_leases([path]) and not _has_holder(state, path, now)
    ]
