"""Whatever bytes come in, nothing but the foreseen refusals comes out."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bundle.test_bundle import make
from tests.hostile.desk import Desk
from tinylora import tensors
from tinylora.bundle import read_bundle, write_bundle
from tinylora.errors import BundleError, ProtocolError, SettingError
from tinylora.federation.events import UpdateAccepted, UpdateRejected, WorkerQuarantined
from tinylora.federation.ports import Reply
from tinylora.flower.enrolment import read_join_request
from tinylora.flower.join_token import parse_token
from tinylora.protocol.documents import Update, sha256

SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
N_MUTATIONS = 300


def mutated(data: bytes, seed: int) -> bytes:
    """The same bytes after a few accidents: flipped, overwritten, cut out, doubled or moved."""
    chance, found = random.Random(seed), bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(found) + 1)
        end = min(len(found), start + chance.choice((1, 1, 2, 8, 64)))
        match chance.randrange(5):
            case 0 if start < len(found):
                found[start] ^= 1 << chance.randrange(8)
            case 1:
                found[start:end] = chance.randbytes(end - start)
            case 2:
                del found[start:end]
            case 3:
                found[start:start] = found[start:end]
            case _:
                found[start:end] = chance.choice((b"null", b"-1", b"1e999", b'"', b"{", b"]", b"\x00", b"\xff"))
    return bytes(found)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    made = Desk(tmp_path_factory.mktemp("run"))
    made.go_on()
    return made


def test_mutated_updates_are_refused_or_are_the_same(desk):
    """Unsigned changes to a signed document, and to its payload; the worker is never held to account for them."""
    update, payload = desk.honest("w0")
    reply = desk.reply("w0", update, payload)
    for seed in range(N_MUTATIONS):
        if seed % 2:
            bad = replace(reply, payload=mutated(payload, seed))
        else:
            bad = replace(reply, update_json=mutated(reply.update_json.encode(), seed).decode("utf-8", "replace"))
        if bad == reply:
            continue
        (event,) = desk.take(bad)
        assert isinstance(event, UpdateRejected), seed
        assert not desk.rounds.state.workers["w0"].refusal
    assert isinstance(desk.take(reply)[0], UpdateAccepted)


def test_mutated_payloads_that_were_signed_are_refused_or_harmless(tmp_path):
    """The worker signs whatever it likes: then all that is left are the rules of payloads."""
    desk = Desk(tmp_path)
    desk.go_on()
    n_refused = 0
    for seed in range(N_MUTATIONS // 6):
        desk.settle()
        if desk.rounds.state.workers["w0"].refusal:
            desk = Desk(tmp_path / str(seed))
            desk.go_on()
        update, payload = desk.honest("w0")
        data = mutated(payload, seed)
        events = desk.take(desk.reply("w0", update.model_copy(update={"payload_sha256": sha256(data)}), data))
        assert all(isinstance(event, UpdateRejected | UpdateAccepted | WorkerQuarantined) for event in events)
        n_refused += isinstance(events[0], UpdateRejected)
    assert n_refused > N_MUTATIONS // 12


@given(st.text(max_size=200), st.binary(max_size=200), st.text(max_size=20), st.text(max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_from_anybody_is_refused(desk, text, payload, worker, unit):
    (event,) = desk.take(Reply(worker, unit, text, payload))
    assert isinstance(event, UpdateRejected)


@given(SEEDS)
def test_mutated_documents_tensors_tokens_and_requests(seed):
    chance = random.Random(seed)
    document = Update.model_validate(
        {"unit_id": "u1", "run": "r", "kind": "train", "worker": "w", "nonce": "n"}
        | {"shard_version": "0" * 64, "payload_sha256": "0" * 64, "losses": (1.0, 2.0)}
    ).to_json()
    for reader, data in (
        (lambda raw: Update.from_json(raw.decode("utf-8", "replace")), document.encode()),
        (read_join_request, b'{"token":"t","public_key":"k","protocol":1,"time_s":1.5,"base":null}'),
        (lambda raw: parse_token(raw.decode("utf-8", "replace")), b"tl1.system.abcdef." + b"x" * 40),
        (tensors.from_bytes, chance.randbytes(8) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}1234'),
    ):
        try:
            reader(mutated(data, seed))
        except (ProtocolError, SettingError) as error:
            assert 0 < len(str(error)) < 2000


def test_mutated_bundles(tmp_path):
    file: Path = tmp_path / "bundle.safetensors"
    write_bundle(make(), file)
    sound = file.read_bytes()
    for seed in range(N_MUTATIONS):
        file.write_bytes(mutated(sound, seed))
        if file.read_bytes() != sound:
            with pytest.raises(BundleError):
                read_bundle(file)
