"""What is asked, from files: lines of text, or rows with a prompt or a conversation; each with its place."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylora.errors import DataError
from tinylora.reading.layouts import Part, question_of
from tinylora.reading.opening import MAX_DOCUMENT_BYTES, opened
from tinylora.reading.rows import Rejected, Row, read_rows, why_no_text
from tinylora.reading.sources import Source, find_sources


@dataclass(frozen=True)
class Question:
    """One prompt or conversation."""

    where: str
    """For errors, such as `asked.jsonl, line 17`."""
    parts: tuple[Part, ...]
    fields: Mapping[str, Any]
    """The row that it stands in; goes along to the answer."""


def prompt_question(text: str) -> Question:
    """One that was given on the command line."""
    return Question("prompt", (Part("prompt", text),), {"prompt": text})


def read_questions(paths: Sequence[Path]) -> list[Question]:
    """All questions at some paths, in their order.

    A file of text has one prompt a line. JSONL, JSON, CSV and Parquet have a row for each, with `prompt` or `messages`;
    blank lines are passed over.

    Raises:
        DataError: A path is missing or unreadable, a line is no question, or there is none at all.
    """
    found = [_question(row) for source in find_sources(paths) for row in _rows(source)]
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no prompt; expected a line of text or a row with 'prompt' each")
    return found


def _rows(source: Source) -> Iterator[Row | Rejected]:
    if source.kind != "text":
        yield from read_rows(source, lambda names: names)
        return
    with opened(source) as stream:
        number = 0
        while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
            number += 1
            where = f"{source.path}, line {number}"
            reason = "too long" if len(line) > MAX_DOCUMENT_BYTES else why_no_text(line)
            if reason:
                yield Rejected(where, f"{reason}; expected a prompt in UTF-8")
            elif line.strip():
                yield Row(f"{source.name}:{number}", where, line.decode("utf-8-sig").rstrip("\r\n"))


def _question(row: Row | Rejected) -> Question:
    if isinstance(row, Rejected):
        raise row.error()
    parts = question_of(row)
    if isinstance(parts, Rejected):
        raise parts.error()
    return Question(row.where, parts, {"prompt": row.fields} if isinstance(row.fields, str) else row.fields)
