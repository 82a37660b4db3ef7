"""Updates that must be refused: what is wrong with each, and the code that says so."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tests.federation.world import statistics_tensors
from tests.hostile.desk import Desk, Maker
from tests.hostile.files import FILES
from tinylora import tensors
from tinylora.federation.ports import Reply
from tinylora.protocol.documents import Update, sha256
from tinylora.routing.statistics import RouterStatistics
from tinylora.tensors import Tensors


@dataclass(frozen=True)
class Case:
    """One class of bad updates."""

    make: Maker
    code: str
    is_sketch: bool = False
    """Whether it answers a sketch; else a train unit."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Settings of the run that differ."""


# --- makers ----------------------------------------------------------------------------------------------------------


def _fields(**fields: object) -> Maker:
    """Other fields, signed as they are."""

    def make(desk: Desk) -> Reply:
        update, payload = desk.honest("w0")
        return desk.reply("w0", update.model_copy(update=fields), payload)

    return make


def _text(change: Callable[[str], str]) -> Maker:
    """The honest, signed document with its text changed."""

    def make(desk: Desk) -> Reply:
        reply = desk.reply("w0", *desk.honest("w0"))
        changed = change(reply.update_json)
        assert changed != reply.update_json
        return replace(reply, update_json=changed)

    return make


def _field(name: str, value: str) -> Maker:
    """One field of the document written otherwise, whatever JSON says of that."""
    return _text(lambda text: _written(text, name, value))


def _written(text: str, name: str, value: str) -> str:
    fields = json.loads(text)
    mark = "@@"
    return json.dumps(fields | {name: mark}, sort_keys=True, separators=(",", ":")).replace(f'"{mark}"', value)


def _payload(change: Callable[[bytes], bytes]) -> Maker:
    """Another payload, and a document that names it."""

    def make(desk: Desk) -> Reply:
        update, payload = desk.honest("w0")
        data = change(payload)
        return desk.reply("w0", update.model_copy(update={"payload_sha256": sha256(data)}), data)

    return make


def _tensors(change: Callable[[Tensors], Tensors]) -> Maker:
    """Other tensors, and a document that fits them."""

    def make(desk: Desk) -> Reply:
        update, payload = desk.honest("w0")
        changed = change(tensors.from_bytes(payload))
        data = tensors.to_bytes(changed)
        fields = {"manifest": tensors.manifest_of(changed), "payload_sha256": sha256(data)}
        return desk.reply("w0", update.model_copy(update=fields), data)

    return make


def _each(name_end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Maker:
    """The tensors whose names hold `name_end`, changed."""

    def changed(found: Tensors) -> Tensors:
        assert any(name_end in name for name in found), name_end
        return {name: change(tensor) if name_end in name else tensor for name, tensor in found.items()}

    return _tensors(changed)


def _poke(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        poked = tensor.clone()
        poked.view(-1)[0] = value
        return poked

    return change


def _sums(change: Callable[[RouterStatistics], RouterStatistics]) -> Maker:
    """A sketch with other sums."""

    def changed(found: Tensors) -> Tensors:
        arrays = {name: found[f"statistics..{name}"].numpy() for name in ("count", "total", "scatter")}
        return statistics_tensors({"": change(RouterStatistics.from_arrays(arrays))})

    return _tensors(changed)


def _from_another(desk: Desk) -> Reply:
    update, payload = desk.honest("w1")
    return desk.reply("w0", update.model_copy(update={"worker": "w0"}), payload)


def _unsigned(desk: Desk) -> Reply:
    update, payload = desk.honest("w0")
    return Reply("w0", update.unit_id, update.to_json(), payload)


def _signed_as(signature: str) -> Maker:
    def make(desk: Desk) -> Reply:
        update, payload = desk.honest("w0")
        return Reply("w0", update.unit_id, update.model_copy(update={"signature": signature}).to_json(), payload)

    return make


def _signed_by_another(desk: Desk) -> Reply:
    return desk.reply("w0", *desk.honest("w0"), key="w1")


def _signature_moved(desk: Desk) -> Reply:
    """The signature that the worker made for another update."""
    update, payload = desk.honest("w0")
    other = Update.from_json(desk.reply("w0", update.model_copy(update={"tokens": 0}), payload).update_json)
    return Reply("w0", update.unit_id, update.model_copy(update={"signature": other.signature}).to_json(), payload)


def _last_unit(desk: Desk) -> Reply:
    """An answer to the worker's unit before, which was accepted."""
    update, payload = desk.honest("w0")
    before = [e for e in desk.events if e.type == "update_accepted" and e.worker == "w0"][-1]
    return desk.reply("w0", update.model_copy(update={"unit_id": before.unit_id}), payload)


def _first_unit(desk: Desk) -> Reply:
    """An answer to a unit that was settled long ago."""
    desk.go_on()
    update, payload = desk.honest("w0")
    first = next(e for e in desk.events if e.type == "unit_leased" and e.worker == "w0")
    return desk.reply("w0", update.model_copy(update={"unit_id": first.unit_id}), payload)


def _only_payload(change: Callable[[bytes], bytes]) -> Maker:
    def make(desk: Desk) -> Reply:
        update, payload = desk.honest("w0")
        return desk.reply("w0", update, change(payload))

    return make


def _extra(name: str, tensor: torch.Tensor) -> Maker:
    return _tensors(lambda found: found | {name: tensor})


def _without(name_end: str) -> Maker:
    return _tensors(lambda found: {name: tensor for name, tensor in found.items() if not name.endswith(name_end)})


def _bent(sums: RouterStatistics, **arrays: np.ndarray) -> RouterStatistics:
    return replace(sums, **arrays)


# --- the classes -----------------------------------------------------------------------------------------------------

_SMALL = (("max_update_mib", 0.5),)
_BOTH = (("router_sync", "both"),)
_HUGE_NATS = "1e308"

ENVELOPE: dict[str, Case] = {
    "a document of a megabyte and a byte": Case(_text(lambda text: text + " " * 1_000_001), "too_large.document"),
    "a payload longer than the run allows": Case(
        _payload(lambda data: data + bytes(1 << 20)), "too_large.payload", changes=_SMALL
    ),
    "no document": Case(_text(lambda text: ""), "bad_document.json_invalid"),
    "half a document": Case(_text(lambda text: text[:100]), "bad_document.json_invalid"),
    "a document of brackets": Case(_text(lambda text: "[" * 500_000), "bad_document.json_invalid"),
    "a list": Case(_text(lambda text: f"[{text}]"), "bad_document.model_type"),
    "a field too many": Case(_field("coins", "1"), "bad_document.extra_forbidden"),
    "a field too few": Case(_text(lambda text: text.replace('"nonce":', '"once":')), "bad_document.missing.nonce"),
    "a field twice": Case(_text(lambda text: text.replace("{", '{"tokens":0,', 1)), "bad_document.not_canonical"),
    "white space": Case(_text(lambda text: text + "\n"), "bad_document.not_canonical"),
    "a number in quotes": Case(_field("n_steps", '"5"'), "bad_document.not_canonical"),
    "a number with a point": Case(_field("n_steps", "5.0"), "bad_document.not_canonical"),
    "a number below zero": Case(_field("tokens", "-1"), "bad_document.greater_than_equal.tokens"),
    "a number above all counts": Case(_field("tokens", str(2**53)), "bad_document.less_than.tokens"),
    "a number of a thousand digits": Case(_field("tokens", "9" * 1000), "bad_document.less_than.tokens"),
    "NaN": Case(_field("seconds", "NaN"), "bad_document.finite_number.seconds"),
    "another protocol": Case(_field("protocol", "2"), "bad_document.literal_error.protocol"),
    "a kind that is none": Case(_field("kind", '"mine"'), "bad_document.literal_error.kind"),
    "a worker's name that is a path": Case(
        _field("worker", '"../../etc"'), "bad_document.string_pattern_mismatch.worker"
    ),
    "a unit's name with a zero byte": Case(
        _field("unit_id", '"u1\\u0000"'), "bad_document.string_pattern_mismatch.unit_id"
    ),
    "a node that is no path": Case(_field("node", '"../0"'), "bad_document.string_pattern_mismatch.node"),
    "a hash that is none": Case(_field("payload_sha256", '"0"'), "bad_document.string_pattern_mismatch.payload_sha256"),
    "a manifest of numbers": Case(_field("manifest", "1"), "bad_document.dict_type.manifest"),
    "a loss beyond all losses": Case(
        _field("heldout_nll_after", _HUGE_NATS), "bad_document.less_than_equal.heldout_nll_after"
    ),
    "a loss below all losses": Case(
        _field("heldout_nll_before", f"-{_HUGE_NATS}"), "bad_document.greater_than_equal.heldout_nll_before"
    ),
    "a hundred thousand losses": Case(_field("losses", f"[{'1.0,' * 100_000}1.0]"), "bad_document.too_long.losses"),
    "a busy time of all ages": Case(_field("seconds", _HUGE_NATS), "bad_document.less_than_equal.seconds"),
    "a volume beyond all bounds": Case(_field("log_volume", _HUGE_NATS), "bad_document.less_than_equal.log_volume"),
    "no signature": Case(_unsigned, "bad_signature.missing"),
    "a signature that is no hex": Case(_signed_as("zz"), "bad_signature.wrong"),
    "a signature of zeros": Case(_signed_as("00" * 104), "bad_signature.wrong"),
    "a signature of a megabyte": Case(_signed_as("0" * 900_000), "bad_document.string_too_long.signature"),
    "another's signature": Case(_signed_by_another, "bad_signature.wrong"),
    "the signature of another update": Case(_signature_moved, "bad_signature.wrong"),
    "changed after it was signed": Case(_field("tokens", "0"), "bad_signature.wrong"),
    "a unit that never was": Case(_fields(unit_id="u00000099"), "unknown_unit"),
    "a unit by another name": Case(_fields(unit_id="u1"), "unknown_unit"),
    "another worker's unit": Case(_from_another, "foreign_unit"),
    "in another's name": Case(_fields(worker="w1"), "foreign_unit"),
    "a unit that was answered": Case(_last_unit, "duplicate"),
    "a unit that was settled long ago": Case(_first_unit, "lease_closed"),
    "another nonce": Case(_fields(nonce="0" * 32), "wrong_nonce"),
    "another run": Case(_fields(run="other"), "wrong_unit.run"),
    "another kind": Case(_fields(kind="sketch"), "wrong_unit.kind"),
    "another node": Case(_fields(node="11"), "wrong_unit.node"),
    "another version of the node": Case(_fields(node_version=3), "wrong_unit.node_version"),
    "another version of the gates": Case(_fields(router_version=3), "wrong_unit.router_version"),
    "another version of the tree": Case(_fields(topology_version=3), "wrong_unit.topology_version"),
    "more steps than asked for": Case(_fields(n_steps=500), "wrong_unit.n_steps"),
    "more tokens than its steps have": Case(_fields(tokens=2**52), "wrong_unit.tokens"),
    "tokens for a sketch": Case(_fields(tokens=1), "wrong_unit.tokens", is_sketch=True),
    "another payload": Case(_only_payload(lambda data: data + b" "), "bad_hash"),
    "a flipped bit": Case(_only_payload(lambda data: data[:-1] + bytes([data[-1] ^ 1])), "bad_hash"),
}

PAYLOAD: dict[str, Case] = {
    f"payload: {name}": Case(_payload(make), f"bad_payload.{rule}") for name, (make, rule) in FILES.items()
}

MANIFEST: dict[str, Case] = {
    "a document that tells of no tensors": Case(_fields(manifest={}), "bad_manifest.claim"),
    "no tensors": Case(_tensors(lambda found: {}), "bad_manifest.missing"),
    "half an adapter": Case(_without("lora_A"), "bad_manifest.missing"),
    "a leaf of somebody else": Case(_extra("node.9.proj.lora_A", torch.zeros(2, 2, 3)), "bad_manifest.unexpected"),
    "another projection": Case(_extra("node.0.other.lora_A", torch.zeros(2, 2, 3)), "bad_manifest.unexpected"),
    "gates of the run": Case(_extra("router..w", torch.zeros(4, dtype=torch.float64)), "bad_manifest.unexpected"),
    "averaged gates that nobody asked for": Case(
        _extra("weights_router..b", torch.zeros(1, dtype=torch.float64)), "bad_manifest.unexpected"
    ),
    "transposed": Case(_each("lora_A", lambda t: t.transpose(1, 2).contiguous()), "bad_manifest.shape"),
    "a higher rank": Case(_each("lora_B", lambda t: torch.cat([t, t], dim=2)), "bad_manifest.shape"),
    "no numbers": Case(_each("lora_B", lambda t: t[:0]), "bad_manifest.shape"),
    "half precision": Case(_each("lora_A", torch.Tensor.half), "bad_manifest.dtype"),
    "double precision": Case(_each("lora_A", torch.Tensor.double), "bad_manifest.dtype"),
    "a histogram in single precision": Case(_each("histogram.", torch.Tensor.float), "bad_manifest.dtype"),
    "sums of fewer numbers": Case(
        _each("total", lambda t: t[:, 1:].contiguous()), "bad_manifest.shape", is_sketch=True
    ),
    "a sketch without its scatter": Case(_without("scatter"), "bad_manifest.missing", is_sketch=True),
    "an adapter in a sketch": Case(
        _extra("node.0.proj.lora_A", torch.zeros(2, 2, 3)), "bad_manifest.unexpected", is_sketch=True
    ),
}

NUMBERS: dict[str, Case] = {
    "one NaN": Case(_each("lora_A", _poke(float("nan"))), "not_finite.node"),
    "one infinity": Case(_each("lora_B", _poke(float("-inf"))), "not_finite.node"),
    "NaN among the histograms": Case(_each("histogram.", _poke(float("nan"))), "not_finite.histogram"),
    "NaN among the sums": Case(_each("total", _poke(float("nan"))), "not_finite.statistics", is_sketch=True),
    "infinite gates": Case(_each("weights_router.", _poke(float("inf"))), "not_finite.weights_router", changes=_BOTH),
    "gates beyond all bounds": Case(_each("weights_router.", _poke(1e300)), "bad_statistics.weights", changes=_BOTH),
    "one huge number": Case(_each("lora_B", _poke(1e30)), "too_far.lora_B"),
    "numbers whose squares overflow": Case(_each("lora_B", lambda t: t + 3e38), "too_far.lora_B"),
    "A far from any draw": Case(_each("lora_A", lambda t: t + 1e3), "too_far.lora_A"),
    "half a count of a histogram": Case(_each("histogram.", _poke(0.5)), "bad_statistics.count"),
    "a negative count of a histogram": Case(_each("histogram.", _poke(-1.0)), "bad_statistics.count"),
    "a count beyond all texts": Case(_each("histogram.", _poke(1e300)), "bad_statistics.many_counts"),
    "half a row": Case(_each("statistics..count", _poke(0.5)), "bad_statistics.row_count", is_sketch=True),
    "a negative number of rows": Case(_each("count", _poke(-1.0)), "bad_statistics.row_count", is_sketch=True),
    "more rows than can be counted": Case(_each("count", _poke(2.0**60)), "bad_statistics.row_count", is_sketch=True),
    "more rows than the shard has tokens": Case(
        _sums(lambda sums: _bent(sums, **{name: array * 1e6 for name, array in sums.to_arrays().items()})),
        "bad_statistics.more_rows_than_tokens",
        is_sketch=True,
    ),
    "sums over no rows": Case(
        _sums(lambda sums: _bent(sums, count=np.zeros(len(sums.count)))),
        "bad_statistics.rows_without_count",
        is_sketch=True,
    ),
    "a negative scatter": Case(
        _sums(lambda sums: _bent(sums, scatter=-sums.scatter)), "bad_statistics.trace", is_sketch=True
    ),
    "a scatter beyond all features": Case(
        _sums(lambda sums: _bent(sums, scatter=sums.scatter * 1e12)), "bad_statistics.trace", is_sketch=True
    ),
    "sums larger than their squares allow": Case(
        _sums(lambda sums: _bent(sums, total=sums.total * 1e3)), "bad_statistics.moments", is_sketch=True
    ),
    "sums whose squares overflow": Case(
        _sums(lambda sums: _bent(sums, total=np.full_like(sums.total, 1e300))), "bad_statistics.total", is_sketch=True
    ),
    "means that leave no spread": Case(
        _sums(lambda sums: _bent(sums, total=sums.total + np.sqrt(sums.n) * 1.2)),
        "bad_statistics.negative_spread",
        is_sketch=True,
    ),
}

CASES = {**ENVELOPE, **PAYLOAD, **MANIFEST, **NUMBERS}
