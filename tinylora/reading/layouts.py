"""What a row says, by its columns: a text, a conversation, or a prompt and its completion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tinylora.errors import DataError, SettingError
from tinylora.reading.rows import Rejected, Row, type_name

LayoutName: TypeAlias = Literal["text", "messages", "prompt+completion"]
Role: TypeAlias = Literal["text", "prompt", "completion", "system", "user", "assistant", "tool"]
COLUMNS = ("text", "messages", "prompt", "completion")
"""What `--map` can say about columns."""
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True)
class Layout:
    """How the rows of one file are read."""

    name: LayoutName
    columns: tuple[str, ...]
    """Of the file, in the order text / messages / prompt and completion."""

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.columns)})"


@dataclass(frozen=True)
class Part:
    """A piece of an example, by who says it."""

    role: Role
    text: str


@dataclass(frozen=True)
class Example:
    """What becomes one document."""

    name: str
    where: str
    layout: LayoutName
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All of it; of a plain text, that text."""
        return "\n".join(part.text for part in self.parts)


TEXT = Layout("text", ("text",))


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Columns from what `--map` says: `text=body` reads the texts from column `body`.

    Raises:
        SettingError: A pair is not of that form, of an unknown key, or they contradict each other.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, sign, column = pair.partition("=")
        if not sign or not column or key in found:
            raise SettingError(f"--map {pair}: expected KEY=COLUMN, each key once, such as --map text=body")
        found[key] = column
    check_columns(found)
    return found


def text_in(column: str) -> dict[str, str]:
    """A mapping that reads texts from this column; the usual one maps nothing, so that layouts are detected."""
    return {} if column == "text" else {"text": column}


def check_columns(columns: Mapping[str, str]) -> None:
    """Check that a mapping of columns names one layout.

    Raises:
        SettingError: It does not.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise SettingError(f"--map {unknown[0]}=...: no such key; expected one of {', '.join(COLUMNS)}")
    kinds = {"prompt" if key == "completion" else key for key in columns}
    if len(kinds) > 1:
        raise SettingError(f"--map of {' and '.join(sorted(columns))}: choose one of text, messages, prompt+completion")


def layout_of(found: Sequence[str], columns: Mapping[str, str]) -> Layout | None:
    """How a file with these columns is read; None: there is no way.

    Where columns are mapped, as the mapping says; otherwise the first of `messages`, ShareGPT's `conversations`,
    `prompt` with `completion`, `text` that is there.

    Args:
        found: The file's columns.
        columns: A mapping, see `parse_columns`; may be empty.
    """
    if "text" in columns:
        ways = [Layout("text", (columns["text"],))]
    elif "messages" in columns:
        ways = [Layout("messages", (columns["messages"],))]
    elif columns:
        both = columns.get("prompt", "prompt"), columns.get("completion", "completion")
        ways = [Layout("prompt+completion", both)]
    else:
        ways = [
            Layout("messages", ("messages",)),
            Layout("messages", ("conversations",)),
            Layout("prompt+completion", ("prompt", "completion")),
            TEXT,
        ]
    return next((way for way in ways if set(way.columns) <= set(found)), None)


def no_layout(where: str, found: Sequence[str], columns: Mapping[str, str]) -> DataError:
    """The error for a file whose columns give no layout."""
    names = ", ".join(sorted(found)[:20]) or "(none)"
    wanted = (
        " and ".join(repr(columns[key]) for key in columns)
        if columns
        else "'text', 'messages', 'conversations' or 'prompt' and 'completion'"
    )
    return DataError(f"{where}: no column {wanted}; found: {names}; name one of these, such as --map text=NAME")


def example_of(row: Row, layout: Layout) -> Example | Rejected | None:
    """What a row says; None where that is white space alone."""
    if isinstance(row.fields, str):
        text = row.fields
        return Example(row.name, row.where, "text", (Part("text", text),)) if text.strip() else None
    missing = next((column for column in layout.columns if column not in row.fields), None)
    if missing is not None:
        found = ", ".join(sorted(row.fields)[:20]) or "(none)"
        return Rejected(row.where, f"no column {missing!r}, which the rows before it have; found: {found}")
    values = [row.fields[column] for column in layout.columns]
    try:
        parts = _parts(layout, values)
    except _WrongError as wrong:
        return Rejected(row.where, str(wrong))
    is_blank = not any(part.text.strip() for part in parts)
    return None if is_blank else Example(row.name, row.where, layout.name, parts)


def question_of(row: Row) -> tuple[Part, ...] | Rejected:
    """What a row asks a model to go on from: a conversation that waits for its answer, a prompt, or a line of text."""
    fields = {"prompt": row.fields} if isinstance(row.fields, str) else row.fields
    column = next((name for name in ("messages", "conversations", "prompt") if name in fields), None)
    if column is None:
        found = ", ".join(sorted(fields)[:20]) or "(none)"
        return Rejected(row.where, f"no column 'prompt' or 'messages'; found: {found}")
    try:
        if column == "prompt":
            return (Part("prompt", _text(fields[column], "column 'prompt'")),)
        parts = _messages(fields[column], column)
        if not parts or parts[-1].role == "assistant":
            raise _WrongError(f"column {column!r}: the last word is not the user's, so there is nothing to answer")
    except _WrongError as wrong:
        return Rejected(row.where, str(wrong))
    return parts


class _WrongError(Exception):
    """Why a row cannot be used."""


def _parts(layout: Layout, values: Sequence[Any]) -> tuple[Part, ...]:
    if layout.name == "text":
        return (Part("text", _text(values[0], f"column {layout.columns[0]!r}")),)
    if layout.name == "messages":
        return _conversation(values[0], layout.columns[0])
    prompt, completion = (
        _text(value, f"column {column!r}") for value, column in zip(values, layout.columns, strict=True)
    )
    if not completion.strip() and prompt.strip():
        raise _WrongError(f"column {layout.columns[1]!r}: an empty completion, so nothing to learn")
    return Part("prompt", prompt), Part("completion", completion)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise _WrongError(f"{what}: expected text, got {type_name(value)}")
    if "\0" in value:
        raise _WrongError(f"{what}: holds NUL, which no text does")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _WrongError(f"{what}: half of a surrogate pair is no text") from None
    return value


def _conversation(value: object, column: str) -> tuple[Part, ...]:
    parts = _messages(value, column)
    if not any(part.role == "assistant" and part.text.strip() for part in parts):
        raise _WrongError(f"column {column!r}: no message of the assistant, so nothing to learn")
    return parts


def _messages(value: object, column: str) -> tuple[Part, ...]:
    if isinstance(value, str):  # CSV has no other way to hold one
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _WrongError(f"column {column!r}: expected a list of messages, got text that is no JSON") from None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _WrongError(f"column {column!r}: expected a list of messages, got {type_name(value)}")
    return tuple(_message(message, f"message {number}") for number, message in enumerate(value, start=1))


def _message(message: object, what: str) -> Part:
    if not isinstance(message, Mapping):
        raise _WrongError(f"{what}: expected an object with role and content, got {type_name(message)}")
    role_key, text_key = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    for key in (role_key, text_key):
        if key not in message:
            raise _WrongError(f"{what}: no {key!r}; found: {', '.join(sorted(map(str, message))) or '(none)'}")
    role = message[role_key]
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise _WrongError(f"{what}: unknown role {str(role)[:40]!r}; known: system, user, assistant, tool")
    return Part(_ROLES[role.lower()], _content(message[text_key], what))


def _content(value: object, what: str) -> str:
    """The text of a message; some say it in a list of parts."""
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        return "".join(_text(part.get("text"), what) for part in value)
    return _text(value, f"{what}: content")
