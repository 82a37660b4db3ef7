"""Named tensors and safetensors bytes, both ways; the reading side trusts nothing.

The writer is our own few lines, so that equal tensors give equal bytes whatever version of the library is installed
(a test holds it to the library's own output); it yields pieces, so that a large bundle goes to disk without a second
copy in memory. The reader checks the header here (`parse_header`) and leaves the decoding of numbers to the library.

    8 bytes little-endian header length · header (JSON, padded with spaces to a multiple of 8) · tensors without gaps

Names are ours: `node.<path>.<projection>.lora_A`; the root's path is empty, which leaves two dots beside each other.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import safetensors
import safetensors.torch
import torch

from tinylora.errors import ProtocolError, ShapeMismatch
from tinylora.protocol.documents import Manifest

Tensors: TypeAlias = dict[str, torch.Tensor]

# In the order in which the library lays tensors out in a file: wide types first, so that each tensor is aligned.
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LAYOUT = {name: position for position, name in enumerate(DTYPES)}
_METADATA = "__metadata__"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_METADATA_ENTRY = re.compile(rb'"__metadata__":\{"[^"\\]*":"[^"\\]*+(?:\\.[^"\\]*+)*+"\}', re.DOTALL)
"""The one text of a file's metadata, which may hold any number of brackets; possessive, so that one pass is enough."""
_LENGTH_BYTES = 8

MAX_HEADER_BYTES = 8 << 20  # some ten thousand tensors; JSON of this size still fits in memory once it is parsed
MAX_TENSORS = 65_536
MAX_AXES = 8
MAX_NUMBERS = 2**53  # in one tensor: far above any, and torch's own 64-bit products cannot overflow below it


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes `start` to `end` of the data area, which begins where the header ends."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header: the tensors in the order of the file, and at most one metadata entry."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    n_bytes: int
    """Length of everything before the data area."""

    @property
    def manifest(self) -> Manifest:
        """Names with dtypes and shapes, sorted by name."""
        return {name: (entry.dtype, entry.shape) for name, entry in sorted(self.entries.items())}


# --- names and facts -------------------------------------------------------------------------------------------------


def adapter_name(path: str, projection: str, part: str) -> str:
    """Name of one adapter tensor; `part` is "A" or "B"."""
    return f"node.{path}.{projection}.lora_{part}"


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The same tensors, each name with `prefix` before it; `strip_prefix` undoes it."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def strip_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Only those tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def manifest_of(tensors: Tensors) -> Manifest:
    """Names with dtypes and shapes, sorted by name."""
    return {name: (_dtype_name(name, tensor), tuple(tensor.shape)) for name, tensor in sorted(tensors.items())}


def check_manifest(tensors: Tensors, manifest: Manifest, *, where: str) -> None:
    """Check that `tensors` are exactly what `manifest` says.

    Raises:
        ShapeMismatch: A tensor is missing, unexpected, or of another dtype or shape.
    """
    compare_manifests(manifest_of(tensors), manifest, where=where)


def compare_manifests(got: Manifest, expected: Manifest, *, where: str) -> None:
    """Check that two manifests are the same, naming the first tensor that differs.

    Raises:
        ShapeMismatch: A tensor is missing, unexpected, or of another dtype or shape.
    """
    for name in sorted(got.keys() | expected.keys()):
        if name not in got:
            raise ShapeMismatch(f"{where}: tensor {name} is missing; expected {_kind(expected[name])}", rule="missing")
        if name not in expected:
            raise ShapeMismatch(f"{where}: unexpected tensor {name}, {_kind(got[name])}", rule="unexpected")
        if _kind(got[name]) != _kind(expected[name]):
            reason = f"{where}, tensor {name}: expected {_kind(expected[name])}, got {_kind(got[name])}"
            raise ShapeMismatch(reason, rule="kind")


def check_finite(tensors: Tensors, *, where: str) -> None:
    """Check that no floating-point tensor holds NaN or infinity.

    Raises:
        ProtocolError: One does; the message names it and says how many of its numbers are not finite.
    """
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point():
            n_wrong = int(tensor.numel() - torch.isfinite(tensor).sum())
            if n_wrong:
                raise ProtocolError(
                    f"{where}, tensor {name}: expected finite numbers, got {n_wrong} of {tensor.numel()} not finite",
                    rule="not_finite",
                )


def _kind(entry: tuple[str, tuple[int, ...]]) -> str:
    """A dtype and shape in one text, for comparing and for people."""
    dtype, shape = entry
    return f"{dtype} {tuple(shape)}"


# --- writing ---------------------------------------------------------------------------------------------------------


def to_bytes(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """The safetensors bytes of `tensors`: equal tensors give equal bytes, whatever their order and memory layout.

    Raises:
        ValueError: A name or a dtype that the reader would refuse, or more than one metadata entry.
    """
    return b"".join(to_pieces(tensors, metadata))


def to_pieces(tensors: Tensors, metadata: dict[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The same bytes as `to_bytes`, one tensor at a time."""
    manifest = manifest_of(tensors)
    yield header_bytes(manifest, metadata)
    for name in _file_order(manifest):
        yield raw_bytes(tensors[name])


def header_bytes(manifest: Manifest, metadata: dict[str, str] | None = None) -> bytes:
    """Length and header of the file that `to_bytes` would write.

    Raises:
        ValueError: A name that the reader would refuse, or more than one metadata entry.
    """
    return layout_bytes(file_layout(manifest), metadata)


def file_layout(manifest: Manifest) -> dict[str, Entry]:
    """Where each tensor lies in the file that `to_bytes` would write, in the order of the file.

    Raises:
        ValueError: A name that the reader would refuse.
    """
    entries: dict[str, Entry] = {}
    end = 0
    for name in _file_order(manifest):
        if not _NAME.fullmatch(name):
            raise ValueError(f"tensor name {name!r}: expected letters, digits, dots, '_' and '-', at most 200")
        dtype, shape = manifest[name]
        start, end = end, end + _n_data_bytes(dtype, shape)
        entries[name] = Entry(dtype, shape, start, end)
    return entries


def layout_bytes(entries: dict[str, Entry], metadata: dict[str, str] | None = None) -> bytes:
    """Length and header of a file laid out so.

    Raises:
        ValueError: More than one metadata entry.
    """
    if metadata and len(metadata) > 1:
        raise ValueError(f"at most one metadata key, because several have no fixed order; got {sorted(metadata)}")
    told = [f'"{_METADATA}":{json.dumps(metadata, separators=(",", ":"), ensure_ascii=False)}'] if metadata else []
    # Written by hand, because a bundle's reader does it for thousands of tensors: no name needs an escape.
    told += [
        f'"{name}":{{"dtype":"{entry.dtype}","shape":[{",".join(map(str, entry.shape))}],'
        f'"data_offsets":[{entry.start},{entry.end}]}}'
        for name, entry in entries.items()
    ]
    text = f"{{{','.join(told)}}}".encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The numbers of a tensor as they stand in the file (little-endian); no copy where memory is laid out alike."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Hex sha256 of a tensor's numbers, without its name and shape."""
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def _file_order(manifest: Manifest) -> list[str]:
    return sorted(manifest, key=lambda name: (_LAYOUT[manifest[name][0]], name))


def _dtype_name(name: str, tensor: torch.Tensor) -> str:
    if tensor.dtype not in _DTYPE_NAMES:
        raise ValueError(f"tensor {name}: dtype {tensor.dtype} has no place in our files; known: {', '.join(DTYPES)}")
    return _DTYPE_NAMES[tensor.dtype]


def _n_data_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPES[dtype].itemsize


# --- reading ---------------------------------------------------------------------------------------------------------


def from_bytes(data: bytes, *, limit_bytes: int | None = None) -> Tensors:
    """Read tensors from bytes of unknown origin.

    Raises:
        ProtocolError: Longer than `limit_bytes`, cut off, or in any way not what `to_bytes` could have meant.
    """
    if limit_bytes is not None and len(data) > limit_bytes:
        _refuse("too_long", f"expected at most {limit_bytes} bytes, got {len(data)}")
    _split_header(data)
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        _refuse("not_readable", f"not readable: {error}")
    check_flags(tensors)
    return dict(sorted(tensors.items()))


def read_header(data: bytes) -> Manifest:
    """Names, dtypes and shapes; no number is decoded.

    Raises:
        ProtocolError: The header breaks a rule, or does not fit the length of `data`.
    """
    return _split_header(data).manifest


def read_file_header(file: Path) -> Header:
    """The checked header of a file; the data area is not read.

    Raises:
        ProtocolError: The header breaks a rule, or does not fit the length of the file.
        OSError: The file cannot be read.
    """
    n_total = file.stat().st_size
    with file.open("rb") as stream:
        n_header = header_length(stream.read(_LENGTH_BYTES), n_total)
        return parse_header(stream.read(n_header), n_total)


def header_length(first_bytes: bytes, n_total: int) -> int:
    """Length of the JSON text that follows the first eight bytes of a file of `n_total` bytes.

    Raises:
        ProtocolError: The file is too short for it, or the header is longer than `MAX_HEADER_BYTES`.
    """
    if len(first_bytes) < _LENGTH_BYTES:
        _refuse("short", f"expected at least {_LENGTH_BYTES} bytes, got {len(first_bytes)}")
    n_header = int.from_bytes(first_bytes[:_LENGTH_BYTES], "little")
    if n_header > MAX_HEADER_BYTES:
        _refuse("long_header", f"header length: expected at most {MAX_HEADER_BYTES} bytes, got {n_header}")
    if n_header > n_total - _LENGTH_BYTES:
        _refuse(
            "header_cut_off",
            f"header length: {n_header} bytes announced, {n_total - _LENGTH_BYTES} there; it was cut off",
        )
    return n_header


def parse_header(text: bytes, n_total: int) -> Header:
    """Check the JSON text of a header against every rule and against the length of the file.

    Raises:
        ProtocolError: The first rule that is broken, with the tensor's name.
    """
    _check_extent(text)
    fields = _parse_json(text)
    metadata = _check_metadata(fields.pop(_METADATA, {}))
    if len(fields) > MAX_TENSORS:
        _refuse("many_tensors", f"expected at most {MAX_TENSORS} tensors, got {len(fields)}")
    entries = {name: _check_entry(name, value) for name, value in fields.items()}
    n_before = _LENGTH_BYTES + len(text)
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end, item[0])))
    _check_coverage(ordered, n_total - n_before)
    return Header(ordered, metadata, n_before)


def check_flags(tensors: Tensors) -> None:
    """Check that every byte of a BOOL tensor is 0 or 1: torch computes nonsense from others.

    Raises:
        ProtocolError: One is not.
    """
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
            _refuse("flag", f"tensor {name}: expected flags 0 or 1, got {int(tensor.view(torch.uint8).max())}")


def _refuse(rule: str, reason: str) -> NoReturn:
    raise ProtocolError(f"tensors: {reason}", rule=rule) from None


def _split_header(data: bytes) -> Header:
    n_header = header_length(data[:_LENGTH_BYTES], len(data))
    return parse_header(bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + n_header]), len(data))


def _check_extent(text: bytes) -> None:
    """Refuse before parsing what would take long to parse: JSON of a few megabytes can hold a million objects.

    No name that is allowed holds a bracket or a comma.
    """
    rest = _METADATA_ENTRY.sub(b"", text, count=1)
    if rest.count(b"{") > MAX_TENSORS + 2:
        _refuse("many_tensors", f"expected at most {MAX_TENSORS} tensors, got more")
    if rest.count(b"[") > 2 * MAX_TENSORS or rest.count(b",") > (MAX_AXES + 4) * MAX_TENSORS:
        _refuse("many_values", "header: expected a dtype, a shape and two offsets for each tensor, got more values")


def _parse_json(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        _refuse("not_safetensors", "header: expected JSON that begins with '{'; these are no safetensors bytes")
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        _refuse("too_deep", "header: nested too deeply")
    except UnicodeDecodeError:
        _refuse("utf8", "header: not readable as JSON: expected UTF-8")
    except ValueError as error:
        _refuse("json", f"header: not readable as JSON: {error}")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            _refuse("name_twice", f"header: {name[:200]!r} stands there twice")
        fields[name] = value
    return fields


def _no_constant(text: str) -> NoReturn:
    _refuse("constant", f"header: not readable as JSON: {text} is no number")


def _check_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse("metadata", "header: metadata: expected texts by name")
    if len(value) > 1:
        _refuse("many_metadata", f"header: metadata: expected at most one key, got {len(value)}")
    return value


def _check_entry(name: str, value: Any) -> Entry:
    if not _NAME.fullmatch(name):
        _refuse("name", f"tensor name {name[:200]!r}: expected letters, digits, dots, '_' and '-', at most 200")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("entry", f"tensor {name}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse("dtype", f"tensor {name}: unknown dtype {str(dtype)[:20]!r}; known: {', '.join(DTYPES)}")
    if not _is_counts(shape):
        _refuse("shape", f"tensor {name}: expected a shape of whole sizes from 0 up")
    if len(shape) > MAX_AXES or math.prod(max(1, size) for size in shape) > MAX_NUMBERS:
        _refuse("huge_shape", f"tensor {name}: expected a shape of at most {MAX_AXES} sizes and {MAX_NUMBERS} numbers")
    if not _is_counts(offsets) or len(offsets) != 2:
        _refuse("offsets", f"tensor {name}: expected two offsets")
    start, end = offsets
    if end - start != _n_data_bytes(dtype, tuple(shape)):
        _refuse(
            "size",
            f"tensor {name}: {dtype} {tuple(shape)} takes {_n_data_bytes(dtype, tuple(shape))} bytes, "
            f"its offsets span {end - start}",
        )
    return Entry(dtype, tuple(shape), start, end)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _check_coverage(ordered: dict[str, Entry], n_data: int) -> None:
    """The tensors follow each other without holes or overlaps and end where the file ends."""
    end = 0
    for name, entry in ordered.items():
        if entry.start != end:
            rule = "overlap" if entry.start < end else "hole"
            _refuse(rule, f"tensor {name}: expected to begin at byte {end} of the data, begins at {entry.start}")
        end = entry.end
    if end > n_data:
        _refuse("cut_off", f"data: {end} bytes announced, {n_data} there; they were cut off")
    if end < n_data:
        _refuse("trailing", f"data: {end} bytes announced, {n_data} there; {n_data - end} too many at the end")
