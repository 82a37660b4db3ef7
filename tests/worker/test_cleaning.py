"""`clean` removes what can be made again, and nothing else unless its owner types that he means it."""

import json
from pathlib import Path

import pytest
from filelock import FileLock
from tinylora_worker.cleaning import LOCK, SENTENCE, Fate, clean, report, size, survey
from tinylora_worker.wire.private_folder import PREFIX

from tests.flower.helpers import make_unit
from tinylora.errors import RefusedError, SettingError, StorageError
from tinylora.flower.identity import load_or_create
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.receipts import ReceiptBook
from tinylora.protocol.documents import Receipt, sha256

VALUE = ["identity.pem", "limits.toml", "membership.json", "receipts.jsonl", "state.json", "traffic.json"]
AGAIN = [".state.json.new", "agent.json", "logs", "measured.json", "tokens"]


@pytest.fixture(autouse=True)
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sockets lie; what other tests have there is none of ours."""
    place = tmp_path / "runtime"
    place.mkdir()
    monkeypatch.setattr("tinylora_worker.cleaning.places", lambda: (place,))
    return place


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that has seen some life: two units are under way, one of which an older run accepted by the same name."""
    home = tmp_path / "ä home"
    load_or_create(home)
    outbox, book = FolderOutbox(home), ReceiptBook(home)
    for name in ("u1", "u:2", "u3"):
        unit = make_unit(name, b"payload")
        outbox.take(unit, b"payload", b"head")
    book.keep([_receipt(unit.run, "u:2"), _receipt("older", "u1")])
    (home / "units" / "half").mkdir()
    for name in ("membership.json", "state.json", "limits.toml", "traffic.json", *AGAIN):
        path = home / name
        if name in ("logs", "tokens"):
            path.mkdir()
            path = path / "file"
        path.write_bytes(b"x" * 1000)
    (home / "holiday.jpg").write_bytes(b"mine")
    (home / "flower").symlink_to(tmp_path)
    return home


def _receipt(run: str, unit_id: str) -> Receipt:
    return Receipt(
        run=run, unit_id=unit_id, worker="w", kind="train", payload_sha256=sha256(b""), event=0, log_sha256=sha256(b"")
    )


def names(home: Path) -> set[str]:
    return {path.relative_to(home).as_posix() for path in home.iterdir()} | {
        f"units/{path.name}" for path in (home / "units").glob("*") if not path.name.startswith(".")
    }


def test_everything_is_named_and_judged(home: Path) -> None:
    fates = {item.path.relative_to(home).as_posix(): item.fate for item in survey(home)}
    expected = dict.fromkeys([*VALUE, "units/u1", "units/u3"], Fate.VALUE)
    expected |= dict.fromkeys([*AGAIN, "units/u%2", "units/half"], Fate.AGAIN)
    expected |= dict.fromkeys(["holiday.jpg", "flower"], Fate.FOREIGN)
    assert {name: fate for name, fate in fates.items() if name != "units/.incoming"} == expected
    assert {item.n_bytes for item in survey(home) if item.path.name in AGAIN} == {1000}


def test_what_can_be_made_again_goes_and_the_rest_stays(home: Path, tmp_path: Path) -> None:
    plan = clean(home, is_dry_run=True)
    before = names(home)
    assert names(home) == before and plan.is_dry_run
    done = clean(home)
    gone = {*AGAIN, "units/u%2", "units/half"}
    assert names(home) == before - gone | {LOCK}
    assert done.freed_bytes == plan.freed_bytes and done.removed == plan.removed
    assert tmp_path.exists() and {item.path for item in done.kept} >= {home / name for name in VALUE}
    assert load_or_create(home).worker and len(FolderOutbox(home).under_way()) == 2
    assert [item.path.name for item in clean(home).removed] == [".incoming"]  # made by the outbox just now


@pytest.mark.parametrize("typed", ["", "yes", "Remove Everything", "remove"])
def test_nothing_of_value_goes_before_it_is_typed(home: Path, typed: str) -> None:
    before = names(home)
    with pytest.raises(SettingError, match=SENTENCE):
        clean(home, everything=True, typed=typed)
    assert names(home) == before
    assert {item.fate for item in clean(home, everything=True, is_dry_run=True).removed} == {Fate.AGAIN, Fate.VALUE}


def test_everything_but_what_is_not_ours_goes(home: Path) -> None:
    clean(home, everything=True, typed=f" {SENTENCE}\n")
    assert names(home) == {"holiday.jpg", "flower"}
    (home / "holiday.jpg").unlink()
    (home / "flower").unlink()
    clean(home, everything=True, typed=SENTENCE)
    assert not home.exists() and clean(home).removed == ()


def test_nothing_goes_while_an_agent_works(home: Path) -> None:
    before = names(home)
    with FileLock(home / LOCK), pytest.raises(RefusedError, match="tinylora-worker stop"):
        clean(home, everything=True, typed=SENTENCE)
    assert names(home) - {LOCK} == before


def test_sockets_of_dead_processes_go_and_those_of_the_living_stay(home: Path, sockets: Path) -> None:
    dead, alive = sockets / f"{PREFIX}aaaaaaaa", sockets / f"{PREFIX}bbbbbbbb"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "agent.sock").touch()
    with FileLock(alive / "held"):
        clean(home)
    assert not dead.exists() and (alive / "agent.sock").exists()


def test_receipts_that_cannot_be_read_make_every_unit_one_of_value(home: Path) -> None:
    (home / "receipts.jsonl").write_bytes(b"\xff\xff not json\n" * 3)
    fates = {item.path.name: item.fate for item in survey(home) if item.path.parent.name == "units"}
    assert fates["u%2"] is Fate.VALUE


def test_what_people_and_programs_are_told(home: Path) -> None:
    plan = clean(home, is_dry_run=True)
    text = report(plan)
    assert "would be removed" in text and "kept, of value" in text and "kept, not ours" in text
    found = json.loads(report(plan, as_json=True))
    assert found["dry_run"] and found["freed_bytes"] == plan.freed_bytes
    assert {item["fate"] for item in found["removed"]} == {"made again"}
    assert [size(n) for n in (5, 1500, 2_500_000, 3 * 10**9)] == ["5 B", "1.5 kB", "2.5 MB", "3.0 GB"]


def test_a_file_in_place_of_the_home_is_told(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StorageError, match="home"):
        survey(tmp_path / "home")
