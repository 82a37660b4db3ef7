"""The pages and the blocks of commands in them; docs/writing.md says the same to those who write."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNNABLE = ("console", "bash", "python")
NOT_PAGES = ("docs/log.md", "docs/decisions/", "docs/quality/", "docs/_build/")
"""What was true on its day, and what is built."""

REMARKS = ("run", "setup", "not run", "section not run", "file", "background", "exits")
_REMARK = re.compile(rf"<!--\s*(?P<kind>{'|'.join(REMARKS)}):\s*(?P<said>.*?)\s*-->\s*", re.DOTALL)
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^ *(?P=ticks)[ \t]*$", re.MULTILINE | re.DOTALL
)
_PARTS = re.compile(rf"{_REMARK.pattern}|(?P<heading>^#{{1,2}} [^\n]*$)|{_FENCE.pattern}", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """What somebody types, and what is shown below it."""

    text: str
    shown: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Block:
    """One block of a page with what stands invisibly above it.

    `language` is empty where only a `setup` stands there.
    """

    page: Path
    line: int
    language: str
    text: str
    remarks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self) -> str:
        """Why it is not run; empty for what is."""
        return self.remarks.get("not run", "")

    @property
    def commands(self) -> list[Command]:
        """Commands in their order; a block of bash is one."""
        if "run" in self.remarks:
            return [Command(self.remarks["run"], (), self.line)]
        if self.language == "console":
            return list(_typed(self.text, self.line))
        return [Command(self.text, (), self.line)] if self.language == "bash" else []

    @property
    def written(self) -> list[Command]:
        """Commands as they stand on the page, whatever is run instead."""
        return Block(self.page, self.line, self.language, self.text).commands


def pages() -> list[Path]:
    """Every page whose commands hold today."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy/README.md", ROOT / "examples/README.md"]
    found += sorted((ROOT / "docs").rglob("*.md"))
    return [page for page in found if page.exists() and not page.relative_to(ROOT).as_posix().startswith(NOT_PAGES)]


def blocks(page: Path) -> Iterator[Block]:
    """The page's runnable blocks and setups, in their order."""
    text = page.read_text(encoding="utf-8")
    remarks: dict[str, str] = {}
    section, coming, end = "", "", 0
    for part in _PARTS.finditer(text):
        if text[end : part.start()].strip():
            remarks, coming = {}, ""  # a remark belongs to what stands right below it
        end = part.end()
        line = text.count("\n", 0, part.start()) + 1
        if part["heading"]:
            remarks, section, coming = {}, coming, ""
        elif part["kind"] == "setup":
            yield Block(page, line, "", "", {"run": part["said"]})
        elif part["kind"] == "section not run":
            section = coming = part["said"]
        elif part["kind"]:
            remarks = remarks | {part["kind"]: part["said"]}
        else:
            language = part["language"].strip()
            if language in RUNNABLE or "file" in remarks:
                yield Block(
                    page, line + 1, language, _without(part), remarks | ({"not run": section} if section else {})
                )
            remarks = {}


def _without(fence: re.Match[str]) -> str:
    """Text of a block without the indentation of a list that it stands in."""
    return re.sub(rf"^ {{0,{len(fence['indent'])}}}", "", fence["text"], flags=re.MULTILINE)


def _typed(text: str, line: int) -> Iterator[Command]:
    """Lines that begin with `$ ` and go on after a backslash; all else is what is shown below them."""
    typed, shown, start, goes_on, here_document = [], [], line, False, ""
    for number, row in enumerate(text.splitlines(), line):
        if goes_on or here_document:
            typed.append(row)
            goes_on, here_document = row.endswith("\\"), "" if row == here_document else here_document
        elif row.startswith("$ "):
            if typed:
                yield Command("\n".join(typed), tuple(shown), start)
            typed, shown, start, goes_on = [row[2:]], [], number, row.endswith("\\")
            begun = re.search(r"<<-?'?(\w+)'?", row)
            here_document = begun[1] if begun else ""
        else:
            shown.append(row)
    if typed:
        yield Command("\n".join(typed), tuple(shown), start)
