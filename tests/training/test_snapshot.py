"""Units that are interrupted: at whatever step, they end with the same bytes as if nothing had happened."""

import dataclasses
import itertools
import json

import pytest
import torch

from tests.learning.test_paths import node_payload
from tests.learning.test_training import gate_payload
from tests.learning.units import base, shard, unit
from tinylora.errors import ProtocolError
from tinylora.protocol.documents import Update
from tinylora.tensors import from_bytes, to_bytes
from tinylora.training import Fit, Snapshot, UnitRunner
from tinylora.training import runner as runner_module

N_STEPS = 3


def work(*arguments, **changes):
    """A unit of few steps."""
    return unit(*arguments, **{"n_steps": N_STEPS, **changes})


UNITS = {
    "leaf": work(),
    "subtree": work("train", "1", gate_payload(nodes=("", "1")), router_sync="both"),
    "nested": work(adapter="nested"),
    "nested, lower rows frozen": work(adapter="nested:frozen"),
    "prefix": work(adapter="nested", rank=4, prefix_rank=2),
    "tied": work(adapter="tied:A,uv"),
    "path": work("train", "10", node_payload("", "10"), nodes=("", "1", "10"), node_versions=(3, 0, 2)),
    "beside frozen": work("train", "10", node_payload("", "1"), nodes=("10",), frozen=("", "1")),
    "one factor": work(factors=("lora_B",)),
    "adopted": work("train", "0", gate_payload(), is_adopted=True),
}


class Killed(Exception):
    """What the machine does to a step."""


@pytest.fixture(scope="module")
def text():
    return shard("letters", "digits")


def make(text, **options):
    return UnitRunner(base(), text, worker="w0", clock=itertools.count().__next__, **options)


def without_time(update: Update) -> Update:
    return update.model_copy(update={"seconds": 0.0})


def run_and_keep(text, order, payload, first=None):
    """A unit that nothing happens to, after `first`, and the bytes of its snapshot after each step."""
    kept: list[bytes] = []
    one = make(text, on_step=lambda *_: kept.append(latest(one).to_bytes()))
    if first is not None:
        one.run(*first)
        kept.clear()
    update, result = one.run(order, payload)
    return without_time(update), result, kept, one


def latest(one: UnitRunner) -> Snapshot:
    assert one.latest is not None
    return one.latest


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_that_goes_on_from_any_step_ends_with_the_same_bytes(name, text):
    update, result, kept, one = run_and_keep(text, *UNITS[name])
    assert one.latest is None
    assert [Snapshot.from_bytes(data).n_steps for data in kept] == [1, 2, 3]
    for data in kept:
        again, repeated = make(text).run(*UNITS[name], resume=Snapshot.from_bytes(data))
        assert repeated == result
        assert without_time(again) == update


def test_a_unit_goes_on_from_before_its_first_step(text, monkeypatch):
    one = make(text)
    with monkeypatch.context() as patched:
        patched.setattr(runner_module, "take_steps", _killed)
        with pytest.raises(Killed):
            one.run(*work())
    kept = Snapshot.from_bytes(latest(one).to_bytes())
    assert kept.n_steps == 0
    assert make(text).run(*work(), resume=kept)[1] == make(text).run(*work())[1]


def _killed(*_, **__):
    raise Killed


def test_it_can_be_interrupted_more_than_once(text):
    result = make(text).run(*work())[1]
    resume, seconds = None, []
    for last in (0, 1, 2):
        one = make(text, on_step=_dying_at(last))
        with pytest.raises(Killed):
            one.run(*work(), resume=resume)
        resume = Snapshot.from_bytes(latest(one).to_bytes())
        assert resume.n_steps == last + 1
        seconds.append(resume.seconds)
    update, again = make(text).run(*work(), resume=resume)
    assert again == result
    assert seconds == sorted(set(seconds)) and update.seconds > seconds[-1] > 0


def _dying_at(last):
    def on_step(node, step, loss, speed):
        if step == last:
            raise Killed

    return on_step


def test_moments_from_before_the_unit_come_along(text):
    first = work(unit_id="u0")
    state = {name: t for name, t in from_bytes(make(text).run(*first)[1]).items() if name.startswith("node.")}
    second = work("train", "0", state, node_version=1, first_step=N_STEPS)
    _, result, kept, _ = run_and_keep(text, *second, first=first)
    assert result != make(text).run(*second)[1]  # the moments matter
    for data in kept:
        fresh = make(text)
        assert fresh.run(*second, resume=Snapshot.from_bytes(data))[1] == result
        assert fresh.run(*second)[1] == result  # repeated: from the moments before the unit


def test_a_snapshot_is_left_alone_by_later_steps(text):
    seen: list[tuple[Snapshot, bytes]] = []
    one = make(text, on_step=lambda *_: seen.append((latest(one), latest(one).to_bytes())))
    one.run(*work())
    assert len(seen) == N_STEPS
    assert all(snapshot.to_bytes() == data for snapshot, data in seen)
    assert len({data for _, data in seen}) == N_STEPS


def test_kinds_of_work_without_steps_have_no_snapshot(text):
    one = make(text)
    one.run(*work("sketch", ""))
    assert one.latest is None


def test_bytes_and_back(text):
    one = make(text, on_step=_dying_at(1))
    with pytest.raises(Killed):
        one.run(*UNITS["subtree"])
    kept = dataclasses.replace(latest(one), fit=Fit(2, True, "nf4", 4, 1))
    again = Snapshot.from_bytes(kept.to_bytes())
    assert (again.identity, again.fit, again.losses) == (kept.identity, kept.fit, kept.losses)
    assert sorted(again.parameters) == ["float32", "float64"]  # adapters, and gates
    assert again.to_bytes() == kept.to_bytes()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(text) -> Snapshot:
    one = make(text, on_step=_dying_at(1))
    with pytest.raises(Killed):
        one.run(*work())
    return latest(one)


OTHERS = {
    "code": ("0.0.0", "got one of version 0.0.0 of tinylora"),
    "unit_id": ("u7", "unit u1, got one of unit u7"),
    "nonce": ("m", "the lease n, got one of the lease m"),
    "payload_sha256": ("0" * 64, "got one of the payload 000000000000$"),
    "base_fingerprint": ("0" * 64, "got one of the base 000000000000$"),
    "shard_version": ("0" * 64, "got one of the text 000000000000$"),
    "worker": ("w9", "worker w0, got one of worker w9"),
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_snapshot_of_something_else_is_refused(field, kept):
    value, message = OTHERS[field]
    other = dataclasses.replace(kept, identity=kept.identity.model_copy(update={field: value}))
    with pytest.raises(ProtocolError, match=f"^unit u1: checkpoint: expected one of .*{message}"):
        other.check(kept.identity, [torch.zeros(3)], N_STEPS)


@pytest.mark.parametrize(
    "change",
    [
        {"losses": (1.0,) * 5},
        {"parameters": {"float32": torch.zeros(5)}},
        {"parameters": {}},
        {"moments": None, "parameters": {"float64": torch.zeros(5)}},
    ],
)
def test_a_unit_whose_snapshot_does_not_fit_starts_over_and_says_so(change, kept, text, caplog):
    resume = dataclasses.replace(kept, **change)
    steps: list[int] = []
    one = make(text, on_step=lambda node, step, loss, speed: steps.append(step))
    assert one.run(*work(), resume=resume)[1] == make(text).run(*work())[1]
    assert steps == [0, 1, 2]
    assert "the unit starts over" in caplog.text


def test_numbers_that_are_not_finite_are_refused(kept, text, caplog):
    parameters = {name: vector.clone() for name, vector in kept.parameters.items()}
    parameters["float32"][7] = float("nan")
    make(text).run(*work(), resume=dataclasses.replace(kept, parameters=parameters))
    assert "expected finite numbers, got 1 of" in caplog.text


@pytest.mark.parametrize("moments", ["moments", "before"])
def test_moments_of_other_parameters_are_refused(moments, kept, text, caplog):
    wrong = dataclasses.replace(kept.moments, steps=torch.ones(3))
    make(text).run(*work(), resume=dataclasses.replace(kept, **{moments: wrong}))
    assert "parameters, got 3" in caplog.text


def test_bytes_that_are_no_checkpoint_are_refused(kept):
    data = kept.to_bytes()
    tensors = from_bytes(data)
    header = {"format": 1, "identity": kept.identity.model_dump(), "fit": dataclasses.asdict(Fit()), "seconds": 1.0}
    strange = {
        "nothing": b"",
        "cut off": data[:-1],
        "no header": to_bytes(tensors),
        "no JSON": to_bytes(tensors, {"snapshot": "{"}),
        "deep JSON": to_bytes(tensors, {"snapshot": "[" * 100_000}),
        "another format": to_bytes(tensors, {"snapshot": json.dumps(header | {"format": 2})}),
        "an unknown field": to_bytes(tensors, {"snapshot": json.dumps(header | {"code": "import os"})}),
        "an unknown tensor": to_bytes(tensors | {"x": torch.zeros(1)}, {"snapshot": json.dumps(header)}),
        "no losses": to_bytes(_without(tensors, "losses"), {"snapshot": json.dumps(header)}),
        "a matrix": to_bytes(tensors | {"parameters.float32": torch.zeros(2, 2)}, {"snapshot": json.dumps(header)}),
        "another dtype": to_bytes(tensors | {"now.steps": torch.zeros(2).int()}, {"snapshot": json.dumps(header)}),
        "half of the moments": to_bytes(_without(tensors, "now.steps"), {"snapshot": json.dumps(header)}),
    }
    for name, wrong in strange.items():
        with pytest.raises(ProtocolError):
            Snapshot.from_bytes(wrong)
            pytest.fail(name)


def _without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}
