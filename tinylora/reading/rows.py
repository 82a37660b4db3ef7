"""Rows of files, one reader per format: each row with the place that an error names.

Parquet goes through the `datasets` library, streaming, so that no second copy of the text lands in a cache. JSON and
CSV have readers of their own, because that library's change what is written and cannot say where it is broken
(docs/decisions/0011-reading-data.md): a text that looks like a date comes back as one, "NA" as nothing, a column of
numbers as floats, a column too many as an index, and no error names a line.
"""

import codecs
import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from tinylora.errors import DataError
from tinylora.reading.opening import MAX_DOCUMENT_BYTES, opened, read_all
from tinylora.reading.sources import Source

MAX_COLUMNS_BYTES = 512 * 2**20
"""Of a JSON file that is one object of columns: it has to be read as a whole."""
_READ_CHARS = 2**20
_WIDE = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", codecs.BOM_UTF32_BE: "UTF-32"}
Fields: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One row: of a table its fields by column, of a text file its text."""

    name: str
    """Such as `notes.jsonl:17`."""
    where: str
    """For errors, such as `/data/notes.jsonl, line 17`."""
    fields: Fields | str


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why."""

    where: str
    reason: str

    def error(self) -> DataError:
        """The same as an error."""
        return DataError(f"{self.where}: {self.reason}")


Rows: TypeAlias = Iterator[Row | Rejected]
Choose: TypeAlias = Callable[[Sequence[str]], Sequence[str]]
"""Of a file's columns those that are wanted; nothing else is read where that saves something."""


def read_rows(source: Source, choose: Choose) -> Rows:
    """The rows of one file; those that cannot be read with their reason, in their place.

    Raises:
        DataError: The file as a whole is unreadable from some place on.
    """
    reader = {
        "text": _read_text,
        "jsonl": _read_jsonl,
        "json": _read_json,
        "csv": _read_csv,
        "tsv": _read_csv,
        "parquet": _read_parquet,
    }[source.kind]
    return reader(source, choose)


# --- text ------------------------------------------------------------------------------------------------------------


def _read_text(source: Source, _choose: Choose) -> Rows:
    with opened(source) as stream:
        data = read_all(stream, source)
    reason = why_no_text(data)
    if reason:
        yield Rejected(str(source.path), f"{reason}; expected text in UTF-8")
    else:
        yield Row(source.name, str(source.path), data.decode("utf-8-sig"))


def why_no_text(data: bytes) -> str:
    """Why bytes are no text: not UTF-8, or with NUL, which no text holds. Empty: they are."""
    wide = next((name for mark, name in _WIDE.items() if data.startswith(mark)), "")
    if wide:
        return f"a file in {wide}, save it as UTF-8"
    nul = data.find(b"\0")
    if nul >= 0:
        return f"a binary file (byte {nul} is NUL)"
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"a binary file (byte {error.start} is not UTF-8)"
    return ""


# --- JSON ------------------------------------------------------------------------------------------------------------


def _read_jsonl(source: Source, _choose: Choose) -> Rows:
    """One object per line; blank lines are passed over."""
    with opened(source) as stream:
        number = 0
        while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
            number += 1
            where = f"{source.path}, line {number}"
            if len(line) > MAX_DOCUMENT_BYTES:
                raise DataError(f"{where}: longer than {MAX_DOCUMENT_BYTES // 2**20} MiB, the most for one document")
            _check_is_not_wide(line, number, source)
            if line.strip():
                yield _row_of_line(line, where, f"{source.name}:{number}")


def _check_is_not_wide(line: bytes, number: int, source: Source) -> None:
    wide = next((name for mark, name in _WIDE.items() if line.startswith(mark)), "") if number == 1 else ""
    if wide:
        raise DataError(f"{source.path}: a file in {wide}; save it as UTF-8")


def _row_of_line(line: bytes, where: str, name: str) -> Row | Rejected:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        return Rejected(where, "not readable as JSON: nested too deeply")
    except ValueError as error:
        return Rejected(where, f"not readable as JSON: {_why(error)}; expected one object per line")
    return _row(fields, where, name)


def _row(fields: object, where: str, name: str) -> Row | Rejected:
    if not isinstance(fields, dict):
        return Rejected(where, f"expected an object with columns, got {type_name(fields)}")
    return Row(name, where, fields)


def _why(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _read_json(source: Source, _choose: Choose) -> Rows:
    """An array of objects, one after the other, or one object of columns of equal length."""
    with opened(source) as stream, _decoded(stream, source) as text:
        reader = _Array(text, source)
        first = reader.peek()
        if first == "[":
            yield from reader.rows()
        elif first == "{":
            yield from _read_columns(reader.everything(), source)
        elif first:
            raise DataError(f"{source.path}: expected a JSON array of objects, or an object of columns")


class _Array:
    """A JSON array that is read piece by piece."""

    def __init__(self, text: io.TextIOBase, source: Source) -> None:
        self._text, self._source = text, source
        self._buffer, self._at, self._line = "", 0, 1
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            rest = self._buffer[self._at :].lstrip()
            if rest:
                self._skip(len(self._buffer) - len(rest))
                return rest[0]
            self._skip(len(self._buffer))
            if not self._more():
                return ""

    def everything(self) -> str:
        """All that is left."""
        rest = self._buffer[self._at :] + self._text.read(MAX_COLUMNS_BYTES)
        if self._text.read(1):
            most = MAX_COLUMNS_BYTES // 2**20
            raise DataError(f"{self._source.path}: an object of columns larger than {most} MiB; give it as .jsonl")
        return rest

    def rows(self) -> Rows:
        """The objects of the array.

        Raises:
            DataError: What follows is no JSON.
        """
        number, opening = 0, "["
        while self.peek() == opening or (number and self.peek() == ","):
            self._skip(self._at + 1)
            if not number and self.peek() == "]":
                break
            opening, number = ",", number + 1
            self.peek()
            where = f"{self._source.path}, line {self._line} (item {number})"
            yield _row(self._value(where), where, f"{self._source.name}:{number}")
        if self.peek() != "]":
            raise DataError(
                f"{self._source.path}, line {self._line}: not readable as JSON: expected ',' or ']' behind item "
                f"{number}; is the file cut short?"
            )

    def _value(self, where: str) -> object:
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except RecursionError:
                raise DataError(f"{where}: not readable as JSON: nested too deeply") from None
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._at > MAX_DOCUMENT_BYTES or not self._more():
                    raise DataError(f"{where}: not readable as JSON: {error.msg}") from None
                continue
            if end == len(self._buffer) and self._more():
                continue  # a number may go on behind the buffer
            self._skip(end)
            return value

    def _skip(self, end: int) -> None:
        self._line += self._buffer.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        """Read on; as much again as there is, so that a large object is not tried too often."""
        fresh = self._text.read(max(_READ_CHARS, len(self._buffer) - self._at))
        self._buffer, self._at = self._buffer[self._at :] + fresh, 0
        return bool(fresh)


def _read_columns(text: str, source: Source) -> Rows:
    try:
        columns = json.loads(text)
    except RecursionError:
        raise DataError(f"{source.path}: not readable as JSON: nested too deeply") from None
    except ValueError as error:
        what = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{source.path}: not readable as JSON: {what}") from None
    lists = {name: column for name, column in columns.items() if isinstance(column, list)}
    if len(lists) != len(columns) or not columns:
        raise DataError(
            f"{source.path}: one JSON object whose values are no columns; expected an array of objects, an object of "
            "equally long arrays, or .jsonl with one object a line"
        )
    if len({len(column) for column in lists.values()}) > 1:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in lists.items())
        raise DataError(f"{source.path}: its columns differ in length: {sizes}")
    for number, values in enumerate(zip(*lists.values(), strict=True), start=1):
        yield Row(f"{source.name}:{number}", f"{source.path}, row {number}", dict(zip(lists, values, strict=True)))


# --- CSV -------------------------------------------------------------------------------------------------------------


def _read_csv(source: Source, _choose: Choose) -> Rows:
    """A table whose first line names its columns; every value is text as it is written."""
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    with opened(source) as stream, _decoded(stream, source) as text:
        first = text.readline(2**20)
        delimiter = "\t" if source.kind == "tsv" else _delimiter(first)
        lines = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
        header: list[str] = []
        while True:
            started = lines.line_num + 1
            where = f"{source.path}, line {started}"
            try:
                values = next(lines, None)
            except csv.Error as error:
                raise DataError(
                    f"{where}: not readable as {source.kind.upper()}: {error}; is a quote missing?"
                ) from None
            if values is None:
                return
            if not header:
                header = _checked_header(values, where)
            elif not values:
                continue
            elif len(values) != len(header):
                yield Rejected(where, f"{len(values)} values, but the first line names {len(header)} columns")
            else:
                yield Row(f"{source.name}:{started}", where, dict(zip(header, values, strict=True)))


def _delimiter(header: str) -> str:
    """A comma, unless the header has none of them and other things that tables are cut at."""
    return next((sign for sign in ",;\t" if sign in header), ",")


def _checked_header(names: list[str], where: str) -> list[str]:
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: column {twice[0]!r} is named twice; expected a first line with the columns' names")
    return names


@contextmanager
def _decoded(stream: io.BufferedReader, source: Source) -> Iterator[io.TextIOBase]:
    """The text of a file in UTF-8; decoding errors while it is read are errors of the file."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        yield text
    except UnicodeDecodeError as error:
        wide = next((name for mark, name in _WIDE.items() if error.object.startswith(mark)), "")
        what = f"a file in {wide}" if wide else f"not UTF-8 ({error.reason}, byte {error.object[error.start]:#04x})"
        raise DataError(f"{source.path}: {what}; save it as UTF-8") from None
    finally:
        text.detach()


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(source: Source, choose: Choose) -> Rows:
    """One row after the other, batch by batch; only the columns that are wanted are read."""
    with tempfile.TemporaryDirectory(prefix="tinylora-") as scratch, _unpacked(source, Path(scratch)) as file:
        try:
            yield from _rows_of_parquet(file, source, choose, scratch)
        except DataError:
            raise
        except Exception as error:  # pyarrow, fsspec and datasets each have their own
            raise DataError(f"{source.path}: not readable as Parquet: {_first_line(error)}") from None


def _rows_of_parquet(file: Path, source: Source, choose: Choose, scratch: str) -> Rows:
    import pyarrow.parquet as parquet  # late: only those who have Parquet pay for it

    wanted = list(choose(parquet.read_schema(file).names))
    for number, row in enumerate(_streamed(file, wanted, scratch), start=1):
        yield Row(f"{source.name}:{number}", f"{source.path}, row {number}", row)


def _streamed(file: Path, columns: list[str], scratch: str) -> Iterator[dict[str, Any]]:
    import glob

    import datasets  # late: it takes seconds, and brings torch

    was_shown = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    try:
        yield from datasets.load_dataset(
            "parquet",
            data_files=[glob.escape(str(file.resolve()))],
            split="train",
            streaming=True,
            columns=columns,
            batch_size=256,
            cache_dir=scratch,  # it wants a place for a lock, and the usual one may be read-only
        )
    finally:
        datasets.utils.logging.set_verbosity(was_shown)


@contextmanager
def _unpacked(source: Source, scratch: Path) -> Iterator[Path]:
    """The file itself, or its unpacked copy: Parquet is read from its end."""
    if not source.packing:
        yield source.path
        return
    copy = scratch / "unpacked.parquet"
    with opened(source) as stream, copy.open("wb") as out:
        shutil.copyfileobj(stream, out, 2**20)
    yield copy


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def type_name(value: object) -> str:
    """What JSON calls a value's type, as far as people know it."""
    return "null" if value is None else type(value).__name__
