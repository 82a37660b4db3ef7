"""Every check passes, warns, fails, and is cured: a table of what is found, and what comes of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tinylora_worker.preflight.check import (
    NAMES,
    Check,
    as_document,
    exit_code_of_checks,
    in_order,
    parse_skips,
    skipped,
)
from tinylora_worker.preflight.codes import CODES
from tinylora_worker.preflight.facts import (
    BasePlace,
    Devices,
    Disk,
    Fitting,
    Gpu,
    HomeState,
    Line,
    Memory,
    Power,
    Text,
    TextPlace,
)
from tinylora_worker.preflight.judging import (
    REFUSAL_RULES,
    judge_base,
    judge_clock,
    judge_device,
    judge_disk,
    judge_fitting,
    judge_free_memory,
    judge_home,
    judge_line,
    judge_packages,
    judge_power,
    judge_python,
    judge_refusal,
    judge_text,
    judge_text_place,
)
from tinylora_worker.preflight.line import bits_per_s

from tinylora.errors import SettingError

GB = 10**9
GPU = Gpu("RTX 3060", 0, 12 * GB, 11 * GB, (8, 6), uuid="GPU-5a1f")
WITH_GPU = Devices((GPU,), "570.1", "", "2.11", "12.8", False, 8)
CPU = Devices((), "", "", "2.11", "", False, 2)
FINE = Line(0.042, 88e6, 21e6)
FIT = Fitting(peak_bytes=6 * GB, free_bytes=5 * GB, micro_windows=4, window_tokens=1024)
TEXT = Text(3000, 412, 900_000, 0, "messages")
HOME = Path("home")

# code, what is wrong, the same cured
TROUBLES: list[tuple[str, Check, Check]] = [
    ("TL-PY-001", judge_python((3, 10, 9)), judge_python((3, 11, 0))),
    ("TL-PKG-001", judge_packages("0.1", ["torch"]), judge_packages("0.1", [])),
    ("TL-HOM-001", judge_home(HomeState(HOME, trouble="Permission denied")), judge_home(HomeState(HOME))),
    ("TL-HOM-002", judge_home(HomeState(HOME, running="process 4711")), judge_home(HomeState(HOME))),
    ("TL-DEV-001", judge_device(CPU), judge_device(WITH_GPU)),
    ("TL-DEV-002", judge_device(replace(WITH_GPU, torch_cuda="")), judge_device(WITH_GPU)),
    ("TL-DEV-003", judge_device(WITH_GPU, "1"), judge_device(WITH_GPU, "0")),
    ("TL-DEV-003", judge_device(WITH_GPU, "mps"), judge_device(replace(CPU, is_apple=True), "mps")),
    ("TL-DEV-003", judge_device(CPU, "GPU-5a1f"), judge_device(CPU, "cpu")),
    ("TL-DEV-004", judge_device(replace(WITH_GPU, gpus=(replace(GPU, users=("game",)),))), judge_device(WITH_GPU)),
    ("TL-DEV-005", judge_device(replace(CPU, trouble="Driver/library version mismatch")), judge_device(WITH_GPU)),
    ("TL-MEM-001", judge_fitting(Fitting(trouble="nothing fits into 2 GB")), judge_fitting(FIT)),
    ("TL-MEM-002", judge_fitting(replace(FIT, restrictions=("rank 4 at most",))), judge_fitting(FIT)),
    ("TL-MEM-003", judge_free_memory(Memory(8 * GB, GB // 2)), judge_free_memory(Memory(8 * GB, 4 * GB))),
    ("TL-DSK-001", judge_disk(Disk(HOME, 2 * GB), 3 * GB), judge_disk(Disk(HOME, 9 * GB), 3 * GB)),
    ("TL-DSK-002", judge_disk(Disk(HOME, 3 * GB + 1), 3 * GB), judge_disk(Disk(HOME, 9 * GB), 3 * GB)),
    ("TL-NET-004", judge_line(replace(FINE, up_bits_per_s=2e5)), judge_line(FINE)),
    ("TL-NET-004", judge_line(replace(FINE, down_bits_per_s=2e5)), judge_line(FINE)),
    ("TL-NET-004", judge_line(replace(FINE, round_trip_s=1.5)), judge_line(FINE)),
    ("TL-CLK-001", judge_clock(-250.0), judge_clock(0.1)),
    ("TL-CLK-002", judge_clock(3 * 86_400.0), judge_clock(-12.0)),
    ("TL-PWR-001", judge_power(Power(True, 62.0)), judge_power(Power(False, 62.0))),
    ("TL-BAS-001", judge_base(BasePlace("b", None, trouble="b: not here")), judge_base(BasePlace("b", HOME))),
    (
        "TL-BAS-003",
        judge_base(BasePlace("o/b", None, trouble="closed", is_cache_closed=True)),
        judge_base(BasePlace("o/b", None, download_bytes=GB)),
    ),
    ("TL-DAT-001", judge_text_place(TextPlace(0, 0)), judge_text_place(TextPlace(2, 9000))),
    ("TL-DAT-001", judge_text_place(TextPlace(1, 9, missing="b.txt")), judge_text_place(TextPlace(1, 9))),
    ("TL-DAT-002", judge_text(Text(trouble="line 3: no JSON")), judge_text(TEXT)),
    ("TL-DAT-003", judge_text(replace(TEXT, n_rejected=2)), judge_text(TEXT)),
    ("TL-DAT-004", judge_text(Text(trouble="2 e-mail addresses", is_found=True)), judge_text(TEXT)),
    ("TL-NET-001", judge_refusal("unreachable", "no coordinator answers"), judge_line(FINE)),
    ("TL-NET-002", judge_refusal("stranger", "answers (HTTP 200)"), judge_line(FINE)),
    ("TL-NET-003", judge_refusal("address", "'x y'"), judge_line(FINE)),
    ("TL-NET-005", judge_refusal("full", "cannot take anybody in"), judge_line(FINE)),
    ("TL-TLS-001", judge_refusal("ca", "has another CA"), Check("tls", "ok", "verified")),
    ("TL-TLS-002", judge_refusal("certificate", "certificate has expired"), Check("tls", "ok", "verified")),
    ("TL-TLS-003", judge_refusal("no_tls", "speaks no TLS"), Check("tls", "ok", "verified")),
    ("TL-PRO-001", judge_refusal("protocol", "version 7"), Check("protocol", "ok", "version 3")),
    ("TL-TOK-001", judge_refusal("garbled", "four parts"), Check("token", "ok", "good")),
    ("TL-TOK-002", judge_refusal("token", "is unknown"), Check("token", "ok", "good")),
    ("TL-TOK-003", judge_refusal("expired", "has expired"), Check("token", "ok", "good")),
    ("TL-TOK-004", judge_refusal("used_up", "was for 1 worker"), Check("token", "ok", "good")),
    ("TL-TOK-005", judge_refusal("token_revoked", "was revoked"), Check("token", "ok", "good")),
    ("TL-TOK-006", judge_refusal("banned", "has been removed"), Check("token", "ok", "good")),
    ("TL-TOK-007", judge_refusal("pending", "has yet to approve"), Check("token", "ok", "good")),
    ("TL-TOK-008", judge_refusal("none", "no token"), Check("token", "ok", "good")),
    ("TL-TOK-009", judge_refusal("rate", "too many tries"), Check("token", "ok", "good")),
    ("TL-TOK-010", judge_refusal("proof", "not signed"), Check("token", "ok", "good")),
    ("TL-CLK-002", judge_refusal("clock", "signed 900 s ago"), judge_clock(0.0)),
    ("TL-BAS-002", judge_refusal("base", "another base"), judge_base(BasePlace("b", HOME))),
]


@pytest.mark.parametrize(("code", "wrong", "cured"), TROUBLES)
def test_a_trouble_is_named_and_its_cure_cures(code: str, wrong: Check, cured: Check) -> None:
    assert wrong.code == code and CODES[code].check == wrong.name == cured.name
    assert wrong.found and wrong.needed and wrong.cure
    assert wrong.status == ("fail" if CODES[code].exit_code else "warn")
    assert wrong.exit_code == CODES[code].exit_code
    assert cured.status == "ok" and not cured.code and not cured.cure and cured.exit_code == 0


def test_every_code_has_its_row_and_every_check_passes_and_is_skipped() -> None:
    assert {code for code, _, _ in TROUBLES} == set(CODES)
    assert {cured.name for _, _, cured in TROUBLES} == set(NAMES)
    for name in NAMES:
        assert parse_skips([name]) == {name} and skipped(name, "x").status == "skip"


def test_every_word_that_the_coordinator_refuses_with_is_known() -> None:
    from typing import get_args

    from tinylora.flower.enrolment import RefusalCode

    unnamed = set(get_args(RefusalCode)) - set(REFUSAL_RULES) - {"pending"}
    assert unnamed == {"malformed", "key", "proof"}  # nothing that a volunteer does brings these about


@pytest.mark.parametrize("names", [["all"], ["memory", "gpu"], [""]])
def test_what_is_no_check_cannot_be_skipped(names: list[str]) -> None:
    with pytest.raises(SettingError, match=r"--skip-check .*: no such check; expected one of python, packages"):
        parse_skips(names)


def test_the_first_failure_decides_the_exit_code_and_checks_are_told_in_one_order() -> None:
    checks = in_order([judge_refusal("expired", "x"), judge_disk(Disk(HOME, 0), 1), judge_python((3, 11, 2))])
    assert [check.name for check in checks] == ["python", "disk", "token"]
    assert exit_code_of_checks(checks) == 8 and exit_code_of_checks(checks[:1]) == 0


def test_the_document_has_exactly_these_fields() -> None:
    document = json.loads(json.dumps(as_document([judge_device(CPU)])))
    assert set(document) == {"checks"}
    assert set(document["checks"][0]) == {"name", "status", "found", "needed", "cure", "code"}


def test_the_gpu_with_the_most_free_memory_is_told_unless_another_was_asked_for() -> None:
    two = replace(WITH_GPU, gpus=(replace(GPU, free_bytes=GB), replace(GPU, name="A100", index=1)))
    assert judge_device(two).found.startswith("A100") and judge_device(two, "0").found.startswith("RTX")
    assert "fp16" in judge_device(replace(WITH_GPU, gpus=(replace(GPU, capability=(7, 5)),))).found
    assert judge_device(WITH_GPU, "cpu").status == "ok" and judge_device(WITH_GPU, "GPU-5A").status == "ok"


def test_a_rate_leaves_round_trips_out_but_never_all_of_the_time() -> None:
    assert bits_per_s(1_000_000, took_s=1.5, waiting_s=0.5) == 8e6
    assert bits_per_s(1_000_000, took_s=1.0, waiting_s=1.0) == 8e7
