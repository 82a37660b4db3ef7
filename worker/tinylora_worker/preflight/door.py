"""Who answers at the coordinator's address, and whether it lets us in: a trial, which uses nothing up.

The order is what protects the token: first the certificate is compared with the token's pin, then, over a connection
that is verified by it, the secret is shown. It is `enrolment.join` itself that does both, here and later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinylora.errors import BaseModelError, NetworkError, RefusedError, SettingError
from tinylora.flower.enrolment import StateAnswer, Welcome, ask_state, join
from tinylora.flower.identity import Identity
from tinylora.flower.join_token import parse_token
from tinylora.flower.membership import load_membership
from tinylora.flower.reach import Address, Trust, meet, verify_by
from tinylora.protocol.documents import PROTOCOL_VERSION
from tinylora_worker.preflight.check import Check, skipped
from tinylora_worker.preflight.codes import CheckName
from tinylora_worker.preflight.judging import judge_clock, judge_line, judge_refusal
from tinylora_worker.preflight.line import measure

AT_THE_DOOR: tuple[CheckName, ...] = ("network", "tls", "protocol", "token", "clock")
_INSIDE: tuple[CheckName, ...] = ("protocol", "token", "clock")
NOT_ASKED = "the coordinator was not asked"
TIMEOUT_S = 2.5
"""For one question; the verdict has to come within three seconds, and who does not answer in time is told so."""


@dataclass(frozen=True)
class Whom:
    """The coordinator that was named, or that this home has joined before."""

    address: Address
    token: str = field(repr=False)
    trust: Trust | None
    """By what it is recognised, where that is known without a token."""


def whom(url: str, token: str, home: Path) -> Whom | None:
    """Which coordinator to ask; None where neither an address was given nor this home has joined a run.

    Raises:
        SettingError: The address or the token makes no sense; `rule` says which: "address" or "garbled".
    """
    kept = load_membership(home) if home.is_dir() else None
    if not url and kept is None:
        return None
    try:
        address = Address.parse(url or ("" if kept is None else kept.url))
    except SettingError as error:
        raise SettingError(str(error), rule="address") from None
    if not token:
        return Whom(address, "", None if kept is None else kept.trust)
    try:
        pin = parse_token(token).pin
    except SettingError as error:
        raise SettingError(str(error), rule="garbled") from None
    is_known = kept is not None and kept.pin == pin and kept.ca_pem
    return Whom(address, token, kept.trust if kept is not None and is_known else None)


@dataclass(frozen=True)
class AtTheDoor:
    """What came of asking."""

    checks: Sequence[Check]
    state: StateAnswer | None = None
    welcome: Welcome | None = None
    trust: Trust | None = None


def knock(asked: Whom, identity: Identity, *, timeout_s: float = TIMEOUT_S) -> AtTheDoor:
    """Look at the coordinator's certificate, measure the line, and try the token without using it up."""
    address, checks = asked.address, []
    try:
        trust = asked.trust or _meet(asked, timeout_s)
        state = ask_state(address, trust=trust, timeout_s=timeout_s)
        checks.append(Check("tls", "ok", _recognised(address, trust)))
        checks.append(judge_line(measure(address, verify_by(address, trust), timeout_s=timeout_s)))
    except (NetworkError, RefusedError) as error:
        if error.rule == "certificate" and asked.trust is None and not asked.token:
            return _behind_a_ca_of_its_own()
        refused = judge_refusal(error.rule, str(error))
        told = {refused.name, *(check.name for check in checks)}
        rest: list[CheckName] = [name for name in AT_THE_DOOR if name not in told]
        return AtTheDoor([*checks, refused, *_not_asked(*rest)])
    if state.protocol != PROTOCOL_VERSION:
        sentence = f"this run speaks version {state.protocol}, this worker {PROTOCOL_VERSION}; the token was not sent"
        return AtTheDoor([*checks, judge_refusal("protocol", sentence), *_not_asked("token", "clock")], state)
    tried, welcome = _try(asked, identity, trust, timeout_s)
    return AtTheDoor([*checks, *tried], state, welcome, trust)


def _behind_a_ca_of_its_own() -> AtTheDoor:
    """Somebody answers with a certificate that only a token could vouch for."""
    answers = Check("network", "ok", "somebody answers; whether it is the coordinator, a token would tell")
    unknown = skipped("tls", "no token that names its CA")
    return AtTheDoor([answers, unknown, *_not_asked("protocol", "clock"), _no_token()])


def _meet(asked: Whom, timeout_s: float) -> Trust:
    """By what the coordinator is recognised; where no token says it, by the system's trust store."""
    return meet(asked.address, parse_token(asked.token).pin, timeout_s=timeout_s) if asked.token else Trust()


def _try(asked: Whom, identity: Identity, trust: Trust, timeout_s: float) -> tuple[list[Check], Welcome | None]:
    try:
        welcome = join(asked.address, asked.token, identity, trust=trust, timeout_s=timeout_s, trial=True)
    except (RefusedError, NetworkError, SettingError, BaseModelError) as error:
        is_without = error.rule == "token" and not asked.token
        refused = _no_token() if is_without else judge_refusal(error.rule, str(error))
        rest: list[CheckName] = [name for name in _INSIDE if name != refused.name]
        return [refused, *_not_asked(*rest)], None
    answer = welcome.answer
    how = "the token is good; it was not used up" if asked.token else "this home has joined before"
    checks = [
        Check("protocol", "ok", f"version {answer.protocol}"),
        Check("token", "ok", f'run "{answer.run}": {how}'),
        judge_clock(welcome.clock_offset_s),
    ]
    return checks, welcome


def _no_token() -> Check:
    return judge_refusal("none", "no token was given, and this home has joined no run there")


def _not_asked(*names: CheckName) -> list[Check]:
    return [skipped(name, NOT_ASKED) for name in names]


def _recognised(address: Address, trust: Trust) -> str:
    if address.is_plain:
        return "plain HTTP, which stays on this machine"
    if trust.ca_pem:
        return f"verified (sha256 {trust.pin[:8]}…)"
    return "verified by this system's trust store"
