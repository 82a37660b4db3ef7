"""Joining a run: the documents of the join route, and the worker's side of it. No torch, no flwr.

A worker joins twice. First without its base, so that a wrong token or an old program is noticed before anything large
is loaded; then with the fingerprints of the base it has loaded, so that a mismatch is noticed before it gets work.
"""

import json
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

CA_PATH = "/ca.pem"
JOIN_PATH = "/tinylora/join"
RECEIPTS_PATH = "/tinylora/receipts"
STATE_PATH = "/tinylora/state"
MAX_JOIN_BYTES = 65_536

Phase = Literal["waiting", "running", "finished", "stopping"]
RefusalCode = Literal[
    "malformed",  # 400: no join request, or no token in the token field
    "key",  # 400: the public key is none of ours
    "proof",  # 403: the request was not signed by that key, for this coordinator
    "clock",  # 403: it was signed at another time than now; `time_s` tells ours
    "token",  # 403: unknown, or its secret is wrong
    "expired",  # 403
    "token_revoked",  # 403
    "used_up",  # 403
    "banned",  # 403: the operator removed this worker
    "pending",  # 202: the operator has yet to approve this worker
    "protocol",  # 409
    "base",  # 409
]
"""Why somebody may not take part, with the HTTP status of the answer."""
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

    token: Annotated[str, Field(max_length=512, repr=False)] = ""
    """Whole; empty where the key is known to the run already."""
    public_key: Annotated[str, Field(max_length=4096)]
    name: Annotated[str, Field(max_length=80)] = ""
    protocol: int
    time_s: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """When the proof was made, by the coordinator's clock as far as the worker knows it."""
    proof: Annotated[str, Field(max_length=512, pattern="^([0-9a-f]{2})*$")] = ""
    """Hex of the signature over `proof_bytes` by the key's other half: nobody registers a key that he does not hold."""
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
    run_key: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """Public half of the Ed25519 key that receipts and bundles are signed with; the worker pins it."""


class Refusal(BaseModel):
    """Why a worker is not welcome."""

    model_config = ConfigDict(frozen=True)

    error: RefusalCode
    reason: str
    expected: str = ""
    received: str = ""
    time_s: float = 0.0
    """The coordinator's clock, where that is what matters."""


class StateAnswer(BaseModel):
    """The little that anybody may read."""

    model_config = ConfigDict(frozen=True)

    run: str
    phase: Phase
    protocol: int


PROOF_DOMAIN = b"tinylora join 1\n"


def proof_bytes(request: JoinRequest, *, pin: str, token_id: str) -> bytes:
    """What a worker signs to join: that it holds this key, at this time, for the run with this pin, by this token.

    The pin is the one in the worker's token, the coordinator checks it against its own: what was signed for one
    coordinator is of no use at another.
    """
    fields = {"pin": pin, "token_id": token_id, "public_key": request.public_key, "time_s": request.time_s}
    return PROOF_DOMAIN + json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


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
