"""Markdown that reads well on a code host and in the site."""

import re
from collections.abc import Iterable, Sequence

MADE = "<!-- Made from the code by `python -m tests.docs.reference`; changes belong there. -->"
_CODE = re.compile(r"(`[^`]*`)")
_OPTION = re.compile(r"(?<![\w`-])(--[a-z][\w-]*)")
_SIGNS = re.compile(r"([*<>|])")


def prose(text: str) -> str:
    """Plain text as Markdown: options and what stands in backticks as code, signs that Markdown would read escaped."""
    text = " ".join(text.replace("\\[", "[").split())
    parts = (part if part.startswith("`") else _OPTION.sub(r"`\1`", part) for part in _CODE.split(text))
    return "".join(_escaped(part) for part in _CODE.split("".join(parts)))


def _escaped(part: str) -> str:
    return part.replace("|", "\\|") if part.startswith("`") else _SIGNS.sub(r"\\\1", part)


def code(text: object) -> str:
    """Text as code, in a table too; nothing for nothing."""
    told = str(text).replace("|", "\\|")
    return "" if not told else f"`` {told} ``" if "`" in told else f"`{told}`"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def block(text: str, language: str = "text") -> str:
    """Lines as they stand."""
    return f"```{language}\n{text.strip()}\n```"


def page(title: str, *parts: str) -> str:
    """A whole page, with the line that says where it comes from."""
    return "\n\n".join([f"# {title}", MADE, *(part for part in parts if part)]) + "\n"


def anchor(heading: str) -> str:
    """Of a heading, as code hosts and the site make it."""
    plain = re.sub(r"[`*]|\\(?=[*<>|])", "", heading.strip().lower())
    return "".join(sign for sign in plain if sign.isalnum() or sign in " -_").replace(" ", "-")
