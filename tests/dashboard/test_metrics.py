"""What Prometheus reads: the library's own parser reads it back, and it says what the state says."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard import metrics
from tinylora_coordinator.dashboard.app import create_app
from tinylora_coordinator.dashboard.metrics import expose

from tests.dashboard.asking import Asking
from tests.dashboard.fakes import WORKER, FakeViews, fake_services


def samples(state: doc.State) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, _ = expose(state, 3, "")
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


def test_it_is_served_in_both_formats() -> None:
    ask = Asking(create_app(fake_services()))
    plain = ask.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert list(parse(plain.text))
    modern = ask.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert list(parse_openmetrics(modern.text))
