"""Bundles that are written while the run goes on: one at a time, whole or not at all, named in the log."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from tinylora_coordinator.dashboard import press as press_module
from tinylora_coordinator.dashboard.press import Ended, Press
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.shelf import Shelf

from tests.federation.events import STARTED
from tests.flower.helpers import until
from tinylora.errors import DiskFull, RefusedError, StorageError
from tinylora.federation.events import BundlePublished, GatesSolved
from tinylora.ledger.sqlite import SqliteLedger

NOW = 1_700_000_000.0
Make: TypeAlias = Callable[..., Press]


class FakeCommand:
    """Stands in for `tinylora-coordinator bundle`: each file holds how many there were before it."""

    def __init__(self) -> None:
        self.words: list[Sequence[str]] = []
        self.go = threading.Event()
        self.go.set()
        self.ending: Ended | None = None
        self.lie = ""

    def __call__(self, words: Sequence[str]) -> Ended:
        self.words.append(words)
        assert self.go.wait(30.0)
        file = Path(words[words.index("--out") + 1])
        data = f"bundle {len(self.words)}".encode()
        file.write_bytes(data)
        if self.ending is not None:
            return self.ending
        said = described(data, n_events=len(self.words)).model_dump(exclude={"type"})
        return Ended(
            0, json.dumps({"file": str(file), "without": "", **said, **({"sha256": self.lie} if self.lie else {})}), ""
        )


def described(data: bytes, *, n_events: int, router_version: int = 0) -> BundlePublished:
    return BundlePublished(
        sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), n_events=n_events, log_sha256="0" * 64,
        router_version=router_version,
    )  # fmt: skip


@pytest.fixture
def command() -> FakeCommand:
    return FakeCommand()


@pytest.fixture
def store(tmp_path: Path) -> OperatorStore:
    return OperatorStore(tmp_path)


@pytest.fixture
def make_press(tmp_path: Path, store: OperatorStore, command: FakeCommand) -> Iterator[Callable[..., Press]]:
    made: list[Press] = []

    def make(**choices: int) -> Press:
        made.append(Press(tmp_path, store, run=command, clock=lambda: NOW, **choices))
        made[-1].start()
        return made[-1]

    yield make
    command.go.set()
    for press in made:
        press.close()


def pressed(press: Press) -> None:
    """One bundle, from the order to its end."""
    press.make()
    until(lambda: not press.is_making, what="the bundle")


def test_a_bundle_is_kept_by_its_hash_and_ordered_to_be_named(make_press: Make, store: OperatorStore) -> None:
    press = make_press()
    pressed(press)
    assert not press.error
    (made,) = press.shelf.all()
    file = press.shelf.file(made.sha256)
    assert file is not None and hashlib.sha256(file.read_bytes()).hexdigest() == made.sha256
    (order,) = store.orders()
    assert order.kind == "record" and BundlePublished.model_validate_json(order.reason) == made


def test_one_at_a_time(make_press: Make, command: FakeCommand) -> None:
    press = make_press()
    command.go.clear()
    press.make()
    assert press.is_making
    with pytest.raises(RefusedError, match="being written already"):
        press.make()
    command.go.set()
    until(lambda: not press.is_making, what="the bundle")
    pressed(press)
    assert len(command.words) == 2


def test_the_oldest_files_go_and_what_the_log_will_name_stays_listed(make_press: Make, store: OperatorStore) -> None:
    press = make_press(keep=2)
    for _ in range(4):
        pressed(press)
    assert [made.n_events for made in press.shelf.all()] == [4, 3, 2, 1]
    assert [press.shelf.file(made.sha256) is not None for made in press.shelf.all()] == [True, True, False, False]
    for order in store.orders():
        store.done(order, "made of another log")
    pressed(press)
    assert [made.n_events for made in press.shelf.all()] == [5, 4, 2, 1]  # 3 went with its file: nobody names it


@pytest.mark.parametrize(
    ("ending", "sentence"),
    [
        (Ended(3, "", "noise\nerror: run test: no tree was set\n"), "run test: no tree was set"),
        (Ended(8, "", "error: b: the disk is full; free some\n"), "b: the disk is full; free some"),
        (Ended(1, "", "Traceback\nValueError: x"), "ended with code 1"),
        (Ended(-9, "", ""), "killed by signal 9"),
        (Ended(0, "nonsense", ""), "something else than expected"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_sentence_and_leaves_nothing(
    make_press: Make, command: FakeCommand, store: OperatorStore, ending: Ended, sentence: str
) -> None:
    press = make_press()
    command.ending = ending
    pressed(press)
    assert sentence in press.error and "\n" not in press.error
    assert not press.shelf.all() and not list(press.shelf.folder.glob("*.safetensors")) and not store.orders()
    assert not list(press.shelf.folder.glob(".making*"))
    command.ending = None
    pressed(press)
    assert not press.error and len(press.shelf.all()) == 1


def test_a_file_that_is_not_what_it_should_be_is_not_kept(make_press: Make, command: FakeCommand) -> None:
    press = make_press()
    command.lie = "f" * 64
    pressed(press)
    assert "the disk may be failing" in press.error and not press.shelf.all()


def test_without_space_nothing_is_begun(
    make_press: Make, command: FakeCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    press = make_press()
    monkeypatch.setattr(press_module, "SPARE_BYTES", 2**62)
    with pytest.raises(DiskFull, match="free some"):
        press.make()
    assert not press.is_making and not command.words


def test_a_killed_one_is_cleared_away_and_the_others_are_still_there(make_press: Make, tmp_path: Path) -> None:
    pressed(make_press())
    shelf = Shelf(tmp_path)
    (known,) = shelf.all()
    for name in (
        ".making-1.safetensors",
        "..making-1.safetensors.part",
        f"{'e' * 64}.safetensors",
        "leaves/.making-2.zip",
    ):
        (shelf.folder / name).write_bytes(b"half")
    (shelf.folder / f"{'d' * 64}.json").write_text("{half")
    press = make_press()
    assert press.shelf.all() == (known,) and not press.is_making and not press.error
    assert sorted(file.name for file in shelf.folder.iterdir() if file.suffix == ".safetensors") == [
        f"{known.sha256}.safetensors"
    ]
    assert not list(shelf.leaves.iterdir())


def test_one_after_so_many_rounds(make_press: Make, tmp_path: Path, command: FakeCommand) -> None:
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED], 0.0)
        press = make_press(every=2)
        n_rounds = rounds(ledger)
        for expected in (0, 1, 1, 2):
            next(n_rounds)
            press.look()
            until(lambda: not press.is_making, what="the bundle")
            assert len(command.words) == expected
        press.look()
        assert len(command.words) == 2


def test_a_failure_is_not_tried_again_before_the_next_round_is_due(
    make_press: Make, tmp_path: Path, command: FakeCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED], 0.0)
        press = make_press(every=1)
        next(rounds(ledger))
        monkeypatch.setattr(press_module, "SPARE_BYTES", 2**62)
        with pytest.raises(DiskFull):
            press.look()
        assert "free some" in press.error
        press.look()
        assert not command.words


def rounds(ledger: SqliteLedger) -> Iterator[int]:
    """One version of the routers after the other."""
    blob = ledger.put_blob(b"gates")
    version = 0
    while True:
        version += 1
        ledger.append([GatesSolved(version=version, contributors=(), drift=0.5, blob=blob)], 0.0)
        yield version


def test_only_one_command_is_ended_when_the_press_is(tmp_path: Path, store: OperatorStore) -> None:
    """The real command, on a folder without a run: its sentence arrives; closed, nothing is run any more."""
    press = Press(tmp_path, store)
    press.start()
    pressed(press)
    assert "no run here" in press.error
    press.close()
    pressed(press)
    assert not press.shelf.all()


def test_a_folder_that_cannot_be_written(tmp_path: Path, store: OperatorStore) -> None:
    (tmp_path / "bundles").write_text("a file")
    with pytest.raises(StorageError, match="bundles"):
        Press(tmp_path, store).start()
