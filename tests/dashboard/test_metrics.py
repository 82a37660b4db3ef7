"""What Prometheus reads: the library's own parser reads it back, and it says what the state says."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard import metrics
from tinylora_coordinator.dashboard.app import create_app
from tinylora_coordinator.dashboard.machine import Machine, MachineWatch, certificate_end, class_of
from tinylora_coordinator.dashboard.metrics import expose
from tinylora_coordinator.keys import SERVER_DAYS, KeyFolder, make_keys

from tests.dashboard.asking import Asking
from tests.dashboard.fakes import WORKER, FakeViews, fake_services
from tests.federation.facts import FACTS, SETTINGS
from tinylora.errors import StorageError
from tinylora.federation.acceptance import Code
from tinylora.federation.events import RunStarted, UpdateProbed, UpdateRejected, WorkerQuarantined
from tinylora.ledger.sqlite import SqliteLedger


def samples(
    state: doc.State, routing: doc.Routing | None = None, machine: Machine | None = None
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, _ = expose(state, 3, "", routing=routing, machine=machine)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


def test_the_numbers_are_those_of_the_state() -> None:
    views = FakeViews()
    views.grow(8)
    found = samples(views.state())
    assert found["tinylora_run_phase", (("phase", "running"),)] == 1
    assert found["tinylora_run_phase", (("phase", "paused"),)] == 0
    assert found["tinylora_events_total", ()] == 8
    assert found["tinylora_nodes", (("state", "working"),)] == 4
    assert found["tinylora_node_steps", (("node", "01"),)] == 2
    assert found["tinylora_workers", (("state", "working"),)] == 1
    assert found["tinylora_worker_units_total", (("outcome", "accepted"), ("worker", WORKER))] == 0
    assert found["tinylora_dashboard_readers", ()] == 3
    assert ("tinylora_run_loss_nats", ()) not in found  # nobody knows it


def test_no_text_of_a_worker_is_a_label() -> None:
    state = FakeViews().state()
    worker = state.workers[0].model_copy(update={"name": "evil", "gpu": "evil", "data_note": "evil", "detail": "evil"})
    text, _ = expose(state.model_copy(update={"workers": (worker,)}), 0, "")
    assert b"evil" not in text


def test_what_the_operator_wrote_is_escaped() -> None:
    state = FakeViews().state()
    name = 'a "quoted"\\\nname'
    found = samples(state.model_copy(update={"run": state.run.model_copy(update={"run": name})}))
    assert [dict(labels)["run"] for metric, labels in found if metric == "tinylora_run_info"] == [name]


def test_labels_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(metrics, "MOST_NODES", 2)
    monkeypatch.setattr(metrics, "MOST_WORKERS", 1)
    state = FakeViews().state()
    many = tuple(state.workers[0].model_copy(update={"worker": f"w-{number}"}) for number in range(9))
    found = samples(state.model_copy(update={"workers": many}))
    assert {labels for name, labels in found if name == "tinylora_worker_tokens_total"} == {(("worker", "w-0"),)}
    assert len([name for name, _ in found if name == "tinylora_node_steps"]) <= 2
    assert found["tinylora_workers", (("state", "working"),)] == 9


def test_units_that_nobody_answered_are_counted() -> None:
    state = FakeViews().state()
    units = [doc.UnitNow(unit_id=f"u{end}", kind="train", node="0", leased_s=0, deadline_s=end) for end in (5, 15)]
    workers = tuple(state.workers[0].model_copy(update={"worker": unit.unit_id, "unit": unit}) for unit in units)
    idle = state.workers[0].model_copy(update={"unit": None})
    run = state.run.model_copy(update={"clock_s": 10.0})
    found = samples(state.model_copy(update={"run": run, "workers": (*workers, idle)}))
    assert (found["tinylora_units_leased", ()], found["tinylora_units_overdue", ()]) == (2, 1)


def test_what_the_routers_do_is_told() -> None:
    rows = [
        doc.RouterRow(version=number, at_s=number, drift=drift, n_contributors=2, reason="period")
        for number, drift in ((1, 1.0), (2, 0.25))
    ]
    routing = doc.Routing(
        source="probes", leaves=(), gates=(), versions=tuple(rows), entropy_bits=0.9, max_entropy_bits=1, n_dead=1
    )
    found = samples(FakeViews().state(), routing)
    assert found["tinylora_router_drift_ratio", ()] == 0.25 and found["tinylora_leaves_dead", ()] == 1
    assert (found["tinylora_routing_entropy_bits", ()], found["tinylora_routing_entropy_max_bits", ()]) == (0.9, 1)


def test_what_the_operator_is_alarmed_of_is_told_where_it_is_known() -> None:
    machine = Machine({"bad_hash": 2, "duplicate": 1}, 3, 4, False, 10, 100, 1.8e9)
    found = samples(FakeViews().state(), machine=machine)
    assert found["tinylora_rejections_total", (("class", "forgery"), ("code", "bad_hash"))] == 2
    assert found["tinylora_rejections_total", (("class", "benign"), ("code", "duplicate"))] == 1
    assert found["tinylora_rejections_total", (("class", "fault"), ("code", "not_finite"))] == 0
    assert found["tinylora_quarantines_total", ()] == 3 and found["tinylora_orders_waiting", ()] == 4
    assert found["tinylora_log_readable", ()] == 0
    assert (found["tinylora_disk_free_bytes", ()], found["tinylora_disk_size_bytes", ()]) == (10, 100)
    assert found["tinylora_certificate_expiry_timestamp_seconds", ()] == 1.8e9
    unknown = samples(FakeViews().state(), machine=Machine())
    assert ("tinylora_disk_free_bytes", ()) not in unknown and unknown["tinylora_log_readable", ()] == 1
    assert not [name for name, _ in samples(FakeViews().state()) if "disk" in name or "rejections" in name]


def test_every_code_of_a_refusal_has_a_class() -> None:
    assert {class_of(code) for code in Code} == {"benign", "fault", "harm", "forgery"}
    assert class_of("of a newer program") == "fault"


def watch(root: Path, n_orders: object = 0) -> MachineWatch:
    def count() -> int:
        if isinstance(n_orders, Exception):
            raise n_orders
        assert isinstance(n_orders, int)
        return n_orders

    return MachineWatch(root, n_orders=count, certificate_ends_s=None)


def rejected(code: str) -> UpdateRejected:
    return UpdateRejected(unit_id="u", worker="w-1", code=code, reason="", at_s=0.0)


def test_the_log_is_followed_and_never_read_twice(tmp_path: Path) -> None:
    looking = watch(tmp_path, 2)
    assert looking.look().is_log_readable and looking.look().rejections == {}  # not served yet
    with SqliteLedger(tmp_path) as ledger:
        begun = RunStarted(run="test", settings=SETTINGS, base=FACTS)
        ledger.append([begun, rejected("bad_payload.overlap"), rejected("bad_payload")], 0.0)
        assert looking.look().rejections == {"bad_payload": 2}
        probed = UpdateProbed(unit_id="u", worker="w-1", node="0", is_kept=False, n_votes=1)
        out = WorkerQuarantined(worker="w-1", code="harm", reason="", at_s=0.0)
        ledger.append([probed, probed.model_copy(update={"is_kept": True}), out], 0.0)
        found = looking.look()
    assert found.rejections == {"bad_payload": 2, "worse_on_heldout": 1} and found.n_quarantined == 1
    assert found.n_orders == 2 and 0 < (found.disk_free_bytes or 0) <= (found.disk_bytes or 0)
    looking.close()
    looking.close()


def test_a_log_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 1000)
    looking = watch(tmp_path, StorageError("gone"))
    found = looking.look()
    assert not found.is_log_readable and found.n_orders is None
    looking.close()


def test_the_end_of_a_certificate_is_its_own(tmp_path: Path) -> None:
    keys, now = KeyFolder(tmp_path / "keys"), datetime.now(UTC)
    make_keys(keys, run="r", hosts=(), now=now)
    end = certificate_end(keys.server)
    assert end is not None and end == pytest.approx(now.timestamp() + SERVER_DAYS * 86400, abs=2 * 86400)
    assert certificate_end(tmp_path / "none") is None and certificate_end(keys.server_key) is None


def test_it_is_served_in_both_formats() -> None:
    ask = Asking(create_app(fake_services()))
    plain = ask.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert list(parse(plain.text))
    modern = ask.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert list(parse_openmetrics(modern.text))
