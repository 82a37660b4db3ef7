"""What arrives: replies are judged one at a time, and become events."""

from collections.abc import Sequence

from tinylora.errors import ProtocolError
from tinylora.federation import acceptance
from tinylora.federation.acceptance import Code, Refusal
from tinylora.federation.events import LeaseExpired, Part, UpdateAccepted, UpdateRejected
from tinylora.federation.ports import Numerics, Reply
from tinylora.federation.record import Record
from tinylora.federation.state import Lease
from tinylora.protocol.documents import Update

MAX_REASON = 500


class Intake:
    """Accepts or rejects replies. One that finds no room on the disk is kept, and tried again first."""

    def __init__(self, record: Record, numerics: Numerics) -> None:
        self._record = record
        self._numerics = numerics
        self._waiting: list[Reply] = []

    def take_in(self, replies: Sequence[Reply]) -> None:
        """Accept or reject replies, in an order that does not depend on their arrival; one payload in memory at a time.

        Raises:
            DiskFull: There is no room; what was not written down waits for the next call.
        """
        fresh = sorted(replies, key=lambda reply: (reply.worker, reply.unit_id, reply.update_json, reply.error))
        self._waiting.extend(fresh)
        while self._waiting:
            self._take(self._waiting[0])
            self._waiting.pop(0)

    def _take(self, reply: Reply) -> None:
        if reply.error:
            self._take_error(reply)
        else:
            self._take_update(reply)
        if reply.file:
            reply.file.unlink(missing_ok=True)

    def _take_error(self, reply: Reply) -> None:
        """The worker says that it could not: its lease is free again."""
        lease = self._record.state.leases.get(reply.unit_id)
        if lease is None or lease.worker != reply.worker:
            return
        if reply.is_final:
            self._reject(reply, Refusal(Code.DECLINED, reply.error))
            return
        reason = reply.error[:MAX_REASON]
        at_s = self._record.clock.now()
        self._record.emit(LeaseExpired(unit_id=lease.unit_id, reason=reason, is_returned=reply.is_returned, at_s=at_s))

    def _take_update(self, reply: Reply) -> None:
        try:
            update = self._read(reply)
            acceptance.check_size(self._record.state, reply)
            payload = reply.file.read_bytes() if reply.file else reply.payload
            lease, parts = self._judge(reply, update, payload)
        except Refusal as refusal:
            self._reject(reply, refusal)
            return
        if reply.file:
            blob = self._record.adopt(reply.file, update.payload_sha256)
        else:
            blob = self._record.put(payload, sha256=update.payload_sha256)
        n_bytes = len(payload) + len(reply.update_json)
        self._record.emit(self._accepted(lease, update, parts, blob, n_bytes))

    def _accepted(
        self, lease: Lease, update: Update, parts: tuple[Part, ...], blob: str, n_bytes: int
    ) -> UpdateAccepted:
        return UpdateAccepted(
            unit_id=lease.unit_id,
            worker=lease.worker,
            kind=lease.kind,
            node=lease.node,
            node_version=lease.node_version,
            router_version=lease.router_version,
            shard_version=update.shard_version,
            shard_tokens=update.shard_tokens,
            tokens=update.tokens,
            n_steps=lease.n_steps,
            nodes=lease.nodes,
            max_rank=update.max_rank,
            max_leaves=update.max_leaves,
            seconds=update.seconds,
            base_loads=update.base_loads,
            heldout_nll_before=update.heldout_nll_before,
            heldout_nll_after=update.heldout_nll_after,
            log_volume=update.log_volume,
            data_note=update.data_note if lease.kind == "sketch" else "",
            data_licence=update.data_licence if lease.kind == "sketch" else "",
            losses=update.losses,
            parts=parts,
            is_pending=lease.kind == "train" and self._record.state.settings.probes > 0,
            subject=lease.subject,
            probe=update.probe,
            blob=blob,
            bytes_received=n_bytes,
            at_s=self._record.clock.now(),
        )

    def _read(self, reply: Reply) -> Update:
        """The document of a reply, if it is one, and was signed by whoever the reply is from."""
        worker = self._record.state.workers.get(reply.worker)
        key = worker.public_key if worker else ""
        try:
            acceptance.check_length(reply)
            update = acceptance.read_document(reply)
        except Refusal as refusal:
            raise Refusal(refusal.code, refusal.reason, refusal.rule, is_proven=not key) from None
        acceptance.check_signature(update, key)
        return update

    def _judge(self, reply: Reply, update: Update, payload: bytes) -> tuple[Lease, tuple[Part, ...]]:
        """The lease that a reply answers and what its payload holds; raises `Refusal` at the first check it fails."""
        state = self._record.state
        acceptance.check_run(state, update)
        lease = acceptance.find_lease(state, reply, update)
        acceptance.check_answer(state, lease, update)
        acceptance.check_hash(update, payload, is_signed=bool(state.workers[lease.worker].public_key))
        acceptance.check_shard(state, update)
        acceptance.check_rank(state, update)
        acceptance.check_probe(state, lease, update)
        try:
            got = self._numerics.read_manifest(payload)
            parts = acceptance.check_manifest(state, lease, update.manifest, got)
            facts = self._numerics.measure(payload, self._start_of(lease))
        except ProtocolError as error:
            raise Refusal(Code.BAD_PAYLOAD, str(error), error.rule) from None
        acceptance.check_numbers(state, lease, facts)
        acceptance.check_amount(update, facts)
        return lease, parts

    def _start_of(self, lease: Lease) -> bytes | None:
        """Adapters that a unit began with."""
        state, ledger = self._record.state, self._record.ledger
        parts = state.parts_of(lease) if lease.kind == "train" else ()
        found = [ledger.get_blob(blob) for blob in (state.nodes[top].blob for top in parts) if blob]
        return self._numerics.select(found, ("node.",)) if len(found) > 1 else next(iter(found), None)

    def _reject(self, reply: Reply, refusal: Refusal) -> None:
        self._record.emit(
            UpdateRejected(
                unit_id=_name(reply.unit_id),
                worker=_name(reply.worker),
                code=refusal.full_code,
                reason=refusal.reason[:MAX_REASON],
                is_proven=refusal.is_proven,
                at_s=self._record.clock.now(),
            )
        )


def _name(text: str) -> str:
    """A name that an event may hold, whatever a stranger called itself."""
    kept = "".join(letter for letter in text[:128] if letter.isascii() and (letter.isalnum() or letter in "._:-"))
    return kept.lstrip("._:-") or "unnamed"
