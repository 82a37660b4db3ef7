"""Whether the worker of a home is well: one quick question to its agent, for checks of containers and services.

A worker that pauses is as well as one that works: its owner's limits are no illness. It is ill if no agent answers, or
if the agent says that something has to be done before it can go on.
"""

from dataclasses import dataclass
from pathlib import Path

from tinylora.errors import NetworkError
from tinylora.protocol.standstill import Reason
from tinylora_worker.agent import client
from tinylora_worker.wire.worker_pb2 import Status

ILL = (Reason.ERROR, Reason.UPDATE_REQUIRED)
"""Reasons that do not end by themselves."""


@dataclass(frozen=True)
class Health:
    """What came of asking."""

    is_healthy: bool
    state: str
    """Of the worker; empty where none answers."""
    reason: str
    has_trainer: bool
    """Whether the trainer has loaded base and text; it has not where the worker only begins, or frees its device."""
    sentence: str


def check_health(home: Path) -> Health:
    """Ask the agent of this home."""
    try:
        return judge(home, client.status(home))
    except NetworkError as error:
        return Health(False, "", "", False, str(error))


def judge(home: Path, status: Status) -> Health:
    """Whether a worker of this status is well."""
    is_healthy = status.reason not in ILL
    why = f" ({', '.join(filter(None, (status.reason, status.detail)))})" if status.reason else ""
    cure = "" if is_healthy else "; `tinylora-worker status` tells more"
    sentence = f"{home}: the worker is {status.state}{why}{cure}"
    return Health(is_healthy, status.state, status.reason, bool(status.device), sentence)
