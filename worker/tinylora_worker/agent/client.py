"""The command line's end of the agent's service. Where no agent runs in that home, every function says so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from tinylora.errors import NetworkError, RefusedError
from tinylora_worker.wire.endpoint import connect
from tinylora_worker.wire.worker_pb2 import (
    CommandReply,
    FinishRequest,
    LeaveRequest,
    PauseRequest,
    ReloadLimitsRequest,
    ResumeRequest,
    Status,
    StatusRequest,
)
from tinylora_worker.wire.worker_pb2_grpc import AgentStub

ENDPOINT = "agent"
"""HOME/agent.json says where the agent of that home listens."""
_ANSWER_S = 10.0


@contextmanager
def agent_of(home: Path) -> Iterator[AgentStub]:
    """The agent of this home.

    Raises:
        NetworkError: None runs there, or it went in the middle of a call.
    """
    channel = connect(home, ENDPOINT)
    try:
        yield AgentStub(channel)
    except grpc.RpcError as error:
        raise NetworkError(f"{home}: the worker went while it was asked ({_code(error)}); ask again") from None
    finally:
        channel.close()


def status(home: Path) -> Status:
    """What the worker of this home does now.

    Raises:
        NetworkError: None runs there.
    """
    with agent_of(home) as agent:
        return agent.GetStatus(StatusRequest(), timeout=_ANSWER_S)


def follow(home: Path) -> Iterator[Status]:
    """A status now, and another after every change, until the worker ends.

    Raises:
        NetworkError: None runs there.
    """
    with agent_of(home) as agent:
        try:
            yield from agent.Follow(StatusRequest())
        except grpc.RpcError as error:
            if _code(error) not in ("UNAVAILABLE", "CANCELLED"):  # those mean that it has ended
                raise


def pause(home: Path, until_s: float = 0.0) -> str:
    """Free the device until then (seconds since 1970), or until resumed; returns what happens now."""
    return _tell(home, lambda agent: agent.Pause(PauseRequest(until_s=until_s), timeout=_ANSWER_S))


def resume(home: Path) -> str:
    """End a pause; returns what happens now."""
    return _tell(home, lambda agent: agent.Resume(ResumeRequest(), timeout=_ANSWER_S))


def finish(home: Path) -> str:
    """Leave after the unit under way; returns what happens now."""
    return _tell(home, lambda agent: agent.Finish(FinishRequest(), timeout=_ANSWER_S))


def leave(home: Path) -> str:
    """Leave now, with a checkpoint; returns what happens now."""
    return _tell(home, lambda agent: agent.Leave(LeaveRequest(), timeout=_ANSWER_S))


def reload_limits(home: Path) -> str:
    """Have the limits read again; returns what happens now."""
    return _tell(home, lambda agent: agent.ReloadLimits(ReloadLimitsRequest(), timeout=_ANSWER_S))


def _tell(home: Path, call: Callable[[AgentStub], CommandReply]) -> str:
    """One command.

    Raises:
        NetworkError: No agent runs there.
        RefusedError: It says why it does not do that.
    """
    with agent_of(home) as agent:
        reply = call(agent)
    if reply.error:
        raise RefusedError(reply.error)
    return reply.sentence


def _code(error: Any) -> str:
    return error.code().name if hasattr(error, "code") else str(error)
