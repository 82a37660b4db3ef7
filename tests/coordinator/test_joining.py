"""The join desk: who is let in, with one answer for each fault, and nothing registered unless all was right."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from tinylora_coordinator.joining import PROOF_AGE_S, JoinCard, JoinDesk
from tinylora_coordinator.operator_store import OperatorStore

from tests.federation.facts import FACTS
from tinylora.config import RunSettings
from tinylora.errors import RefusedError
from tinylora.flower.enrolment import BaseClaim, JoinAnswer, JoinRequest, Refusal, proof_bytes
from tinylora.flower.identity import Identity, new_identity
from tinylora.flower.join_token import JoinToken, parse_token

NOW = 1_700_000_000.0
PIN = "d" * 64


@dataclass
class World:
    """A desk with one token, and what it has registered."""

    store: OperatorStore
    token: JoinToken
    registered: list[bytes] = field(default_factory=list)
    is_removed: bool = False

    def register(self, public_pem: bytes, name: str) -> None:
        if self.is_removed:
            raise RefusedError("this worker has been removed from the run")
        self.registered.append(public_pem)

    def answer(self, body: bytes) -> tuple[int, JoinAnswer | Refusal]:
        card = JoinCard(RunSettings(name="a run"), FACTS, "e" * 64, PIN)
        return JoinDesk(card, self.store, self.register, lambda: NOW).answer(body)

    def request(self, identity: Identity, **changes: Any) -> JoinRequest:
        """A request that is right, but for the changes; these are signed, too."""
        values = {"token": self.token.text, "public_key": identity.public_pem.decode(), "protocol": 1, "time_s": NOW}
        request = JoinRequest.model_validate(values | changes)
        token_id = parse_token(request.token).token_id if request.token else ""
        return request.model_copy(
            update={"proof": identity.sign(proof_bytes(request, pin=PIN, token_id=token_id)).hex()}
        )

    def ask(self, identity: Identity, **changes: Any) -> tuple[int, JoinAnswer | Refusal]:
        return self.answer(self.request(identity, **changes).model_dump_json().encode())

    def refusal(self, request: JoinRequest) -> tuple[int, str]:
        status, found = self.answer(request.model_dump_json().encode())
        assert isinstance(found, Refusal), found
        assert self.token.secret not in found.model_dump_json()
        return status, found.error


@pytest.fixture
def world(tmp_path: Path) -> World:
    store = OperatorStore(tmp_path)
    return World(store, store.create_token(PIN, now_s=NOW))


# --- welcome ----------------------------------------------------------------------------------------------------------


def test_a_token_and_a_proof_open_the_door_once_for_a_key(world: World) -> None:
    identity = new_identity()
    status, answer = world.ask(identity, name="mine\x1b[2J\n")
    assert status == 200 and isinstance(answer, JoinAnswer)
    assert (answer.worker, answer.run, answer.base, answer.run_key) == (identity.worker, "a run", FACTS, "e" * 64)
    assert (answer.time_s, world.registered) == (NOW, [identity.public_pem])
    assert world.store.workers()[0].name == "mine [2J"  # nothing that a terminal would obey
    assert world.ask(identity, base=BaseClaim.of(FACTS))[0] == 200
    assert world.ask(identity, token="")[0] == 200  # known by its key
    assert world.refusal(world.request(new_identity())) == (403, "used_up")


def test_a_trial_is_answered_like_a_join_and_leaves_no_trace(world: World) -> None:
    identity = new_identity()
    status, answer = world.ask(identity, is_trial=True)
    assert status == 200 and isinstance(answer, JoinAnswer) and answer.worker == identity.worker
    assert (world.store.workers(), world.registered) == ([], [])
    assert world.ask(identity)[0] == 200 and world.registered == [identity.public_pem]  # its one place was still free
    assert world.refusal(world.request(new_identity(), is_trial=True)) == (403, "used_up")
    assert world.ask(identity, token="", is_trial=True)[0] == 200
    world.store.revoke(identity.worker, reason="", now_s=NOW)
    assert world.refusal(world.request(identity, is_trial=True)) == (403, "banned")


def test_a_newer_worker_with_further_fields_is_told_its_protocol_is_too_new(world: World) -> None:
    request = world.request(new_identity(), protocol=99).model_dump() | {"news": True}
    status, refusal = world.answer(json.dumps(request).encode())
    assert status == 409 and isinstance(refusal, Refusal)
    assert (refusal.error, refusal.expected, refusal.received) == ("protocol", "1", "99")


@pytest.mark.parametrize("part", ["fingerprint", "tokenizer_fingerprint", "feature_hash"])
def test_another_base_is_a_conflict_that_names_the_part(world: World, part: str) -> None:
    claim = BaseClaim.of(FACTS).model_copy(update={part: "9" * 64})
    status, refusal = world.ask(new_identity(), base=claim)
    assert status == 409 and isinstance(refusal, Refusal) and part in refusal.reason
    assert (refusal.error, refusal.received) == ("base", "9" * 64) and world.registered == []


def test_who_needs_approval_is_told_to_wait_and_is_not_registered(world: World) -> None:
    token, identity = world.store.create_token(PIN, now_s=NOW, needs_approval=True), new_identity()
    request = world.request(identity, token=token.text)
    assert world.refusal(request) == (202, "pending") and world.registered == []
    world.store.approve(identity.worker)
    assert world.ask(identity)[0] == 200 and world.registered == [identity.public_pem]


# --- one refusal each -------------------------------------------------------------------------------------------------


def another_key(world: World, request: JoinRequest) -> JoinRequest:
    return request.model_copy(update={"public_key": new_identity().public_pem.decode()})


def another_token(world: World, request: JoinRequest) -> JoinRequest:
    return request.model_copy(update={"token": world.store.create_token(PIN, now_s=NOW).text})


def another_time(world: World, request: JoinRequest) -> JoinRequest:
    return request.model_copy(update={"time_s": NOW + 1})


def no_proof(world: World, request: JoinRequest) -> JoinRequest:
    return request.model_copy(update={"proof": ""})


def another_run(world: World, request: JoinRequest) -> JoinRequest:
    identity = new_identity()
    request = world.request(identity)
    signed = proof_bytes(request, pin="f" * 64, token_id=world.token.token_id)
    return request.model_copy(update={"proof": identity.sign(signed).hex()})


@pytest.mark.parametrize("fault", [another_key, another_token, another_time, no_proof, another_run])
def test_nobody_registers_a_key_that_he_does_not_hold(
    world: World, fault: Callable[[World, JoinRequest], JoinRequest]
) -> None:
    assert world.refusal(fault(world, world.request(new_identity()))) == (403, "proof")
    assert world.registered == world.store.workers() == []
    assert all(token.n_workers == 0 for token in world.store.tokens(NOW))


@pytest.mark.parametrize("off_s", [PROOF_AGE_S + 1, -PROOF_AGE_S - 1, 1e300, -1e300])
def test_a_proof_of_another_time_is_told_ours(world: World, off_s: float) -> None:
    status, refusal = world.ask(new_identity(), time_s=NOW + off_s)
    assert status == 403 and isinstance(refusal, Refusal)
    assert (refusal.error, refusal.time_s, world.store.workers()) == ("clock", NOW, [])


def unknown(world: World) -> str:
    return JoinToken(PIN, "unknown", "x" * 32).text


def wrong_secret(world: World) -> str:
    return JoinToken(PIN, world.token.token_id, "x" * 32).text


def expired(world: World) -> str:
    return world.store.create_token(PIN, now_s=NOW - 100, expires_in_s=50).text


def revoked(world: World) -> str:
    token = world.store.create_token(PIN, now_s=NOW)
    world.store.revoke_token(token.token_id, NOW)
    return token.text


def used_up(world: World) -> str:
    world.ask(new_identity())
    world.registered.clear()
    return world.token.text


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (unknown, "token"),
        (wrong_secret, "token"),
        (lambda world: "", "token"),
        (expired, "expired"),
        (revoked, "token_revoked"),
        (used_up, "used_up"),
    ],
)
def test_a_token_that_opens_nothing_has_its_code(world: World, token: Callable[[World], str], code: str) -> None:
    text = token(world)
    before = world.store.workers()
    status, refusal = world.ask(new_identity(), token=text, protocol=99)
    assert isinstance(refusal, Refusal) and (status, refusal.error) == (403, code)
    assert FACTS.base_id not in refusal.model_dump_json()  # nothing of the run is told, not even its protocol
    assert world.registered == [] and world.store.workers() == before


def test_an_unknown_token_and_a_wrong_secret_have_the_same_answer(world: World) -> None:
    assert world.ask(new_identity(), token=unknown(world)) == world.ask(new_identity(), token=wrong_secret(world))


@pytest.mark.parametrize("by", ["operator", "flower"])
def test_a_worker_that_was_removed_stays_out(world: World, by: str) -> None:
    identity = new_identity()
    world.ask(identity)
    if by == "operator":
        world.store.revoke(identity.worker, reason="", now_s=NOW)
    world.is_removed = by == "flower"
    assert world.refusal(world.request(identity)) == (403, "banned")
    assert world.refusal(world.request(identity, token="")) == (403, "banned")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"token": 1}', b'{"token": "t", "public_key": "k", "protocol": "x"}',
        b'{"public_key": "k", "protocol": 1, "time_s": NaN}', b'{"public_key": "k", "protocol": 1, "proof": "xy"}',
        b'{"public_key": "k", "protocol": 1, "proof": "abc"}', b"[" * 60_000,
        json.dumps({"public_key": "k" * 5000, "protocol": 1}).encode(),
        json.dumps({"public_key": "k", "protocol": 1, "name": "n" * 81}).encode(),
        json.dumps({"public_key": "k", "protocol": 1, "token": "tl1.short"}).encode(),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_told_what_is_wrong(world: World, body: bytes) -> None:
    status, refusal = world.answer(body)
    assert isinstance(refusal, Refusal) and (status, refusal.error) == (400, "malformed")
    assert refusal.reason.startswith(("join request: field", "token: ")) and len(refusal.reason) < 500


def openssh(identity: Identity) -> str:
    key = identity.private_key.public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@pytest.mark.parametrize(
    "spell",
    [
        lambda identity: "hello",
        lambda identity: identity.public_pem.decode() + "\n",
        lambda identity: " " + identity.public_pem.decode(),
        lambda identity: identity.public_pem.decode().replace("\n", "\r\n"),
        openssh,
    ],
)
def test_a_key_has_one_spelling_so_that_it_is_one_worker(world: World, spell: Callable[[Identity], str]) -> None:
    identity = new_identity()
    assert world.refusal(world.request(identity, public_key=spell(identity))) == (400, "key")
    assert world.store.workers() == []


def test_two_hundred_identities_from_one_token_find_its_cap(world: World) -> None:
    token = world.store.create_token(PIN, now_s=NOW, max_workers=3)
    statuses = [world.ask(new_identity(), token=token.text)[0] for _ in range(200)]
    assert statuses.count(200) == 3 == len(world.registered) and statuses.count(403) == 197


def test_no_secret_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    request = world.request(new_identity())
    world.answer(request.model_dump_json().encode())
    world.refusal(world.request(new_identity()))
    assert world.token.secret not in caplog.text and world.token.secret not in repr(request)
