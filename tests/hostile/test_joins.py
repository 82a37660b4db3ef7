"""Every class of bad join requests, over TLS through the real door: its code and status, nobody new, nothing told."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from tinylora_coordinator.front_door import Limits
from tinylora_coordinator.joining import PROOF_AGE_S, JoinCard, JoinDesk, join_routes
from tinylora_coordinator.operator_store import FILE, OperatorStore

from tests.door.helpers import Door, head, open_door
from tests.federation.facts import FACTS, SETTINGS
from tests.hostile.measured import MAX_BYTES, MAX_SECONDS, measured
from tinylora.flower.enrolment import JOIN_PATH, BaseClaim, JoinRequest, proof_bytes
from tinylora.flower.identity import Identity, new_identity, worker_of
from tinylora.flower.join_token import JoinToken
from tinylora.protocol.documents import PROTOCOL_VERSION

PIN = "a" * 64
NOW_S = 1_000_000.0
BANNED, KNOWN, STRANGER = (new_identity() for _ in range(3))


@dataclass
class World:
    """A served door with a join desk behind it, and some tokens."""

    door: Door
    folder: Path
    tokens: dict[str, JoinToken]
    registered: list[bytes] = field(default_factory=list)

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        database = sqlite3.connect(self.folder / FILE)
        try:
            return {table: list(database.execute(f"SELECT * FROM {table}")) for table in ("token", "worker", "job")}
        finally:
            database.close()

    def fields(self, *, by: str = "good", identity: Identity = STRANGER, **changes: Any) -> dict[str, Any]:
        """A join request that is fine but for `changes`, which are signed with it."""
        text = self.tokens[by].text if by else ""
        values = {
            "token": text,
            "public_key": identity.public_pem.decode(),
            "name": "a friend",
            "protocol": PROTOCOL_VERSION,
            "time_s": NOW_S,
            "base": BaseClaim.of(FACTS).model_dump(),
        } | changes
        request = JoinRequest.model_construct(**values)
        token_id = str(values["token"]).split(".")[-2] if str(values["token"]).count(".") > 2 else ""
        values["proof"] = identity.sign(proof_bytes(request, pin=PIN, token_id=token_id)).hex()
        return values

    def ask(self, raw: bytes) -> tuple[int, str, str]:
        """Status, code and text of the answer to a whole HTTP request."""
        answer = self.door.ask(raw)
        told = answer.body.decode("utf-8", "replace")
        try:
            code = json.loads(told).get("error", "")
        except (ValueError, AttributeError):
            code = ""
        return answer.status, code, told


def _post(body: bytes | str | dict[str, Any], **headers: str) -> bytes:
    raw = json.dumps(body) if isinstance(body, dict) else body
    data = raw.encode() if isinstance(raw, str) else raw
    return head("POST", JOIN_PATH, len(data), content_type="application/json", **headers) + data


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("run")
    with OperatorStore(folder) as store:
        tokens = {
            "good": store.create_token(PIN, now_s=NOW_S),
            "many": store.create_token(PIN, now_s=NOW_S, max_workers=99),
            "used up": store.create_token(PIN, now_s=NOW_S),
            "expired": store.create_token(PIN, now_s=NOW_S - 100_000, expires_in_s=10),
            "revoked": store.create_token(PIN, now_s=NOW_S),
            "slow": store.create_token(PIN, now_s=NOW_S, needs_approval=True),
        }
        store.revoke_token(tokens["revoked"].token_id, NOW_S)
        _let_in(store, tokens["used up"], KNOWN)
        _let_in(store, tokens["many"], BANNED)
        store.revoke(worker_of(BANNED.public_pem), reason="spam", now_s=NOW_S)
        registered: list[bytes] = []
        card = JoinCard(SETTINGS, FACTS, run_key="b" * 64, pin=PIN)
        desk = JoinDesk(card, store, lambda key, name: registered.append(key), clock=lambda: NOW_S)
        limits = Limits(tries_per_minute=10_000)
        with open_door(folder, routes=join_routes(desk), limits=limits) as door:
            yield World(door, folder, tokens, registered)


def _let_in(store: OperatorStore, token: JoinToken, identity: Identity) -> None:
    pem = identity.public_pem
    names = worker_of(pem), pem.decode()
    store.enrol(*names, name="x", token_id=token.token_id, secret=token.secret, now_s=NOW_S)


Maker = Callable[[World], bytes]


def _changed(**changes: Any) -> Maker:
    return lambda world: _post(world.fields(**changes))


def _raw(text: str | bytes) -> Maker:
    return lambda world: _post(text)


def _after_signing(**changes: Any) -> Maker:
    return lambda world: _post(world.fields() | changes)


def _token(change: Callable[[str], str]) -> Maker:
    return lambda world: _post(world.fields() | {"token": change(world.tokens["good"].text)})


def _wrong_secret(world: World) -> bytes:
    good = world.tokens["good"]
    return _post(world.fields(token=JoinToken(PIN, good.token_id, "x" * 32).text))


def _unknown_token(world: World) -> bytes:
    return _post(world.fields(token=JoinToken(PIN, "0" * 10, "x" * 32).text))


def _pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def _for_another_run(world: World) -> bytes:
    """Signed for the run with another CA."""
    fields = world.fields()
    request = JoinRequest.model_validate(fields)
    signed = proof_bytes(request, pin="c" * 64, token_id=world.tokens["good"].token_id)
    return _post(fields | {"proof": STRANGER.sign(signed).hex()})


def _deep(depth: int) -> str:
    return '{"token":' + "[" * depth + "]" * depth + "}"


def _without(name: str) -> Maker:
    return lambda world: _post({key: value for key, value in world.fields().items() if key != name})


JOINS: dict[str, tuple[Maker, int, str, str]] = {
    "nothing": (_raw(""), 400, "malformed", "Invalid JSON"),
    "noise": (_raw(bytes(range(256))), 400, "malformed", "Invalid JSON"),
    "half a request": (lambda world: _post(json.dumps(world.fields())[:200]), 400, "malformed", "Invalid JSON"),
    "a list": (_raw("[]"), 400, "malformed", "should be an object"),
    "brackets in brackets": (_raw(_deep(30_000)), 400, "malformed", "recursion limit"),
    "a pickle": (_raw(b"\x80\x04cos\nsystem\n."), 400, "malformed", "Invalid JSON"),
    "packed": (lambda world: _post(b"\x1f\x8b\x08\x00" + bytes(20), content_encoding="gzip"), 400, "malformed", ""),
    "too long": (_raw(" " * 70_000), 413, "length", "at most"),
    "of no length": (
        lambda world: head("POST", JOIN_PATH, transfer_encoding="chunked") + b"0\r\n\r\n", 411, "length", "length"
    ),
    "asked for": (lambda world: head("GET", JOIN_PATH), 405, "method", ""),
    "put": (lambda world: head("PUT", JOIN_PATH, 2) + b"{}", 405, "method", ""),
    "in capitals": (lambda world: head("POST", JOIN_PATH.upper(), 2) + b"{}", 404, "not_found", ""),
    "without a key": (_without("public_key"), 400, "malformed", "public_key: Field required"),
    "without a protocol": (_without("protocol"), 400, "malformed", "protocol: Field required"),
    "a protocol in words": (_after_signing(protocol="new"), 400, "malformed", "protocol: Input should be"),
    "a protocol of a thousand digits": (
        lambda world: _post(json.dumps(world.fields(protocol=7)).replace('"protocol": 7', '"protocol": ' + "7" * 1000)),
        400, "malformed", "protocol: Input should be less",
    ),
    "a key that is too long": (_after_signing(public_key="x" * 5000), 400, "malformed", "public_key: String"),
    "a name that is too long": (_after_signing(name="x" * 81), 400, "malformed", "name: String"),
    "a name of bytes": (_after_signing(name=["x"]), 400, "malformed", "name: Input should be"),
    "NaN for a time": (_after_signing(time_s=float("nan")), 400, "malformed", "time_s"),
    "a proof that is no hex": (_after_signing(proof="zz"), 400, "malformed", "proof: String should match"),
    "a proof that is too long": (_after_signing(proof="00" * 300), 400, "malformed", "proof: String should have"),
    "a base that is none": (_after_signing(base={"fingerprint": "x"}), 400, "malformed", "base.fingerprint"),
    "a token that is too long": (_token(lambda text: text + "x" * 512), 400, "malformed", "token: String"),
    "a token of another kind": (_token(lambda text: "K10" + text), 400, "malformed", "begin with tl1."),
    "a token of three parts": (_token(lambda text: text.rpartition(".")[0]), 400, "malformed", "four parts"),
    "a token with another pin": (_token(lambda text: text.replace(PIN, "zz")), 400, "malformed", "64 hex digits"),
    "a token whose name is a path": (
        _token(lambda text: text.replace(".", "./", 2)), 400, "malformed", "second part"
    ),
    "a token without a secret": (_token(lambda text: text.rpartition(".")[0] + "."), 400, "malformed", "got 0"),
    "a token with half a secret": (_token(lambda text: text[:-20]), 400, "malformed", "last part"),
    "no token": (lambda world: _post(world.fields(by="")), 403, "token", "needs a join token"),
    "an unknown token": (_unknown_token, 403, "token", "token"),
    "a wrong secret": (_wrong_secret, 403, "token", "token"),
    "an expired token": (_changed(by="expired"), 403, "expired", "expired"),
    "a revoked token": (_changed(by="revoked"), 403, "token_revoked", "revoked"),
    "a token that was used": (_changed(by="used up"), 403, "used_up", ""),
    "a banned worker": (_changed(by="many", identity=BANNED), 403, "banned", "removed"),
    "no key at all": (_after_signing(public_key=""), 400, "key", "expected an EC P-384 key"),
    "a key of another curve": (
        _after_signing(public_key=_pem(ec.derive_private_key(7, ec.SECP256R1()))), 400, "key", "P-384"
    ),
    "a key of another kind": (
        _after_signing(public_key=_pem(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))), 400, "key", "P-384"
    ),
    "a key with a line around it": (
        lambda world: _post(world.fields(public_key="\n" + STRANGER.public_pem.decode())), 400, "key", "PEM that"
    ),
    "two keys": (
        lambda world: _post(world.fields(public_key=STRANGER.public_pem.decode() * 2)), 400, "key", "PEM that"
    ),
    "no proof": (_after_signing(proof=""), 403, "proof", "not signed"),
    "somebody else's key": (_after_signing(public_key=KNOWN.public_pem.decode()), 403, "proof", "not signed"),
    "a proof of zeros": (_after_signing(proof="00" * 100), 403, "proof", "not signed"),
    "signed for another run": (_for_another_run, 403, "proof", "not signed"),
    "another time than was signed": (_after_signing(time_s=NOW_S + 1), 403, "proof", "not signed"),
    "a proof of last week": (_changed(time_s=NOW_S - 7 * 86_400), 403, "clock", "604800 s ago"),
    "a proof of the future": (_changed(time_s=NOW_S + PROOF_AGE_S + 1), 403, "clock", "from now"),
    "a protocol to come": (_changed(by="good", protocol=99), 409, "protocol", "install the run's"),
    "another base": (
        _changed(by="good", base=BaseClaim.of(FACTS).model_dump() | {"fingerprint": "e" * 64}),
        409, "base", "fingerprint",
    ),
}  # fmt: skip
"""Name to maker, HTTP status, code, and part of the sentence."""


@pytest.mark.parametrize("name", JOINS)
def test_refused_with_its_own_code(name, world):
    make, status, code, sentence = JOINS[name]
    raw = make(world)
    before, n_registered = world.rows(), len(world.registered)
    (got_status, got_code, told), seconds, extra = measured(lambda: world.ask(raw))
    assert (got_status, got_code) == (status, code), told
    assert sentence in told
    assert seconds < MAX_SECONDS and extra < MAX_BYTES
    assert world.rows() == before and len(world.registered) == n_registered
    assert len(told) < 2000
    for secret in (token.secret for token in world.tokens.values()):
        assert secret not in told
    if status != 409:
        assert FACTS.fingerprint not in told


def test_after_all_that_an_honest_worker_comes_in(world):
    for make, *_ in JOINS.values():
        world.ask(make(world))
    identity = new_identity()
    status, _, told = world.ask(_post(world.fields(by="many", identity=identity)))
    assert status == 200, told
    assert world.registered[-1] == identity.public_pem
    assert json.loads(told)["worker"] == worker_of(identity.public_pem)


def test_there_are_enough_classes():
    assert len(JOINS) >= 45
