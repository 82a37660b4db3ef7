"""A unit as it lies in its folder, read by whoever works on it: `tinylora.flower.outbox` names the files."""

import logging
from pathlib import Path

from tinylora.errors import ProtocolError
from tinylora.flower.outbox import CHECKPOINT, PAYLOAD, UNIT
from tinylora.protocol.documents import WorkUnit, sha256
from tinylora.training import Snapshot

log = logging.getLogger(__name__)


def read_unit(folder: Path) -> WorkUnit:
    """The unit in this folder.

    Raises:
        ProtocolError: There is none, or it is not readable.
    """
    try:
        return WorkUnit.from_json((folder / UNIT).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{folder / UNIT}: not readable: {error}") from None


def read_payload(folder: Path, unit: WorkUnit) -> bytes:
    """The unit's tensors.

    Raises:
        ProtocolError: They are not there, or not those that the unit came with.
    """
    try:
        payload = (folder / PAYLOAD).read_bytes()
    except OSError as error:
        raise ProtocolError(f"{folder / PAYLOAD}: not readable: {error.strerror or error}") from None
    if sha256(payload) != unit.payload_sha256:
        raise ProtocolError(f"{folder / PAYLOAD}: altered on disk; the unit has to come again")
    return payload


def read_checkpoint(folder: Path) -> Snapshot | None:
    """Where an earlier run of the unit came to; None where there is none, or none that can be read."""
    try:
        return Snapshot.from_bytes((folder / CHECKPOINT).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ProtocolError) as error:
        log.warning("%s: %s; the unit starts over", folder / CHECKPOINT, error)
        return None
