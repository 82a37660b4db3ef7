"""Who a request comes from: the loopback address, a token that it shows, or the cookie that was given for one. Pure.

A browser shows its token once and gets a cookie that is good for a shorter time, names the token, and ends with it.
"""

import hashlib
import hmac
import re
from typing import Literal, TypeAlias

from tinylora_coordinator.access_tokens import KnownToken, TokenRole

Viewers: TypeAlias = Literal["anybody", "token"]
"""Who may look: whoever reaches the public port, or only who has a token."""
SESSION_S: dict[TokenRole, float] = {"viewer": 30 * 86_400.0, "admin": 12 * 3600.0}
"""How long a browser stays signed in at most; its token may end sooner."""

_SESSION = re.compile(r"([a-z0-9]{4,32})\.(\d{1,12})\.([0-9a-f]{64})", re.ASCII)


# --- the cookie -------------------------------------------------------------------------------------------------------


def cookie_name(mark: str) -> str:
    """Of the run's cookie: browsers give cookies to all ports of a host alike, and each may be another run."""
    return f"tinylora-{mark}"


def make_session(known: KnownToken, key: bytes, now_s: float) -> tuple[str, float]:
    """The cookie's value for the holder of a token, and when it ends, in seconds since 1970."""
    ends_s = int(min(known.expires_s, now_s + SESSION_S[known.role]))
    return f"{known.token_id}.{ends_s}.{_seal(known, ends_s, key)}", float(ends_s)


def session_token_id(value: str) -> str | None:
    """Which token a cookie's value names; None where it is none of ours."""
    found = _SESSION.fullmatch(value)
    return None if found is None else found[1]


def judge_session(value: str, known: KnownToken | None, key: bytes, now_s: float) -> float | None:
    """Until when a cookie's value is good, in seconds since 1970; None where it is not, or not any more.

    Args:
        value: Of the cookie.
        known: The token that it names.
        key: What cookies are sealed with.
        now_s: The time, in seconds since 1970.
    """
    found = _SESSION.fullmatch(value)
    if found is None or known is None or found[1] != known.token_id:
        return None
    ends_s = int(found[2])
    is_ours = hmac.compare_digest(found[3], _seal(known, ends_s, key))
    return float(ends_s) if is_ours and now_s < ends_s and known.state(now_s) == "open" else None


def _seal(known: KnownToken, ends_s: int, key: bytes) -> str:
    said = f"tinylora session {known.token_id} {known.role} {known.secret_sha256} {ends_s}"
    return hmac.new(key, said.encode(), hashlib.sha256).hexdigest()


# --- what a request shows ---------------------------------------------------------------------------------------------


def shown_bearer(authorization: str) -> str:
    """The token in an Authorization header; empty where there is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def shown_cookies(header: str, name: str) -> list[str]:
    """All values of a cookie: another page of this host may have set one of the same name for a longer path."""
    pairs = (pair.strip().partition("=") for pair in header.split(";"))
    return [value.strip() for key, _, value in pairs if key == name]
