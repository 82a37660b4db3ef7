"""The projection: snapshots and patches agree, whatever the pieces, and the file goes on where it was."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinylora_coordinator.dashboard.documents import State
from tinylora_coordinator.dashboard.views import RunViews
from tinylora_coordinator.operator_store import Worker as Enrolled

from tests.dashboard.runs import WORLDS, Reader, chunks, rows_of
from tinylora.protocol.report import WorkerReport


def still() -> float:
    return 0.0


def views(file: Path | None = None) -> RunViews:
    return RunViews(file, run="test", clock=still)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    world=st.sampled_from(sorted(WORLDS)),
    cuts=st.lists(st.integers(1, 200), max_size=12),
    first=st.integers(0, 5),
)
def test_patches_bring_a_reader_to_what_a_fresh_snapshot_says(world: str, cuts: list[int], first: int) -> None:
    shown = views()
    pieces = chunks(rows_of(world, kill="w1@10"), cuts)
    for piece in pieces[:first]:
        shown.take(piece)
    reader = Reader(shown.state())
    for number, piece in enumerate(pieces[first:]):
        shown.take(piece)
        if number % 2:
            patch = shown.patch(reader.position)
            assert patch is not None
            reader.apply(patch)
    patch = shown.patch(reader.position)
    assert patch is not None
    reader.apply(patch)
    assert reader.agrees_with(shown.state())
    assert shown.n_misfits == 0
    shown.close()


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_what_is_shown_does_not_depend_on_the_pieces(world: str) -> None:
    rows = rows_of(world, kill="w1@10")
    at_once, one_by_one = views(), views()
    at_once.take(rows)
    for row in rows:
        one_by_one.take([row])
    ours, theirs = at_once.state(), one_by_one.state()
    assert ours.model_copy(update={"position": ""}) == theirs.model_copy(update={"position": ""})
    assert State.model_validate_json(ours.model_dump_json()) == ours
    at_once.close()
    one_by_one.close()


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_a_restart_goes_on_from_the_file(world: str, tmp_path: Path) -> None:
    rows = rows_of(world, kill="w1@10")
    half = len(rows) // 2
    before = views(tmp_path / "views.sqlite")
    before.take(rows[:half], "c1")
    reader = Reader(before.state())
    before.close()
    after = views(tmp_path / "views.sqlite")
    assert (after.n_events, after.chain) == (half, "c1")
    assert reader.agrees_with(after.state())
    after.take(rows[half:], "c2")
    patch = after.patch(reader.position)
    assert patch is not None
    reader.apply(patch)
    assert reader.agrees_with(after.state())
    anew = views()
    anew.take(rows)
    assert anew.state().model_copy(update={"position": ""}) == after.state().model_copy(update={"position": ""})
    after.close()
    anew.close()


@pytest.mark.parametrize("damage", ["missing", "garbage", "cut", "other format", "other run", "zeroes inside"])
def test_a_file_that_cannot_be_used_is_made_anew(damage: str, tmp_path: Path) -> None:
    file, rows = tmp_path / "views.sqlite", rows_of("leaves")
    before = views(file)
    before.take(rows)
    position = before.position
    before.close()
    _damage(file, damage)
    after = RunViews(file, run="other" if damage == "other run" else "test", clock=still)
    assert after.n_events == 0
    assert after.patch(position) is None
    after.take(rows)
    assert len(after.state().nodes) == 7
    after.close()


def _damage(file: Path, damage: str) -> None:
    data = file.read_bytes()
    match damage:
        case "missing":
            file.unlink()
        case "garbage":
            file.write_bytes(b"no database at all, and long enough to be one" * 200)
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "other format":
            file.write_bytes(data[:60] + (999).to_bytes(4, "big") + data[64:])
        case "zeroes inside":
            file.write_bytes(data[:4096] + bytes(len(data) - 4096))


def test_positions_that_mean_nothing_are_refused() -> None:
    shown = views()
    shown.take(rows_of("leaves"))
    epoch = shown.position.rpartition("-")[0]
    for position in ("", "-", "7", "other-1", f"{epoch}-", f"{epoch}-x", f"{epoch}--1", f"{epoch}-9999", f"{epoch}-٣"):
        assert shown.patch(position) is None, position
    now = shown.patch(shown.position)
    assert now is not None
    assert (now.nodes, now.workers, now.feed) == ((), (), ())
    shown.close()


def test_who_listens_is_woken_until_he_has_enough() -> None:
    shown, woken = views(), []
    end = shown.subscribe(lambda: woken.append(shown.state().position))
    rows = rows_of("leaves")
    shown.take(rows[:3])
    shown.take(rows[3:9])
    end()
    shown.take(rows[9:])
    assert len(woken) == 2
    assert woken[0] != woken[1]
    shown.close()


def test_numbers_must_follow_on() -> None:
    shown, rows = views(), rows_of("leaves")
    shown.take(rows[:3])
    with pytest.raises(ValueError, match="expected event 4"):
        shown.take(rows[4:])
    shown.close()


# --- reports and the roster ------------------------------------------------------------------------------------------


def test_a_worker_is_what_it_says_until_something_happens() -> None:
    shown, rows = views(), rows_of("leaves")
    leases = [number for number, _, event in rows if event.type == "unit_leased" and event.worker == "w0"]
    shown.take(rows[: leases[-1] - 1])
    report = WorkerReport.from_json('{"state":"paused","reason":"user_paused","resumes_in_s":60,"gpu":"Tesla T4"}')
    shown.hear("w0", report, 10.0)
    worker = next(one for one in shown.state().workers if one.worker == "w0")
    assert (worker.state, worker.reason, worker.gpu, worker.heard_s) == ("paused", "user_paused", "Tesla T4", 10.0)
    shown.set_clock(30.0)
    assert next(one for one in shown.state().workers if one.worker == "w0").resumes_in_s == 40.0
    shown.take(rows[leases[-1] - 1 : leases[-1]])
    worker = next(one for one in shown.state().workers if one.worker == "w0")
    assert (worker.state, worker.gpu) == ("working", "Tesla T4")
    shown.close()


def test_a_paused_holder_pauses_its_leaf() -> None:
    shown, rows = views(), rows_of("leaves")
    end = next(number for number, _, event in rows if event.type == "topology_set")
    shown.take(rows[:end])
    held = {node.path: node.holders for node in shown.state().nodes if node.holders}
    leaf = next(path for path, holders in held.items() if len(holders) == 1)
    shown.hear(held[leaf][0], WorkerReport.from_json('{"state":"paused","reason":"schedule"}'), 1.0)
    assert {node.path: node.state for node in shown.state().nodes}[leaf] == "paused"
    shown.close()


def test_who_waits_for_approval_is_shown() -> None:
    shown = views()
    shown.take(rows_of("leaves")[:4])
    shown.enrolled(
        [Enrolled("w-new", "t1", "zoe", "pending", 5.0, ("lab",)), Enrolled("w-far", "t1", "x", "approved", 1.0)]
    )
    workers = {one.worker: one for one in shown.state().workers}
    assert (workers["w-new"].state, workers["w-new"].name, workers["w-new"].tags) == ("pending", "zoe", ("lab",))
    assert "w-far" not in workers
    position = shown.position
    shown.enrolled([Enrolled("w-new", "t1", "zoe", "pending", 5.0, ("lab",))])
    assert shown.position == position
    shown.enrolled([Enrolled("w-new", "t1", "zoe", "revoked", 5.0, ("lab",))])
    assert next(one for one in shown.state().workers if one.worker == "w-new").state == "out"
    shown.close()
