"""Whether an update is believed. Pure decisions on facts, in a fixed order, one code for each reason.

    length → document → signature → lease, worker, nonce → run, kind, node, versions → hash → names, dtypes, shapes →
    finite → statistics → distance, or the votes of a probe

Each check raises `Refusal`; the run's state is untouched then, except that the worker's own lease is freed. Until its
signature was found right nothing proves that an update is from the worker whose name is on it, unless the transport
vouches for that; what is not proven frees no lease, and is held against nobody.

An update whose lease expired is still accepted while its node has not moved on and nothing took its place, that is: no
lease on the same leaves, and none to the same worker, was given since. So nothing is ever counted twice.
"""

import math
from collections.abc import Iterable
from enum import StrEnum

from tinylora.adapters.prefixes import highest_rank, prefix_spec
from tinylora.adapters.shapes import adapter_manifest
from tinylora.errors import ProtocolError
from tinylora.federation.events import Part
from tinylora.federation.ports import PayloadFacts, Reply
from tinylora.federation.state import Campaign, Lease
from tinylora.federation.units import was_issued
from tinylora.protocol.documents import MAX_DOCUMENT_BYTES, Manifest, ProbeResult, Update, only_factors, sha256
from tinylora.protocol.envelope import verify
from tinylora.routing.gates import N_BINS
from tinylora.routing.statistics import PREFIXES

NORM_FACTOR = 10.0
"""AdamW moves a number by about the learning rate in a step, so a tensor's rms by at most rate · steps. Ten times
that is beyond any honest update, and below any that does harm by sheer size."""

MIB = 1 << 20


class Code(StrEnum):
    """Why an update was refused."""

    TOO_LARGE = "too_large"
    BAD_DOCUMENT = "bad_document"
    UNKNOWN_UNIT = "unknown_unit"
    DUPLICATE = "duplicate"
    LEASE_CLOSED = "lease_closed"
    FOREIGN_UNIT = "foreign_unit"
    WRONG_NONCE = "wrong_nonce"
    WRONG_UNIT = "wrong_unit"
    BAD_SIGNATURE = "bad_signature"
    BAD_HASH = "bad_hash"
    BAD_PAYLOAD = "bad_payload"
    BAD_MANIFEST = "bad_manifest"
    NOT_FINITE = "not_finite"
    BAD_STATISTICS = "bad_statistics"
    TOO_FAR = "too_far"
    SHARD_TOO_SMALL = "shard_too_small"
    RANK_TOO_LOW = "rank_too_low"
    BAD_PROBE = "bad_probe"
    WORSE_ON_HELDOUT = "worse_on_heldout"
    DECLINED = "declined"


class Refusal(Exception):
    """An update is not believed; code and rule say to programs why, the text to people."""

    def __init__(self, code: Code, reason: str, rule: str = "", *, is_proven: bool = True) -> None:
        super().__init__(reason)
        self.code = code
        self.rule = rule
        self.reason = reason
        self.is_proven = is_proven

    @property
    def full_code(self) -> str:
        """The code, and where it stands for several rules the one that was broken: `bad_payload.overlap`."""
        return f"{self.code}.{self.rule}" if self.rule else str(self.code)


def check_length(reply: Reply) -> None:
    """Refuse a document longer than any is, before it is read."""
    if len(reply.update_json) > MAX_DOCUMENT_BYTES:
        raise Refusal(Code.TOO_LARGE, f"document: expected at most {MAX_DOCUMENT_BYTES} characters", "document")


def check_size(state: Campaign, reply: Reply) -> None:
    """Refuse a payload longer than the run allows, before it is read."""
    limit = int(state.settings.max_update_mib * MIB)
    size = reply.file.stat().st_size if reply.file else len(reply.payload)
    if size > limit:
        raise Refusal(Code.TOO_LARGE, f"payload: expected at most {limit} bytes, got {size}", "payload")


def read_document(reply: Reply) -> Update:
    """The document of a reply, read strictly: it is written in the one way in which it can be written."""
    try:
        update = Update.from_json(reply.update_json)
    except ProtocolError as error:
        raise Refusal(Code.BAD_DOCUMENT, str(error), error.rule) from None
    if update.to_json() != reply.update_json:
        raise Refusal(Code.BAD_DOCUMENT, "document: expected canonical JSON, got another spelling", "not_canonical")
    return update


def find_lease(state: Campaign, reply: Reply, update: Update) -> Lease:
    """The lease that an update answers, open or late, if it is the worker's own."""
    lease = state.leases.get(update.unit_id) or state.late.get(update.unit_id)
    if lease is None:
        raise _without_lease(state, reply.worker, update.unit_id)
    if {lease.worker} != {reply.worker, update.worker}:
        reason = (
            f"unit {lease.unit_id} is leased to {lease.worker}, the update is from {update.worker} by {reply.worker}"
        )
        raise Refusal(Code.FOREIGN_UNIT, reason)
    if update.nonce != lease.nonce:
        raise Refusal(Code.WRONG_NONCE, f"unit {lease.unit_id}: the nonce is not the lease's")
    return lease


def _without_lease(state: Campaign, worker: str, unit_id: str) -> Refusal:
    if worker in state.workers and state.workers[worker].last_accepted == unit_id:
        return Refusal(Code.DUPLICATE, f"unit {unit_id}: its update was accepted before")
    if was_issued(state, unit_id):
        reason = f"unit {unit_id}: settled before, or its node moved on, or it was leased again"
        return Refusal(Code.LEASE_CLOSED, reason)
    return Refusal(Code.UNKNOWN_UNIT, f"unit {unit_id} was never leased")


def check_answer(state: Campaign, lease: Lease, update: Update) -> None:
    """Refuse an update that does not answer what was asked: another kind, node, version or number of steps."""
    asked = {
        "kind": lease.kind,
        "node": lease.node,
        "topology_version": lease.topology_version,
        "router_version": lease.router_version,
        "node_version": lease.node_version,
        "n_steps": lease.n_steps,
    }
    for name, expected in asked.items():
        got = getattr(update, name)
        if got != expected:
            reason = f"unit {lease.unit_id}: {name}: expected {expected!r}, got {got!r}"
            raise Refusal(Code.WRONG_UNIT, reason, name)
    most = lease.n_steps * state.settings.unit_tokens
    if update.tokens > most:
        reason = f"unit {lease.unit_id}: tokens: {lease.n_steps} steps have at most {most}, got {update.tokens}"
        raise Refusal(Code.WRONG_UNIT, reason, "tokens")


def check_signature(update: Update, public_key: str) -> None:
    """Refuse a wrong signature; without a public key the transport vouches for the worker."""
    if not public_key:
        return
    try:
        verify(update, public_key.encode())
    except ProtocolError as error:
        rule = "wrong" if update.signature else "missing"
        raise Refusal(Code.BAD_SIGNATURE, str(error), rule, is_proven=False) from None


def check_run(state: Campaign, update: Update) -> None:
    """Refuse what was made for another run; anybody may have brought it here."""
    if update.run != state.run:
        reason = f"unit {update.unit_id}: run: expected {state.run!r}, got {update.run!r}"
        raise Refusal(Code.WRONG_UNIT, reason, "run", is_proven=False)


def check_hash(update: Update, payload: bytes, *, is_signed: bool) -> None:
    """Refuse a payload other than the one the document speaks of; a signature says nothing of who changed it."""
    if sha256(payload) != update.payload_sha256:
        reason = f"payload: expected sha256 {update.payload_sha256}, got {sha256(payload)}"
        raise Refusal(Code.BAD_HASH, reason, is_proven=not is_signed)


def check_shard(state: Campaign, update: Update) -> None:
    """Refuse the sketch of a shard so small that its sums would tell too much of a single text."""
    n_windows = update.shard_tokens // state.settings.window_tokens
    if update.kind == "sketch" and n_windows < state.settings.min_sequences:
        reason = (
            f"the shard has {n_windows} windows of {state.settings.window_tokens} tokens, this run takes shards from "
            f"{state.settings.min_sequences} on; add text and join again"
        )
        raise Refusal(Code.SHARD_TOO_SMALL, reason)


def check_rank(state: Campaign, update: Update) -> None:
    """Refuse the sketch of a worker that cannot train the run's adapters; of a nested one a prefix is enough."""
    spec, needed = state.settings.spec, highest_rank(state.settings.spec, state.base)
    if update.kind == "sketch" and spec.kind != "nested" and 0 < update.max_rank < needed:
        reason = (
            f"the worker trains adapters up to rank {update.max_rank}, this run's have rank {needed} and no usable "
            "prefix; allow it a higher rank, or join a run of nested adapters"
        )
        raise Refusal(Code.RANK_TOO_LOW, reason)


# --- names, dtypes, shapes -------------------------------------------------------------------------------------------


def expected_parts(state: Campaign, lease: Lease) -> dict[Part, Manifest]:
    """Every tensor that the update of a unit may hold, by what it is for.

    A sketch holds statistics, named by the root's path. A train update holds the adapters that it was to train, of the
    factors and with the rows that it was to train. It may also hold histograms of its gates, any of them; if it trains
    a subtree, statistics of all its leaves; where the run averages weights, weights of its gates, all of them. A probe
    may hold histograms, and nothing else.
    """
    dim = state.base.feature_dim
    if lease.kind == "sketch":
        return {"statistics": _statistics_manifest(("",), dim)}
    if lease.kind == "probe":
        return {"histogram": _histogram_manifest(state.topology.inner if state.topology else ())}
    leaves, gates = state.leaves_below(lease.node), state.gates_of(lease.node)
    trained = state.trained_by(lease)
    spec = prefix_spec(state.settings.spec, state.base, lease.prefix_rank)
    parts: dict[Part, Manifest] = {"adapters": {}, "histogram": _histogram_manifest(gates)}
    for node in trained:
        parts["adapters"] |= only_factors(adapter_manifest(state.base, spec, path=node), lease.factors)
    if len(leaves) > 1 and set(leaves) <= set(trained):
        parts["statistics"] = _statistics_manifest(leaves, dim)
    if state.settings.router_sync != "statistics":
        parts["weights_router"] = _weights_manifest(gates, dim)
    return parts


def _statistics_manifest(paths: Iterable[str], dim: int) -> Manifest:
    shapes = {"count": (len(PREFIXES),), "total": (len(PREFIXES), dim), "scatter": (dim * (dim + 1) // 2,)}
    return {f"statistics.{path}.{name}": ("F64", shape) for path in paths for name, shape in shapes.items()}


def _histogram_manifest(gates: Iterable[str]) -> Manifest:
    return {f"histogram.{gate}": ("F64", (2, N_BINS)) for gate in gates}


def _weights_manifest(gates: Iterable[str], dim: int) -> Manifest:
    shapes = {"w": (dim,), "b": (1,)}
    return {f"weights_router.{gate}.{name}": ("F64", shape) for gate in gates for name, shape in shapes.items()}


def check_manifest(state: Campaign, lease: Lease, claimed: Manifest, got: Manifest) -> tuple[Part, ...]:
    """The parts that a payload holds; refuses missing, foreign and misshapen tensors, and a document that lies."""
    where = f"unit {lease.unit_id}"
    if claimed != got:
        raise Refusal(Code.BAD_MANIFEST, f"{where}: the document's manifest is not that of the payload", "claim")
    parts = expected_parts(state, lease)
    _check_known(where, got, {name: entry for part in parts.values() for name, entry in part.items()})
    needed = {"sketch": "statistics", "train": "adapters", "probe": ""}[lease.kind]
    held: list[Part] = [part for part, tensors in parts.items() if tensors.keys() & got.keys() or part == needed]
    for part in held:
        missing = sorted(parts[part].keys() - got.keys())
        if missing and part != "histogram":
            raise Refusal(Code.BAD_MANIFEST, f"{where}: tensor {missing[0]} is missing", "missing")
    return tuple(held)


def _check_known(where: str, got: Manifest, known: Manifest) -> None:
    for name, (dtype, shape) in sorted(got.items()):
        if name not in known:
            raise Refusal(Code.BAD_MANIFEST, f"{where}: unexpected tensor {name}", "unexpected")
        expected_dtype, expected_shape = known[name]
        if (dtype, tuple(shape)) != (expected_dtype, tuple(expected_shape)):
            wanted = f"{expected_dtype} {tuple(expected_shape)}"
            reason = f"{where}, tensor {name}: expected {wanted}, got {dtype} {tuple(shape)}"
            raise Refusal(Code.BAD_MANIFEST, reason, "shape" if dtype == expected_dtype else "dtype")


# --- numbers ---------------------------------------------------------------------------------------------------------


def norm_bound(state: Campaign, lease: Lease) -> float:
    """How far, in rms over a tensor, an honest unit can have moved an adapter."""
    return NORM_FACTOR * state.settings.learning_rate * lease.n_steps


def check_numbers(state: Campaign, lease: Lease, facts: PayloadFacts) -> None:
    """Refuse NaN and infinity, impossible statistics, and adapters that went further than training could take them."""
    where = f"unit {lease.unit_id}"
    if facts.not_finite:
        part = facts.not_finite.partition(".")[0]
        raise Refusal(Code.NOT_FINITE, f"{where}, tensor {facts.not_finite}: holds NaN or infinity", part)
    if facts.statistics_fault:
        raise Refusal(Code.BAD_STATISTICS, f"{where}: {facts.statistics_fault}", facts.statistics_rule)
    bound = norm_bound(state, lease)
    if lease.kind == "train" and not (math.isfinite(facts.delta_rms) and facts.delta_rms <= bound):
        reason = (
            f"{where}: an adapter moved by {facts.delta_rms:.3g} (rms), {lease.n_steps} steps at a rate of "
            f"{state.settings.learning_rate:g} can move it by {bound:.3g} at the very most"
        )
        raise Refusal(Code.TOO_FAR, reason, facts.farthest)


def check_amount(update: Update, facts: PayloadFacts) -> None:
    """Refuse sums over more rows than the shard has tokens: each row is the mean of at least one of its own."""
    if facts.n_rows > update.shard_tokens:
        reason = f"unit {update.unit_id}: sums over {facts.n_rows:g} rows of a shard of {update.shard_tokens} tokens"
        raise Refusal(Code.BAD_STATISTICS, reason, "more_rows_than_tokens")


# --- probes ----------------------------------------------------------------------------------------------------------

MOST_NATS = 100.0
"""Per token: beyond what any model says of any text, a uniform guess among a million tokens costs 14."""
MASS_TOLERANCE = 1e-6


def check_probe(state: Campaign, lease: Lease, update: Update) -> None:
    """Refuse votes that cannot be sums over the held-out windows that were asked for; and votes that nobody asked for.

    Probes that scored nothing, more tokens than the windows hold, a loss below zero or beyond all bounds, shares of
    text that go to no leaf of the tree, or that add up to more than all of it.
    """
    result = update.probe
    if (result is not None) != (lease.kind == "probe"):
        wanted = "the sums that a probe is to bring" if lease.kind == "probe" else "no probe"
        raise Refusal(Code.BAD_PROBE, f"unit {lease.unit_id}: expected {wanted}")
    fault = _probe_fault(state, result) if result is not None else ""
    if fault:
        raise Refusal(Code.BAD_PROBE, f"unit {lease.unit_id}: {fault}")


def _probe_fault(state: Campaign, result: ProbeResult) -> str:
    most = state.settings.probe_windows * state.settings.window_tokens
    if not 0 < result.tokens <= most:
        return f"tokens: expected 1 to {most}, got {result.tokens}"
    for name in ("nll_parent", "nll_current", "nll_candidate"):
        nats = getattr(result, name) / result.tokens
        if not 0 <= nats <= MOST_NATS:
            return f"{name}: expected 0 to {MOST_NATS:g} nats per token, got {nats:g}"
    strange = sorted(set(result.mass) - set(state.leaves))
    if strange:
        return f"mass: leaf {strange[0]!r} is not in the tree"
    whole = math.fsum(result.mass.values())
    return f"mass: expected at most 1 in all, got {whole:g}" if whole > 1 + MASS_TOLERANCE else ""
