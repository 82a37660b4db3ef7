"""Every class of bad updates is refused by its own code, and leaves nothing behind but the line that says so."""

import functools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.desk import Desk, files, rows
from tests.hostile.measured import MAX_BYTES, MAX_SECONDS, MIB, measured
from tests.hostile.updates import CASES, ENVELOPE, NUMBERS, PAYLOAD, Case
from tinylora.federation.campaign import fold
from tinylora.federation.events import UpdateAccepted, UpdateRejected

FORGERIES = ("foreign_unit", "wrong_nonce")
"""Of a signed update: the worker gets no more units."""
WRITTEN = {"event", "worker", "unit"}
"""Tables that tell of rejections; of the last two only rows of the worker and unit in question."""


@pytest.mark.parametrize("name", CASES)
def test_refused_by_its_own_code_and_nothing_else_changes(name, tmp_path, prepared):
    case = CASES[name]
    desk = _desk(prepared(case), tmp_path, case)
    reply = case.make(desk)
    before, kept, state = rows(tmp_path), files(tmp_path), desk.rounds.state
    events, seconds, extra = measured(lambda: desk.take(reply))
    assert [(event.type, event.code) for event in events if isinstance(event, UpdateRejected)] == [
        ("update_rejected", case.code)
    ]
    assert len(events) == 1
    assert seconds < MAX_SECONDS and extra < MAX_BYTES, f"{seconds:.2f} s, {extra / MIB:.0f} MiB"
    assert files(tmp_path) == kept
    _assert_same_rows(before, rows(tmp_path))
    assert desk.rounds.state.nodes == state.nodes and desk.rounds.state.router == state.router
    assert desk.rounds.state.workers["w1"] == state.workers["w1"]
    _assert_still_at_work(desk, case.code)
    assert fold(desk.ledger.events()) == desk.rounds.state
    desk.ledger.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Callable[[Case], Path]:
    """A run's folder before the unit in question, made once for all cases that begin alike."""

    @functools.cache
    def make(is_sketch: bool, changes: tuple[tuple[str, Any], ...]) -> Path:
        folder: Path = tmp_path_factory.mktemp("prepared")
        desk = Desk(folder, dict(changes))
        if not is_sketch:
            desk.go_on()
        desk.ledger.close()
        return folder

    return lambda case: make(case.is_sketch, case.changes)


def _desk(prepared: Path, folder: Path, case: Case) -> Desk:
    """The run taken up in a folder of its own: the open units are sent again."""
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    desk = Desk(folder, dict(case.changes))
    assert {unit.kind for unit, _ in desk.sent.values()} == {"sketch" if case.is_sketch else "train"}
    return desk


def _assert_same_rows(before, after):
    assert before.keys() == after.keys()
    for table in before:
        changed = before[table] ^ after[table]
        assert table in WRITTEN or not changed, table
    assert len(after["event"]) == len(before["event"]) + 1 and before["event"] < after["event"]


def _assert_still_at_work(desk: Desk, code: str) -> None:
    """Honest updates are accepted: of the other worker, and of the one that was refused, unless it forged something."""
    desk.settle()
    is_out = code.partition(".")[0] in FORGERIES
    assert bool(desk.rounds.state.workers["w0"].refusal) == is_out
    for name in ("w1",) if is_out else ("w1", "w0"):
        events = desk.take(desk.reply(name, *desk.honest(name)))
        assert [type(event) for event in events] == [UpdateAccepted], (name, events)


def test_there_are_enough_classes_and_hardly_two_share_a_code():
    assert len(CASES) >= 60
    assert len(ENVELOPE) >= 22 and len(PAYLOAD) >= 25 and len(NUMBERS) >= 13
    codes = Counter(case.code for case in CASES.values())
    assert len(codes) >= 60
    assert max(codes.values()) <= 5, codes.most_common(3)
