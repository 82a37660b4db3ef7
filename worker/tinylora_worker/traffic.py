"""Bytes that went over the network, counted by calendar month: HOME/traffic.json.

    {"months": {"2026-11": {"sent": 1204, "received": 88211}, …}}

Totals are written, never differences, so nothing counts twice: every few seconds while much flows, every minute while
little does, and at the end. A crash loses what came since: some seconds of traffic, or a quarter of a megabyte. Months
are those of the wall's clock: bytes go to the month that it shows, and where it was set back they go to the old month,
which is still there.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora import durable
from tinylora.errors import StorageError
from tinylora_worker.schedule import local_now

FILE = "traffic.json"
WRITE_EVERY_S = 5.0
"""While much flows."""
MUCH_BYTES = 1 << 18
WRITE_LITTLE_EVERY_S = 60.0
KEPT_MONTHS = 24
_STEP = "worker.traffic"
durable.register_file(_STEP)

Count = Annotated[int, Field(ge=0)]
MonthName = Annotated[str, Field(pattern=r"^\d{4}-\d{2}$")]


class Month(BaseModel):
    """What one month has seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sent: Count = 0
    received: Count = 0

    @property
    def total(self) -> int:
        """Both ways, as `data_cap` counts."""
        return self.sent + self.received


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    months: dict[MonthName, Month] = {}


class TrafficMeter:
    """Counts for one home; its agent's alone, from as many threads as there are.

    Args:
        home: A folder that exists.
        now: The time, in the zone whose months count.
        clock: Seconds, never going back.

    Raises:
        StorageError: What was counted before cannot be read: then nobody knows what is left of the cap.
    """

    def __init__(
        self, home: Path, *, now: Callable[[], datetime] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = home / FILE
        self._now, self._clock = now or local_now, clock
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._months = read_months(home)
        self._sent = self._received = 0
        self._n_unwritten = 0
        self._written_at_s = clock()
        self.problem = ""
        """Why the count is not on disk, in one sentence; empty while it is. It is tried again."""

    def __call__(self, sent: int, received: int) -> None:
        """As `add`: whatever speaks to the network takes a meter as a function."""
        self.add(sent, received)

    def add(self, sent: int, received: int) -> None:
        """Count bytes; a disk that cannot be written does not stop it."""
        if not sent and not received:
            return
        with self._lock:
            name = month_name(self._now())
            month = self._months.get(name, Month())
            self._months[name] = Month(sent=month.sent + sent, received=month.received + received)
            self._sent += sent
            self._received += received
            self._n_unwritten += sent + received
            waits_s = self._clock() - self._written_at_s
            is_due = waits_s >= (WRITE_EVERY_S if self._n_unwritten >= MUCH_BYTES else WRITE_LITTLE_EVERY_S)
        if is_due:
            self.write()

    @property
    def sent_bytes(self) -> int:
        """Since this meter was made."""
        return self._sent

    @property
    def received_bytes(self) -> int:
        """Since this meter was made."""
        return self._received

    @property
    def month(self) -> Month:
        """This calendar month, earlier runs of this home included."""
        with self._lock:
            return self._months.get(month_name(self._now()), Month())

    @property
    def month_bytes(self) -> int:
        """Both ways, this calendar month: what `data_cap` limits."""
        return self.month.total

    def write(self) -> None:
        """What was counted is on disk; where that fails, `problem` says why."""
        with self._writing:
            with self._lock:
                if not self._n_unwritten:
                    return
                self._written_at_s = self._clock()
                self._months = _latest(self._months, month_name(self._now()))
                content = _File(months=dict(sorted(self._months.items())))
                n_bytes, self._n_unwritten = self._n_unwritten, 0
            try:
                durable.replace_file(self._file, content.model_dump_json(indent=1).encode() + b"\n", name=_STEP)
                self.problem = ""
            except OSError as error:
                with self._lock:
                    self._n_unwritten += n_bytes
                self.problem = f"{self._file}: {error.strerror or error}; the month's traffic is counted in memory"

    def close(self) -> None:
        """Write what was counted since."""
        self.write()


def read_months(home: Path) -> dict[str, Month]:
    """What each month has seen; for whoever does not count himself, too.

    Raises:
        StorageError: The file cannot be read, or is none of ours.
    """
    file = home / FILE
    try:
        return dict(_File.model_validate_json(file.read_bytes()).months)
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError):
        raise StorageError(f"{file}: not readable; move it away, and this month's traffic counts from zero") from None


def month_name(now: datetime) -> str:
    """The month as its clock shows it, "2026-11"."""
    return f"{now.year:04}-{now.month:02}"


def _latest(months: dict[str, Month], now: str) -> dict[str, Month]:
    """The last two years, and the month it is now, whatever a wrong clock has counted elsewhere."""
    return {name: months[name] for name in [*sorted(months)[-KEPT_MONTHS:], now] if name in months}
