"""What a worker tells of itself: bounded, plain, and the same on both ends."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora.errors import ProtocolError
from tinylora.protocol.plain import MAX_MARKS, plain
from tinylora.protocol.report import MAX_LIMIT, MAX_LIMITS, MAX_LINE, MAX_LINES, MAX_REPORT_BYTES, WorkerReport
from tinylora.protocol.standstill import Reason, WorkerState

LETTERS = st.text(st.characters() | st.sampled_from("e\u0301\u200b\u202e\x1b\ufb2c\u3164"), max_size=60)


@given(LETTERS, st.integers(0, 40))
def test_plain_text_is_bounded_seen_and_stays_as_it_is(text: str, at_most: int) -> None:
    once = plain(text, at_most=at_most)
    assert len(once) <= at_most
    assert once.isprintable()
    assert once == plain(once, at_most=at_most)
    categories = "".join(unicodedata.category(letter)[0] for letter in once)
    assert "M" * (MAX_MARKS + 1) not in categories


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("Anna's GPU", "Anna's GPU"),
        ("e\u0301te\u0301", "été"),
        ("a\tb\r\n c", "a b c"),
        ("\x1b[31mred\x07", "[31mred"),
        ("ab\u202ecd\u2066", "abcd"),
        ("z" + "\u0300\u200b" * 100, "z" + "\u0300" * MAX_MARKS),
        ("\u3164\u2800", ""),
        ("שָׁלוֹם", "שָׁלוֹם"),
    ],
)
def test_what_people_write_stays_and_what_acts_goes(text: str, seen: str) -> None:
    assert plain(text, at_most=80) == seen


def test_a_report_comes_back_as_it_went() -> None:
    report = WorkerReport(
        state=WorkerState.PAUSED, reason=Reason.TOO_HOT, detail="84 °C", limits={"vram": "8GB"}, log=("one", "two")
    )
    assert WorkerReport.from_json(report.to_json()) == report


def test_the_longest_lawful_report_is_not_too_long() -> None:
    widest = "\N{GRINNING FACE}"  # twelve characters when JSON escapes it
    report = WorkerReport(
        state=WorkerState.WORKING,
        detail=widest * 160,
        note=widest * 200,
        limits={f"limit_{number}": widest * MAX_LIMIT for number in range(MAX_LIMITS)},
        log=(widest * MAX_LINE,) * MAX_LINES,
    )
    assert len(report.to_json()) <= MAX_REPORT_BYTES
    assert WorkerReport.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"state": "dancing"}, "state"),
        ({"reason": "boredom"}, "reason"),
        ({"note": "n" * 201}, "note"),
        ({"log": ["line"] * (MAX_LINES + 1)}, "log"),
        ({"limits": {"__proto__": "x"}}, "limits.__proto__"),
        ({"limits": {"vram": {"toString": 1}}}, "limits.vram"),
        ({"tokens_per_s": float("inf")}, "tokens_per_s"),
        ({"step": -1}, "step"),
        ({"unit_id": "../../etc"}, "unit_id"),
        ({"hostname": "box"}, "hostname"),
    ],
)
def test_whatever_does_not_fit_is_refused_by_its_field(fields: dict[str, object], sentence: str) -> None:
    text = json.dumps({"state": "working"} | fields)
    with pytest.raises(ProtocolError, match=sentence):
        WorkerReport.from_json(text)


def test_a_report_that_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(ProtocolError, match=f"at most {MAX_REPORT_BYTES} characters"):
        WorkerReport.from_json("[" * (MAX_REPORT_BYTES + 1))
