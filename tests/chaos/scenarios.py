"""What is killed: runs with scripted workers, a new run's folder, tokens and orders, an old ledger, a worker's home.

The workers of the runs are functions of the unit alone and their clock is a logical one, so two runs can differ only in
what the coordinator lost or did twice.
"""

import math
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tinylora_coordinator.backup.restoring import restore_backup
from tinylora_coordinator.backup.taking import take_backup
from tinylora_coordinator.folder import RunFolder, read_run, write_run
from tinylora_coordinator.keys import KeyFolder, OwnCertificate, make_keys, pin_of, read_public, write_public
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.public_address import PublicAddress
from tinylora_coordinator.shelf import Shelf
from tinylora_worker.agent.store import Store
from tinylora_worker.limits import load, set_from_text
from tinylora_worker.traffic import TrafficMeter
from tinylora_worker.trainer.checkpoint import Checkpoint
from tinylora_worker.trainer.made import read_made, write_made
from tinylora_worker.trainer.measured import Conditions, recall, remember
from tinylora_worker.wire.endpoint import Address, write_note
from tinylora_worker.wire.worker_pb2 import Fit

from tests.chaos.matrix import Facts, Scenario
from tests.federation.facts import DIM, SETTINGS
from tests.federation.facts import FACTS as OTHER_FACTS
from tests.federation.world import crowd
from tinylora.bundle import write_bundle
from tinylora.config import RunSettings
from tinylora.federation.campaign import Campaign, fold
from tinylora.federation.events import BlobsPruned, BundlePublished, Event, TopologySet, UpdateAccepted, WorkerErased
from tinylora.federation.loop import run_campaign
from tinylora.federation.ports import Order, Reply
from tinylora.flower.identity import load_or_create
from tinylora.flower.membership import Membership, load_membership, save_membership
from tinylora.flower.node_memory import FolderNodeMemory
from tinylora.flower.objects import flush
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.receipts import ReceiptBook, read_receipts
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import Receipt, Update, WorkUnit, sha256
from tinylora.release import described, make_bundle, record
from tinylora.routing.features import feature_hash
from tinylora.simulate import SimulatedTransport, SimulatedWorker, VirtualClock

BUNDLE = "bundle.safetensors"
FORMAT_1 = Path(__file__).parents[1] / "ledger" / "format_1"
FACTS = OTHER_FACTS.model_copy(update={"feature_hash": feature_hash(None, DIM, DIM)})
"""A base whose embeddings are its routing feature, so that a bundle of it is complete."""
NOW = datetime(2026, 11, 21, tzinfo=UTC)


# --- a run -----------------------------------------------------------------------------------------------------------


class SpoolingTransport(SimulatedTransport):
    """Payloads come as files, as they do from the network; what is sent again comes when it would have come anyway."""

    spool: Path
    begun_s: Mapping[str, float]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        """Let the worker do the unit, from the time on at which it was leased."""
        super().send(worker, unit, payload)
        due_s, reply = self._due[-1]
        self._due[-1] = (due_s - self._clock.now() + self.begun_s.get(unit.unit_id, self._clock.now()), reply)

    def poll(self) -> Sequence[Reply]:
        """Replies that are due, their payloads in files."""
        return [self._spooled(reply) for reply in super().poll()]

    def _spooled(self, reply: Reply) -> Reply:
        if not reply.payload:
            return reply
        file = self.spool / f"{reply.worker}-{reply.unit_id}"
        with file.open("wb") as out:
            out.write(reply.payload)
            flush(out)
        return replace(reply, payload=b"", file=file)


@dataclass
class Operator:
    """Gives every order once, in whatever process: the file knows those that were given."""

    store: OperatorStore
    victim: str
    moved: str

    def hear(self, event: Event) -> None:
        """Once the tree is set: pause, resume, release and move a worker, remove one, and erase what it brought."""
        if isinstance(event, TopologySet):
            given = {job.order.kind for job in self.store.jobs()}
            for kind in ("pause", "resume", "release", "reassign", "revoke", "erase"):
                if kind not in given:
                    self._order(kind, event.leaves[-1])

    def _order(self, kind: str, leaf: str) -> Order:
        if kind == "release":
            return self.store.steer("release", self.moved, now_s=0.0)
        if kind == "reassign":
            return self.store.steer("reassign", self.moved, node=leaf, now_s=0.0)
        if kind == "revoke":
            return self.store.revoke(self.victim, reason="asked to", now_s=0.0)
        if kind == "erase":
            return self.store.erase(self.victim, reason="asked to", now_s=0.0)
        return self.store.order("pause" if kind == "pause" else "resume", now_s=0.0)


def run_to_the_end(folder: Path, settings: RunSettings, workers: Sequence[SimulatedWorker]) -> Facts:
    """Begin the run in `folder` or take it up, and drive it to its end; returns what must not depend on kills."""
    with SqliteLedger(folder) as ledger, OperatorStore(folder) as store:
        _enrol(store, workers)
        campaign = _drive(ledger, store, settings, workers)
        bundle = write_bundle(make_bundle(campaign, ledger), folder / BUNDLE)
        n_bytes = (folder / BUNDLE).stat().st_size
        campaign = record(campaign, ledger, described(campaign, ledger, sha256=bundle, n_bytes=n_bytes))
        events = ledger.events()
        assert fold(events) == campaign, "the state is not the fold of the log"
        assert not ledger.verify(), str(ledger.verify()[0])
        return {
            "bundle": bundle,
            "named": " ".join(event.sha256 for event in events if isinstance(event, BundlePublished)),
            "finished": campaign.finished,
            "steps": " ".join(f"{top or 'root'}:{node.steps}" for top, node in sorted(campaign.nodes.items())),
            "accepted": _once_each(events),
            "erased": " ".join(event.worker for event in events if isinstance(event, WorkerErased)),
            "pruned": str(any(isinstance(event, BlobsPruned) for event in events)),
            "orders": " ".join(job.order.kind for job in store.jobs() if job.outcome),
        }


def _enrol(store: OperatorStore, workers: Sequence[SimulatedWorker]) -> None:
    missing = [worker.name for worker in workers if store.find(worker.name) is None]
    if missing:
        token = store.create_token("0" * 64, now_s=0.0, max_workers=len(missing))
        for name in missing:
            store.enrol(name, name, name=name, token_id=token.token_id, secret=token.secret, now_s=0.0)


def _drive(
    ledger: SqliteLedger, store: OperatorStore, settings: RunSettings, workers: Sequence[SimulatedWorker]
) -> Campaign:
    past = fold(ledger.events())
    clock = VirtualClock(past.latest_at_s if past else 0.0)
    transport = SpoolingTransport(workers, [worker.runner for worker in workers if worker.runner], clock)
    transport.spool = ledger.spool
    transport.begun_s = {unit: lease.at_s for unit, lease in past.leases.items()} if past else {}
    return run_campaign(
        ledger,
        transport,
        clock,
        run=settings.name,
        settings=settings,
        base=FACTS,
        numerics=TorchNumerics(),
        desk=store,
        on_event=Operator(store, workers[-1].name, workers[0].name).hear,
        poll_s=math.inf,
    )


def _once_each(events: Sequence[Event]) -> str:
    accepted = [event.unit_id for event in events if isinstance(event, UpdateAccepted)]
    assert len(accepted) == len(set(accepted)), "a unit was accepted twice"
    return str(len(accepted))


def _run(name: str, n_workers: int, **changes: object) -> Scenario:
    settings = RunSettings.model_validate(
        SETTINGS.model_dump() | {"min_workers": n_workers, "router_period": 2} | changes
    )
    workers = crowd(n_workers, has_histograms=True)
    return Scenario(name, lambda folder: run_to_the_end(folder, settings, workers), _with_left_overs)


def _with_left_overs(folder: Path) -> None:
    """What an earlier crash may have left: half a body, a blob that no event names."""
    with SqliteLedger(folder):
        pass
    (folder / "spool" / "half").write_bytes(b"half")
    orphan = folder / "blobs" / "00" / ("0" * 64)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"nobody's")


# --- what else is durable --------------------------------------------------------------------------------------------


def new_folder(folder: Path) -> Facts:
    """`init`, until it is complete."""
    place = RunFolder(folder / "run")
    if not place.settings_file.exists():
        write_run(place, SETTINGS, FACTS, b"projection", now=NOW)
    assert read_run(place).settings == SETTINGS
    found = (file for file in place.root.rglob("*") if file.is_file())
    return {str(file.relative_to(place.root)): oct(stat.S_IMODE(file.stat().st_mode)) for file in sorted(found)}


def new_folder_with_own_certificate(folder: Path) -> Facts:
    """`init --certificate --public-url`, until it is complete."""
    place, theirs = RunFolder(folder / "run"), KeyFolder(folder / "theirs")
    if not place.settings_file.exists():
        write_run(
            place, SETTINGS, FACTS, None, now=NOW, own=OwnCertificate(theirs.server, theirs.server_key, ca=theirs.ca)
        )
    if read_public(place.keys) is None:
        write_public(place.keys, PublicAddress("https://run.example.org"))
    assert pin_of(place.keys) == pin_of(theirs)
    return {str(file.relative_to(place.root)): "" for file in sorted(place.root.rglob("*")) if file.is_file()}


def _make_their_keys(folder: Path) -> None:
    make_keys(KeyFolder(folder / "theirs"), run="theirs", hosts=(), now=NOW)


def backup_and_back(folder: Path) -> Facts:
    """A run is backed up and restored, each unless it was; what a killed backup left goes with the next one."""
    place, out, back = RunFolder(folder / "run"), folder / "run.tar", folder / "back"
    if not out.exists() or any(folder.glob(".*.making-*")):
        take_backup(place.root, out, now_s=1.0)
    if not (back / "run.toml").exists():
        restore_backup(out, back, now_s=2.0)
    left = (*folder.glob(".*.making-*"), *place.root.glob(".backup"), *back.glob(".restoring"))
    assert not left, f"{left[0]} was left"
    return {str(file.relative_to(back)): "" for file in sorted(back.rglob("*")) if file.is_file()}


def _make_run(folder: Path) -> None:
    new_folder(folder)
    run_to_the_end(folder / "run", SETTINGS, crowd(1))


def tokens_and_orders(folder: Path) -> Facts:
    """A token, a worker, an order: each made unless it is there."""
    with OperatorStore(folder) as store:
        _enrol(store, crowd(1))
        if not store.jobs():
            store.order("pause", now_s=1.0)
        for order in store.orders():
            store.done(order, "paused")
        return {
            "workers": " ".join(worker.worker for worker in store.workers()),
            "jobs": " ".join(f"{job.order.kind}: {job.outcome}" for job in store.jobs()),
        }


def shelf_of_bundles(folder: Path) -> Facts:
    """Two bundles are put on the shelf, each unless it is there; what is there is whole."""
    shelf = Shelf(folder)
    for number in range(2):
        shelf.tidy()
        data = f"bundle {number}".encode()
        made = BundlePublished(
            sha256=sha256(data), bytes=len(data), n_events=number, log_sha256=sha256(b""), router_version=0
        )
        if made not in shelf.all():
            file = shelf.new_file()
            file.write_bytes(data)
            shelf.take(file, made)
    found = {made.sha256: shelf.file(made.sha256) for made in shelf.all()}
    assert all(file is not None and sha256(file.read_bytes()) == name for name, file in found.items())
    return {"files": " ".join(sorted(file.name for file in shelf.folder.iterdir())), "bundles": " ".join(found)}


def old_ledger(folder: Path) -> Facts:
    """A ledger of the first format, brought up to date, and its tables made anew."""
    with SqliteLedger(folder) as ledger:
        ledger.rebuild()
        assert not ledger.verify(), str(ledger.verify()[0])
        return {"head": str(ledger.head()), "state": repr(fold(ledger.events()))}


def _copy_old_ledger(folder: Path) -> None:
    shutil.copytree(FORMAT_1, folder, dirs_exist_ok=True)


def worker_home(folder: Path) -> Facts:
    """A worker's key, its run, its receipts, its owner's wishes."""
    identity, membership = load_or_create(folder), Membership(url="https://here", run="r", run_key="0" * 64)
    save_membership(folder, membership)
    ReceiptBook(folder).keep([_receipt(number) for number in range(3)])
    assert load_or_create(folder) == identity or load_or_create(folder).worker == identity.worker
    assert load_membership(folder) == membership
    Store(folder).change(is_paused=True)
    assert Store(folder).kept.is_paused
    memory = FolderNodeMemory(folder)
    memory.save(7)
    assert memory.load(within_s=60.0) == 7
    memory.forget()
    assert memory.load(within_s=60.0) is None
    return {"receipts": " ".join(receipt.unit_id for receipt in read_receipts(folder))}


def worker_limits(folder: Path) -> Facts:
    """Its owner sets limits, and traffic is counted; what was counted and not written is counted once more."""
    for assignment in ("vram=8GB", "data_cap=1MB/month"):
        set_from_text(folder, assignment)
    while (meter := TrafficMeter(folder, now=lambda: datetime(2026, 11, 1, tzinfo=UTC))).month_bytes < 30:
        meter.add(10, 0)
        meter.close()
    return {"limits": load(folder).model_dump_json(), "bytes": f"{meter.month_bytes}"}


def worker_outbox(folder: Path) -> Facts:
    """Units come, are done, sent, asked for once more; each is forgotten when its receipt is in the book."""
    outbox, book = FolderOutbox(folder), ReceiptBook(folder)
    for number in range(2):
        unit = _unit(number)
        if book.has("r", unit.unit_id):
            outbox.settle(unit.unit_id)
            continue
        _do(outbox, unit, by_file=number == 0)
        outbox.mark_sent(unit.unit_id)
        outbox.take(unit, b"payload", b"another message")
        made = outbox.made(unit)
        assert made is not None and not made.is_sent and made.result.read_bytes() == b"result"
        book.keep([_receipt(number)])
        outbox.settle(unit.unit_id)
    left = " ".join(path.name for path in sorted((folder / "units").rglob("*")))
    return {"receipts": " ".join(receipt.unit_id for receipt in read_receipts(folder)), "left": left}


def worker_trainer(folder: Path) -> Facts:
    """Where it listens, a checkpoint, what fits, and what it made."""
    write_note(folder, "agent", Address("unix:/nowhere", "token"))
    unit = folder / "unit"
    unit.mkdir(exist_ok=True)
    assert Checkpoint(unit, lambda: _OneStep()).write()
    if recall(folder, _CONDITIONS) is None:
        remember(folder, _CONDITIONS, Fit(micro_windows=2))
    write_made(unit, _update(_unit(0), b"result"), b"result")
    update, made = read_made(unit)
    return {
        "checkpoint": (unit / "checkpoint").read_text(),
        "made": f"{update.unit_id} {made.read_text()}",
        "fit": f"{recall(folder, _CONDITIONS)}",
    }


class _OneStep:
    """A snapshot."""

    n_steps = 1

    def to_bytes(self) -> bytes:
        """The file."""
        return b"step 1"


_CONDITIONS = Conditions(
    device="CPU", dtype="fp32", quantise="", memory_limit_bytes=0, n_threads=1, max_rank=0, max_leaves=0,
    base_fingerprint="a" * 64, settings="{}", versions="1",
)  # fmt: skip


def _do(outbox: FolderOutbox, unit: WorkUnit, *, by_file: bool) -> None:
    """Once: what is there already, half or whole, is not asked for again."""
    if outbox.made(unit) is not None:
        return
    if not outbox.under_way():
        arrived = outbox.incoming / "arrived"
        if by_file:
            arrived.write_bytes(b"payload")
        outbox.take(unit, arrived if by_file else b"payload", b"message")
    (kept,) = outbox.under_way()
    assert kept.unit == unit and kept.header() == b"message"
    assert (kept.folder / "payload").read_bytes() == b"payload"
    made = kept.folder / "made"
    if by_file:
        made.write_bytes(b"result")
    outbox.finish(unit.unit_id, _update(unit, b"result"), made if by_file else b"result")


def _unit(number: int) -> WorkUnit:
    return WorkUnit(
        unit_id=f"u{number}", run="r", kind="train", nonce="n", deadline_s=1.0, base_fingerprint="a" * 64,
        tokenizer_fingerprint="b" * 64, feature_hash="c" * 64, payload_sha256=sha256(b"payload"),
    )  # fmt: skip


def _update(unit: WorkUnit, result: bytes) -> Update:
    return Update(
        unit_id=unit.unit_id, run=unit.run, kind=unit.kind, worker="w", nonce=unit.nonce, shard_version="d" * 64,
        payload_sha256=sha256(result),
    )  # fmt: skip


def _receipt(number: int) -> Receipt:
    return Receipt(
        run="r", unit_id=f"u{number}", worker="w", kind="train", payload_sha256=sha256(b""), event=number,
        log_sha256=sha256(b""),
    )  # fmt: skip


SCENARIOS = (
    _run("leaves", 5, disk_cap_mib=0.02, probes=2),
    _run("path", 4, where="path", depth=1, replicas="alternate"),
    Scenario("init", new_folder),
    Scenario("init_own", new_folder_with_own_certificate, _make_their_keys),
    Scenario("backup", backup_and_back, _make_run),
    Scenario("tokens", tokens_and_orders),
    Scenario("shelf", shelf_of_bundles),
    Scenario("old_ledger", old_ledger, _copy_old_ledger),
    Scenario("worker_home", worker_home),
    Scenario("worker_limits", worker_limits),
    Scenario("worker_outbox", worker_outbox),
    Scenario("worker_trainer", worker_trainer),
)
