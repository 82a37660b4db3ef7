"""Each check of an update by itself: one broken thing, one code, and a state as before but for the freed lease."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.federation.facts import FACTS, SETTINGS
from tests.federation.world import FakeRunner, statistics_tensors
from tinylora import tensors
from tinylora.federation.acceptance import Code
from tinylora.federation.campaign import FIRST_REST_S, Campaign
from tinylora.federation.decisions import Give, Lose, Return, Welcome, decide
from tinylora.federation.events import Event, RunStarted, UpdateRejected
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import Rounds
from tinylora.federation.ports import Reply, WorkerInfo
from tinylora.federation.standing import BENIGN_CODES, CLASS_OF, FINAL_CODES, MAX_STRIKES, strikes
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import Update, WorkUnit, sha256
from tinylora.protocol.envelope import sign
from tinylora.tensors import Tensors

KEYS = {name: ec.derive_private_key(number, ec.SECP384R1()) for number, name in enumerate(("w0", "w1"), start=7)}


def _public(name: str) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return KEYS[name].public_key().public_bytes(serialization.Encoding.PEM, form)


@dataclass
class Desk:
    """A loop without time: two workers with keys, and the units they were sent."""

    rounds: Rounds
    events: list[Event]
    sent: dict[str, tuple[WorkUnit, bytes]]
    at_s: float = 0.0

    def now(self) -> float:
        return self.at_s

    def wait(self, seconds: float) -> None:
        self.at_s += seconds

    def workers(self) -> list[WorkerInfo]:
        return [WorkerInfo(name, name, _public(name)) for name in sorted(KEYS)]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        self.sent[worker] = unit, payload

    def poll(self) -> list[Reply]:
        return []

    def settle(self) -> None:
        """Do all that can be done now."""
        while commands := decide(self.rounds.state, self.at_s, self.workers()):
            for command in commands:
                self.rounds.execute(command)

    def honest(self, worker: str) -> tuple[Update, bytes]:
        unit, payload = self.sent[worker]
        return FakeRunner(worker, (float(worker[1:]), 0, 0, 0), has_histograms=True).run(unit, payload)

    def reply(self, worker: str, update: Update, payload: bytes, *, key: str = "") -> Reply:
        signed = sign(update, KEYS[key or worker])
        return Reply(worker, update.unit_id, signed.to_json(), payload)


def desk(**changes: object) -> Desk:
    """Both workers are sketched and were just sent their first train unit."""
    made = Desk.__new__(Desk)
    events: list[Event] = []
    rounds = Rounds(MemoryLedger(), made, made, TorchNumerics(), on_event=events.append)
    made.__init__(rounds, events, {})
    rounds.open(RunStarted(run="test", settings=SETTINGS.model_copy(update=changes), base=FACTS))
    made.settle()
    rounds.take_in([made.reply(name, *made.honest(name)) for name in sorted(KEYS)])
    made.settle()
    assert {unit.kind for unit, _ in made.sent.values()} == {"train"}
    return made


def _code(made: Desk, reply: Reply) -> str:
    """The code that a reply is refused with; "accepted" otherwise."""
    n_before = len(made.events)
    made.rounds.take_in([reply])
    (event,) = made.events[n_before:]
    return event.code.partition(".")[0] if isinstance(event, UpdateRejected) else "accepted"


def _changed(**fields: object) -> Callable[[Desk], Reply]:
    """An update with other fields, signed as it is."""

    def make(made: Desk) -> Reply:
        update, payload = made.honest("w0")
        return made.reply("w0", update.model_copy(update=fields), payload)

    return make


def _tensors(change: Callable[[Tensors], Tensors]) -> Callable[[Desk], Reply]:
    """An update with other tensors, and a document that fits them."""

    def make(made: Desk) -> Reply:
        update, payload = made.honest("w0")
        changed = change(tensors.from_bytes(payload))
        data = tensors.to_bytes(changed)
        fields = {"manifest": tensors.manifest_of(changed), "payload_sha256": sha256(data)}
        return made.reply("w0", update.model_copy(update=fields), data)

    return make


def _payload(change: Callable[[bytes], bytes], *, is_named: bool) -> Callable[[Desk], Reply]:
    def make(made: Desk) -> Reply:
        update, payload = made.honest("w0")
        data = change(payload)
        named = update.model_copy(update={"payload_sha256": sha256(data)}) if is_named else update
        return made.reply("w0", named, data)

    return make


def _with(name_end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda found: {name: change(t) if name.endswith(name_end) else t for name, t in found.items()}


def _poke(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        poked = tensor.clone()
        poked.view(-1)[0] = value
        return poked

    return change


def _other_worker(made: Desk) -> Reply:
    update, payload = made.honest("w1")
    return made.reply("w0", update.model_copy(update={"worker": "w0"}), payload)


def _text(text: str) -> Callable[[Desk], Reply]:
    return lambda made: Reply("w0", made.sent["w0"][0].unit_id, text, b"")


def _signed_by_another(made: Desk) -> Reply:
    return made.reply("w0", *made.honest("w0"), key="w1")


def _unsigned(made: Desk) -> Reply:
    update, payload = made.honest("w0")
    return Reply("w0", update.unit_id, update.to_json(), payload)


FAULTS: dict[str, tuple[Callable[[Desk], Reply], Code]] = {
    "payload too long": (_payload(lambda data: data + bytes(1 << 20), is_named=True), Code.TOO_LARGE),
    "document too long": (_text("x" * 1_000_001), Code.TOO_LARGE),
    "no document": (_text(""), Code.BAD_DOCUMENT),
    "no JSON": (_text("{"), Code.BAD_DOCUMENT),
    "JSON of something else": (_text('{"protocol":1}'), Code.BAD_DOCUMENT),
    "not a number in JSON": (lambda made: _renamed(made, '"seconds":0.0', '"seconds":NaN'), Code.BAD_DOCUMENT),
    "a field too many": (lambda made: _renamed(made, '"tokens":', '"coins":1,"tokens":'), Code.BAD_DOCUMENT),
    "a unit that never was": (_changed(unit_id="u00000099"), Code.UNKNOWN_UNIT),
    "a unit by another name": (_changed(unit_id="u1"), Code.UNKNOWN_UNIT),
    "another worker's unit": (_other_worker, Code.FOREIGN_UNIT),
    "in another's name": (_changed(worker="w1"), Code.FOREIGN_UNIT),
    "another nonce": (_changed(nonce="0" * 32), Code.WRONG_NONCE),
    "another run": (_changed(run="other"), Code.WRONG_UNIT),
    "another kind": (_changed(kind="sketch"), Code.WRONG_UNIT),
    "another node": (_changed(node="11"), Code.WRONG_UNIT),
    "another version of the node": (_changed(node_version=3), Code.WRONG_UNIT),
    "another version of the gates": (_changed(router_version=3), Code.WRONG_UNIT),
    "another version of the tree": (_changed(topology_version=3), Code.WRONG_UNIT),
    "more steps than asked for": (_changed(n_steps=500), Code.WRONG_UNIT),
    "no signature": (_unsigned, Code.BAD_SIGNATURE),
    "another's signature": (_signed_by_another, Code.BAD_SIGNATURE),
    "changed after signing": (lambda made: _renamed(made, '"tokens":320', '"tokens":321'), Code.BAD_SIGNATURE),
    "another payload": (_payload(lambda data: data + b" ", is_named=False), Code.BAD_HASH),
    "a flipped byte": (_payload(lambda data: data[:-1] + bytes([data[-1] ^ 1]), is_named=False), Code.BAD_HASH),
    "an empty payload": (_payload(lambda data: b"", is_named=True), Code.BAD_PAYLOAD),
    "a truncated payload": (_payload(lambda data: data[:-3], is_named=True), Code.BAD_PAYLOAD),
    "bytes after the end": (_payload(lambda data: data + b"\0", is_named=True), Code.BAD_PAYLOAD),
    "another manifest than the payload": (_changed(manifest={}), Code.BAD_MANIFEST),
    "no tensors": (_tensors(lambda found: {}), Code.BAD_MANIFEST),
    "a leaf of somebody else": (
        _tensors(lambda found: found | {"node.9.proj.lora_A": torch.zeros(2, 2, 3)}),
        Code.BAD_MANIFEST,
    ),
    "transposed": (_tensors(_with("lora_A", lambda t: t.transpose(1, 2).contiguous())), Code.BAD_MANIFEST),
    "half precision": (_tensors(_with("lora_A", torch.Tensor.half)), Code.BAD_MANIFEST),
    "statistics from a leaf": (
        _tensors(lambda found: found | statistics_tensors({"0": FakeRunner("w0").sums})),
        Code.BAD_MANIFEST,
    ),
    "averaged gates that nobody asked for": (
        _tensors(lambda found: found | {"weights_router..b": torch.zeros(1, dtype=torch.float64)}),
        Code.BAD_MANIFEST,
    ),
    "one NaN": (_tensors(_with("lora_A", _poke(float("nan")))), Code.NOT_FINITE),
    "one infinity": (_tensors(_with("lora_B", _poke(float("-inf")))), Code.NOT_FINITE),
    "NaN among the histograms": (_tensors(_with("histogram.", _poke(float("nan")))), Code.NOT_FINITE),
    "half a count": (_tensors(_with("histogram.", _poke(0.5))), Code.BAD_STATISTICS),
    "a negative count": (_tensors(_with("histogram.", _poke(-1.0))), Code.BAD_STATISTICS),
    "one huge number": (_tensors(_with("lora_B", _poke(1e30))), Code.TOO_FAR),
    "A far from any draw": (_tensors(_with("lora_A", lambda t: t + 1e3)), Code.TOO_FAR),
}


def _renamed(made: Desk, old: str, new: str) -> Reply:
    reply = made.reply("w0", *made.honest("w0"))
    assert old in reply.update_json, reply.update_json
    return replace(reply, update_json=reply.update_json.replace(old, new))


UNPROVEN = {Code.BAD_DOCUMENT, Code.BAD_SIGNATURE, Code.BAD_HASH}
"""Where workers have keys: anybody may have sent this, so that no worker is to blame."""


@pytest.mark.parametrize("name", FAULTS)
def test_one_broken_thing_one_code(name):
    make, expected = FAULTS[name]
    made = desk(max_update_mib=0.5)
    before = made.rounds.state
    assert _code(made, make(made)) == expected
    after = made.rounds.state
    assert _without_worker(after, "w0") == _without_worker(before, "w0")
    assert made.events[-1].reason  # type: ignore[union-attr]
    is_proven = expected not in UNPROVEN and name not in ("another run", "document too long")
    assert strikes(after.workers["w0"]) == int(is_proven)
    is_freed = not after.workers["w0"].unit_id
    is_own = expected not in (Code.UNKNOWN_UNIT, Code.FOREIGN_UNIT) or name == "in another's name"
    assert is_freed == (is_proven and is_own)


def _without_worker(state: Campaign, worker: str) -> Campaign:
    """The state but for what a rejection may change: the worker's record, its own lease, the length of the log."""
    workers = {name: record for name, record in state.workers.items() if name != worker}
    leases = {unit: lease for unit, lease in state.leases.items() if lease.worker != worker}
    drafts = {unit: draft for unit, draft in state.drafts.items() if unit in leases}
    return replace(state, workers=workers, leases=leases, drafts=drafts, n_events=0, latest_at_s=0.0)


def test_the_codes_that_are_not_reached_above_are_reached_elsewhere():
    reached = {code for _, code in FAULTS.values()}
    assert set(Code) - reached == {
        Code.DUPLICATE,
        Code.LEASE_CLOSED,
        Code.SHARD_TOO_SMALL,
        Code.RANK_TOO_LOW,
        Code.DECLINED,
        Code.BAD_PROBE,
        Code.WORSE_ON_HELDOUT,
    }
    assert set(Code) >= BENIGN_CODES | FINAL_CODES
    assert set(Code) | {"routing_capture"} == set(CLASS_OF)


def test_an_honest_update_is_accepted_once():
    made = desk()
    reply = made.reply("w0", *made.honest("w0"))
    assert _code(made, reply) == "accepted"
    assert _code(made, reply) == Code.DUPLICATE
    assert strikes(made.rounds.state.workers["w0"]) == 0


def test_an_older_update_again():
    made = desk()
    sketch = next(event for event in made.events if event.type == "unit_leased" and event.worker == "w0")
    update, payload = made.honest("w0")
    made.rounds.take_in([made.reply("w0", update, payload)])
    again = made.reply("w0", update.model_copy(update={"unit_id": sketch.unit_id}), payload)
    assert _code(made, again) == Code.LEASE_CLOSED


def test_replies_of_one_moment_give_the_same_events_in_any_order():
    outcomes = set()
    for order in itertools.permutations(range(3)):
        made = desk()
        replies = [made.reply(name, *made.honest(name)) for name in ("w0", "w1")]
        replies.append(_other_worker(made))
        made.rounds.take_in([replies[index] for index in order])
        made.settle()
        # signatures are random, and so is their length
        outcomes.add("\n".join(event.model_dump_json(exclude={"bytes_received"}) for event in made.events))
    assert len(outcomes) == 1


def test_after_three_rejections_nothing_more_is_given():
    made = desk()
    for _ in range(MAX_STRIKES):
        assert made.rounds.state.workers["w0"].unit_id
        made.rounds.take_in([FAULTS["one NaN"][0](made)])
        made.settle()
    assert made.rounds.state.workers["w0"].refusal
    assert not made.rounds.state.workers["w0"].unit_id
    assert not [command for command in decide(made.rounds.state, 1.0, made.workers()) if isinstance(command, Give)]


def test_a_strangers_reply_is_written_down_and_changes_nothing():
    made = desk()
    before = made.rounds.state
    reply = replace(made.reply("w0", *made.honest("w0")), worker="../../etc", unit_id="<script>")
    assert _code(made, reply) == Code.FOREIGN_UNIT
    assert made.rounds.state.workers == before.workers
    assert made.rounds.state.leases == before.leases


def test_an_error_of_another_worker_frees_no_lease():
    made = desk()
    before = made.rounds.state
    made.rounds.take_in([Reply("w1", made.sent["w0"][0].unit_id, error="gone")])
    assert made.rounds.state == before


def test_the_key_is_that_of_the_first_meeting():
    made = desk()
    assert made.rounds.state.workers["w0"].public_key == _public("w0").decode()
    assert not [c for c in decide(made.rounds.state, 0.0, made.workers()) if isinstance(c, Welcome)]


def test_impossible_sums_of_a_sketch():
    made = desk()
    runner = FakeRunner("w0")
    made.rounds._record.state = replace(
        made.rounds.state, workers={k: replace(w, sketch="", unit_id="") for k, w in made.rounds.state.workers.items()}
    )
    made.settle()
    update, payload = runner.run(*made.sent["w0"])
    wrong = tensors.from_bytes(payload)
    wrong["statistics..scatter"] = -wrong["statistics..scatter"]
    data = tensors.to_bytes(wrong)
    reply = made.reply("w0", update.model_copy(update={"payload_sha256": sha256(data)}), data)
    assert _code(made, reply) == Code.BAD_STATISTICS


def test_what_was_made_while_the_line_was_cut_counts_when_its_worker_brings_it_at_once():
    """A line that breaks for two minutes does not cost the hour before it."""
    made = desk()
    reply = made.reply("w0", *made.honest("w0"))
    made.rounds.execute(Lose("w0"))
    made.at_s += 120.0
    made.rounds.execute(Return("w0"))
    made.settle()
    assert made.rounds.state.workers["w0"].unit_id == ""
    assert _code(made, reply) == "accepted"
    made.settle()
    assert made.rounds.state.workers["w0"].unit_id != reply.unit_id


def test_who_brings_nothing_after_the_return_gets_a_new_unit_and_the_old_one_is_closed():
    made = desk()
    reply = made.reply("w0", *made.honest("w0"))
    made.rounds.execute(Lose("w0"))
    made.rounds.execute(Return("w0"))
    made.at_s += FIRST_REST_S
    made.settle()
    assert made.rounds.state.workers["w0"].unit_id not in ("", reply.unit_id)
    assert _code(made, reply) == "lease_closed"
