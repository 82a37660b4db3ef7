"""All examples at some paths: every file's layout is found at its first row and told, every bad row has its place."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinylora.errors import DataError
from tinylora.reading.layouts import TEXT, Example, Layout, check_columns, example_of, layout_of, no_layout
from tinylora.reading.rows import Rejected, Row, read_rows
from tinylora.reading.sources import READABLE, Source, find_sources, is_hidden

log = logging.getLogger(__name__)

OnRejected = Callable[[Rejected], None]


@dataclass
class Findings:
    """What reading found besides examples."""

    layouts: dict[str, int] = field(default_factory=dict)
    """Files by layout."""
    n_files: int = 0
    n_blank: int = 0
    """Rows of white space alone."""
    hidden: int = 0
    binary: int = 0
    empty: int = 0

    def skipped(self) -> str:
        """Files that were passed over in folders."""
        return f"skipped {self.hidden} hidden, {self.binary} binary and {self.empty} empty files"


def stop(rejected: Rejected) -> None:
    """What training does with a bad row: nothing is left out in silence.

    Raises:
        DataError: Always.
    """
    raise rejected.error()


def read_examples(
    paths: Sequence[Path],
    *,
    columns: Mapping[str, str] | None = None,
    on_rejected: OnRejected = stop,
    findings: Findings | None = None,
) -> Iterator[Example]:
    """Examples at `paths`, folders in sorted order, row by row; not more than one row is held in memory.

    A text file is one example. JSON, JSONL, CSV and Parquet have one per row, by the file's layout. In a folder,
    hidden, binary and empty files are passed over and counted; JSON and CSV files there that hold no rows with a known
    layout, such as a `package.json` among code, are text like any other. A file that was named must be what its name
    says.

    Args:
        paths: Files, folders, globs.
        columns: Which columns hold what, see `layouts.parse_columns`; what is not said is detected.
        on_rejected: Told of every row that cannot be used; an error unless told otherwise.
        findings: Filled while examples are taken.

    Raises:
        DataError: A path is missing or no file, a file is unreadable, holds nothing, or has none of the columns.
        SettingError: `columns` names no layout.
    """
    columns, findings = columns or {}, findings or Findings()
    check_columns(columns)
    n_found: dict[Path | None, int] = {}
    for source in find_sources(paths):
        found = n_found.setdefault(source.folder, 0)
        for example in examples_of(source, columns, on_rejected, findings):
            found += 1
            yield example
        n_found[source.folder] = found
    _check_folders(paths, n_found, findings)


def _check_folders(paths: Sequence[Path], n_found: Mapping[Path | None, int], findings: Findings) -> None:
    """A folder without text is a mistake."""
    for path in paths:
        if path.is_dir() and not n_found.get(path):
            raise DataError(f"{path}: no text in this folder ({findings.skipped()}); expected {READABLE}")
    if findings.hidden or findings.binary or findings.empty:
        log.info("%s: %s", ", ".join(map(str, paths)), findings.skipped())


def examples_of(
    source: Source, columns: Mapping[str, str], on_rejected: OnRejected, findings: Findings
) -> Iterator[Example]:
    """Examples of one file, as `read_examples` reads it.

    Raises:
        DataError: It is unreadable, holds nothing, or has none of the columns.
    """
    if source.folder is not None and is_hidden(source.path.relative_to(source.folder)):
        findings.hidden += 1
        return
    if source.kind == "text":
        yield from _text_of(source, on_rejected, findings)
        return
    reading = _Table(source, columns, on_rejected, findings)
    if source.folder is not None and source.kind in ("json", "csv", "tsv") and not reading.has_layout():
        log.info("%s: has no rows of a known layout, and is read as text", source.path)
        yield from _text_of(_as_text(source), on_rejected, findings)
        return
    yield from reading.examples()


def _as_text(source: Source) -> Source:
    return Source(source.path, source.name, "text", source.packing, source.folder)


def _text_of(source: Source, on_rejected: OnRejected, findings: Findings) -> Iterator[Example]:
    for row in read_rows(source, lambda names: names):
        if isinstance(row, Rejected):
            if source.folder is None:
                on_rejected(row)
            else:
                findings.binary += 1
            continue
        example = example_of(row, TEXT)
        if isinstance(example, Example):
            findings.n_files += 1
            findings.layouts["plain text"] = findings.layouts.get("plain text", 0) + 1
            yield example
        elif source.folder is None:
            on_rejected(Rejected(row.where, "the file is empty; expected text"))
        else:
            findings.empty += 1


class _Table:
    """The rows of one file and their layout."""

    def __init__(self, source: Source, columns: Mapping[str, str], on_rejected: OnRejected, findings: Findings) -> None:
        self._source, self._columns, self._on_rejected, self._findings = source, columns, on_rejected, findings
        self._layout: Layout | None = None

    def has_layout(self) -> bool:
        """Whether the first row can be read and has a layout."""
        try:
            first = next(iter(read_rows(self._source, lambda names: names)), None)
        except DataError:
            return False
        return isinstance(first, Row) and layout_of(list(first.fields), self._columns) is not None

    def examples(self) -> Iterator[Example]:
        """Those of the file.

        Raises:
            DataError: It has no usable columns, or no row with text in it.
        """
        n_examples = n_rejected = 0
        for row in read_rows(self._source, self._choose):
            found = row if isinstance(row, Rejected) else example_of(row, self._layout_for(row))
            if isinstance(found, Rejected):
                n_rejected += 1
                self._on_rejected(found)
            elif found is None:
                self._findings.n_blank += 1
            else:
                n_examples += 1
                yield found
        if not n_examples and not n_rejected:
            wanted = self._layout.columns if self._layout else (self._columns.get("text", "text"),)
            named = " and ".join(repr(column) for column in wanted)
            raise DataError(f"{self._source.path}: no document in this file; expected at least one with column {named}")

    def _choose(self, names: Sequence[str]) -> Sequence[str]:
        return self._found(str(self._source.path), names).columns

    def _layout_for(self, row: Row) -> Layout:
        return self._layout or self._found(row.where, list(row.fields))

    def _found(self, where: str, names: Sequence[str]) -> Layout:
        layout = layout_of(names, self._columns)
        if layout is None:
            raise no_layout(where, names, self._columns)
        self._layout = layout
        self._findings.n_files += 1
        self._findings.layouts[str(layout)] = self._findings.layouts.get(str(layout), 0) + 1
        log.info("%s: rows are read as %s", self._source.path, layout)
        return layout
