"""How checks, estimate and consent look on a terminal. Pure: text with styles out."""

from collections.abc import Iterable, Sequence

from rich.text import Text

from tinylora_worker.preflight.check import NAMES, Check

PAGE = "docs/how-to/join.md"
_MARKS = {"ok": ("✔", "green"), "warn": ("!", "yellow"), "fail": ("✘", "red"), "skip": ("-", "dim")}
_ASCII_MARKS = {"ok": "ok", "warn": "!", "fail": "x", "skip": "-"}
_WIDTH = max(map(len, NAMES))
_HEADING_WIDTH = 11


def check_lines(check: Check, *, is_ascii: bool = False) -> list[Text]:
    """What was found; for what fails also what is needed; the cure; the code and where it is explained."""
    mark, style = _MARKS[check.status]
    first = Text("  ")
    first.append(f"{_ASCII_MARKS[check.status] if is_ascii else mark:<2}", style=style)
    first.append(f"{check.name:<{_WIDTH}}  {check.found}", style="dim" if check.status == "skip" else "")
    lines = [first]
    indent = " " * (_WIDTH + 6)
    if check.status == "fail":
        lines.append(Text(f"{indent}needed: {check.needed}"))
    if check.cure:
        lines.append(Text(f"{indent}{check.cure}"))
        lines.append(Text(f"{indent}{check.code}, see {PAGE}#{anchor(check)}", style="dim"))
    return lines


def anchor(check: Check) -> str:
    """Where the page explains a code; a heading's anchor is its words in lower case with dashes, as GitHub makes it."""
    from tinylora_worker.preflight.codes import CODES

    heading = f"{check.code}: {CODES[check.code].title}".lower()
    return "".join(sign for sign in heading if sign.isalnum() or sign in " -_").replace(" ", "-")


def heading_lines(pairs: Iterable[tuple[str, str]]) -> list[Text]:
    """Lines of a heading and a text each."""
    return [Text(f" {heading:<{_HEADING_WIDTH}} {text}") for heading, text in pairs]


def summary(checks: Sequence[Check]) -> str:
    """How many came to what, in one line."""
    counts = {status: sum(check.status == status for check in checks) for status in _MARKS}
    words = (("ok", "fine"), ("warn", "to know about"), ("fail", "to cure"), ("skip", "not made"))
    return ", ".join(f"{counts[status]} {word}" for status, word in words if counts[status])
