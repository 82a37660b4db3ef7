"""Whose fleet request it is, by its head alone.

Flower checks the same three headers, but only after it has read and parsed the body, whoever sent it. Here a stranger
is turned away before a byte of the body is read. The signature covers the time only: it says who, not what.
"""

import binascii
import time
from base64 import b64decode
from collections.abc import Callable
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from starlette.concurrency import run_in_threadpool

from tinylora.errors import ProtocolError
from tinylora.flower.compat.link import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    now,
)
from tinylora.protocol.envelope import SIGNED_WITH, read_public_key
from tinylora_coordinator.heads import Headers, values

AUTH_HEADERS = tuple(
    name.encode() for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
)


class NodeAuth:
    """Tells workers from strangers.

    Args:
        may_enter: Whether a worker with this public key (PEM) may take part now. It is called in a thread.
        clock: The server's, with its zone.
        trust_s: A yes of `may_enter` is believed so long: who is revoked is out after that.
    """

    def __init__(
        self, may_enter: Callable[[bytes], bool], *, clock: Callable[[], datetime] = now, trust_s: float = 2.0
    ) -> None:
        self._may_enter, self._clock, self._trust_s = may_enter, clock, trust_s
        self._trusted: dict[bytes, float] = {}

    async def admit(self, headers: Headers) -> bytes | None:
        """The public key of the worker who signed, or None for a stranger."""
        shown = [values(headers, name) for name in AUTH_HEADERS]
        if any(len(found) != 1 for found in shown):
            return None
        public_pem = _decode(shown[0][0])
        if public_pem is None or not await self._is_known(public_pem):
            return None
        is_theirs = await run_in_threadpool(is_signed, public_pem, shown[1][0], _decode(shown[2][0]), self._clock())
        return public_pem if is_theirs else None

    async def _is_known(self, public_pem: bytes) -> bool:
        at = time.monotonic()
        if self._trusted.get(public_pem, float("-inf")) > at - self._trust_s:
            return True
        self._trusted.pop(public_pem, None)
        if not await run_in_threadpool(self._may_enter, public_pem):
            return False
        self._trusted[public_pem] = at
        return True


def is_signed(public_pem: bytes, timestamp: bytes, signature: bytes | None, at: datetime) -> bool:
    """Whether the key's owner signed this time, and it is now, within Flower's tolerance."""
    try:
        age_s = (at - datetime.fromisoformat(timestamp.decode("ascii"))).total_seconds()
        read_public_key(public_pem).verify(signature or b"", timestamp, SIGNED_WITH)
    except (ValueError, TypeError, OverflowError, ProtocolError, InvalidSignature):
        return False
    return -SYSTEM_TIME_TOLERANCE < age_s < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def _decode(text: bytes) -> bytes | None:
    try:
        return b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
