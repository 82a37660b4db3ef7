"""What Prometheus is told beside the state of the run: refusals by code, orders that wait, disk, certificate, log.

For the operator's alarms. Each part is looked up on its own; what cannot be known has no sample.
"""

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from tinylora.errors import StorageError
from tinylora.federation.events import Event, UpdateProbed, UpdateRejected, WorkerQuarantined
from tinylora.federation.standing import CLASS_OF
from tinylora.ledger.sqlite import FILE, SqliteLedger

_TYPES = ("update_rejected", "update_probed", "worker_quarantined")
_ROWS = 20_000
"""Looked at in one go: some milliseconds of reading."""
WORSE = "worse_on_heldout"


@dataclass(frozen=True)
class Machine:
    """One look."""

    rejections: Mapping[str, int] = field(default_factory=dict)
    """By code."""
    n_quarantined: int = 0
    """How often a worker was put into quarantine."""
    n_orders: int | None = None
    """Orders that the rounds have not carried out yet."""
    is_log_readable: bool = True
    disk_free_bytes: int | None = None
    disk_bytes: int | None = None
    certificate_ends_s: float | None = None
    """Seconds since 1970, of the certificate that is shown at the public port."""


def class_of(code: str) -> str:
    """How a refusal is held against its worker: benign, fault, harm or forgery."""
    return CLASS_OF.get(code, "fault")


def certificate_end(file: Path) -> float | None:
    """When a certificate ends, seconds since 1970; None where it cannot be read."""
    with suppress(OSError, ValueError):
        return x509.load_pem_x509_certificates(file.read_bytes())[0].not_valid_after_utc.timestamp()
    return None


class MachineWatch:
    """Looks when it is asked; of the log, only at what is new. May be asked from any thread.

    Args:
        root: The run's folder; its ledger may come later.
        n_orders: How many orders wait.
        certificate_ends_s: Of the certificate that is shown.
    """

    def __init__(self, root: Path, *, n_orders: Callable[[], int], certificate_ends_s: float | None) -> None:
        self._root, self._n_orders, self._certificate_ends_s = root, n_orders, certificate_ends_s
        self._lock = threading.Lock()
        self._ledger: SqliteLedger | None = None
        self._n_seen = 0
        self._rejections: Counter[str] = Counter()
        self._n_quarantined = 0

    def look(self) -> Machine:
        """What is so now."""
        with self._lock:
            is_readable = self._follow()
            n_orders = free = size = None
            with suppress(StorageError):
                n_orders = self._n_orders()
            with suppress(OSError):
                size, _, free = shutil.disk_usage(self._root)
            return Machine(
                rejections=dict(self._rejections),
                n_quarantined=self._n_quarantined,
                n_orders=n_orders,
                is_log_readable=is_readable,
                disk_free_bytes=free,
                disk_bytes=size,
                certificate_ends_s=self._certificate_ends_s,
            )

    def _follow(self) -> bool:
        """Take in what the log says since the last look; returns whether it could be read."""
        try:
            if self._ledger is None:
                if not (self._root / FILE).exists():
                    return True  # nothing has happened yet
                self._ledger = SqliteLedger.open_readonly(self._root)
            while True:
                n_seen, events = self._ledger.events_of(_TYPES, self._n_seen, _ROWS)
                self._take(events)
                is_end, self._n_seen = n_seen < self._n_seen + _ROWS, n_seen
                if is_end:
                    return True
        except StorageError:
            return False

    def _take(self, events: Iterable[tuple[int, Event]]) -> None:
        for _, event in events:
            match event:
                case UpdateRejected():
                    self._rejections[event.code.partition(".")[0]] += 1
                case UpdateProbed() if not event.is_kept:
                    self._rejections[WORSE] += 1
                case WorkerQuarantined():
                    self._n_quarantined += 1
                case _:
                    continue

    def close(self) -> None:
        """Let go of the ledger."""
        with self._lock:
            ledger, self._ledger = self._ledger, None
        if ledger is not None:
            with suppress(StorageError):
                ledger.close()
