"""What owners say of their text: it travels with the signed sketch, into the ledger, into the bundle, and out again."""

import json
from dataclasses import dataclass, replace

import pytest

from tests.federation.world import FakeRunner, crowd, only, run_world
from tinylora.errors import ProtocolError
from tinylora.federation.campaign import apply, fold
from tinylora.federation.events import UpdateAccepted, WorkerErased, WorkerQuarantined, WorkerRevoked
from tinylora.protocol.documents import Update, WorkUnit
from tinylora.release import data_notes, licences, make_bundle

DOCUMENT = Update(
    unit_id="u", run="r", kind="sketch", worker="w", nonce="n", shard_version="0" * 64, payload_sha256="0" * 64
)


@dataclass
class TalkingRunner(FakeRunner):
    """Says something of its text with every update."""

    said: tuple[str, str] = ("", "")

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        update, data = super().run(unit, payload)
        note, licence = self.said if unit.kind == "sketch" else ("said too late", "none")
        return update.model_copy(update={"data_note": note, "data_licence": licence}), data


def talking(*said: tuple[str, str]) -> list:
    made = []
    for worker, words in zip(crowd(len(said)), said, strict=True):
        assert isinstance(worker.runner, FakeRunner)
        runner = TalkingRunner(worker.runner.worker, worker.runner.centre, said=words)
        made.append(replace(worker, runner=runner))
    return made


def test_notes_go_to_the_leaves_of_those_who_said_them():
    said = ("poems", "CC0-1.0"), ("letters", ""), ("poems", "CC-BY-4.0"), ("", "CC0-1.0")
    campaign, events, ledger = run_world(talking(*said), depth=1, min_workers=4)
    told = {event.worker: event.data_note for event in only(events, UpdateAccepted) if event.kind == "sketch"}
    assert told == {"w0": "poems", "w1": "letters", "w2": "poems", "w3": ""}
    assert not any(event.data_note for event in only(events, UpdateAccepted) if event.kind != "sketch")
    expected: dict[str, dict[str, None]] = {}
    for number, (note, _) in enumerate(said):
        node = campaign.workers[f"w{number}"].node
        assert node is not None
        if note:
            expected.setdefault(node, {})[note] = None
    assert data_notes(campaign) == {leaf: tuple(notes) for leaf, notes in expected.items()}
    assert licences(campaign) == ("CC-BY-4.0", "CC0-1.0")
    bundle = make_bundle(campaign, ledger)
    assert bundle.data_notes == data_notes(campaign) and bundle.licences == licences(campaign)
    assert "CC-BY-4.0" not in make_bundle(campaign, ledger, without="w2").licences


def test_who_is_taken_out_says_nothing_any_more():
    campaign, _, _ = run_world(talking(("poems", "CC0-1.0"), ("letters", "MIT")), depth=1)
    gone = apply(campaign, WorkerRevoked(worker="w0"))
    for state in (gone, apply(gone, WorkerErased(worker="w0"))):
        assert [*data_notes(state).values()] == [("letters",)] and licences(state) == ("MIT",)
        assert "poems" not in str(state.workers)
    quarantined = apply(campaign, WorkerQuarantined(worker="w0", code="faults", reason="three faults"))
    assert [*data_notes(quarantined).values()] == [("letters",)]
    assert licences(quarantined) == ("CC0-1.0", "MIT")  # what it trained still counts


def test_a_run_without_notes_is_what_it_was():
    campaign, events, _ = run_world(crowd(2), depth=1)
    assert data_notes(campaign) == {} and licences(campaign) == ()
    bare = [
        event.model_copy() if not isinstance(event, UpdateAccepted) else UpdateAccepted.model_validate_json(_old(event))
        for event in events
    ]
    assert fold(bare) == campaign


def _old(event: UpdateAccepted) -> str:
    return json.dumps({k: v for k, v in json.loads(event.model_dump_json()).items() if not k.startswith("data_")})


def test_a_document_without_a_note_has_the_bytes_that_it_always_had():
    assert "data_note" not in DOCUMENT.to_json() and "data_licence" not in DOCUMENT.to_json()
    noted = DOCUMENT.model_copy(update={"data_note": "poems"})
    assert Update.from_json(noted.to_json()) == noted and "data_licence" not in noted.to_json()
    assert Update.from_json(DOCUMENT.to_json()) == DOCUMENT


@pytest.mark.parametrize("said", ["a" * 201, ["poems"], None])
def test_a_note_that_is_none(said):
    text = json.dumps({**json.loads(DOCUMENT.to_json()), "data_note": said})
    with pytest.raises(ProtocolError, match="data_note"):
        Update.from_json(text)


@pytest.mark.parametrize("said", ["poems\x1b[31m", "two\nlines", "\u202edlrow", " padded "])
def test_a_note_is_one_plain_line_or_the_document_is_not_canonical(said):
    text = json.dumps({**json.loads(DOCUMENT.to_json()), "data_note": said}, sort_keys=True, separators=(",", ":"))
    assert Update.from_json(text).to_json() != text
