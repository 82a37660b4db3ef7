"""The outbox: what is in it stays in it, across processes, full disks and half-written folders."""

from pathlib import Path

import pytest

from tests.flower.helpers import make_unit, make_update
from tinylora.errors import ProtocolError, StorageError
from tinylora.failpoints import armed
from tinylora.flower.outbox import FolderOutbox, Outbox
from tinylora.protocol.documents import WorkUnit


def take(outbox: FolderOutbox, unit_id: str, **changes: object) -> WorkUnit:
    unit = make_unit(unit_id, b"payload", **changes)
    outbox.take(unit, b"payload", b"header")
    return unit


def finish(outbox: FolderOutbox, unit: WorkUnit) -> None:
    outbox.finish(unit.unit_id, make_update(unit, "w", b"result"), b"result")


def test_a_unit_goes_from_under_way_to_unsent_to_sent_and_is_forgotten(tmp_path: Path) -> None:
    outbox = FolderOutbox(tmp_path)
    assert isinstance(outbox, Outbox)
    unit = take(outbox, "u1")
    (under_way,) = FolderOutbox(tmp_path).under_way()
    assert (under_way.unit, under_way.header(), under_way.update) == (unit, b"header", None)
    assert (under_way.folder / "payload").read_bytes() == b"payload" and not outbox.unsent()
    finish(outbox, unit)
    (unsent,) = FolderOutbox(tmp_path).unsent()
    assert unsent.result.read_bytes() == b"result" and not outbox.under_way()
    assert not (unsent.folder / "payload").exists(), "what it began from takes up room no more"
    outbox.mark_sent("u1")
    assert not FolderOutbox(tmp_path).unsent() and [kept.is_sent for kept in outbox.kept()] == [True]
    outbox.settle("u1")
    assert not outbox.kept() and outbox.made(unit) is None and not unsent.folder.exists()


def test_a_unit_that_comes_again_is_answered_by_its_new_message_and_never_done_twice(tmp_path: Path) -> None:
    outbox = FolderOutbox(tmp_path)
    unit = take(outbox, "u1")
    (outbox.take(unit, b"payload", b"second") / "checkpoint").write_bytes(b"half")
    again = outbox.take(unit, b"payload", b"third")
    assert (again / "checkpoint").read_bytes() == b"half" and outbox.under_way()[0].header() == b"third"
    finish(outbox, unit)
    outbox.mark_sent("u1")
    outbox.take(unit, b"payload", b"fourth")
    made = outbox.made(unit)
    assert made is not None and made.header() == b"fourth" and [kept.unit for kept in outbox.unsent()] == [unit]


@pytest.mark.parametrize("changes", [{"nonce": "other"}, {"run": "other"}])
def test_another_lease_of_the_same_id_takes_the_place_of_the_old_one(tmp_path: Path, changes: dict[str, str]) -> None:
    outbox = FolderOutbox(tmp_path)
    finish(outbox, take(outbox, "u1"))
    unit = take(outbox, "u1", **changes)
    assert outbox.made(unit) is None and [kept.unit for kept in outbox.under_way()] == [unit]


def test_units_of_another_run_are_not_told_of(tmp_path: Path) -> None:
    finish(FolderOutbox(tmp_path), make := take(FolderOutbox(tmp_path), "u1"))
    assert make.run == "run" and not FolderOutbox(tmp_path, run="other").kept()
    assert FolderOutbox(tmp_path, run="run").unsent()


def test_a_payload_in_a_file_is_moved_and_what_was_left_while_arriving_is_cleared(tmp_path: Path) -> None:
    outbox = FolderOutbox(tmp_path)
    arrived = outbox.incoming / "x"
    arrived.write_bytes(b"payload")
    folder = outbox.take(make_unit("u1", b"payload"), arrived, b"h")
    assert (folder / "payload").read_bytes() == b"payload" and not arrived.exists()
    (outbox.incoming / "half").write_bytes(b"pay")
    assert not list(FolderOutbox(tmp_path).incoming.iterdir())


def test_half_a_folder_is_cleared_and_a_file_that_is_no_unit_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "units" / "u1").mkdir(parents=True)
    (tmp_path / "units" / "u1" / "payload").write_bytes(b"payload")
    (tmp_path / "units" / "u2").mkdir()
    (tmp_path / "units" / "u2" / "unit.json").write_text('{"unit_id": "../../.."}')
    assert not FolderOutbox(tmp_path).kept()
    assert sorted(path.name for path in (tmp_path / "units").iterdir()) == [".incoming"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "..", ".incoming", "a/b", "a\\b", "", "a\n", "x" * 200])
def test_an_id_that_would_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    outbox = FolderOutbox(tmp_path / "home")
    unit = make_unit("u1", b"").model_copy(update={"unit_id": name})
    with pytest.raises(ProtocolError, match="unit id"):
        outbox.take(unit, b"", b"")
    with pytest.raises(ProtocolError, match="unit id"):
        outbox.drop(name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".incoming", "home", "units"]


def test_a_colon_in_an_id_is_none_in_a_file_name(tmp_path: Path) -> None:
    outbox = FolderOutbox(tmp_path)
    assert outbox.take(make_unit("a:b", b""), b"", b"").name == "a%b"
    assert [kept.unit.unit_id for kept in outbox.kept()] == ["a:b"]


@pytest.mark.parametrize("step", ["payload.write", "header.flush", "unit.json.rename"])
def test_a_full_disk_is_told_and_the_unit_was_not_taken(tmp_path: Path, step: str) -> None:
    outbox = FolderOutbox(tmp_path)
    with armed(f"worker.outbox.{step}.before:1:enospc"), pytest.raises(StorageError, match="free some space"):
        take(outbox, "u1")
    assert not outbox.kept() and not FolderOutbox(tmp_path).kept()


@pytest.mark.parametrize("step", ["result.flush", "update.json.write"])
def test_a_full_disk_at_the_end_leaves_the_unit_under_way(tmp_path: Path, step: str) -> None:
    outbox = FolderOutbox(tmp_path)
    unit = take(outbox, "u1")
    with armed(f"worker.outbox.{step}.before:1:enospc"), pytest.raises(StorageError):
        finish(outbox, unit)
    assert [kept.unit for kept in outbox.under_way()] == [unit]
    finish(outbox, unit)
    assert outbox.made(unit) is not None
