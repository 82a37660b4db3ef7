"""Everything that touches flwr. Flower carries messages and tells who is online; what they mean is decided elsewhere.

    compat/       every flwr-internal import, one contract test per symbol; the rest imports flwr's public API only
    join_token.py which coordinator a worker may trust, and what it must show there. No flwr
    reach.py      addresses, whom to believe, one question to a coordinator. No flwr
    enrolment.py  joining: the documents, and the worker's side of the route. No flwr
    membership.py what a worker remembers of its run, so that it comes back without a token. No flwr
    receipts.py   the run's word for each accepted update: asked for, checked, kept
    identity.py   a worker's key on disk, its name on the wire, signatures. No flwr
    texts.py      text from outside, made harmless. No flwr
    messages.py   work units and updates <-> Flower's records
    fleet.py      the worker's end: poll, pull, work, answer. No torch; never fetches or executes a FAB
    link.py       the coordinator's public end: flwr's own ASGI app behind our guard
    grid.py       the coordinator's rounds end: Flower's grid as the loop's `Transport`
    apps.py       the same two ends as stock `ServerApp` and `ClientApp`

flwr reads its environment when it is imported, so this package sets it first: no telemetry, no update check.
"""

import logging
import os
from pathlib import Path

from tinylora.errors import StorageError

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


def use_home(folder: Path) -> None:
    """Give this process its own Flower home, and let Flower speak only of errors.

    Two instances on one machine must not share one; flwr's default, ~/.flwr, belongs to the user. Call it before
    anything below this package is imported.

    Raises:
        StorageError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}; choose another folder") from None
    os.environ["FLWR_HOME"] = str(folder.resolve())
    # A filter, because flwr sets its logger's level again when it is imported.
    logging.getLogger("flwr").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
