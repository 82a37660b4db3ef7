"""Joining a run: the documents of the join route, and the worker's side of it. No torch, no flwr.

A worker joins twice. First without its base, so that a wrong token or an old program is noticed before anything large
is loaded; then with the fingerprints of the base it has loaded, so that a mismatch is noticed before it gets work.
"""

import time
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora.config import BaseFacts, RunSettings
from tinylora.errors import BaseModelError, NetworkError, ProtocolError, RefusedError, SettingError
from tinylora.flower.identity import Identity
from tinylora.protocol.documents import PROTOCOL_VERSION, Name, Sha256

JOIN_PATH = "/tinylora/join"
STATE_PATH = "/tinylora/state"
MAX_JOIN_BYTES = 65_536

Phase = Literal["waiting", "running", "finished", "stopping"]
RefusalCode = Literal["malformed", "token", "protocol", "base", "key"]
AnyDocument = TypeVar("AnyDocument", bound=BaseModel)


class BaseClaim(BaseModel):
    """Which base a worker has loaded."""

    model_config = ConfigDict(frozen=True)

    fingerprint: Sha256
    tokenizer_fingerprint: Sha256
    feature_hash: Sha256

    @classmethod
    def of(cls, facts: BaseFacts) -> "BaseClaim":
        """What identifies this base."""
        return cls(
            fingerprint=facts.fingerprint,
            tokenizer_fingerprint=facts.tokenizer_fingerprint,
            feature_hash=facts.feature_hash,
        )


class JoinRequest(BaseModel):
    """What a worker says first. Unknown fields are ignored, so that a newer worker is told its protocol is too new."""

    model_config = ConfigDict(frozen=True)

    token: Annotated[str, Field(max_length=512)]
    public_key: Annotated[str, Field(max_length=4096)]
    name: Annotated[str, Field(max_length=80)] = ""
    protocol: int
    base: BaseClaim | None = None


class JoinAnswer(BaseModel):
    """What a welcome worker needs to know."""

    model_config = ConfigDict(frozen=True)

    worker: Name
    run: str
    protocol: int
    settings: RunSettings
    base: BaseFacts
    time_s: float
    """The coordinator's clock, seconds since 1970: signatures carry the time and are refused when it is off."""


class Refusal(BaseModel):
    """Why a worker is not welcome."""

    model_config = ConfigDict(frozen=True)

    error: RefusalCode
    reason: str
    expected: str = ""
    received: str = ""


class StateAnswer(BaseModel):
    """The little that anybody may read."""

    model_config = ConfigDict(frozen=True)

    run: str
    phase: Phase
    protocol: int


@dataclass(frozen=True)
class Address:
    """Where a coordinator is reached."""

    host_port: str
    is_plain: bool

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `http://host:port`, `https://host[:port]` or `host:port` (which means http).

        Raises:
            SettingError: No host, no usable port, another scheme, or a path.
        """
        parts = urlsplit(text if "://" in text else f"http://{text}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.path not in ("", "/"):
            raise SettingError(f"{text!r}: expected the coordinator's address, such as http://127.0.0.1:8443")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{host}:{port or (80 if parts.scheme == 'http' else 443)}", parts.scheme == "http")

    def url(self, path: str = "") -> str:
        """A full URL below this address."""
        return f"{'http' if self.is_plain else 'https'}://{self.host_port}{path}"


@dataclass(frozen=True)
class Welcome:
    """The coordinator's answer, and how far its clock is ahead of ours."""

    answer: JoinAnswer
    clock_offset_s: float


def join(
    address: Address,
    token: str,
    identity: Identity,
    *,
    name: str = "",
    base: BaseFacts | None = None,
    timeout_s: float = 30.0,
) -> Welcome:
    """Exchange the token for a place among the run's workers; joining again is harmless.

    Raises:
        NetworkError: Nobody answers there, or somebody who is no coordinator.
        RefusedError: The token is wrong, or the two programs speak different protocols.
        BaseModelError: The run needs another base than `base`.
    """
    request = JoinRequest(
        token=token,
        public_key=identity.public_pem.decode(),
        name=name,
        protocol=PROTOCOL_VERSION,
        base=None if base is None else BaseClaim.of(base),
    )
    before = time.time()
    response = _ask(address, "POST", JOIN_PATH, content=request.model_dump_json(), timeout_s=timeout_s)
    after = time.time()
    if response.status_code != httpx.codes.OK:
        _raise_refusal(address, response)
    answer = _read(address, response, JoinAnswer)
    offset_s = answer.time_s - (before + after) / 2
    is_known = abs(offset_s) > max(1.0, after - before)  # otherwise the network may be the reason
    return Welcome(answer, clock_offset_s=offset_s if is_known else 0.0)


def ask_state(address: Address, *, timeout_s: float = 10.0) -> StateAnswer:
    """What the run is doing.

    Raises:
        NetworkError: Nobody answers there, or somebody who is no coordinator.
    """
    return _read(address, _ask(address, "GET", STATE_PATH, timeout_s=timeout_s), StateAnswer)


def _ask(address: Address, method: str, path: str, *, timeout_s: float, content: str | None = None) -> httpx.Response:
    try:
        headers = {"content-type": "application/json"}
        # Without TLS there is nothing to verify, and reading the system's certificates takes longer than the answer.
        verify = not address.is_plain
        return httpx.request(
            method, address.url(path), content=content, headers=headers, timeout=timeout_s, verify=verify
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NetworkError(
            f"{address.url()}: no coordinator answers ({error or type(error).__name__}); "
            "check the address, and that `tinylora-coordinator serve` is running"
        ) from None


def _read(address: Address, response: httpx.Response, kind: type[AnyDocument]) -> AnyDocument:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError:
        raise _not_ours(address, response) from None


def _raise_refusal(address: Address, response: httpx.Response) -> NoReturn:
    """Turn the coordinator's JSON reason into the error that a command ends with."""
    try:
        refusal = Refusal.model_validate_json(response.content)
    except ValidationError:
        raise _not_ours(address, response) from None
    if refusal.error == "base":
        raise BaseModelError(refusal.reason)
    raise RefusedError(f"{address.url()}: {refusal.reason}")


def _not_ours(address: Address, response: httpx.Response) -> NetworkError:
    return NetworkError(
        f"{address.url()}: answers (HTTP {response.status_code}), but not as a TinyLoRA coordinator of protocol "
        f"{PROTOCOL_VERSION}; check the address"
    )


def read_join_request(body: bytes) -> JoinRequest:
    """Read what came to the join route.

    Raises:
        ProtocolError: It is no join request.
    """
    try:
        return JoinRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise ProtocolError(f"join request: field {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
