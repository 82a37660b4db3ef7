"""Who scores an update before it counts, and what the votes say. Pure.

A worker's update is *pending* until others have scored it on their own held-out text, beside what it would replace.
Those are asked first whose own node is nearest to the update's: their text tells most about it. Workers on probation
are asked only where there are too few others. Nobody judges its own work, and those who came with one join token are
one voice.

Nobody waits for ever: a worker is asked once, its lease has a deadline, and those who vanish are replaced by others or,
where there are none, done without.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tinylora.config import RunSettings
from tinylora.federation.standing import is_on_probation, voice
from tinylora.federation.state import Campaign, Pending, Vote, Worker
from tinylora.tree import NodePath

CREEP_FACTOR = 10.0
"""Many small steps for the worse, each within the tolerance, end at so many tolerances above the path over the node."""
MIN_CHANGES = 8
"""Verdicts to have seen before the tolerance follows them."""
N_SPREADS = 6.0
"""MADs above the median that an update may lie."""
SMALLEST_SHARE = 0.25
"""Of the tolerance that was set; training is noisy."""


@dataclass(frozen=True)
class Settle:
    """Count the votes on a pending update."""

    unit_id: str


@dataclass(frozen=True)
class Ask:
    """Have a worker score a pending update."""

    worker: str
    subject: str


@dataclass(frozen=True)
class Verdict:
    """What the votes say."""

    is_kept: bool
    n_votes: int
    change: float | None = None
    """Median of candidate less current, nats per token."""
    reason: str = ""


def settled(state: Campaign, now: float) -> list[Settle]:
    """The updates on which nobody else is to be heard."""
    return [Settle(unit) for unit, item in sorted(state.pending.items()) if _is_settled(state, item, now)]


def asked(state: Campaign, now: float) -> list[Ask]:
    """Whom to ask now: free workers, each for one update, the oldest update first."""
    found: list[Ask] = []
    busy: set[str] = set()
    for unit, item in sorted(state.pending.items()):
        for worker in _next_voters(state, item, now, busy):
            busy.add(worker.worker)
            found.append(Ask(worker.worker, unit))
    return found


def _is_settled(state: Campaign, item: Pending, now: float) -> bool:
    is_enough = len(item.votes) >= state.settings.probes
    is_open = bool(state.probes_of(item.update.unit_id))
    return is_enough or (not is_open and not _electorate(state, item, now))


def _next_voters(state: Campaign, item: Pending, now: float, busy: set[str]) -> list[Worker]:
    n_wanted = state.settings.probes - len(item.votes) - len(state.probes_of(item.update.unit_id))
    chosen: list[Worker] = []
    for worker in _electorate(state, item, now) if n_wanted > 0 else ():
        is_new = voice(worker) not in {voice(other) for other in chosen}
        if len(chosen) < n_wanted and is_new and worker.is_free(now) and worker.worker not in busy:
            chosen.append(worker)
    return chosen


def _electorate(state: Campaign, item: Pending, now: float) -> list[Worker]:
    """Who may still be asked, at once or when it is free, best first; those on probation only where others are few."""
    heard = {voice(state.workers[name]) for name in _speaking(state, item)} | {voice(state.workers[item.update.worker])}
    able = [
        worker
        for name, worker in sorted(state.workers.items())
        if name not in item.asked and voice(worker) not in heard and _can_vote(worker, now)
    ]
    proven = [worker for worker in able if not is_on_probation(worker)]
    n_heard = len(item.votes) + len(state.probes_of(item.update.unit_id))
    is_enough = n_heard + len({voice(worker) for worker in proven}) >= state.settings.probes
    return sorted(proven if is_enough else able, key=lambda worker: _rank(worker, item.update.node))


def _speaking(state: Campaign, item: Pending) -> set[str]:
    """Those who voted, or are about to."""
    asked = {lease.worker for lease in state.probes_of(item.update.unit_id)}
    return {vote.worker for vote in item.votes} | asked


def _can_vote(worker: Worker, now: float) -> bool:
    return worker.is_fit(now) and worker.can_probe and bool(worker.sketch) and not worker.needs_sketch


def _rank(worker: Worker, node: NodePath) -> tuple[bool, int, str]:
    """Past probation first; then by how far its own node and the update's go together; then by name."""
    own = worker.node if worker.node is not None else ""
    n_common = next((i for i, (a, b) in enumerate(zip(own, node, strict=False)) if a != b), min(len(own), len(node)))
    return is_on_probation(worker), -n_common, worker.worker


def usual_tolerance(settings: RunSettings, changes: Sequence[float]) -> float:
    """How much worse an update may be found: what nearly all lately stayed below, but never more than was set.

    How far honest training goes on others' text depends on the rate and on the length of units, which no fixed number
    knows. Median and MAD of what was found of all updates, refused ones too, cannot be moved far by fewer than half of
    the workers. Never less than `SMALLEST_SHARE` of what was set, and all of it until there is enough to go by.
    """
    most = settings.probe_tolerance
    if len(changes) < MIN_CHANGES:
        return most
    median = statistics.median(changes)
    spread = statistics.median(abs(change - median) for change in changes)
    return min(most, max(SMALLEST_SHARE * most, median + N_SPREADS * spread))


def verdict(votes: Sequence[Vote], settings: RunSettings, changes: Sequence[float] = ()) -> Verdict:
    """Whether an update is kept: unless the median voter finds it worse than what it replaces by the tolerance.

    `changes` is what was found of the updates before it. Slow creep is caught by a second bound: an update that makes
    things worse, however little, is not kept where its node is worse than the path above it by `CREEP_FACTOR`
    tolerances. Without votes it is believed.
    """
    if not votes:
        return Verdict(True, 0, None, "nobody could be asked")
    results = [vote.result for vote in votes]
    change = statistics.median((r.nll_candidate - r.nll_current) / r.tokens for r in results)
    creep = statistics.median((r.nll_candidate - r.nll_parent) / r.tokens for r in results)
    tolerance, most = usual_tolerance(settings, changes), CREEP_FACTOR * settings.probe_tolerance
    where = f"on the held-out text of {len(votes)} others"
    if change > tolerance:
        reason = f"{where} it costs {change:.4f} nats per token more than the node as it stands; {tolerance:g} may be"
        return Verdict(False, len(votes), change, reason)
    if change > 0 and creep > most:
        reason = f"{where} the node costs {creep:.4f} nats per token more than the path above it; {most:g} may be"
        return Verdict(False, len(votes), change, reason)
    return Verdict(True, len(votes), change)
