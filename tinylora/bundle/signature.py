"""Who made a bundle: an Ed25519 signature over its metadata, and so over every tensor, whose sums stand in them.

What is signed begins with a line that no other document of ours begins with. The same key and the same bundle give the
same signature, so signed bundles are equal bytes too. A bundle need not be signed: then its sums guard against
accidents alone. Whether the key is the right one only the reader knows, who has it from the run (`verify --key`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinylora.errors import BundleError, SettingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DOMAIN = b"tinylora bundle 2\n"
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Signer:
    """Somebody who signs bundles: a run, by its coordinator."""

    public_key: str
    """64 hex digits."""
    sign: Callable[[bytes], bytes]

    @classmethod
    def of(cls, key: "Ed25519PrivateKey") -> "Signer":
        """The holder of this key."""
        return cls(key.public_key().public_bytes_raw().hex(), key.sign)


def signature_of(text: str, signer: Signer) -> str:
    """128 hex digits: the signature over metadata that have none yet."""
    return signer.sign(DOMAIN + text.encode()).hex()


def is_signed_by(text: str, signature: str, public_key: str) -> bool:
    """Whether this key signed these metadata; `text` is what they are without the signature."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), DOMAIN + text.encode())
    except (ValueError, InvalidSignature):
        return False
    return True


def check_signer(signed_by: str, key: str, *, where: str) -> None:
    """Check that a bundle whose signature holds was signed by the key that the reader knows.

    Args:
        signed_by: Public key that the bundle names; empty where it is not signed.
        key: The one that it should be, 64 hex digits.
        where: The file, for the message.

    Raises:
        SettingError: `key` is none.
        BundleError: It is not signed, or by another key.
    """
    key = key.strip().lower()
    if not _KEY.fullmatch(key):
        raise SettingError(f"key {key[:80]!r}: expected 64 hex digits, as `tinylora-coordinator bundle` prints them")
    if not signed_by:
        raise BundleError(
            f"{where}: not signed; expected the signature of key {key[:16]}...; fetch the bundle from the run itself",
            rule="unsigned",
        )
    if signed_by != key:
        raise BundleError(
            f"{where}: signed by key {signed_by[:16]}..., expected {key[:16]}...; it is another run's bundle, or "
            "somebody altered it and signed it anew",
            rule="other_key",
        )
