"""What a volunteer sees: text of every state at every width, keys in a real terminal, and its settings afterwards."""

import io
import json
import os
import select
import termios
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from tinylora_worker.screen import (
    KEYS_LINE,
    REASONS,
    JsonLines,
    Lines,
    as_document,
    clock,
    draw,
    line_of,
    progress_line,
    sparkline,
    trend,
    why,
)
from tinylora_worker.wire.worker_pb2 import Fit, Status

from tests.worker.terminal import in_terminal, read_until
from tinylora.protocol.standstill import Reason, WorkerState

NOW = datetime(2026, 11, 21, 20, 0, tzinfo=UTC).timestamp()
WORKING = Status(
    version="0.4.0", run="medical-qa", worker="w-0123456789abcdef", name="quiet-otter", state="working", unit_id="u17",
    kind="train", node="0110", round=7, step=71, n_steps=100, loss=1.843, losses=[2.4, 2.3, 2.1, 2.0, 1.9, 1.843],
    tokens_per_s=812.4, unit_eta_s=241.0, device="RTX 3060", dtype="bf16", temperature_c=61.0, sent_bytes=11_000_000,
    received_bytes=34_000_000, month_bytes=2_100_000_000, month_cap_bytes=50_000_000_000, n_outbox=1,
    accepted_tokens=1_234_567, log=["u16 node 0110: 100 steps"], fit=Fit(micro_windows=4),
)  # fmt: skip


def text_of(status: Status, width: int, **options: bool) -> list[str]:
    console = Console(width=width, file=io.StringIO(), no_color=True, highlight=False, legacy_windows=False)
    console.print(draw(status, width=width, zone=UTC, now_s=NOW, **options), soft_wrap=False)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def status_of(**changes: object) -> Status:
    made = Status()
    made.CopyFrom(WORKING)
    for name, value in changes.items():
        made.ClearField(name)  # pyright: ignore[reportArgumentType]
        if isinstance(value, list):
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    return made


# --- text -------------------------------------------------------------------------------------------------------------


def test_the_screen_at_eighty_columns() -> None:
    assert text_of(WORKING, 80) == [
        'TinyLoRA worker 0.4.0  ·  run "medical-qa"  ·  quiet-otter',
        "working",
        "node 0110  round 7  ███████████░░░░  71%  loss 1.843 ▼  812 tok/s  sync in 4 min",
        "loss  █▇▄▃▂▁",
        "RTX 3060 bf16  ·  61 °C  ·  1,234,567 tokens accepted  ·  34 MB down, 11 MB up",
        "u16 node 0110: 100 steps",
        KEYS_LINE,
    ]


def test_the_screen_at_forty_columns_keeps_what_matters_most() -> None:
    shown = text_of(WORKING, 40)
    assert "node 0110" in shown[2] and "71%" in shown[2] and "loss 1.843 ▼" in shown[2]
    assert max(map(cell_len, shown)) <= 40


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_every_state_and_reason_fits_every_width(width: int) -> None:
    options: list[dict[str, bool]] = [{}, {"has_help": True}, {"is_ascii": True}, {"has_keys": False}]
    for number, (state, reason) in enumerate(product(WorkerState, ["", *Reason])):
        status = status_of(state=state, reason=reason, detail="a detail", until_s=NOW + 3600)
        shown = text_of(status, width, **options[number % len(options)])
        assert max(map(cell_len, shown)) <= width and shown[1].startswith(state)


def test_a_terminal_without_unicode_gets_plain_bars_and_curves() -> None:
    assert all(ord(sign) < 128 for line in text_of(WORKING, 200, is_ascii=True)[2:4] for sign in line)


def test_every_reason_has_its_sentence_and_says_until_when() -> None:
    assert set(REASONS) == set(Reason)
    paused = status_of(state="paused", reason="schedule", until_s=NOW + 3600)
    assert why(paused, UTC, NOW) == "outside of its hours, until 21:00"
    assert why(status_of(reason="too_hot", detail="84 °C"), UTC, NOW) == "too hot (84 °C)"
    assert why(status_of(reason="a_new_one"), UTC, NOW) == "a_new_one"  # of a newer agent
    assert clock(NOW + 86_400, UTC, NOW) == "Sun 22 Nov 20:00"
    assert line_of(status_of(is_finishing=True), UTC, NOW).startswith("working; leaves after this unit")


def test_nothing_is_told_that_is_not_known() -> None:
    bare = Status(version="0.4.0", worker="w-1", state="starting")
    assert text_of(bare, 80) == [
        "TinyLoRA worker 0.4.0  ·  run not joined yet  ·  w-1",
        "starting",
        "0 B down, 0 B up",
        KEYS_LINE,
    ]
    assert progress_line(status_of(kind="sketch", n_steps=0, losses=[], round=0), UTC, NOW, 80).startswith("sketch  ")


def test_a_curve_and_its_trend() -> None:
    assert sparkline([3.0, 2.0, 1.0], 8) == "█▅▁" and sparkline([1.0, 1.0], 8) == "▁▁"
    assert sparkline([1.0, float("nan"), 2.0], 8) == "▁ █" and sparkline([], 8) == "" == sparkline([1.0], 0)
    assert sparkline([9.0, 1.0, 2.0], 2) == "▁█"
    assert (trend([2.0, 1.0]), trend([1.0, 2.0]), trend([1.0, 1.0]), trend([1.0])) == ("▼", "▲", "=", "")
    assert trend([float("inf"), 2.0, 1.0], is_ascii=True) == "v"


# --- where there is no terminal ---------------------------------------------------------------------------------------


def test_lines_come_with_changes_and_seldom_without() -> None:
    told: list[str] = []
    now = [NOW]
    with Lines(told.append, zone=UTC, every_s=30.0, clock=lambda: now[0]) as lines:
        for step in range(60):
            now[0] = NOW + step
            lines.update(status_of(step=step))
        lines.update(status_of(state="paused", reason="battery"))
    assert len(told) == 3 and told[2].startswith("20:00  paused: on battery")
    assert told[0] == "20:00  working  node 0110  round 7  0%  loss 1.843 ▼  812 tok/s  sync in 4 min  ETA 20:04"


def test_a_wait_between_two_units_is_told_when_it_lasts() -> None:
    told: list[str] = []
    now = [NOW]
    with Lines(told.append, zone=UTC, clock=lambda: now[0]) as lines:
        for state in ["working", *["waiting"] * 3, "working", *["waiting"] * 8]:
            now[0] += 1.0
            lines.update(Status(state=state, reason="no_work" if state == "waiting" else ""))
    assert [line.split()[1] for line in told] == ["working", "waiting:"]


def test_json_lines_hold_every_field_of_the_status() -> None:
    out = io.StringIO()
    with JsonLines(out) as lines:
        lines.update(WORKING)
        lines.update(Status())
    first, second = map(json.loads, out.getvalue().splitlines())
    assert set(first) == set(second) == {field.name for field in Status.DESCRIPTOR.fields}
    assert (first["node"], first["step"], first["fit"]["micro_windows"]) == ("0110", 71, 4)
    assert second["losses"] == [] and second["until_s"] == 0.0 and as_document(WORKING)["log"] == list(WORKING.log)


# --- in a terminal ----------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from rich.console import Console
from tinylora_worker.screen import Picture
from tinylora_worker.wire.worker_pb2 import Status

class Wishes:
    def note(self, word):
        with open(sys.argv[1], "a") as file:
            print(word, file=file)
        picture.update(Status(state="paused", reason="user_paused") if word == "pause" else Status(state="working"))
        if word == "leave":
            over.append(True)
    def __getattr__(self, word):
        return lambda: self.note(word)

over = []
with Picture(Console(), Wishes(), keyboard=sys.stdin) as picture:
    picture.update(Status(state="working"))
    Path(sys.argv[1] + ".ready").touch()
    if sys.argv[2] == "crash":
        raise RuntimeError("on purpose")
    while not over:
        time.sleep(0.02)
"""


def lines_of(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def test_keys_are_wishes_and_the_terminal_is_as_before(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    with in_terminal("-c", CHILD, str(noted), "work") as (child, ours, its):
        before = termios.tcgetattr(its)
        shown = read_until(ours, lambda shown: b"[p]ause" in shown)
        assert not termios.tcgetattr(its)[3] & termios.ICANON
        for key, word in ((b"p", "pause"), (b"x", ""), (b"p", "resume"), (b"f", "finish")):
            n_before = len(lines_of(noted))
            os.write(ours, key)
            if word:
                shown += read_until(ours, lambda _, n=n_before: len(lines_of(noted)) > n)
        os.write(ours, b"?")
        shown += read_until(ours, lambda shown: b"leave after the unit" in shown)
        os.write(ours, b"q")
        read_until(ours, lambda _: child.poll() is not None)
        assert lines_of(noted) == ["pause", "resume", "finish", "leave"] and child.returncode == 0
        assert b"goes on" in shown and termios.tcgetattr(its) == before


def test_a_crash_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    with in_terminal("-c", CHILD, str(tmp_path / "noted"), "crash") as (child, ours, its):
        before = termios.tcgetattr(its)
        shown = read_until(ours, lambda _: child.poll() is not None)
        shown += os.read(ours, 65_536) if select.select([ours], [], [], 0)[0] else b""
        assert child.returncode == 1 and termios.tcgetattr(its) == before
        assert b"\x1b[?25h" in shown  # the cursor is there again
