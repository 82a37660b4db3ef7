"""Joining a run: the documents of the join route, and the worker's side of it. No torch, no flwr.

A worker joins twice. First without its base, so that a wrong token or an old program is noticed before anything large
is loaded; then with the fingerprints of the base it has loaded, so that a mismatch is noticed before it gets work.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora.config import BaseFacts, RunSettings
from tinylora.errors import BaseModelError, Explanation, NetworkError, ProtocolError, RefusedError
from tinylora.flower.identity import Identity
from tinylora.flower.join_token import SYSTEM, JoinToken, parse_token
from tinylora.flower.meter import Meter, unmetered
from tinylora.flower.reach import Address, Trust, ask, meet, verify_by
from tinylora.flower.texts import printable
from tinylora.protocol.documents import PROTOCOL_VERSION, Name, Sha256

JOIN_PATH = "/tinylora/join"
RECEIPTS_PATH = "/tinylora/receipts"
REPORT_PATH = "/tinylora/report"
STATE_PATH = "/tinylora/state"
MAX_JOIN_BYTES = 65_536

Phase = Literal["waiting", "running", "paused", "finished", "stopping"]
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

JOIN_REFUSALS: Mapping[RefusalCode, Explanation] = {
    "malformed": Explanation(
        "The body is no join request, or its token is none.",
        "Copy the whole token; install the run's version of tinylora.",
    ),
    "key": Explanation(
        "The public key is no EC P-384 key in the one PEM spelling that is taken.",
        "A worker of ours sends the right one; other programs write it as `cryptography` does, with nothing around it.",
    ),
    "proof": Explanation(
        "The request is not signed by the key that it names, for this run.",
        "Join again with a token of this run: the pin in the token is part of what is signed.",
    ),
    "clock": Explanation(
        "The request was signed more than five minutes before or after the coordinator's time.",
        "The worker tries again by the coordinator's clock, which stands in the answer (`time_s`). If that fails, set "
        "this machine's clock.",
    ),
    "token": Explanation(
        "The token is unknown to this run, or its secret is wrong; or none was sent by a key that the run does not "
        "know.",
        "Copy all of it, or ask the operator for a new one.",
    ),
    "expired": Explanation("The token's time is up: a day, unless the operator said otherwise.", "Ask for a new one."),
    "token_revoked": Explanation("The operator took the token back.", "Ask for a new one."),
    "used_up": Explanation(
        "As many workers as the token admits have come with it.",
        "Join with the `--home` that used it, or ask for a new one.",
    ),
    "banned": Explanation("The operator removed this worker from the run.", "Ask the operator why."),
    "pending": Explanation(
        "The token's workers wait for approval, and this one has none yet. Answered with status 202.",
        "Nothing to do: the worker asks again. The operator says `workers approve`.",
    ),
    "protocol": Explanation(
        "The worker speaks another version of the protocol; `expected` and `received` say which.",
        "Install the run's version of tinylora.",
    ),
    "base": Explanation(
        "The worker has loaded another base than the run's: a fingerprint differs.",
        "Leave `--base` out, or give the run's base.",
    ),
}
"""What each of them means, and what helps."""
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
    protocol: Annotated[int, Field(ge=0, lt=2**31)]
    time_s: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """When the proof was made, by the coordinator's clock as far as the worker knows it."""
    proof: Annotated[str, Field(max_length=512, pattern="^([0-9a-f]{2})*$")] = ""
    """Hex of the signature over `proof_bytes` by the key's other half: nobody registers a key that he does not hold."""
    base: BaseClaim | None = None
    is_trial: bool = False
    """Judge it and answer as if it were meant, but write nothing down: no place of the token is taken."""


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
class Welcome:
    """The coordinator's answer, by what it was recognised, and how far its clock is ahead of ours."""

    answer: JoinAnswer
    trust: Trust
    clock_offset_s: float


class NotYetApproved(RefusedError):
    """The operator has yet to approve this worker; asking again later is right."""


def join(
    address: Address,
    token: str,
    identity: Identity,
    *,
    trust: Trust | None = None,
    name: str = "",
    base: BaseFacts | None = None,
    timeout_s: float = 30.0,
    trial: bool = False,
    meter: Meter = unmetered,
) -> Welcome:
    """Exchange the token for a place among the run's workers; joining again is harmless.

    Args:
        address: The coordinator's.
        token: As the operator gave it; empty where this identity has joined before.
        identity: The worker's key; the request is signed with it.
        trust: By what the coordinator is recognised; found out from the token where it is not known yet.
        name: What the operator sees.
        base: The base that this worker has loaded, if it has.
        timeout_s: For each question.
        trial: Find out what the answer would be, and leave no trace: nothing is registered, the token is not used up.
        meter: Told of each byte that is sent and received.

    Raises:
        SettingError: The token is none.
        NetworkError: Nobody answers there, or somebody who is no coordinator.
        RefusedError: It is not the coordinator that the token names, the token is no good, the operator has not
            approved this worker yet (`NotYetApproved`), or the two programs speak different protocols.
        BaseModelError: The run needs another base than `base`.
    """
    taken = parse_token(token) if token else None
    trust = trust or meet(address, SYSTEM if taken is None else taken.pin, timeout_s=timeout_s, meter=meter)
    ahead_s = 0.0
    for attempt in ("as our clock says", "as the coordinator's says"):
        request = _signed_request(identity, taken, trust, time_s=time.time() + ahead_s, name=name, base=base)
        request = request.model_copy(update={"is_trial": trial})
        before = time.time()
        response = ask(
            address,
            "POST",
            JOIN_PATH,
            verify=verify_by(address, trust),
            content=request.model_dump_json(),
            timeout_s=timeout_s,
            meter=meter,
        )
        after = time.time()
        if response.status_code == httpx.codes.OK:
            break
        refusal = _read_refusal(address, response)
        if refusal.error != "clock" or not refusal.time_s or attempt != "as our clock says":
            _raise_refusal(address, refusal)
        ahead_s = refusal.time_s - (before + after) / 2
    answer = _read(address, response, JoinAnswer)
    offset_s = answer.time_s - (before + after) / 2
    is_known = abs(offset_s) > max(1.0, after - before)  # otherwise the network may be the reason
    return Welcome(answer, trust, clock_offset_s=offset_s if is_known else 0.0)


def _signed_request(
    identity: Identity, token: JoinToken | None, trust: Trust, *, time_s: float, name: str, base: BaseFacts | None
) -> JoinRequest:
    request = JoinRequest(
        token="" if token is None else token.text,
        public_key=identity.public_pem.decode(),
        name=printable(name, at_most=80),
        protocol=PROTOCOL_VERSION,
        base=None if base is None else BaseClaim.of(base),
        time_s=time_s,
    )
    signed = proof_bytes(request, pin=trust.pin, token_id="" if token is None else token.token_id)
    return request.model_copy(update={"proof": identity.sign(signed).hex()})


def ask_state(
    address: Address, *, trust: Trust | None = None, timeout_s: float = 10.0, meter: Meter = unmetered
) -> StateAnswer:
    """What the run is doing.

    Raises:
        NetworkError: Nobody answers there, or somebody who is no coordinator.
    """
    verify = verify_by(address, trust or Trust())
    answer = ask(address, "GET", STATE_PATH, verify=verify, timeout_s=timeout_s, meter=meter)
    return _read(address, answer, StateAnswer)


def _read(address: Address, response: httpx.Response, kind: type[AnyDocument]) -> AnyDocument:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError:
        raise _not_ours(address, response) from None


def _read_refusal(address: Address, response: httpx.Response) -> Refusal:
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        reason = "too many tries from this address; wait a minute, and join again"
        raise RefusedError(f"{address.url()}: {reason}", rule="rate")
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        reason = "the coordinator cannot take anybody in now; join again later"
        raise NetworkError(f"{address.url()}: {reason}", rule="full")
    return _read(address, response, Refusal)


def _raise_refusal(address: Address, refusal: Refusal) -> NoReturn:
    """Turn the coordinator's reason into the error that a command ends with; its `rule` is the refusal's code."""
    reason = printable(refusal.reason, at_most=500)
    if refusal.error == "base":
        raise BaseModelError(reason, rule=refusal.error)
    kind = NotYetApproved if refusal.error == "pending" else RefusedError
    raise kind(f"{address.url()}: {reason}", rule=refusal.error)


def _not_ours(address: Address, response: httpx.Response) -> NetworkError:
    return NetworkError(
        f"{address.url()}: answers (HTTP {response.status_code}), but not as a TinyLoRA coordinator of protocol "
        f"{PROTOCOL_VERSION}; check the address",
        rule="stranger",
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
