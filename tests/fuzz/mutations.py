"""Bundles changed at random by somebody who knows the format: sums, lengths and signatures are right again afterwards.

Bytes changed blindly never get past the first sum. These changes go where a hostile writer would: fields of the
metadata, entries of the header, numbers of the tensors. Pure: the same bytes and the same chance give the same bytes.
"""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinylora.bundle import METADATA_KEY, Signer
from tinylora.bundle.metadata import canonical, metadata_sum, signed_text
from tinylora.bundle.signature import signature_of

KEY = Signer.of(Ed25519PrivateKey.from_private_bytes(b"f" * 32))
MAX_BYTES = 32_768
BLIND = 0.35
"""Share of inputs whose bytes are changed without a look at what they are."""
VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 2, 3, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 1e-320, "", "0", "1", "01", "10",
    "2", "0" * 16, "0" * 17, "..", "../../etc/passwd", "a" * 64, "\u0000", "\u202e", "\ud800", "\x1b[2J", "é" * 600,
    "<script>", "lora", "nested", "tied:A", "tied:A,B,uv", "soft", "hard@window:4", "F32", "F16", "BF16", "leaf",
    "pooled", "none", [], [""], ["0", "1"], ["0", "10", "11"], {}, {"": 1}, {"0": ["x"]}, {"a": {"b": [{}]}},
)  # fmt: skip
NUMBERS = (
    struct.pack("<d", float("nan")), struct.pack("<d", float("inf")), struct.pack("<d", -1.0), struct.pack("<d", 0.0),
    struct.pack("<d", 1e308), struct.pack("<d", 1e-308), struct.pack("<f", float("nan")), struct.pack("<f", 1e38),
    b"\xff\xff", b"\x80\x7f", b"\x00\x00", struct.pack("<d", 2.0**60),
)  # fmt: skip
SIZES = (0, 1, 2, 3, 4, 8, 2**31, 2**53, 2**62, 2**63, 2**64, -1, 1.5, "1", None, [])
DTYPES = ("F64", "F32", "BF16", "F16", "BOOL", "U8", "I64", "F8_E4M3", "", 1, None)

Blind = Callable[[bytes, random.Random], bytes]


class NoBundle(Exception):
    """These bytes are no file whose parts could be changed one by one."""


def mutated(data: bytes, chance: random.Random, blind: Blind) -> bytes:
    """The bytes of another file; `blind` changes bytes without knowing what they are."""
    if chance.random() < BLIND:
        return blind(data, chance)[:MAX_BYTES]
    try:
        fields, header, body = _parts(data)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            change = chance.choice(
                (_change_field, _change_field, _change_field, _change_numbers, _change_entry, _reorder)
            )
            body = change(fields, header, body, chance)
        made = _together(fields, header, body, chance)
    except (NoBundle, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return blind(data, chance)[:MAX_BYTES]
    if chance.random() < 0.05:
        made = blind(made, chance)
    return made[:MAX_BYTES]


def flipped(data: bytes, chance: random.Random) -> bytes:
    """A blind change for whoever has no better one."""
    found = bytearray(data or b"\0")
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[start] ^= 1 << chance.randrange(8)
            case 1:
                del found[start : start + chance.choice((1, 2, 8, 64))]
            case 2:
                found[start:start] = chance.choice((b"null", b"-1", b"1e999", b'"', b"{", b"]", b"\x00", b"\xff"))
            case _:
                found[start : start + 8] = chance.randbytes(8)
        found = found or bytearray(b"\0")
    return bytes(found)


def _parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Fields of the metadata, entries of the header, and the numbers."""
    end = 8 + int.from_bytes(data[:8], "little")
    if not 8 < end <= len(data):
        raise NoBundle
    header = json.loads(data[8:end])
    fields = json.loads(header.pop("__metadata__")[METADATA_KEY])
    if not isinstance(fields, dict):
        raise NoBundle
    return fields, header, data[end:]


def _change_field(fields: dict[str, Any], header: dict[str, Any], body: bytes, chance: random.Random) -> bytes:
    """Another value somewhere in the metadata, one more, one less, or one from elsewhere in them."""
    place, key = _somewhere(fields, chance)
    match chance.randrange(6):
        case 0:
            del place[key]
        case 1 if isinstance(place, list):
            place.append(place[key])
        case 1:
            place[chance.choice(("x", "node.0", "\x1b[31m", "0", "1", "tensors"))] = chance.choice(VALUES)
        case 2:
            other, name = _somewhere(fields, chance)
            place[key] = json.loads(json.dumps(other[name]))
        case 3 if isinstance(place[key], int | float) and not isinstance(place[key], bool):
            place[key] += chance.choice((1, -1, 0.5, 2**20))
        case 4:
            nested: Any = chance.choice(VALUES)
            for _ in range(chance.choice((1, 5, 40, 300))):
                nested = [nested] if chance.random() < 0.5 else {"a": nested}
            place[key] = nested
        case _:
            place[key] = chance.choice(VALUES)
    return body


def _somewhere(fields: dict[str, Any], chance: random.Random) -> tuple[Any, Any]:
    """A list or an object inside, and one of its places; rather near the top, and rather not among the sums."""
    place: Any = fields
    key: Any = chance.choice([name for name in fields if name != "tensors" or chance.random() < 0.1])
    while isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
        place = place[key]
        key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
    return place, key


def _change_numbers(fields: dict[str, Any], header: dict[str, Any], body: bytes, chance: random.Random) -> bytes:
    """Some bytes of one tensor are others, and its sum is right."""
    name = chance.choice(sorted(header))
    start, end = header[name]["data_offsets"]
    if end <= start:
        return body
    at = start + chance.randrange(0, end - start, 2)
    number = chance.choice((*NUMBERS, chance.randbytes(chance.choice((1, 2, 8)))))
    body = (body[:at] + number)[:end] + body[min(at + len(number), end) :]
    return body


def _change_entry(fields: dict[str, Any], header: dict[str, Any], body: bytes, chance: random.Random) -> bytes:
    """One tensor has another name, dtype, shape or place; or there is one more, or one less."""
    name = chance.choice(sorted(header))
    entry = header[name]
    match chance.randrange(6):
        case 0:
            header[chance.choice(("x", "../x", "node.0.x.lora_A", "leaf.0.count", name + "x", "é", "a" * 201))] = (
                header.pop(name)
            )
        case 1:
            entry["dtype"] = chance.choice(DTYPES)
        case 2:
            entry["shape"] = [chance.choice((*SIZES, *entry["shape"])) for _ in range(chance.randrange(10))]
        case 3:
            entry["data_offsets"][chance.randrange(2)] = chance.choice((*SIZES, len(body), len(body) + 1))
        case 4:
            start, end = entry["data_offsets"]
            del header[name]
            for other in header.values():
                other["data_offsets"] = [at - (end - start) if at >= end else at for at in other["data_offsets"]]
            if chance.random() < 0.8:
                fields.get("tensors", {}).pop(name, None)
            return body[:start] + body[end:]
        case _:
            header["z"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(body), len(body) + 4]}
            if chance.random() < 0.5:
                fields["tensors"]["z"] = "0" * 64
            return body + bytes(4)
    return body


def _reorder(fields: dict[str, Any], header: dict[str, Any], body: bytes, chance: random.Random) -> bytes:
    """Two tensors change places in the header, or the names of two are exchanged."""
    first, second = chance.choice(sorted(header)), chance.choice(sorted(header))
    header[first], header[second] = header[second], header[first]
    return body


def _together(fields: dict[str, Any], header: dict[str, Any], body: bytes, chance: random.Random) -> bytes:
    """The file; mostly with sums and a signature that are right."""
    import hashlib

    if chance.random() < 0.9 and isinstance(fields.get("tensors"), dict):
        for name in fields["tensors"].keys() & header.keys():
            start, end = header[name]["data_offsets"]
            fields["tensors"][name] = hashlib.sha256(body[start:end]).hexdigest()
    sign = chance.random()
    if sign < 0.2:
        fields["signed_by"] = KEY.public_key
        fields["signature"] = signature_of(signed_text(fields), KEY)
    elif sign < 0.4:
        fields["signed_by"] = fields["signature"] = ""
    if chance.random() < 0.97:
        fields["metadata_sha256"] = metadata_sum(fields)
    metadata = canonical(fields)
    text = json.dumps({"__metadata__": {METADATA_KEY: metadata}, **header}, separators=(",", ":"), ensure_ascii=False)
    raw = text.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + body
