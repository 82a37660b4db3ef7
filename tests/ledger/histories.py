"""Made-up histories: events in any order, believable or not, over a few workers, units, nodes and blobs."""

from collections.abc import Sequence

from hypothesis import strategies as st

from tests.federation.events import STARTED
from tinylora.federation.events import (
    BlobsPruned,
    BundlePublished,
    Event,
    GatesSolved,
    LeaseExpired,
    LeavesMerged,
    NodeAveraged,
    UnitLeased,
    UpdateAccepted,
    UpdateProbed,
    UpdateRejected,
    WorkerErased,
    WorkerJoined,
    WorkerLost,
    WorkerQuarantined,
    WorkerReturned,
    WorkerRevoked,
)
from tinylora.federation.ports import Ledger
from tinylora.ledger.rows import dropped_blobs, named_blobs
from tinylora.protocol.documents import sha256

CONTENTS = {sha256(data): data for data in (b"", b"a", b"bb" * 100, b"ccc" * 1000)}

_worker = st.sampled_from(("w0", "w1", "w2"))
_unit = st.sampled_from(("u0", "u1", "u2", "u3"))
_node = st.sampled_from(("", "0", "01"))
_blob = st.sampled_from(sorted(CONTENTS))
_blobs = st.lists(_blob, max_size=2, unique=True).map(tuple)
_count = st.integers(0, 3)
_seconds = st.floats(-1e6, 1e6)
_text = st.text(max_size=5)

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(WorkerJoined, worker=_worker, name=_text, token=_text, at_s=_seconds),
    st.builds(WorkerLost, worker=_worker, at_s=_seconds),
    st.builds(WorkerReturned, worker=_worker, at_s=_seconds),
    st.builds(WorkerQuarantined, worker=_worker, code=st.just("forgery"), reason=_text, at_s=_seconds),
    st.builds(WorkerRevoked, worker=_worker, reason=_text, at_s=_seconds),
    st.builds(WorkerErased, worker=_worker, blobs=_blobs, at_s=_seconds),
    st.builds(BlobsPruned, blobs=_blobs, reason=_text),
    st.builds(
        UnitLeased,
        unit_id=_unit,
        worker=_worker,
        kind=st.sampled_from(("sketch", "train", "probe")),
        node=_node,
        nonce=st.just("n"),
        topology_version=_count,
        router_version=_count,
        node_version=_count,
        n_steps=_count,
        at_s=_seconds,
        deadline_s=_seconds,
    ),
    st.builds(LeaseExpired, unit_id=_unit, reason=_text, is_returned=st.booleans(), at_s=_seconds),
    st.builds(
        BundlePublished,
        sha256=st.just("b" * 64),
        bytes=_count,
        n_events=_count,
        log_sha256=st.just("c" * 64),
        router_version=_count,
        at_s=_seconds,
    ),
    st.builds(
        UpdateAccepted,
        unit_id=_unit,
        worker=_worker,
        kind=st.just("train"),
        node=_node,
        node_version=_count,
        router_version=_count,
        shard_version=st.just("d" * 64),
        shard_tokens=_count,
        tokens=_count,
        n_steps=_count,
        seconds=_seconds,
        base_loads=_count,
        is_pending=st.booleans(),
        blob=_blob,
        bytes_received=_count,
        at_s=_seconds,
    ),
    st.builds(
        UpdateProbed, unit_id=_unit, worker=_worker, node=_node, is_kept=st.booleans(), n_votes=_count, reason=_text
    ),
    st.builds(UpdateRejected, unit_id=_unit, worker=_worker, code=st.just("bad_norm"), reason=_text, at_s=_seconds),
    st.builds(
        NodeAveraged,
        node=_node,
        version=_count,
        contributors=st.just(("w0",)),
        blob=_blob,
        n_steps=_count,
        momentum=st.one_of(st.just(""), _blob),
    ),
    st.builds(
        LeavesMerged,
        node=_node,
        version=_count,
        leaves=st.just(("",)),
        assignment=st.just({"w0": ""}),
        blob=_blob,
        node_version=_count,
        n_steps=_count,
        reason=_text,
    ),
    st.builds(GatesSolved, version=_count, contributors=st.just(("w0", "w1")), drift=st.just(0.5), blob=_blob),
)

HISTORIES = st.lists(st.lists(EVENTS, max_size=5), max_size=12)


def write(ledger: Ledger, history: Sequence[Sequence[Event]]) -> list[Event]:
    """Append these groups as a coordinator would: blobs before what names them, dropped after what drops them."""
    written: list[Event] = [STARTED]
    ledger.append([STARTED], 0.0)
    for number, group in enumerate(history):
        for name in (name for event in group for name in named_blobs(event)):
            ledger.put_blob(CONTENTS[name])
        ledger.append(group, float(number))
        written.extend(group)
        ledger.drop_blobs(sorted(set(CONTENTS) - alive(written)))
    return written


def alive(events: Sequence[Event]) -> set[str]:
    """Blobs that these events need: named, and not declared gone since."""
    found: set[str] = set()
    for event in events:
        found = (found | set(named_blobs(event))) - set(dropped_blobs(event))
    return found
