"""Change one key of a TOML file of plain keys, and leave every other line as its owner wrote it."""

import json
import re
import tomllib


def edit(text: str, key: str, value: object) -> str:
    """The text with `key = value` in place of what it said of this key; with None it says nothing of it.

    A new key goes below the comment that explains it, or to the end.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    whole = text.replace("\r\n", "\n").removesuffix("\n")
    lines = whole.split("\n") if whole else []  # not splitlines(): it splits within strings, too
    statement = [f"{key} = {_written(value)}"] if value is not None else []
    found = _statement(lines, key)
    if found is not None:
        start, end = found
        comment = _comment_behind(lines[start]) if end == start + 1 else ""
        if statement and comment:
            statement[-1] += f"  {comment}"
        lines[start:end] = statement
    else:
        shown = re.compile(rf"#\s*{re.escape(key)}\s*=")
        at = next((n + 1 for n, line in enumerate(lines) if shown.match(line)), len(lines))
        lines[at:at] = statement
    return newline.join([*lines, ""])


def _written(value: object) -> str:
    """A string, number, truth value or list of these: JSON but for one letter that TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _statement(lines: list[str], key: str) -> tuple[int, int] | None:
    """Lines from the key to the end of its value, which is where they are TOML by themselves."""
    begins = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
    for start, line in enumerate(lines):
        if not begins.match(line):
            continue
        for end in range(start + 1, len(lines) + 1):
            if _is_toml("\n".join(lines[start:end])):
                return start, end
        return start, start + 1
    return None


def _comment_behind(line: str) -> str:
    """The comment at the end of a statement of one line; a # within a string begins none."""
    places = (place for place, letter in enumerate(line) if letter == "#")
    return next((line[place:] for place in places if _is_toml(line[:place])), "")


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True
