"""How processes of one user on one machine find each other and talk: gRPC, on a socket that nobody else can reach.

    HOME/<name>.json     who listens and where, and the token that each call must carry; its owner's alone (0600)

A Unix socket in a private folder where there are such sockets, otherwise a port of the loopback interface, which every
user of the machine can reach: there the token alone tells friend from stranger.
"""

import hmac
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora import durable
from tinylora.errors import NetworkError, StorageError
from tinylora_worker.wire.private_folder import PrivateFolder, places

_STEP = "worker.endpoint"
durable.register_file(_STEP)
_TOKEN_KEY = "tinylora-token"
_N_THREADS = 16
"""Calls at a time: a few commands that follow the status, and those that ask once."""
_CONNECT_S = 5.0
_SAME_START_S = 2.0
"""Two readings of when a process began may differ by this much."""
_MAX_MESSAGE_BYTES = 2**20
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # or loopback itself would be asked for at the company's proxy
    ("grpc.so_reuseport", 0),  # or another process could listen on our port
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
)

Adder = Callable[[grpc.Server], None]
"""Adds one service to a server, as `add_AgentServicer_to_server` does."""


@dataclass(frozen=True)
class Address:
    """Where somebody listens, and what must be said to be heard."""

    target: str
    """As gRPC reads it: "unix:///run/user/1000/tlw-k2x8fd1q/agent.sock" or "127.0.0.1:40123"."""
    token: str = field(repr=False)


class _Note(BaseModel):
    """HOME/<name>.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started_s: float
    """When that process began: numbers of processes are used again."""
    target: str
    token: str = Field(repr=False)


# --- listening --------------------------------------------------------------------------------------------------------


def listen(adders: Sequence[Adder], folder: Path | None, name: str, token: str) -> tuple[grpc.Server, Address]:
    """Start a server that answers those who know `token`.

    Args:
        adders: Services.
        folder: A private folder for its socket; None listens on a port of loopback.
        name: Of the socket.
        token: What each call must carry.

    Raises:
        NetworkError: The socket or port could not be opened.
    """
    server = grpc.server(
        ThreadPoolExecutor(_N_THREADS, thread_name_prefix=name), interceptors=[_Guard(token)], options=_OPTIONS
    )
    for add in adders:
        add(server)
    target = "127.0.0.1:0" if folder is None else f"unix://{quote(str(folder / name))}.sock"
    try:
        port = server.add_insecure_port(target)
    except RuntimeError as error:
        raise NetworkError(f"{target}: cannot listen there: {error}") from None
    server.start()
    return server, Address(f"127.0.0.1:{port}" if folder is None else target, token)


def new_token() -> str:
    """Nobody guesses it."""
    return secrets.token_hex(32)


def private_folder() -> PrivateFolder | None:
    """A folder for sockets; None where there are no Unix sockets, or no path that is short enough for one."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    try:
        return PrivateFolder(places())
    except OSError:
        return None


class Serving:
    """A server that others find through HOME/<name>.json, until it is closed."""

    def __init__(self, server: grpc.Server, address: Address, folder: PrivateFolder | None, file: Path) -> None:
        self.address = address
        self._server, self._folder, self._file = server, folder, file

    def close(self, grace_s: float = 0.5) -> None:
        """Calls under way get `grace_s` seconds; then nobody listens, and nothing is left on disk."""
        self._file.unlink(missing_ok=True)
        self._server.stop(grace_s).wait()
        if self._folder is not None:
            self._folder.remove()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(adders: Sequence[Adder], home: Path, name: str) -> Serving:
    """Listen, and write down in `home` where.

    The home is this process's own (its lock is held): a note of an earlier process is overwritten.

    Raises:
        NetworkError: No socket or port could be opened.
        StorageError: The note could not be written.
    """
    folder = private_folder()
    server, address = listen(adders, None if folder is None else folder.path, name, new_token())
    serving = Serving(server, address, folder, home / f"{name}.json")
    try:
        write_note(home, name, address)
    except StorageError:
        serving.close()
        raise
    return serving


def write_note(home: Path, name: str, address: Address) -> None:
    """HOME/<name>.json says that this process listens there.

    Raises:
        StorageError: It could not be written.
    """
    note = _Note(pid=os.getpid(), started_s=_started_s(os.getpid()), target=address.target, token=address.token)
    try:
        durable.replace_file(home / f"{name}.json", note.model_dump_json().encode() + b"\n", name=_STEP)
    except OSError as error:
        raise StorageError(f"{home / name}.json: {error.strerror or error}; choose another --home") from None


class _Guard(grpc.ServerInterceptor):
    """Refuses calls without the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._refusal = grpc.unary_unary_rpc_method_handler(_refuse)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Pass the call on, or have it refused."""
        given = dict(handler_call_details.invocation_metadata).get(_TOKEN_KEY, "")
        if isinstance(given, str) and hmac.compare_digest(given.encode(), self._token):
            return continuation(handler_call_details)
        return self._refusal


def _refuse(_request: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "this socket is private to one worker's own processes")


# --- calling ----------------------------------------------------------------------------------------------------------


def connect(home: Path, name: str, *, deadline_s: float = _CONNECT_S) -> grpc.Channel:
    """A channel to who serves `name` for this home.

    Raises:
        NetworkError: Nobody does, or it does not answer within `deadline_s` seconds.
    """
    file = home / f"{name}.json"
    nobody = f"no worker is at work for {home}"
    try:
        note = _Note.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise NetworkError(f"{nobody}; start one with `tinylora-worker run`, or give its --home") from None
    except (OSError, ValidationError):
        raise NetworkError(f"{file}: not readable as the address of a worker; start the worker again") from None
    ended = f"{nobody}: process {note.pid} has ended; start it again with `tinylora-worker run`"
    if not psutil.pid_exists(note.pid):
        raise NetworkError(ended)
    try:
        return dial(Address(note.target, note.token), deadline_s=deadline_s)
    except NetworkError:
        silent = (
            f"the worker of {home} (process {note.pid}) does not answer within {deadline_s:g} s; try again, or end it"
        )
        raise NetworkError(silent if _is_the_same(note) else ended) from None


def dial(address: Address, *, deadline_s: float = _CONNECT_S) -> grpc.Channel:
    """A channel to this address, open already; its calls carry the token.

    Raises:
        NetworkError: Nobody answers within `deadline_s` seconds.
    """
    channel = grpc.insecure_channel(address.target, options=_OPTIONS)
    try:
        grpc.channel_ready_future(channel).result(timeout=deadline_s)
    except grpc.FutureTimeoutError:
        channel.close()
        raise NetworkError(f"{address.target}: nobody answers within {deadline_s:g} s") from None
    return grpc.intercept_channel(channel, _Bearer(address.token))


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds the token to every call."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """A question with one answer."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """A question with many answers."""
        return continuation(self._with_token(client_call_details), request)

    def _with_token(self, details: Any) -> Any:
        return details._replace(metadata=(*(details.metadata or ()), (_TOKEN_KEY, self._token)))


def _is_the_same(note: _Note) -> bool:
    """Whether the process of this number began when the note's did. Asked only where nobody answers: clocks are set."""
    try:
        return abs(_started_s(note.pid) - note.started_s) < _SAME_START_S
    except psutil.Error:
        return False


def _started_s(pid: int) -> float:
    return psutil.Process(pid).create_time()
