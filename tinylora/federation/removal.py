"""How a worker is taken out of a run. Pure: parts of the fold.

Quarantine, by rule, takes out what it taught the routers, and what of its work does not count yet. Revocation, by the
operator, takes out what counted, too: every part that it contributed to goes back to the last version without it, and
what others built on it since is lost; a leaf of its own goes back to no adapter, which is its parent's path.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from tinylora.federation.events import WorkerErased, WorkerQuarantined, WorkerRevoked
from tinylora.federation.state import Campaign, Node, Standing
from tinylora.tree import NodePath, are_in_line


def quarantined(state: Campaign, event: WorkerQuarantined) -> Campaign:
    """The worker gets no more units; the routers forget it."""
    return _taken_out(state, event.worker, "quarantined", event.reason)


def revoked(state: Campaign, event: WorkerRevoked) -> Campaign:
    """The run goes on as far as possible as if the worker had never been there."""
    reason = event.reason or "the operator removed it"
    return without_contributions(_taken_out(state, event.worker, "revoked", reason), event.worker)


def erased(state: Campaign, event: WorkerErased) -> Campaign:
    """Nothing that it brought is stored any more."""
    worker = replace(state.workers[event.worker], standing="erased")
    return replace(state, workers={**state.workers, event.worker: worker})


def close_probes(state: Campaign, subject: str) -> Campaign:
    """Nobody is asked any more to score this update; answers that still come are too late."""
    leases = {**state.leases, **state.late}
    return _close(state, [unit for unit, lease in leases.items() if lease.kind == "probe" and lease.subject == subject])


def _close(state: Campaign, units: Collection[str]) -> Campaign:
    """These leases are no more, open or late, and their workers are free."""
    freed = {
        name: replace(worker, unit_id="")
        for name, worker in state.workers.items()
        if worker.unit_id and worker.unit_id in units
    }
    return replace(
        state,
        workers={**state.workers, **freed},
        leases={unit: lease for unit, lease in state.leases.items() if unit not in units},
        drafts={unit: draft for unit, draft in state.drafts.items() if unit not in units},
        late={unit: lease for unit, lease in state.late.items() if unit not in units},
    )


def _taken_out(state: Campaign, name: str, standing: Standing, reason: str) -> Campaign:
    """Its leases are closed, what waits of it is dropped, and its sums are in no gates that are solved from now on."""
    before = state.workers[name]
    state = _close(state, [unit for unit, lease in {**state.leases, **state.late}.items() if lease.worker == name])
    state = _drop_pending(state, [unit for unit, item in state.pending.items() if item.update.worker == name])
    worker = replace(
        state.workers[name],
        standing=standing,
        refusal=reason,
        node=None,
        sketch="",
        data_note="",
        leaf_statistics="",
        histogram="",
        mass={},
        is_mixed=False,
    )
    router = replace(
        state.router,
        has_news=state.router.has_news or (before.node is not None and bool(before.sketch or before.histogram)),
        contributors=tuple(other for other in state.router.contributors if other != name),
        weights={other: blobs for other, blobs in state.router.weights.items() if other != name},
    )
    return replace(
        state,
        workers={**state.workers, name: worker},
        nodes={top: _without_waiting(node, name) for top, node in state.nodes.items()},
        pending={
            unit: replace(item, votes=tuple(vote for vote in item.votes if vote.worker != name))
            for unit, item in state.pending.items()
        },
        router=router,
    )


def _drop_pending(state: Campaign, units: Collection[str]) -> Campaign:
    for unit in units:
        state = close_probes(state, unit)
    return replace(state, pending={unit: item for unit, item in state.pending.items() if unit not in units})


def _without_waiting(node: Node, worker: str) -> Node:
    return replace(node, contributions=tuple(update for update in node.contributions if update.worker != worker))


# --- what counted ----------------------------------------------------------------------------------------------------


def without_contributions(state: Campaign, worker: str) -> Campaign:
    """Every part that the worker contributed to is again what it was before it did."""
    fallen = {top: _before(node, worker) for top, node in state.nodes.items() if worker in node.before}
    on_them = {
        unit
        for unit, lease in {**state.leases, **state.late}.items()
        if lease.kind == "train" and not fallen.keys().isdisjoint(state.parts_of(lease))
    }
    pending = [
        unit for unit, item in state.pending.items() if not fallen.keys().isdisjoint(state.parts_of(item.update))
    ]
    state = _drop_pending(_close(state, on_them), pending)
    trials = {
        node: trial
        for node, trial in state.trials.items()
        if worker not in trial.before.before and not any(are_in_line(node, top) for top in fallen)
    }
    return replace(state, nodes=_replaced(state.nodes, fallen), trials=trials)


def _replaced(nodes: Mapping[NodePath, Node], others: Mapping[NodePath, Node]) -> dict[NodePath, Node]:
    return {top: others.get(top, node) for top, node in nodes.items()}


def _before(node: Node, worker: str) -> Node:
    """The last version without a worker, as a new one: numbers never go back, lest an old update seem to fit."""
    last = node.before[worker]
    earlier = {other: version for other, version in node.before.items() if version.number < last.number}
    return Node(node.version + 1, last.blob, last.steps, has_new_axes=True, before=earlier)
