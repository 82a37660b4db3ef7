"""How checks, estimate and consent look on a terminal. Pure: text with styles out."""

import difflib
from collections.abc import Iterable, Sequence

from rich.text import Text

from tinylora.errors import SettingError
from tinylora_worker.preflight.check import NAMES, Check
from tinylora_worker.preflight.codes import CODES

_MARKS = {"ok": ("✔", "green"), "warn": ("!", "yellow"), "fail": ("✘", "red"), "skip": ("-", "dim")}
_ASCII_MARKS = {"ok": "ok", "warn": "!", "fail": "x", "skip": "-"}
_WIDTH = max(map(len, NAMES))
_HEADING_WIDTH = 11


def check_lines(check: Check, *, is_ascii: bool = False) -> list[Text]:
    """What was found; for what fails also what is needed; the cure; the code and how to have it explained."""
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
        lines.append(Text(f"{indent}{check.code}: tinylora-worker doctor --explain {check.code}", style="dim"))
    return lines


def explanation(code: str) -> dict[str, str | int]:
    """What a code means, why it comes to that and what helps: also where no pages are installed.

    Raises:
        SettingError: There is no such code.
    """
    wanted = code.strip().upper()
    if wanted not in CODES:
        near = difflib.get_close_matches(wanted, CODES, n=3, cutoff=0.5)
        raise SettingError(f"--explain {code[:40]}: no such code; {'the nearest are' if near else 'there are'} "
                           f"{', '.join(near or CODES)}")  # fmt: skip
    told = CODES[wanted]
    return {"code": wanted, "title": told.title, "check": told.check, "cause": told.cause, "cure": told.cure,
            "exit_code": told.exit_code}  # fmt: skip


def explanation_lines(code: str) -> list[str]:
    """The same for people."""
    told = explanation(code)
    ends = f"ends with exit code {told['exit_code']}" if told["exit_code"] else "only warns"
    return [f"{told['code']}: {told['title']}", f"  Cause: {told['cause']}", f"  Cure: {told['cure']}",
            f"  Check: {told['check']}, which {ends}"]  # fmt: skip


def heading_lines(pairs: Iterable[tuple[str, str]]) -> list[Text]:
    """Lines of a heading and a text each."""
    return [Text(f" {heading:<{_HEADING_WIDTH}} {text}") for heading, text in pairs]


def summary(checks: Sequence[Check]) -> str:
    """How many came to what, in one line."""
    counts = {status: sum(check.status == status for check in checks) for status in _MARKS}
    words = (("ok", "fine"), ("warn", "to know about"), ("fail", "to cure"), ("skip", "not made"))
    return ", ".join(f"{counts[status]} {word}" for status, word in words if counts[status])
