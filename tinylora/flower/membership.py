"""What a worker remembers of the run it has joined, so that it comes back without a token.

    home/membership.json    where the coordinator is, by what it is recognised, the run's key

Nothing in it is secret; but whoever could write it could lead the worker elsewhere, so it is its owner's alone.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora import durable
from tinylora.errors import SettingError, StorageError
from tinylora.flower.enrolment import Welcome
from tinylora.flower.join_token import SYSTEM
from tinylora.flower.reach import Address, Trust

FILE = "membership.json"
_STEP = "worker.membership"
durable.register_file(_STEP)


class Membership(BaseModel):
    """A run that this worker has been welcome to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    run: str
    pin: str = SYSTEM
    ca_pem: str = ""
    run_key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Ed25519, public: what receipts and bundles of this run are signed with."""

    @classmethod
    def of(cls, address: Address, welcome: Welcome) -> "Membership":
        """What to remember of a welcome."""
        trust, answer = welcome.trust, welcome.answer
        return cls(
            url=address.url(), run=answer.run, pin=trust.pin, ca_pem=trust.ca_pem.decode(), run_key=answer.run_key
        )

    @property
    def trust(self) -> Trust:
        """By what the coordinator is recognised."""
        return Trust(self.pin, self.ca_pem.encode())


def save_membership(home: Path, membership: Membership) -> None:
    """Remember it, on disk.

    Raises:
        StorageError: The folder cannot be written.
    """
    file = home / FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
        durable.replace_file(file, membership.model_dump_json(indent=1).encode() + b"\n", name=_STEP)
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}; choose another --home") from None


def load_membership(home: Path) -> Membership | None:
    """The run that this home belongs to, if it has joined one.

    Raises:
        SettingError: The file is not readable.
    """
    file = home / FILE
    if not file.exists():
        return None
    try:
        return Membership.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise SettingError(f"{file}: not readable; move it away, and join with a token again") from None
