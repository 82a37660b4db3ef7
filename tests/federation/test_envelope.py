"""Signatures on updates: whose they are, and that they cover everything."""

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from tinylora.errors import ProtocolError
from tinylora.protocol.documents import ProbeResult, Update
from tinylora.protocol.envelope import read_public_key, sign, signed_bytes, verify

KEY = ec.derive_private_key(12345, ec.SECP384R1())
OTHER = ec.derive_private_key(54321, ec.SECP384R1())
UPDATE = Update(
    unit_id="u1",
    run="r",
    kind="train",
    worker="w",
    nonce="n",
    shard_version="0" * 64,
    losses=(2.5, 2.25),
    manifest={"node.0.q.lora_A": ("F32", (2, 3))},
    payload_sha256="1" * 64,
)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def _openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@pytest.mark.parametrize("form", [_pem, _openssh])
def test_signed_and_verified(form):
    verify(sign(UPDATE, KEY), form(KEY))
    verify(sign(UPDATE, lambda data: KEY.sign(data, ec.ECDSA(hashes.SHA256()))), form(KEY))


@pytest.mark.parametrize("form", [_pem, _openssh])
def test_another_key_did_not_sign(form):
    with pytest.raises(ProtocolError, match="not made by the worker's key"):
        verify(sign(UPDATE, KEY), form(OTHER))


def test_it_survives_the_wire():
    verify(Update.from_json(sign(UPDATE, KEY).to_json()), _pem(KEY))


CHANGES = {
    "unit_id": "u2",
    "run": "s",
    "kind": "sketch",
    "worker": "v",
    "nonce": "m",
    "node": "1",
    "topology_version": 1,
    "router_version": 1,
    "node_version": 1,
    "shard_version": "2" * 64,
    "shard_tokens": 1,
    "tokens": 1,
    "n_steps": 1,
    "seconds": 1.0,
    "base_loads": 1,
    "max_rank": 1,
    "max_leaves": 1,
    "log_volume": 1.0,
    "data_note": "poems",
    "data_licence": "CC0-1.0",
    "heldout_nll_before": 1.0,
    "heldout_nll_after": 1.0,
    "losses": (2.5,),
    "probe": ProbeResult(tokens=1, nll_parent=1.0, nll_current=1.0, nll_candidate=1.0),
    "manifest": {},
    "payload_sha256": "3" * 64,
}


@pytest.mark.parametrize("field", sorted(set(Update.model_fields) - {"protocol", "signature"}))
def test_every_field_is_covered(field):
    changed = sign(UPDATE, KEY).model_copy(update={field: CHANGES[field]})
    with pytest.raises(ProtocolError, match="signature was not made"):
        verify(changed, _pem(KEY))


@given(st.binary(max_size=120))
def test_no_bytes_pass_for_a_signature(raw):
    with pytest.raises(ProtocolError):
        verify(UPDATE.model_copy(update={"signature": raw.hex()}), _pem(KEY))


@pytest.mark.parametrize(
    ("text", "sentence"), [("", "is missing"), ("no hex", "not made by"), ("ab" * 9999, "not made")]
)
def test_a_signature_that_is_none(text, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        verify(UPDATE.model_copy(update={"signature": text}), _pem(KEY))


def test_what_is_signed_does_not_depend_on_a_signature_that_is_there():
    assert signed_bytes(UPDATE) == signed_bytes(sign(UPDATE, KEY))


def _edwards() -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(serialization.Encoding.PEM, form)


def _p256() -> bytes:
    return _pem(ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize("key", [b"", b"ssh-rsa AAAA", b"ecdsa-sha2-nistp384 !!!!", b"\xff\x00", _edwards(), _p256()])
def test_keys_that_are_not_ours(key):
    with pytest.raises(ProtocolError, match="expected an EC P-384 key"):
        read_public_key(key)
