"""How long a unit may take before it is leased to somebody else. Pure."""

import statistics

from tinylora.federation.state import Campaign, Worker
from tinylora.protocol.documents import UnitKind

MIN_OBSERVATIONS = 3
SHORTEST_DEADLINE_S = 5.0
MAX_DOUBLINGS = 6


def deadline_s(state: Campaign, worker: Worker, kind: UnitKind, n_steps: int) -> float:
    """Seconds that `worker` gets for a unit.

    Until three units of the kind were observed, the operator's `first_deadline_s`; then max(2 · median, median + k ·
    MAD) of the observed seconds per step, k being `deadline_slack`. The median is of all workers, so a slow one would
    miss every deadline: each miss in a row doubles its time.
    """
    observed = state.observed_s.get(kind, ())
    patience = 2.0 ** min(worker.misses, MAX_DOUBLINGS)
    if len(observed) < MIN_OBSERVATIONS:
        return state.settings.first_deadline_s * patience
    usual_s = usual_seconds(observed, slack=state.settings.deadline_slack)
    return max(SHORTEST_DEADLINE_S, usual_s * max(n_steps, 1)) * patience


def usual_seconds(observed: tuple[float, ...], *, slack: float) -> float:
    """max(2 · median, median + slack · MAD): what nearly every unit stays below."""
    median = statistics.median(observed)
    spread = statistics.median(abs(seconds - median) for seconds in observed)
    return max(2 * median, median + slack * spread)
