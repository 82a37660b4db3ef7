"""What an agent must not forget when it is killed: HOME/state.json.

* whether it is paused, until when or until resumed;
* whether it leaves after the unit under way;
* the job: base, text and the rest of what `run` needs without arguments.
"""

import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tinylora import durable
from tinylora.errors import SettingError, StorageError
from tinylora_worker.agent.options import Job

FILE = "state.json"
_STEP = "worker.state"
durable.register_file(_STEP)


class Kept(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    is_paused: bool = False
    """By its owner; limits are not kept, they are looked at anew."""
    paused_until_s: float = 0.0
    """Seconds since 1970; 0: until resumed."""
    is_finishing: bool = False
    job: Job | None = None


class Store:
    """The file, and what it holds. Several threads may change it."""

    def __init__(self, home: Path) -> None:
        """Read what is there.

        Raises:
            SettingError: The file is not readable.
        """
        self._file, self._lock = home / FILE, threading.Lock()
        self._kept = read(home)

    @property
    def kept(self) -> Kept:
        """What is on disk now."""
        return self._kept

    def change(self, **fields: Any) -> Kept:
        """Set these fields, on disk when the call returns.

        Raises:
            StorageError: The file cannot be written; what was there stays.
        """
        with self._lock:
            changed = self._kept.model_copy(update=fields)
            if changed != self._kept:
                try:
                    durable.replace_file(self._file, changed.model_dump_json(indent=1).encode() + b"\n", name=_STEP)
                except OSError as error:
                    raise StorageError(f"{self._file}: {error.strerror or error}; free some space") from None
                self._kept = changed
            return changed


def read(home: Path) -> Kept:
    """What a home remembers; a home without the file remembers nothing.

    Raises:
        SettingError: The file is not readable.
    """
    file = home / FILE
    try:
        return Kept.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Kept()
    except (OSError, ValidationError):
        raise SettingError(f"{file}: not readable; move it away, and start again") from None
