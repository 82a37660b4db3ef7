"""Pages of nodes and workers, series and the timeline against what the events themselves say."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tinylora_coordinator.dashboard import details
from tinylora_coordinator.dashboard.documents import Series
from tinylora_coordinator.dashboard.recording import Happened, Told
from tinylora_coordinator.dashboard.views import RunViews

from tests.dashboard.runs import Row
from tests.dashboard.synthetic import Plan, make_run
from tinylora.federation.events import UpdateAccepted, UpdateRejected
from tinylora.protocol.report import WorkerReport
from tinylora.tree import are_in_line

ITEMS = tuple(make_run(Plan(n_leaves=4, n_workers=6, hours=0.5, seed=5, lost_every_s=400.0)))
ROWS: tuple[Row, ...] = tuple((item.number, item.at_s, item.event) for item in ITEMS if isinstance(item, Happened))
TRAINED = [event for _, _, event in ROWS if isinstance(event, UpdateAccepted) and event.kind == "train"]


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunViews]:
    shown = RunViews(tmp_path_factory.mktemp("views") / "views.sqlite", run="artificial", clock=lambda: 0.0)
    for item in ITEMS:
        if isinstance(item, Happened):
            shown.take([(item.number, item.at_s, item.event)])
        elif isinstance(item, Told):
            shown.hear(item.worker, item.report, item.at_s)
    assert shown.n_misfits == 0
    yield shown
    shown.close()


def naive(series: Series, told: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means in the same buckets, counted one by one."""
    buckets: dict[int, list[float]] = {}
    for at_s, value in told:
        buckets.setdefault(math.floor(at_s / series.bucket_s), []).append(value)
    return [((place + 0.5) * series.bucket_s, sum(one) / len(one)) for place, one in sorted(buckets.items())]


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "rolled up"])
@pytest.mark.parametrize("points", [3, 40, 1000])
def test_losses_of_every_node_are_those_of_its_units(
    views: RunViews, points: int, is_raw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(details, "MOST_RAW", 4000 if is_raw else 0)
    for node in [node.path for node in views.state().nodes]:
        told = [(one.at_s, one.heldout_nll_after) for one in TRAINED if are_in_line(one.node, node)]
        series = views.series("loss", node, 0.0, 1e12, points)
        expected = naive(series, [(at_s, loss) for at_s, loss in told if loss is not None])
        assert len(series.t) <= points
        assert list(zip(series.t, series.mean, strict=True)) == [pytest.approx(one) for one in expected]


def test_tokens_per_second_add_up_to_the_tokens(views: RunViews) -> None:
    series = views.series("tokens_per_s", None, 0.0, 1e12, 100)
    made = sum(rate * series.bucket_s for rate in series.mean)
    assert sum(one.tokens for one in TRAINED) <= made * 1.01
    assert made <= sum(one.tokens for one in TRAINED) * 1.2  # and what is under way


def test_progress_and_workers_are_there_at_every_moment_with_an_event(views: RunViews) -> None:
    progress = views.series("progress", None, 0.0, 1e12, 200)
    assert list(progress.mean) == sorted(progress.mean)
    assert progress.mean[-1] == pytest.approx(views.state().run.progress, abs=0.01)
    assert max(views.series("workers", None, 0.0, 1e12, 50).high) <= 6


def test_a_node_lists_its_latest_units(views: RunViews) -> None:
    for node in views.state().nodes:
        page = views.node(node.path)
        assert page is not None
        ours = [one.unit_id for one in TRAINED if are_in_line(one.node, node.path)]
        accepted = [row.unit_id for row in page.updates if row.state in ("accepted", "pending", "dropped")]
        assert accepted == ours[::-1][: len(accepted)]
        assert len(accepted) > min(30, len(ours)) - 10
        assert [step.path for step in page.way] == [node.path[:level] for level in range(len(node.path) + 1)]
        assert list(page.versions) == sorted(page.versions, key=lambda row: -row.version)
    assert views.node("0101") is None


def test_a_worker_lists_units_states_and_what_it_said(views: RunViews) -> None:
    for worker in views.state().workers:
        page = views.worker(worker.worker)
        assert page is not None
        refused = {e.unit_id for _, _, e in ROWS if isinstance(e, UpdateRejected) and e.worker == worker.worker}
        assert all(row.worker == worker.worker for row in page.updates)
        assert {row.unit_id for row in page.updates if row.state == "rejected"} <= refused
        if page.states:
            assert page.states[-1].state == worker.state
            assert page.states[-1].end_s is None
            assert all(one.end_s == two.start_s for one, two in zip(page.states, page.states[1:], strict=False))
    assert views.worker("nobody") is None


def test_log_lines_and_limits_are_kept_in_bounds() -> None:
    shown = RunViews(None, run="artificial", clock=lambda: 0.0)
    shown.take(ROWS[:20])
    name = shown.state().workers[0].worker
    for number in range(60):
        lines = [f"line {number}.{part}" for part in range(8)]
        shown.hear(name, WorkerReport(state="working", limits={"vram": "8 GiB"}, log=tuple(lines)), float(number))  # type: ignore[arg-type]
    page = shown.worker(name)
    assert page is not None
    assert page.limits == {"vram": "8 GiB"}
    assert len(page.log) == details.LINES_KEPT
    assert (page.log[-1].text, page.log[-1].at_s) == ("line 59.7", 59.0)
    shown.close()


@pytest.mark.parametrize("is_raw", [True, False], ids=["single units", "stretches"])
def test_the_timeline_holds_every_unit(views: RunViews, is_raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details, "MOST_SPANS", 3000 if is_raw else 60)
    line = views.timeline(0.0, 1e12, 0, 128)
    assert line.n_lanes == len(line.lanes)
    for lane in line.lanes:
        ours = [one for one in TRAINED if one.node == lane.path]
        assert sum(span.n_units for span in lane.spans) >= len(ours)
        for one in ours:
            assert any(
                span.start_s <= one.at_s and (span.end_s is None or one.at_s <= span.end_s) for span in lane.spans
            )
    assert [lane.path for lane in views.timeline(0.0, 1e12, 1, 2).lanes] == [lane.path for lane in line.lanes[1:3]]
    assert {mark.kind for mark in line.marks} >= {"topology", "router", "lost", "returned"}


def test_many_marks_fall_together() -> None:
    shown = RunViews(None, run="artificial", clock=lambda: 0.0)
    lost = next(event for _, _, event in ROWS if event.type == "worker_lost")
    shown.take(ROWS[:20])
    n = shown.n_events
    shown.take([(n + k, 10.0 * k, lost.model_copy(update={"at_s": 10.0 * k})) for k in range(1, 1001)])
    marks = shown.timeline(0.0, 1e12, 0, 64).marks
    assert len(marks) < 300
    before = sum(event.type == "worker_lost" for _, _, event in ROWS[:20])
    assert sum(mark.count for mark in marks if mark.kind == "lost") == before + 1000
    shown.close()


def test_a_file_damaged_while_it_is_read_is_made_anew(tmp_path: Path) -> None:
    shown = RunViews(tmp_path / "views.sqlite", run="artificial", clock=lambda: 0.0)
    shown.take(ROWS[:100])
    position = shown.state().position
    with closing(sqlite3.connect(tmp_path / "views.sqlite")) as database:
        database.execute("DROP TABLE unit")
        database.commit()
    assert shown.worker(shown.state().workers[0].worker) is not None
    shown.take(ROWS[100:101])
    assert shown.state().run.n_events == shown.n_events == 0
    assert shown.patch(position) is None
    shown.take(ROWS)
    assert shown.state().run.n_events == len(ROWS)
    shown.close()


def test_units_beyond_what_is_kept_are_dropped_and_the_rollup_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details, "UNITS_KEPT", {"train": 40, "probe": 10})
    monkeypatch.setattr(details, "PRUNE_EVERY", 16)
    shown = RunViews(None, run="artificial", clock=lambda: 0.0)
    for start in range(0, len(ROWS), 20):
        shown.take(ROWS[start : start + 20])
    series = shown.series("loss", "", 0.0, 1e12, 20)
    expected = naive(series, [(one.at_s, one.heldout_nll_after or 0.0) for one in TRAINED])
    assert list(zip(series.t, series.mean, strict=True)) == [pytest.approx(one) for one in expected]
    shown.close()
