"""Units go out: each lease is written down, then its unit is sent; after a crash the same units are sent again."""

from collections.abc import Callable, Collection
from typing import Any

from tinylora.federation.assignment import nearest_worker
from tinylora.federation.deadlines import deadline_s
from tinylora.federation.decisions import Adopt, Give
from tinylora.federation.events import UnitLeased
from tinylora.federation.ports import Numerics, Transport
from tinylora.federation.probing import Ask
from tinylora.federation.record import Record
from tinylora.federation.routers import Blobs, leaf_statistics
from tinylora.federation.state import Draft, Lease
from tinylora.federation.units import draft, finished, probing, training, unit_id
from tinylora.protocol.documents import UnitKind, WorkUnit
from tinylora.routing.statistics import sum_statistics
from tinylora.tree import NodePath

_NO_TRAINING = {"topology_version": 0, "router_version": 0, "node_version": 0, "n_steps": 0}

NonceSource = Callable[[str, int, str], str]
"""(run, seed, unit id) to the lease's nonce; a real coordinator gives one that cannot be guessed."""


class Leasing:
    """Hands out units."""

    def __init__(
        self, record: Record, transport: Transport, numerics: Numerics, blobs: Blobs, nonce_source: NonceSource
    ) -> None:
        self._record = record
        self._transport = transport
        self._numerics = numerics
        self._blobs = blobs
        self._nonce_source = nonce_source
        self._unsent: set[str] = set()

    # --- after a crash -----------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Every open lease is to be sent again: its worker may never have got it, or its answer was lost on the way."""
        self._unsent = set(self._record.state.leases)

    def resend(self, online: Collection[str]) -> None:
        """Send again, to those who are there, what they were sent before: the same document, the same payload."""
        state = self._record.state
        self._unsent &= state.leases.keys()
        for unit in sorted(unit for unit in self._unsent if state.leases[unit].worker in online):
            self._send(state.leases[unit].worker, *self._packed(state.drafts[unit]))
            self._unsent.discard(unit)

    # --- new leases --------------------------------------------------------------------------------------------------

    def adopt(self, command: Adopt) -> None:
        """Lease an orphaned node to the worker whose text is nearest to it."""
        state = self._record.state
        sketches = self._blobs.sketches(state, command.candidates)
        known = leaf_statistics(state, self._blobs)
        below = {leaf: sum_statistics(known[leaf]) for leaf in state.leaves_below(command.node) if known[leaf]}
        self.give(Give(nearest_worker(sketches, below), "train", command.node, is_adopted=True))

    def give(self, command: Give) -> None:
        """Lease a sketch, or the training of a node."""
        state = self._record.state
        is_training = command.kind == "train"
        fields = (
            training(state, command.worker, command.node, is_adopted=command.is_adopted)
            if is_training
            else _NO_TRAINING
        )
        self._lease(command.worker, command.kind, command.node, {"is_adopted": command.is_adopted, **fields})

    def ask(self, command: Ask) -> None:
        """Lease the scoring of a pending update."""
        state = self._record.state
        node = state.pending[command.subject].update.node
        self._lease(command.worker, "probe", node, probing(state, command.subject))

    def _lease(self, worker: str, kind: UnitKind, node: NodePath, fields: dict[str, Any]) -> None:
        """Write the lease down, then send the unit: one that was never sent is sent when the run is taken up."""
        state, now = self._record.state, self._record.clock.now()
        name = unit_id(state.n_units)
        lease = UnitLeased(
            unit_id=name,
            worker=worker,
            kind=kind,
            node=node,
            nonce=self._nonce_source(state.run, state.settings.seed, name),
            at_s=now,
            deadline_s=now + deadline_s(state, state.workers[worker], kind, fields["n_steps"]),
            **fields,
        )
        unit, payload = self._packed(draft(state, lease))
        self._record.emit(lease.model_copy(update={"bytes_sent": len(payload) + len(unit.to_json())}))
        self._send(worker, unit, payload)

    def _send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        self._transport.send(worker, unit, payload)

    def _packed(self, draft: Draft) -> tuple[WorkUnit, bytes]:
        """A unit's document and payload, put together from the blobs: at any time the same bytes."""
        blobs = [self._record.ledger.get_blob(blob) for blob in draft.blobs]
        prefixes = draft.prefixes
        if draft.candidate:
            update = self._record.ledger.get_blob(draft.candidate)
            blobs.append(self._numerics.candidate(update, self._start_of(draft.unit, blobs)))
            prefixes = (*prefixes, "candidate.")
        payload = self._numerics.select(blobs, prefixes, draft.unit.prefix_rank)
        return finished(draft, payload, self._numerics.read_manifest(payload)), payload

    def _start_of(self, unit: WorkUnit, blobs: list[bytes]) -> bytes:
        """What a scored update began with: the adapters that are sent beside it, or those drawn from the run's seed."""
        state = self._record.state
        drawn = tuple(node for node, version in unit.trained.items() if version == 0)
        begun = [self._numerics.initial(state.base, state.settings.spec, state.settings.seed, drawn)] if drawn else []
        return self._numerics.select([*begun, *blobs], tuple(f"node.{node}." for node in unit.trained))


__all__ = ["Lease", "Leasing", "NonceSource"]
