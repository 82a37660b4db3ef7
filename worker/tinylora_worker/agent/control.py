"""What the command line may ask of the agent of its home: the service `Agent`. Each wish is a call of the agent."""

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import grpc

from tinylora.errors import TinyLoraError
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
from tinylora_worker.wire.worker_pb2_grpc import AgentServicer, add_AgentServicer_to_server

SHORTEST_S = 0.5
"""Between two statuses of one that follows."""
LONGEST_S = 2.0
"""Numbers move by themselves: times, temperature, traffic."""


class Commanded(Protocol):
    """Who does what is asked; the sentences say what happens now."""

    def status(self) -> Status:
        """Everything at this moment."""
        ...

    def wait_for_news(self, version: int, *, timeout_s: float) -> int:
        """Wait for a change since `version`; returns the version of now."""
        ...

    def pause(self, until_s: float = 0.0) -> str:
        """Free the device until then, or until resumed."""
        ...

    def resume(self) -> str:
        """End a pause."""
        ...

    def finish(self) -> str:
        """Leave after the unit under way."""
        ...

    def leave(self) -> str:
        """Leave now."""
        ...

    def reload_limits(self) -> str:
        """Read the limits again."""
        ...


class Control(AgentServicer):
    """Answers the command line."""

    def __init__(self, agent: Commanded) -> None:
        self._agent = agent

    def add_to(self, server: grpc.Server) -> None:
        """Add this service to a server."""
        add_AgentServicer_to_server(self, server)

    def GetStatus(self, request: StatusRequest, context: grpc.ServicerContext) -> Status:
        """A status."""
        return self._agent.status()

    def Follow(self, request: StatusRequest, context: grpc.ServicerContext) -> Iterator[Status]:
        """A status now, and another after every change, at most two a second."""
        ended = threading.Event()
        context.add_callback(ended.set)
        return statuses(self._agent, ended)

    def Pause(self, request: PauseRequest, context: grpc.ServicerContext) -> CommandReply:
        """Free the device."""
        return _do(lambda: self._agent.pause(request.until_s))

    def Resume(self, request: ResumeRequest, context: grpc.ServicerContext) -> CommandReply:
        """End a pause."""
        return _do(self._agent.resume)

    def Finish(self, request: FinishRequest, context: grpc.ServicerContext) -> CommandReply:
        """Leave after the unit under way."""
        return _do(self._agent.finish)

    def Leave(self, request: LeaveRequest, context: grpc.ServicerContext) -> CommandReply:
        """Leave now."""
        return _do(self._agent.leave)

    def ReloadLimits(self, request: ReloadLimitsRequest, context: grpc.ServicerContext) -> CommandReply:
        """Read the limits again."""
        return _do(self._agent.reload_limits)


def statuses(agent: Commanded, ended: threading.Event) -> Iterator[Status]:
    """A status now, and another after every change, at most two a second, until `ended` is set."""
    version = -1
    while not ended.is_set():
        version = agent.wait_for_news(version, timeout_s=LONGEST_S)
        yield agent.status()
        ended.wait(SHORTEST_S)


def _do(call: Callable[[], str]) -> CommandReply:
    try:
        return CommandReply(sentence=call())
    except TinyLoraError as error:
        return CommandReply(error=str(error))
