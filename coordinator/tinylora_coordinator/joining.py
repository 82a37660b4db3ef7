"""The join route, coordinator's side: read, check the proof, enrol, register with Flower, welcome.

The order tells a stranger nothing: until the key is proved and the token is right, no answer holds a fact of the run.
No answer and no log holds a token's secret.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tinylora.config import BaseFacts, RunSettings
from tinylora.errors import ProtocolError, RefusedError, SettingError, StorageError
from tinylora.flower.enrolment import (
    JOIN_PATH,
    BaseClaim,
    JoinAnswer,
    JoinRequest,
    Refusal,
    RefusalCode,
    proof_bytes,
    read_join_request,
)
from tinylora.flower.identity import worker_of
from tinylora.flower.join_token import JoinToken, parse_token
from tinylora.flower.link import PublicRoutes
from tinylora.flower.texts import printable
from tinylora.protocol.documents import PROTOCOL_VERSION
from tinylora.protocol.envelope import SIGNED_WITH, read_public_key
from tinylora_coordinator.operator_store import OperatorStore, Refused

Register: TypeAlias = Callable[[bytes, str], None]
"""Makes a key (PEM) with its owner's name known to Flower; again is harmless. `RefusedError`: it was removed there."""

PROOF_AGE_S = 300.0
"""How far a proof's time may be from ours: as far as Flower's signatures may."""
_STATUS: dict[RefusalCode, int] = {"malformed": 400, "key": 400, "pending": 202, "protocol": 409, "base": 409}


@dataclass(frozen=True)
class JoinCard:
    """What a joining worker is told of the run, and what it is checked by."""

    settings: RunSettings
    base: BaseFacts
    run_key: str
    """Public half of the run's Ed25519 key, hex."""
    pin: str
    """Of the run's tokens, see `keys.pin_of`."""


@dataclass(frozen=True)
class JoinDesk:
    """Answers join requests."""

    card: JoinCard
    store: OperatorStore
    register: Register
    clock: Callable[[], float] = field(default=time.time)

    def answer(self, body: bytes) -> tuple[int, JoinAnswer | Refusal]:
        """HTTP status and document for the body of a join request.

        Raises:
            StorageError: The operator's file cannot be read or written.
        """
        try:
            answer = self._welcome(body)
        except _NotWelcome as refused:
            return _STATUS.get(refused.refusal.error, 403), refused.refusal
        return 200, answer

    def _welcome(self, body: bytes) -> JoinAnswer:
        now_s = self.clock()
        request, token = _read(body)
        public_pem = request.public_key.encode()
        self._check_proof(request, token, now_s)
        self._enrol(request, token, now_s)
        self._check_program(request)
        if not request.is_trial:
            self._register(public_pem, request.name)
        return JoinAnswer(
            worker=worker_of(public_pem),
            run=self.card.settings.name,
            protocol=PROTOCOL_VERSION,
            settings=self.card.settings,
            base=self.card.base,
            time_s=self.clock(),
            run_key=self.card.run_key,
        )

    def _register(self, public_pem: bytes, name: str) -> None:
        try:
            self.register(public_pem, name)
        except RefusedError as error:
            raise _NotWelcome("banned", str(error)) from None

    def _check_proof(self, request: JoinRequest, token: JoinToken | None, now_s: float) -> None:
        key = _read_key(request.public_key)
        signed = proof_bytes(request, pin=self.card.pin, token_id="" if token is None else token.token_id)
        try:
            key.verify(bytes.fromhex(request.proof), signed, SIGNED_WITH)
        except InvalidSignature:
            reason = "the request is not signed by the key that it names, for this run; join again with a token of it"
            raise _NotWelcome("proof", reason) from None
        if not abs(request.time_s - now_s) <= PROOF_AGE_S:
            reason = f"the request was signed {_off(request.time_s - now_s)}; set this machine's clock, and join again"
            raise _NotWelcome("clock", reason, time_s=now_s)

    def _enrol(self, request: JoinRequest, token: JoinToken | None, now_s: float) -> None:
        enrolled = self.store.enrol(
            worker_of(request.public_key.encode()),
            request.public_key,
            name=printable(request.name, at_most=80),
            token_id="" if token is None else token.token_id,
            secret="" if token is None else token.secret,
            now_s=now_s,
            check=lambda: self._check_program(request),
            is_trial=request.is_trial,
        )
        if isinstance(enrolled, Refused):
            is_missing = enrolled.code == "token" and token is None
            reason = "a new worker needs a join token; ask the operator for one" if is_missing else enrolled.reason
            raise _NotWelcome(enrolled.code, reason)
        if enrolled.state == "pending":
            raise _NotWelcome("pending", "the operator has yet to approve this worker")

    def _check_program(self, request: JoinRequest) -> None:
        if request.protocol != PROTOCOL_VERSION:
            expected, received = str(PROTOCOL_VERSION), str(request.protocol)
            reason = f"protocol: this run speaks version {expected}, this worker {received}; install the run's tinylora"
            raise _NotWelcome("protocol", reason, expected=expected, received=received)
        if request.base is None:
            return
        for part, expected in BaseClaim.of(self.card.base).model_dump().items():
            received = getattr(request.base, part)
            if received != expected:
                reason = (
                    f"base model: this run needs {self.card.base.base_id} with {part} {expected[:16]}, this worker has "
                    f"loaded one with {received[:16]}; give the run's base with --base"
                )
                raise _NotWelcome("base", reason, expected=expected, received=received)


class _NotWelcome(Exception):
    """Ends the judging of one request."""

    def __init__(self, code: RefusalCode, reason: str, **facts: str | float) -> None:
        super().__init__(reason)
        self.refusal = Refusal.model_validate({"error": code, "reason": reason} | facts)


def _read(body: bytes) -> tuple[JoinRequest, JoinToken | None]:
    try:
        request = read_join_request(body)
        return request, parse_token(request.token) if request.token else None
    except (ProtocolError, SettingError) as error:
        raise _NotWelcome("malformed", str(error)) from None


def _read_key(text: str) -> ec.EllipticCurvePublicKey:
    """A key in the one spelling that we take: others would be further workers with the same key."""
    try:
        key = read_public_key(text.encode())
    except ProtocolError as error:
        raise _NotWelcome("key", str(error)) from None
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_bytes(serialization.Encoding.PEM, form).decode() != text:
        raise _NotWelcome("key", "public key: expected the PEM that cryptography writes, and nothing around it")
    return key


def _off(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "at no time"
    return f"{abs(seconds):.0f} s {'from now' if seconds > 0 else 'ago'}"


def join_routes(desk: JoinDesk) -> PublicRoutes:
    """The join route for the front door, which has bounded the body already."""

    async def tinylora_join(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        try:
            status, document = await run_in_threadpool(desk.answer, body)
            response = JSONResponse(document.model_dump(mode="json"), status)
        except StorageError:
            response = JSONResponse({"error": "storage", "reason": "the coordinator cannot write now; try again"}, 503)
        await response(scope, receive, send)

    return {("POST", JOIN_PATH): tinylora_join}
