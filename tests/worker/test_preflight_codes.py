"""The list of codes against the volunteer's page: one section each, with cause and cure, and none besides."""

import re
from collections.abc import Iterator
from pathlib import Path

from tinylora_worker.preflight.check import NAMES
from tinylora_worker.preflight.codes import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "join.md").read_text(encoding="utf-8")


def sections() -> Iterator[tuple[str, str, str]]:
    for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        if heading.startswith("TL-"):
            code, _, title = heading.partition(": ")
            yield code, title, re.split(r"^##? ", body, flags=re.MULTILINE)[0]


def test_the_page_and_the_list_are_the_same() -> None:
    found = list(sections())
    assert [(code, title) for code, title, _ in found] == [(code, CODES[code].title) for code in CODES]
    for code, _, body in found:
        assert "Cause: " in body and "Cure: " in body, code


def test_codes_are_well_formed_and_every_check_can_say_what_is_wrong() -> None:
    assert all(re.fullmatch(r"TL-[A-Z]{2,3}-\d{3}", code) for code in CODES)
    assert {code.check for code in CODES.values()} == set(NAMES)
