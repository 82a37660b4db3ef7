"""Who a worker is: an EC P-384 key that never leaves its home folder, and the name derived from its public half.

P-384, PEM and ECDSA with SHA-256 are what Flower's node authentication expects.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tinylora import durable
from tinylora.errors import StorageError
from tinylora.protocol.envelope import SIGNED_WITH

IDENTITY_FILE = "identity.pem"
_STEP = "worker.identity"
durable.register_file(_STEP)


@dataclass(frozen=True)
class Identity:
    """A worker's key pair."""

    private_key: ec.EllipticCurvePrivateKey

    @cached_property
    def public_pem(self) -> bytes:
        """The public key as the coordinator registers it."""
        return self.private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @cached_property
    def worker(self) -> str:
        """The worker's name on the wire."""
        return worker_of(self.public_pem)

    def sign(self, data: bytes) -> bytes:
        """Signature over `data`."""
        return self.private_key.sign(data, SIGNED_WITH)


def worker_of(public_pem: bytes) -> str:
    """A worker's name: the same after a restart of anything, because only its key decides it."""
    return f"w-{hashlib.sha256(public_pem).hexdigest()[:16]}"


def new_identity() -> Identity:
    """A fresh key, in memory only."""
    return Identity(ec.generate_private_key(ec.SECP384R1()))


def load_or_create(home: Path) -> Identity:
    """The identity kept in `home`; made on first use, readable by its owner only.

    Raises:
        StorageError: The folder cannot be written, or the file is no P-384 private key.
    """
    file = home / IDENTITY_FILE
    try:
        if not file.exists():
            _write_key(file, new_identity())
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}; choose another --home") from None
    except (ValueError, TypeError):
        raise StorageError(f"{file}: not a private key; move it away and join again as a new worker") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise StorageError(f"{file}: expected an EC P-384 key; move it away and join again as a new worker")
    return Identity(key)


def _write_key(file: Path, identity: Identity) -> None:
    pem = identity.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    durable.replace_file(file, pem, name=_STEP)
