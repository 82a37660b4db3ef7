"""Every class of bad bundles is refused by its own rule, quickly and in little memory, and no other error gets out."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bundle.test_bundle import NOBODY, make
from tests.fuzz.mutations import KEY
from tests.hostile.files import FILES, Change, with_header
from tests.hostile.measured import MAX_BYTES, MAX_SECONDS, measured
from tinylora import tensors
from tinylora.bundle import read_bundle, verify, write_bundle
from tinylora.bundle.metadata import canonical, metadata_sum, signed_text
from tinylora.bundle.signature import signature_of
from tinylora.errors import BundleError


def _fields(change: Callable[[dict[str, Any]], object]) -> Change:
    """Other metadata, with their sum corrected."""

    def changed(data: bytes) -> bytes:
        fields = json.loads(_metadata(data))
        change(fields)
        return _put_together(data, fields)

    return changed


def _put_together(data: bytes, fields: dict[str, Any]) -> bytes:
    fields["metadata_sha256"] = metadata_sum(fields)
    return tensors.to_bytes(tensors.from_bytes(data), {"tinylora": canonical(fields)})


def _set(**values: object) -> Change:
    return _fields(lambda fields: fields.update(values))


def _raw_metadata(text: str) -> Change:
    return lambda data: tensors.to_bytes(tensors.from_bytes(data), {"tinylora": text})


def _number(name: str, value: float) -> Change:
    """One number of a tensor is another, and its sum is right."""

    def changed(data: bytes) -> bytes:
        named = tensors.from_bytes(data)
        named[name] = named[name].clone()
        named[name].view(-1)[0] = value
        sums = {key: tensors.tensor_sha256(tensor) for key, tensor in named.items()}
        fields = json.loads(_metadata(data)) | {"tensors": sums}
        return _put_together(tensors.to_bytes(named), fields)

    return changed


def _metadata(data: bytes) -> str:
    header = tensors.parse_header(data[8 : 8 + int.from_bytes(data[:8], "little")], len(data))
    return header.metadata["tinylora"]


def _pooled(data: bytes) -> bytes:
    """Statistics of all leaves together, as in format 1, with a matrix that is no covariance."""
    named = {name: tensor for name, tensor in tensors.from_bytes(data).items() if not name.endswith(".covariance")}
    named["router.covariance"] = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
    sums = {name: tensors.tensor_sha256(tensor) for name, tensor in named.items()}
    fields = json.loads(_metadata(data)) | {"tensors": sums, "statistics": "pooled"}
    return _put_together(tensors.to_bytes(named), fields)


def _many_tensors(data: bytes) -> bytes:
    """Few words that name billions of tensors: many nodes, each with many projections."""
    fields = json.loads(_metadata(data))
    shape = fields["base"]["projections"]["mlp.down_proj"]
    fields["base"]["projections"] = {f"p{number}": shape for number in range(1000)}
    fields["leaves"] = [f"{number:012b}" for number in range(2**12)]
    fields["nodes"] = fields["leaves"]
    fields["sketched"] = []
    return _put_together(data, fields)


def _changed_after_signing(data: bytes) -> bytes:
    fields = json.loads(_metadata(data)) | {"signed_by": KEY.public_key}
    fields["signature"] = signature_of(signed_text(fields), KEY)
    return _put_together(data, fields | {"run": "another"})


def _flipped(from_end: int) -> Change:
    return lambda data: data[: len(data) - from_end] + bytes([data[-from_end] ^ 1]) + data[len(data) - from_end + 1 :]


def _padded(data: bytes) -> bytes:
    n_header = int.from_bytes(data[:8], "little")
    return (n_header + 8).to_bytes(8, "little") + data[8 : 8 + n_header] + b" " * 8 + data[8 + n_header :]


BUNDLES: dict[str, tuple[Change, str]] = {
    "tensors of somebody else": (lambda data: tensors.to_bytes({"a": torch.zeros(1)}), "no_metadata"),
    "metadata that are no JSON": (_raw_metadata("tinylora"), "metadata_sum"),
    "metadata that are a list": (lambda data: with_header('{"__metadata__":{"tinylora":["a"]}}', b""), "metadata"),
    "metadata in another layout": (_raw_metadata("{ }"), "metadata_sum"),
    "metadata without a sum": (_raw_metadata("{}"), "metadata_sum"),
    "a million lists in the metadata": (_raw_metadata("[" + "[]," * 1_000_000 + "[]]"), "many_values"),
    "a hundred thousand brackets in each other": (_raw_metadata("[" * 60_000 + "]" * 60_000), "metadata_sum"),
    "a bit of the numbers flipped": (_flipped(1), "tensor_sum"),
    "a header padded by somebody else": (_padded, "layout"),
    "a format to come": (_set(format=3), "format"),
    "a field too many": (_set(code="import os"), "description"),
    "a rank of zero": (_set(rank=0), "description.rank"),
    "a rank of a million": (_set(rank=1_000_000), "description.rank"),
    "a scale in words": (_set(scale="large"), "description.scale"),
    "a leaf that is a path of files": (_set(leaves=["0", "../1"]), "description.leaves"),
    "a negative version": (_set(versions={"router": -1}), "description.versions"),
    "leaves of no tree": (_set(leaves=["0"]), "tree"),
    "a leaf under a leaf": (_set(leaves=["0", "00", "01", "1"]), "tree"),
    "an adapter of no node": (_set(leaves=[""], sketched=[]), "node"),
    "a kind of adapter that is none": (_set(kind="pickle"), "contradiction"),
    "a policy that is none": (_set(policy="sideways"), "contradiction"),
    "another rank than the tensors have": (_set(rank=3), "kind"),
    "another dtype than the tensors have": (_set(dtype="F32"), "kind"),
    "layers by the trillion": (
        _fields(lambda fields: fields["base"]["projections"]["mlp.down_proj"].update(n_layers=10**12)),
        "kind",
    ),
    "a tensor that nobody announced": (_set(nodes=["0"]), "unexpected"),
    "a tensor that is missing": (
        _fields(lambda f: f["base"]["projections"].update(more=f["base"]["projections"]["mlp.down_proj"])),
        "missing",
    ),
    "sums of no tensors": (_set(tensors={}), "sums"),
    "another base's projection": (_set(base=NOBODY.model_dump(mode="json")), "projection"),
    "NaN in an adapter": (_number("node.0.mlp.down_proj.lora_B", float("nan")), "not_finite"),
    "an infinite gate": (_number("router..w", float("inf")), "not_finite"),
    "a temperature of zero": (_number("router..tau", 0.0), "temperature"),
    "the format in words": (_set(format="2"), "format"),
    "a format of ten thousand letters": (_set(format="2" * 10_000), "format"),
    "a covariance that is none": (_number("leaf.0.covariance", -1.0), "negative_spread"),
    "a covariance beyond all features": (_number("leaf.1.covariance", 1e300), "trace"),
    "NaN in a covariance": (_number("leaf.1.covariance", float("nan")), "not_finite"),
    "no rows": (_number("leaf.0.count", 0.0), "row_count"),
    "rows by the quintillion": (_number("leaf.0.count", 1e18), "row_count"),
    "a mean beyond all features": (_number("leaf.0.mean", 1e9), "total"),
    "a pooled covariance that is not symmetric": (_pooled, "symmetry"),
    "statistics of a kind that is none": (_set(statistics="some"), "description.statistics"),
    "statistics without a leaf's covariance": (_set(sketched=["0"]), "unexpected"),
    "statistics of a leaf that is not there": (_set(sketched=["00"]), "node"),
    "a note on a leaf that is not there": (_set(data_notes={"00": ["x"]}), "node"),
    "a note under a path of files": (_set(data_notes={"../0": ["x"]}), "description.data_notes"),
    "a note that colours the terminal": (_set(data_notes={"0": ["\x1b[31mred"]}), "description.data_notes"),
    "a note that turns the line around": (_set(data_notes={"0": ["a\u202eb"]}), "description.data_notes"),
    "a note of a megabyte": (_set(data_notes={"0": ["x" * 1_000_000]}), "description.data_notes"),
    "notes by the hundred thousand": (_set(data_notes={"0": ["x"] * 100_000}), "description.data_notes"),
    "letters beyond ASCII by the hundred thousand": (_set(contributors=["é" * 100] * 2000), "many_letters"),
    "a licence of two lines": (_set(licences=["mit\nor not"]), "description.licences"),
    "a run whose name is not seen": (_set(run="\u200b"), "description.run"),
    "a base whose name rings a bell": (
        _fields(lambda fields: fields["base"].update(base_id="tiny\a")),
        "description.base",
    ),
    "an origin that is no hash": (_set(derived_from=["../bundle"]), "description.derived_from"),
    "a report nested for ever": (_set(report={"a": json.loads("[" * 300 + "]" * 300)}), "description.report"),
    "a field whose name colours the terminal": (_set(**{"\x1b[31m": 1}), "description"),
    "more tensors than a file may hold": (_many_tensors, "many_tensors"),
    "licences by the thousand": (_set(licences=["mit"] * 1000), "crowd"),
    "sixty thousand leaves": (
        _set(leaves=[f"{number:016b}" for number in range(60_000)], sketched=[]),
        "crowd",
    ),
    "a signature without a key": (_set(signature="ab" * 64), "half_signed"),
    "a key without a signature": (_set(signed_by="ab" * 32), "half_signed"),
    "a key that is none": (_set(signed_by="<b>", signature="ab" * 64), "description.signed_by"),
    "a signature by nobody": (_set(signed_by="ab" * 32, signature="ab" * 64), "signature"),
    "a signature that is no hex": (_set(signed_by="ab" * 32, signature="x" * 1_000_000), "signature"),
    "a signature that is a list": (_set(signed_by="ab" * 32, signature=["ab"]), "half_signed"),
    "signed, and changed afterwards": (_changed_after_signing, "signature"),
}
CASES = {f"file: {name}": case for name, case in FILES.items()} | BUNDLES
LATER = {"half a letter in the metadata": "metadata_sum"}
"""Where a bundle's own checks come before the library's."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    file: Path = tmp_path_factory.mktemp("sound") / "bundle.safetensors"
    write_bundle(make(), file)
    return file.read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_refused_by_its_own_rule(name, tmp_path, sound):
    change, rule = CASES[name]
    file = tmp_path / "bundle.safetensors"
    file.write_bytes(change(sound))

    def read() -> BundleError:
        with pytest.raises(BundleError) as caught:
            read_bundle(file)
        return caught.value

    error, seconds, extra = measured(read)
    assert error.rule == LATER.get(name.removeprefix("file: "), rule), str(error)
    assert str(error).startswith(str(file)) and len(str(error)) < 1000
    assert seconds < MAX_SECONDS and extra < MAX_BYTES, f"{seconds:.2f} s, {extra / 2**20:.0f} MiB"
    with pytest.raises(BundleError):
        verify(file)
    file.write_bytes(sound)
    assert read_bundle(file).run == "first"


def test_there_are_enough_classes():
    rules = Counter(rule for _, rule in CASES.values())
    assert len(CASES) >= 100
    assert len(rules) >= 55


def test_time_is_short_for_whatever_is_in_eight_megabytes(tmp_path, sound):
    """Texts that make a careless pattern go over them again and again."""
    file = tmp_path / "bundle.safetensors"
    for text in (b'{"__metadata__":{"a":"' + b'\\"' * 4_000_000, b'{"' * 4_000_000, b'{"a":"' + b"\\" * 8_000_000):
        file.write_bytes(len(text).to_bytes(8, "little") + text + sound)
        begun = time.process_time()
        with pytest.raises(BundleError):
            read_bundle(file)
        assert time.process_time() - begun < MAX_SECONDS
