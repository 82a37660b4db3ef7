"""Signatures on updates and receipts.

Updates: ECDSA with SHA-256 on P-384, the keys that Flower's node authentication uses. Receipts: Ed25519 by the run's
key, which gives the same bytes each time.

What is signed is the canonical JSON of the document without its `signature`, of an update with the lease's nonce and
the payload's hash among its fields, behind a line that no other document of ours begins with. So a signature can be
neither moved to another payload nor used twice.
"""

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tinylora.errors import ProtocolError
from tinylora.protocol.documents import Receipt, Update

DOMAIN = b"tinylora update 1\n"
RECEIPT_DOMAIN = b"tinylora receipt 1\n"
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


def receipt_bytes(receipt: Receipt) -> bytes:
    """What the signature of a receipt covers."""
    return RECEIPT_DOMAIN + receipt.model_copy(update={"signature": ""}).to_json().encode()


def sign_receipt(receipt: Receipt, key: ed25519.Ed25519PrivateKey) -> Receipt:
    """The receipt with its signature by the run's key."""
    return receipt.model_copy(update={"signature": key.sign(receipt_bytes(receipt)).hex()})


def verify_receipt(receipt: Receipt, run_key: str) -> None:
    """Check the signature of a receipt.

    Args:
        receipt: As it came.
        run_key: The run's public key, hex, as pinned when the worker joined.

    Raises:
        ProtocolError: There is none, it is no hex, or it was not made over this receipt by this key.
    """
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(run_key))
        key.verify(bytes.fromhex(receipt.signature), receipt_bytes(receipt))
    except (ValueError, InvalidSignature):
        reason = "is missing" if not receipt.signature else "was not made by the run's key over this receipt"
        raise ProtocolError(f"receipt of unit {receipt.unit_id}: its signature {reason}") from None
