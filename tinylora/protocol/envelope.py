"""Signatures on updates: ECDSA with SHA-256 on P-384, the keys that Flower's node authentication uses.

What is signed is the canonical JSON of the update without its `signature`, the lease's nonce and the payload's hash
among its fields, behind a line that no other document of ours begins with. So a signature can be neither moved to
another payload nor used twice.
"""

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tinylora.errors import ProtocolError
from tinylora.protocol.documents import Update

DOMAIN = b"tinylora update 1\n"
SIGNED_WITH = ec.ECDSA(hashes.SHA256())


def signed_bytes(update: Update) -> bytes:
    """What the signature of an update covers."""
    return DOMAIN + update.model_copy(update={"signature": ""}).to_json().encode()


def sign(update: Update, signer: Callable[[bytes], bytes] | ec.EllipticCurvePrivateKey) -> Update:
    """The update with its signature, made by a private key or by whoever holds one."""
    data = signed_bytes(update)
    raw = signer.sign(data, SIGNED_WITH) if isinstance(signer, ec.EllipticCurvePrivateKey) else signer(data)
    return update.model_copy(update={"signature": raw.hex()})


def read_public_key(text: bytes) -> ec.EllipticCurvePublicKey:
    """An EC P-384 public key from PEM or OpenSSH text.

    Raises:
        ProtocolError: It is something else.
    """
    load = serialization.load_ssh_public_key if text.startswith(b"ecdsa-") else serialization.load_pem_public_key
    try:
        key = load(text)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ProtocolError("public key: expected an EC P-384 key in PEM or OpenSSH form, got something else") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ProtocolError(f"public key: expected an EC P-384 key, got {type(key).__name__}")
    return key


def verify(update: Update, public_key: bytes) -> None:
    """Check the signature of an update.

    Raises:
        ProtocolError: There is none, it is no hex, or it was not made over this update by this key.
    """
    key = read_public_key(public_key)
    try:
        key.verify(bytes.fromhex(update.signature), signed_bytes(update), SIGNED_WITH)
    except (ValueError, InvalidSignature):
        reason = "is missing" if not update.signature else "was not made by the worker's key over this update"
        raise ProtocolError(f"update of unit {update.unit_id}: its signature {reason}") from None
