"""Whose fleet request it is: Flower's own rule, applied to the head alone."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tinylora_coordinator.front_door.node_auth import NodeAuth, is_signed

from tests.door.helpers import signed
from tinylora.flower.identity import new_identity

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
WORKER = new_identity()


def headers(shown: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in shown.items()]


def admit(shown: list[tuple[bytes, bytes]], *, is_known: bool = True) -> bytes | None:
    return asyncio.run(NodeAuth(lambda _: is_known, clock=lambda: NOW).admit(shown))


def test_a_worker_is_told_by_its_signature() -> None:
    assert admit(headers(signed(WORKER, NOW))) == WORKER.public_pem


def test_a_stranger_with_a_good_signature_is_one_still() -> None:
    assert admit(headers(signed(WORKER, NOW)), is_known=False) is None


@pytest.mark.parametrize(("age_s", "is_good"), [(304.9, True), (305, False), (-4.9, True), (-5, False), (0, True)])
def test_the_time_is_flowers_window_by_our_clock(age_s: float, is_good: bool) -> None:
    assert (admit(headers(signed(WORKER, NOW - timedelta(seconds=age_s)))) is not None) == is_good


FORGED = {
    "another's signature": signed(WORKER, NOW, **{"flwr-signature": signed(new_identity(), NOW)["flwr-signature"]}),
    "another's key": signed(WORKER, NOW, **{"flwr-public-key": signed(new_identity(), NOW)["flwr-public-key"]}),
    "another time": signed(WORKER, NOW, **{"flwr-timestamp": (NOW + timedelta(seconds=1)).isoformat()}),
    "no zone": signed(WORKER, NOW.replace(tzinfo=None)),
    "no time": signed(WORKER, NOW, **{"flwr-timestamp": "now"}),
    "an empty signature": signed(WORKER, NOW, **{"flwr-signature": ""}),
    "no base64": signed(WORKER, NOW, **{"flwr-signature": "!" * 64}),
    "a key that is none": signed(WORKER, NOW, **{"flwr-public-key": "aGVsbG8="}),
    "a time that is no ASCII": signed(WORKER, NOW, **{"flwr-timestamp": "2026\xb2"}),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_does_not_fit_together_is_a_stranger(name: str) -> None:
    assert admit(headers(FORGED[name])) is None


def test_each_header_is_needed_once() -> None:
    shown = headers(signed(WORKER, NOW))
    for number in range(3):
        assert admit(shown[:number] + shown[number + 1 :]) is None
        assert admit([*shown, shown[number]]) is None


def test_who_is_revoked_is_out_when_the_trust_ends() -> None:
    known, asked = {WORKER.public_pem}, []

    def may_enter(public_pem: bytes) -> bool:
        asked.append(public_pem)
        return public_pem in known

    trusting, strict = (NodeAuth(may_enter, clock=lambda: NOW, trust_s=trust_s) for trust_s in (1e6, 0.0))
    shown = headers(signed(WORKER, NOW))
    assert asyncio.run(trusting.admit(shown)) and asyncio.run(trusting.admit(shown)) and len(asked) == 1
    assert asyncio.run(strict.admit(shown))
    known.clear()
    assert asyncio.run(strict.admit(shown)) is None and asyncio.run(trusting.admit(shown))


def test_a_public_key_of_another_kind_is_none_of_ours() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    other = ed25519.Ed25519PrivateKey.generate()
    pem = other.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    timestamp = NOW.isoformat().encode()
    assert not is_signed(pem, timestamp, other.sign(timestamp), NOW)
