"""A ledger that lives as long as its process: for simulations and tests."""

from collections.abc import Sequence
from pathlib import Path

from tinylora.errors import StorageError
from tinylora.federation.events import Event, event_to_json
from tinylora.protocol.documents import sha256 as sha256_of


class MemoryLedger:
    """Events in a list, blobs in a dict; the contract of `ports.Ledger` without durability."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._blobs: dict[str, bytes] = {}
        self._snapshot: tuple[int, str] | None = None

    def append(self, events: Sequence[Event], now_s: float) -> None:
        """Add events in order; `now_s` is not kept."""
        self._events.extend(events)

    def events(self, after: int = 0) -> Sequence[Event]:
        """Events in order, without the first `after` ones."""
        return tuple(self._events[after:])

    def chain_at(self, number: int) -> str:
        """Hash over the first `number` events.

        Raises:
            StorageError: There are fewer.
        """
        if number > len(self._events):
            raise StorageError(f"there is no event {number} in this ledger")
        return sha256_of("\n".join(map(event_to_json, self._events[:number])).encode())

    def put_blob(self, data: bytes, *, sha256: str = "") -> str:
        """Keep bytes under their hex sha256."""
        name = sha256 or sha256_of(data)
        self._blobs.setdefault(name, bytes(data))
        return name

    def get_blob(self, sha256: str) -> bytes:
        """Bytes kept under this name.

        Raises:
            StorageError: There are none.
        """
        if sha256 not in self._blobs:
            raise StorageError(f"blob {sha256}: not in the ledger")
        return self._blobs[sha256]

    def adopt_blob(self, file: Path, sha256: str) -> str:
        """Keep the bytes of a file, which is gone afterwards."""
        name = self.put_blob(file.read_bytes(), sha256=sha256)
        file.unlink()
        return name

    def drop_blobs(self, names: Sequence[str]) -> None:
        """Forget blobs."""
        for name in names:
            self._blobs.pop(name, None)

    def stored_bytes(self) -> int:
        """Size of all blobs together."""
        return sum(map(len, self._blobs.values()))

    def save_snapshot(self, n_events: int, text: str) -> None:
        """Keep the state after some events."""
        self._snapshot = (n_events, text)

    def load_snapshot(self) -> tuple[int, str] | None:
        """The last snapshot."""
        return self._snapshot
