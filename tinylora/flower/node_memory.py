"""Which Flower node this home was last, so that a worker that was killed is itself again at once.

    home/node.json    the node, and where this home was; touched with every heartbeat

Flower counts a killed worker as online until two heartbeats are missed, and lets nobody of the same key in before. The
process that holds the home's lock knows that the other one is dead, and goes on as its node. A home that was copied is
another home: who starts in it cannot know, and waits.
"""

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from tinylora import durable
from tinylora.failpoints import around, reach

FILE = "node.json"
_STEP = "worker.node"
durable.register_file(_STEP)
around(f"{_STEP}.forget")


@runtime_checkable
class NodeMemory(Protocol):
    """Remembers the Flower node that this worker is. Nothing of it must fail: a worker without memory only waits."""

    def load(self, within_s: float) -> int | None:
        """The node that was seen alive so few seconds ago, here and not in a copy."""
        ...

    def save(self, node_id: int) -> None:
        """This worker is that node, and alive."""
        ...

    def touch(self) -> None:
        """It is still alive."""
        ...

    def forget(self) -> None:
        """It has said good-bye."""
        ...


class _Place(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    node_id: int
    host: str
    home: str
    device: int
    inode: int


class FolderNodeMemory:
    """A memory in a home whose lock the process holds.

    Args:
        home: The worker's.
        clock: Seconds since 1970, as files are dated by.
    """

    def __init__(self, home: Path, *, clock: Callable[[], float] = time) -> None:
        self._home, self._file, self._clock = home, home / FILE, clock

    def load(self, within_s: float) -> int | None:
        """The node that was seen alive so few seconds ago, here and not in a copy."""
        try:
            kept = _Place.model_validate_json(self._file.read_bytes())
            age_s = self._clock() - self._file.stat().st_mtime
            is_here = kept == self._place(kept.node_id)
        except (OSError, ValidationError):
            return None
        return kept.node_id if is_here and 0 <= age_s <= within_s else None

    def save(self, node_id: int) -> None:
        """This worker is that node, and alive."""
        with suppress(OSError):
            durable.replace_file(self._file, self._place(node_id).model_dump_json().encode(), name=_STEP)
        self.touch()

    def touch(self) -> None:
        """It is still alive."""
        at = self._clock()
        with suppress(OSError):
            os.utime(self._file, (at, at))

    def forget(self) -> None:
        """It has said good-bye."""
        with suppress(OSError):
            reach(f"{_STEP}.forget.before")
            self._file.unlink(missing_ok=True)
            reach(f"{_STEP}.forget.after")

    def _place(self, node_id: int) -> _Place:
        found = self._home.stat()
        return _Place(
            node_id=node_id,
            host=platform.node(),
            home=str(self._home.resolve()),
            device=found.st_dev,
            inode=found.st_ino,
        )


class NoMemory:
    """Remembers nothing."""

    def load(self, within_s: float) -> int | None:
        """Nothing."""
        return None

    def save(self, node_id: int) -> None:
        """Nothing to do."""

    def touch(self) -> None:
        """Nothing to do."""

    def forget(self) -> None:
        """Nothing to do."""
