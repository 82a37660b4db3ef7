"""The codes of the checks: well formed, each with cause and cure, and told by `doctor --explain` without any page."""

import json
import re

import pytest
from tinylora_worker.cli import app
from tinylora_worker.preflight.check import NAMES
from tinylora_worker.preflight.codes import CODES
from tinylora_worker.preflight.telling import explanation_lines
from typer.testing import CliRunner

from tinylora.errors import SettingError


def test_codes_are_well_formed_and_every_check_can_say_what_is_wrong() -> None:
    assert all(re.fullmatch(r"TL-[A-Z]{2,3}-\d{3}", code) for code in CODES)
    assert {code.check for code in CODES.values()} == set(NAMES)


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_a_cause_and_a_cure_in_sentences(code: str) -> None:
    told = CODES[code]
    assert told.title and not told.title.endswith(".")
    for text in (told.cause, told.cure):
        assert text.endswith(".") and text.count("`") % 2 == 0 and "  " not in text


def test_a_code_is_explained_to_people_and_to_programs() -> None:
    said = CliRunner().invoke(app, ["doctor", "--explain", "tl-tok-002"])
    assert said.exit_code == 0
    assert said.stdout.splitlines() == explanation_lines("TL-TOK-002")
    assert "The token is unknown" in said.stdout and "Cause: " in said.stdout and "Cure: " in said.stdout
    told = json.loads(CliRunner().invoke(app, ["doctor", "--explain", "TL-DEV-001", "--json"]).stdout)
    assert told["code"] == "TL-DEV-001" and told["exit_code"] == 0
    assert explanation_lines("TL-DEV-001")[-1].endswith("only warns")


def test_a_code_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(SettingError, match="TL-TOK-002"):
        explanation_lines("TL-TOK-0002")
    with pytest.raises(SettingError, match="there are TL-PY-001"):
        explanation_lines("nonsense")
