"""A recorded run: JSON Lines, the events as they stand in the ledger, and what workers said between them.

    {"tinylora_recording": 1, "run": "medical-qa"}
    {"n": 1, "at_s": 0.0, "event": {"type": "run_started", ...}}
    {"at_s": 31.5, "worker": "w-0123456789abcdef", "report": {...}}

Events are numbered from 1 on without a gap, and the times of all lines never go back. A name that ends in `.gz` is
gzip. What a visitor need not have is left out: public keys, the names of join tokens, the nonces of leases. Blobs are
never part of a recording.

Reading believes nothing: each line is bounded, each field checked, and the first that is wrong is named by its line.
"""

import gzip
import heapq
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from tinylora.errors import DataError, DiskFull, SettingError, StorageError
from tinylora.federation.events import Event, RunStarted, UnitLeased, WorkerJoined
from tinylora.ledger.sqlite import FILE as LEDGER_FILE
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.protocol.documents import Name
from tinylora.protocol.report import WorkerReport
from tinylora_coordinator.desk import check_output
from tinylora_coordinator.folder import RunFolder, read_run, run_id

MAX_LINE_BYTES = 8 << 20
"""The longest event there is names every leaf of the largest tree with its holder."""
N_AT_ONCE = 2000
"""Events that are fetched from the ledger at a time."""
NO_NONCE = "0"
"""Stands for every nonce."""

AtSeconds: TypeAlias = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


@dataclass(frozen=True)
class Happened:
    """An event, with its number in the ledger and the time of its row."""

    number: int
    at_s: float
    event: Event


@dataclass(frozen=True)
class Told:
    """What a worker said of itself."""

    at_s: float
    worker: str
    report: WorkerReport


Item: TypeAlias = Happened | Told


class Header(BaseModel):
    """The first line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tinylora_recording: Literal[1] = 1
    run: Name


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    at_s: AtSeconds


class _EventLine(_Line):
    n: Annotated[int, Field(ge=1, lt=2**53)]
    event: Event


class _ReportLine(_Line):
    worker: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    report: WorkerReport


def _kind(line: Any) -> str:
    return "event" if isinstance(line, dict) and "event" in line else "report"


_line: TypeAdapter[_EventLine | _ReportLine] = TypeAdapter(
    Annotated[
        Annotated[_EventLine, Tag("event")] | Annotated[_ReportLine, Tag("report")],
        Discriminator(_kind),
    ]
)


# --- writing --------------------------------------------------------------------------------------------------------


def without_secrets(event: Event) -> Event:
    """The event as anybody may have it."""
    if isinstance(event, WorkerJoined):
        return event.model_copy(update={"public_key": "", "token": ""})
    if isinstance(event, UnitLeased):
        return event.model_copy(update={"nonce": NO_NONCE})
    return event


def write_recording(file: Path, run: str, items: Iterable[Item]) -> int:
    """Write a recording; returns how many lines it has after its first. What was there before is replaced at the end.

    Raises:
        DiskFull: There is no room; what was there before still is.
        StorageError: The file cannot be written.
    """
    beside = file.with_name(f".{file.name}.new")
    count = 0
    try:
        with _opened_to_write(beside, is_packed=_is_packed(file)) as out:
            out.write(Header(run=run).model_dump_json().encode() + b"\n")
            latest_s = 0.0
            for item in items:
                latest_s = max(latest_s, item.at_s)  # rows of one moment may have been written a hair apart
                out.write(_as_line(item, latest_s) + b"\n")
                count += 1
        beside.replace(file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        kind = DiskFull if error.errno in (28, 122) else StorageError
        raise kind(f"{file}: {error.strerror or error}; choose another place with --out") from None
    return count


def merged(happened: Iterable[Happened], told: Iterable[Told]) -> Iterator[Item]:
    """Events in the order of their numbers, and between them, by time, what workers said."""
    return heapq.merge(_never_back(happened), sorted(told, key=lambda one: one.at_s), key=lambda item: item.at_s)


def _never_back(happened: Iterable[Happened]) -> Iterator[Item]:
    """Rows of one moment may have been written a hair apart."""
    latest_s = 0.0
    for item in happened:
        latest_s = max(latest_s, item.at_s)
        yield replace(item, at_s=latest_s)


def _as_line(item: Item, at_s: float) -> bytes:
    if isinstance(item, Happened):
        return _EventLine(n=item.number, at_s=at_s, event=without_secrets(item.event)).model_dump_json().encode()
    line = _ReportLine(at_s=at_s, worker=item.worker, report=item.report)
    return line.model_dump_json(exclude_defaults=True).encode()


@contextmanager
def _opened_to_write(file: Path, *, is_packed: bool) -> Iterator[IO[bytes]]:
    """Packed without the time and the name, so that the same run gives the same bytes."""
    with file.open("wb") as raw:
        if not is_packed:
            yield raw
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
            yield packed  # type: ignore[misc]  (GzipFile writes bytes as the other does)


def record(root: Path, file: Path) -> int:
    """Record the run in `root` as far as it is; it may be being served meanwhile. Returns how many lines that are.

    Raises:
        SettingError: There is no run in `root`, or it was never served.
        StorageError: Its ledger cannot be read, or the file not be written.
    """
    run = run_id(read_run(RunFolder(root)).settings)
    if not (root / LEDGER_FILE).exists():
        raise SettingError(f"{root}: the run has not begun, so there is nothing to record; serve it first")
    check_output(file)
    with SqliteLedger.open_readonly(root) as ledger:
        return write_recording(file, run, _happened(ledger))


def _happened(ledger: SqliteLedger) -> Iterator[Item]:
    number = 0
    while rows := ledger.timed_events(number, N_AT_ONCE):
        for number, at_s, event in rows:
            yield Happened(number, at_s, event)


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A recording that was read once from end to end, and is whole."""

    file: Path
    run: str
    n_events: int
    n_reports: int
    end_s: float
    """Time of its last line."""

    def items(self) -> Iterator[Item]:
        """All lines again, from the file.

        Raises:
            DataError: The file was changed since.
            StorageError: The file cannot be read any more.
        """
        return _read(self.file)[1]


def open_recording(file: Path) -> Recording:
    """Read a recording from end to end.

    Raises:
        DataError: A line is none of a recording's; the sentence names it.
        StorageError: The file is not there, or cannot be read.
    """
    header, items = _read(file)
    n_events = n_reports = 0
    end_s = 0.0
    for item in items:
        end_s = item.at_s
        if isinstance(item, Happened):
            n_events += 1
        else:
            n_reports += 1
    if n_events == 0:
        raise DataError(f"{file}: no event in it; a recording begins with run_started")
    return Recording(file, header.run, n_events, n_reports, end_s)


def _read(file: Path) -> tuple[Header, Iterator[Item]]:
    lines = _lines(file)
    number, first = next(lines, (1, b""))
    header = _checked(file, number, lambda: Header.model_validate_json(first, strict=True), "first line")
    return header, _items(file, header, lines)


def _items(file: Path, header: Header, lines: Iterator[tuple[int, bytes]]) -> Iterator[Item]:
    n_events, latest_s = 0, 0.0
    for number, text in lines:
        line = _checked(file, number, lambda text=text: _line.validate_json(text), "line")
        if line.at_s < latest_s:
            raise _wrong(file, number, f"at_s goes back from {latest_s:g} to {line.at_s:g}")
        latest_s = line.at_s
        if isinstance(line, _ReportLine):
            yield Told(line.at_s, line.worker, line.report)
            continue
        n_events += 1
        fault = _misplaced(header, line, n_events)
        if fault:
            raise _wrong(file, number, fault)
        yield Happened(line.n, line.at_s, line.event)


def _misplaced(header: Header, line: _EventLine, expected: int) -> str:
    """What is wrong with an event at this place; nothing where all is right."""
    if line.n != expected:
        return f"expected event {expected}, got {line.n}"
    if isinstance(line.event, RunStarted) != (expected == 1):
        return f"event {expected} is {line.event.type}; a run begins with run_started, once"
    if isinstance(line.event, RunStarted) and line.event.run != header.run:
        return f"is of run {line.event.run}, the first line says {header.run}"
    return ""


def _checked(file: Path, number: int, read: Callable[[], Any], what: str) -> Any:
    try:
        return read()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100]
        raise _wrong(file, number, f"{field or what}: {first['msg'][:100]}") from None


def _wrong(file: Path, number: int, fault: str) -> DataError:
    return DataError(f"{file}, line {number}: {fault}; expected a recording made by `tinylora-coordinator record`")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, none longer than `MAX_LINE_BYTES`."""
    number = 0
    try:
        with gzip.open(file, "rb") if _is_packed(file) else file.open("rb") as source:
            while text := source.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(text) > MAX_LINE_BYTES:
                    raise _wrong(file, number, f"longer than {MAX_LINE_BYTES} bytes")
                yield number, text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _wrong(file, number + 1, f"not readable as gzip ({str(error)[:100]})") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}; expected a recording") from None


def _is_packed(file: Path) -> bool:
    return file.name.endswith(".gz")
