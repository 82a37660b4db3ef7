"""The join token: which coordinator a worker may trust, and what it must show there. Pure; no flwr.

    tl1.<sha256 of the CA certificate, 64 hex digits>.<id>.<secret>     a run with its own CA
    tl1.system.<id>.<secret>                                            the system's trust store vouches for it

The worker compares the hash with the certificate that it is offered before it sends the secret (as k3s does, see
docs.k3s.io/cli/token): whoever answers at the address without the run's CA never sees it.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, field

from tinylora.errors import SettingError

VERSION = "tl1"
SYSTEM = "system"
"""The pin of a token whose coordinator is verified by the system's trust store."""

_PIN = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[a-z0-9]{4,32}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{32,86}")
_ADVICE = "copy the whole token that the operator gave you"


@dataclass(frozen=True)
class JoinToken:
    """A token, taken apart. Its secret is in no text that a log could show; `text` alone has it."""

    pin: str
    """Hex sha256 of the CA certificate's DER, or `SYSTEM`."""
    token_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The token as it is handed out. Never log it."""
        return f"{VERSION}.{self.pin}.{self.token_id}.{self.secret}"


def parse_token(text: str) -> JoinToken:
    """Take a token apart. No message repeats any part of it.

    Raises:
        SettingError: It is no token; the sentence says which part is wrong.
    """
    parts = text.strip().split(".")
    if parts[0] != VERSION:
        raise SettingError(f"token: expected it to begin with {VERSION}. ; {_ADVICE}")
    if len(parts) != 4:
        raise SettingError(f"token: expected four parts between dots, got {len(parts)}; {_ADVICE}")
    _, pin, token_id, secret = parts
    if pin != SYSTEM and not _PIN.fullmatch(pin):
        raise SettingError(
            f"token: expected 64 hex digits or {SYSTEM!r} as its second part, got {len(pin)} characters; {_ADVICE}"
        )
    if not _ID.fullmatch(token_id):
        raise SettingError(f"token: expected 4 to 32 letters and digits as its third part; {_ADVICE}")
    if not _SECRET.fullmatch(secret):
        raise SettingError(
            f"token: expected at least 32 letters, digits, - or _ as its last part, got {len(secret)} characters; "
            f"{_ADVICE}"
        )
    return JoinToken(pin, token_id, secret)


def new_secret() -> str:
    """192 random bits as text."""
    return secrets.token_urlsafe(24)


def new_token_id() -> str:
    """A short name for a token, which may be shown and logged."""
    return secrets.token_hex(5)


def pin_of_der(certificate: bytes) -> str:
    """The pin of a CA, from its certificate's DER."""
    return hashlib.sha256(certificate).hexdigest()
