"""Tokens for people: who may see a run, and who may steer it. Pure.

    tlv1.<mark of the run, 16 hex digits>.<id>.<secret>     a viewer's
    tla1.<mark of the run, 16 hex digits>.<id>.<secret>     an admin's

They look unlike a join token (`tl1.`), which is a worker's and gives no role here. The mark tells tokens of different
runs apart, so that whoever has several gets a sentence of its own for the wrong one.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tinylora.errors import SettingError
from tinylora.flower.join_token import VERSION as JOIN_VERSION

TokenRole: TypeAlias = Literal["viewer", "admin"]
VERSIONS: dict[str, TokenRole] = {"tlv1": "viewer", "tla1": "admin"}

_MARK = re.compile(r"[0-9a-f]{16}")
_ID = re.compile(r"[a-z0-9]{4,32}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{32,86}")
_ADVICE = "copy the whole token that the operator gave you"


@dataclass(frozen=True)
class AccessToken:
    """A viewer's or an admin's token, taken apart. Its secret is in no text that a log could show; `text` has it."""

    role: TokenRole
    mark: str
    """Of the run, see `mark_of`."""
    token_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The token as it is handed out. Never log it."""
        version = next(version for version, role in VERSIONS.items() if role == self.role)
        return f"{version}.{self.mark}.{self.token_id}.{self.secret}"


@dataclass(frozen=True)
class KnownToken:
    """A token as the operator's file remembers it. Times are seconds since 1970.

    Attributes:
        secret_sha256: Hash of the secret, hex.
        revoked_s: When it was revoked; None if it was not.
        note: The operator's, for whom it is.
    """

    token_id: str
    role: TokenRole
    secret_sha256: str = field(repr=False)
    created_s: float
    expires_s: float
    revoked_s: float | None = None
    note: str = ""

    def state(self, now_s: float) -> Literal["open", "expired", "revoked"]:
        """Whether it lets anybody in."""
        if self.revoked_s is not None:
            return "revoked"
        return "expired" if self.expires_s <= now_s else "open"


def mark_of(run_public: str) -> str:
    """What a run's tokens are marked with, from the public half of its key in hex."""
    return hashlib.sha256(bytes.fromhex(run_public)).hexdigest()[:16]


def parse_access(text: str, mark: str) -> AccessToken:
    """Take a token of the run with this mark apart. No message repeats any part of it.

    Raises:
        SettingError: It is no such token; the sentence says which.
    """
    parts = text.strip().split(".")
    if parts[0] == JOIN_VERSION:
        raise SettingError("token: this one lets a worker join; to look or to steer, ask the operator for another")
    role = VERSIONS.get(parts[0])
    if role is None:
        raise SettingError(f"token: expected it to begin with {'. or '.join(VERSIONS)}. ; {_ADVICE}")
    if len(parts) != 4 or not (_MARK.fullmatch(parts[1]) and _ID.fullmatch(parts[2]) and _SECRET.fullmatch(parts[3])):
        raise SettingError(f"token: it is not whole; {_ADVICE}")
    if parts[1] != mark:
        raise SettingError("token: this one is of another run; look for the token of this run, or for that run's page")
    return AccessToken(role, parts[1], parts[2], parts[3])


def hash_secret(secret: str) -> str:
    """What is kept of a secret. It has 192 random bits: a plain hash of it tells nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def judge_token(shown: AccessToken, known: KnownToken | None, now_s: float) -> str:
    """Why a token does not give its role; nothing where it does.

    An unknown token and a wrong secret have one answer, after the same comparison.
    """
    expected = hash_secret("") if known is None else known.secret_sha256
    is_right = hmac.compare_digest(hash_secret(shown.secret), expected)
    if known is None or not is_right or known.role != shown.role:
        return "the token is unknown or its secret is wrong; copy all of it, or ask the operator for a new one"
    return _judge_state(known, now_s)


def _judge_state(known: KnownToken, now_s: float) -> str:
    state = known.state(now_s)
    if state == "open":
        return ""
    what = "was revoked" if state == "revoked" else "has expired"
    return f"the token {what}; ask the operator for a new one"
