"""Named tensors and safetensors bytes: round trips, byte stability, and every way in which bytes can be wrong."""

import contextlib
import json
import math

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinylora import tensors
from tinylora.errors import ProtocolError, ShapeMismatch

SMALL = {
    "node.0.q_proj.lora_A": torch.arange(6, dtype=torch.bfloat16).reshape(1, 2, 3),
    "node.0.q_proj.lora_B": torch.zeros(1, 3, 2, dtype=torch.bfloat16),
    "router..w": torch.tensor([0.5, -2.0], dtype=torch.float64),
    "router..b": torch.tensor(1.0, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
}


def with_header(header: str | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else header.encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes) -> str:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})


def assert_same(left: tensors.Tensors, right: tensors.Tensors) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].shape == right[name].shape
        assert bytes(tensors.raw_bytes(left[name])) == bytes(tensors.raw_bytes(right[name])), name


shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,12}", fullmatch=True)


@st.composite
def one_tensor(draw: st.DrawFn) -> torch.Tensor:
    dtype, shape = tensors.DTYPES[draw(st.sampled_from(list(tensors.DTYPES)))], draw(shapes)
    n_bytes = math.prod(shape) * dtype.itemsize
    highest = 1 if dtype == torch.bool else 255
    raw = draw(st.lists(st.integers(0, highest), min_size=n_bytes, max_size=n_bytes))
    return torch.tensor(raw, dtype=torch.uint8).view(dtype).reshape(shape)


named_tensors = st.dictionaries(names, one_tensor(), max_size=5)


@given(named_tensors)
def test_round_trip_and_the_bytes_the_library_writes(state):
    data = tensors.to_bytes(state)
    assert_same(tensors.from_bytes(data), state)
    assert tensors.read_header(data) == tensors.manifest_of(state)
    assert data == safetensors.torch.save({name: tensor.clone() for name, tensor in state.items()})


@given(named_tensors, st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
def test_metadata_as_the_library_writes_it(state, text):
    data = tensors.to_bytes(state, {"tinylora": text})
    assert data == safetensors.torch.save(dict(state), {"tinylora": text})
    assert_same(tensors.from_bytes(data), state)
    n_header = tensors.header_length(data[:8], len(data))
    assert tensors.parse_header(data[8 : 8 + n_header], len(data)).metadata == {"tinylora": text}


def test_bytes_do_not_depend_on_order_layout_or_gradients():
    backwards = dict(reversed(SMALL.items()))
    backwards["node.0.q_proj.lora_A"] = torch.arange(6, dtype=torch.bfloat16).reshape(1, 2, 3).mT.contiguous().mT
    backwards["router..w"] = torch.nn.Parameter(torch.tensor([0.5, 9, -2.0, 9], dtype=torch.float64))[::2]
    assert tensors.to_bytes(backwards) == tensors.to_bytes(SMALL)


def test_tensors_that_share_memory_are_written_each():
    shared = torch.arange(4.0)
    assert_same(tensors.from_bytes(tensors.to_bytes({"a": shared, "b": shared[1:]})), {"a": shared, "b": shared[1:]})


def test_bfloat16_keeps_its_bits_nan_included():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    read = tensors.from_bytes(tensors.to_bytes({"x": every}))["x"]
    assert torch.equal(read.view(torch.int16), every.view(torch.int16))


def test_what_was_read_can_be_written_to():
    read = tensors.from_bytes(tensors.to_bytes(SMALL))
    read["router..w"].add_(1)
    assert read["router..w"].tolist() == [1.5, -1.0]


def test_truncated_at_every_length():
    data = tensors.to_bytes(SMALL)
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            tensors.from_bytes(data[:length])


def test_every_flipped_bit_of_the_header_is_refused_or_changes_nothing():
    data = tensors.to_bytes(SMALL, {"tinylora": "x"})
    manifest, n_before = tensors.manifest_of(SMALL), 8 + int.from_bytes(data[:8], "little")
    n_refused = 0
    for position in range(n_before):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                read = tensors.from_bytes(bytes(flipped))
                tensors.check_manifest(read, manifest, where="payload")
            except ProtocolError:
                n_refused += 1
            else:
                assert_same(read, SMALL)
    assert n_refused > 0.97 * 8 * n_before  # the rest: the metadata's own letters


@given(st.binary(max_size=60))
def test_noise_is_refused_with_our_own_error(noise):
    for data in (noise, with_header(noise), with_header(b"{" + noise)):
        with contextlib.suppress(ProtocolError):
            assert tensors.from_bytes(data) == {}


BROKEN = [
    (b"", "at least 8 bytes"),
    ((2**63).to_bytes(8, "little") + b"{}", "header length"),
    (with_header("{}")[:-1], "cut off"),
    (with_header("[]"), "begins with"),
    (with_header("{"), "not readable as JSON"),
    (with_header(b'{"\xff":1}'), "not readable as JSON"),
    (with_header('{"a":' + "[" * 100_000), "nested too deeply"),
    (with_header('{"a":' + "9" * 10_000 + "}"), "not readable as JSON"),
    (with_header(entry(shape=[math.nan])), "not readable as JSON"),
    (with_header('{"a":1,"a":1}'), "'a' stands there twice"),
    (with_header('{"a":{"dtype":"F32","dtype":"F32"}}'), "'dtype' stands there twice"),
    (with_header('{"__metadata__":{"a":1}}'), "expected texts"),
    (with_header('{"__metadata__":[]}'), "expected texts"),
    (with_header('{"__metadata__":{"a":"","b":""}}'), "at most one key"),
    (with_header('{"__metadata__":{"a":"\\ud800"}}'), "not readable"),
    (with_header('{"a/../b":{}}'), "tensor name 'a/../b'"),
    (with_header('{"":{}}'), "tensor name ''"),
    (with_header('{"a":[]}'), "tensor a: expected dtype"),
    (with_header(entry(extra=1)), "tensor a: expected dtype"),
    (with_header(entry(dtype="F8_E4M3"), b"8" * 8), "unknown dtype 'F8_E4M3'"),
    (with_header(entry(dtype=["F32"]), b"8" * 8), "unknown dtype"),
    (with_header(entry(shape=2), b"8" * 8), "expected a shape"),
    (with_header(entry(shape=[2.0]), b"8" * 8), "expected a shape"),
    (with_header(entry(shape=[True, 2]), b"8" * 8), "expected a shape"),
    (with_header(entry(shape=[-1, -2]), b"8" * 8), "expected a shape"),
    (with_header(entry(shape=[1] * 8 + [2]), b"8" * 8), "expected a shape"),
    (with_header(entry(shape=[2**32, 2**32], data_offsets=[0, 0])), "expected a shape"),
    (with_header(entry(shape=[0, 2**62, 4], data_offsets=[0, 0])), "expected a shape"),
    (with_header(entry(data_offsets=[0]), b"8" * 8), "expected two offsets"),
    (with_header(entry(data_offsets=[0, 2**64]), b"8" * 8), "expected two offsets"),
    (with_header(entry(data_offsets=[8, 0]), b"8" * 8), "offsets span -8"),
    (with_header(entry(shape=[3]), b"8" * 8), "takes 12 bytes, its offsets span 8"),
    (with_header(entry(data_offsets=[1, 9]), b"8" * 9), "expected to begin at byte 0"),
    (with_header(entry(), b"8" * 7), "cut off"),
    (with_header(entry(), b"8" * 9), "1 too many at the end"),
    (with_header(entry(dtype="BOOL", data_offsets=[0, 2]), b"\x01\x02"), "expected flags 0 or 1, got 2"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_each_rule_has_its_sentence(data, message):
    with pytest.raises(ProtocolError, match="tensors: ") as caught:
        tensors.from_bytes(data)
    assert message in str(caught.value)


@pytest.mark.parametrize("second", [[4, 8], [12, 16], [0, 4]])
def test_overlaps_and_holes(second):
    both = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": second},
    }
    with pytest.raises(ProtocolError, match="expected to begin at byte"):
        tensors.from_bytes(with_header(json.dumps(both), b"8" * max(8, second[1])))


def test_limit_is_checked_first():
    with pytest.raises(ProtocolError, match="expected at most 10 bytes, got 11"):
        tensors.from_bytes(b"x" * 11, limit_bytes=10)


@pytest.mark.parametrize(
    ("state", "metadata"),
    [({"a b": torch.zeros(1)}, None), ({"a": torch.zeros(1, dtype=torch.complex64)}, None), ({}, {"a": "", "b": ""})],
)
def test_the_writer_writes_nothing_that_the_reader_refuses(state, metadata):
    with pytest.raises(ValueError):
        tensors.to_bytes(state, metadata)


def test_file_header_is_that_of_the_bytes(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(tensors.to_bytes(SMALL))
    assert tensors.read_file_header(file).manifest == tensors.manifest_of(SMALL)
    file.write_bytes(tensors.to_bytes(SMALL)[:-1])
    with pytest.raises(ProtocolError, match="cut off"):
        tensors.read_file_header(file)


def test_manifest_differences_are_named():
    manifest = tensors.manifest_of(SMALL)
    assert manifest["node.0.q_proj.lora_A"] == ("BF16", (1, 2, 3))
    tensors.check_manifest(SMALL, manifest, where="unit 7")
    without = {name: tensor for name, tensor in SMALL.items() if name != "flags"}
    with pytest.raises(ShapeMismatch, match=r"unit 7: tensor flags is missing; expected BOOL \(2,\)"):
        tensors.check_manifest(without, manifest, where="unit 7")
    with pytest.raises(ShapeMismatch, match=r"unit 7: unexpected tensor more, F32 \(1,\)"):
        tensors.check_manifest(SMALL | {"more": torch.zeros(1)}, manifest, where="unit 7")
    with pytest.raises(ShapeMismatch, match=r"tensor router..w: expected F64 \(2,\), got F64 \(3,\)"):
        tensors.check_manifest(SMALL | {"router..w": torch.zeros(3, dtype=torch.float64)}, manifest, where="unit 7")
    with pytest.raises(ShapeMismatch, match=r"tensor router..w: expected F64 \(2,\), got F32 \(2,\)"):
        tensors.check_manifest(SMALL | {"router..w": torch.zeros(2)}, manifest, where="unit 7")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_named(bad):
    tensors.check_finite(SMALL, where="update")
    with pytest.raises(ProtocolError, match=r"update, tensor x: expected finite numbers, got 1 of 3"):
        tensors.check_finite({"x": torch.tensor([0, bad, 1]), "n": torch.tensor([1])}, where="update")


def test_prefixes():
    assert tensors.adapter_name("", "q_proj", "A") == "node..q_proj.lora_A"
    assert tensors.adapter_name("01", "mlp.up", "B").removeprefix("node.").partition(".")[0] == "01"
    assert_same(tensors.strip_prefix(tensors.with_prefix(SMALL, "p.") | {"q": torch.zeros(1)}, "p."), SMALL)
