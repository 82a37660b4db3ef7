"""A worker's key on disk."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.flower.helpers import make_unit, make_update
from tinylora.errors import StorageError
from tinylora.flower.identity import IDENTITY_FILE, load_or_create, new_identity, worker_of
from tinylora.protocol.envelope import sign, verify


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    first = load_or_create(tmp_path / "home")
    file = tmp_path / "home" / IDENTITY_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in file.parent.iterdir()] == [IDENTITY_FILE]
    again = load_or_create(tmp_path / "home")
    assert again.public_pem == first.public_pem and again.worker == first.worker == worker_of(first.public_pem)
    assert load_or_create(tmp_path / "other").worker != first.worker


def test_its_signatures_are_those_that_the_coordinator_checks() -> None:
    identity = new_identity()
    update = make_update(make_unit("u1", b""), identity.worker, b"result")
    verify(sign(update, identity.sign), identity.public_pem)


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).write_text("hello")
    with pytest.raises(StorageError, match=r"identity\.pem: not a private key"):
        load_or_create(tmp_path)


def test_a_key_of_another_curve_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / IDENTITY_FILE).write_bytes(pem)
    with pytest.raises(StorageError, match="P-384"):
        load_or_create(tmp_path)


def test_a_home_that_is_a_file_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StorageError, match="choose another --home"):
        load_or_create(tmp_path / "home")
