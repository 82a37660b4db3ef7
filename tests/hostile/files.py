"""Bytes that are no safetensors file, or one that nobody honest writes. Each is made from a sound one."""

import json
import re
from collections.abc import Callable
from typing import Any

from tinylora.tensors import MAX_HEADER_BYTES, MAX_TENSORS

Change = Callable[[bytes], bytes]


def with_header(text: bytes | str, body: bytes) -> bytes:
    """A file with this header, before these numbers."""
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + body


def _parts(data: bytes) -> tuple[str, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end].decode(), data[end:]


def _fields(data: bytes) -> tuple[dict[str, Any], bytes]:
    text, body = _parts(data)
    return json.loads(text), body


def _entry(change: Callable[[dict[str, Any]], object]) -> Change:
    """The same file with the header's entry of the first tensor changed."""

    def changed(data: bytes) -> bytes:
        fields, body = _fields(data)
        change(fields[next(name for name in fields if name != "__metadata__")])
        return with_header(json.dumps(fields), body)

    return changed


def _named(name: str) -> Change:
    """The same file with a first tensor of another name."""

    def renamed(data: bytes) -> bytes:
        fields, body = _fields(data)
        first = next(known for known in fields if known != "__metadata__")
        return with_header(json.dumps({name: fields.pop(first)} | fields), body)

    return renamed


def _text(change: Callable[[str], str | bytes]) -> Change:
    def changed(data: bytes) -> bytes:
        text, body = _parts(data)
        return with_header(change(text), body)

    return changed


def _twice(text: str) -> str:
    """The first entry stands there twice, with the same numbers."""
    name = re.match(r'\{("__metadata__":\{.*?"\},)?("[^"]+":\{.*?\})', text)
    assert name is not None
    return f"{text[: name.end()]},{name[2]}{text[name.end() :]}"


def _moved(by: int) -> Change:
    """The second tensor begins earlier or later than the first one ends; its length stays."""

    def changed(data: bytes) -> bytes:
        fields, body = _fields(data)
        names = [name for name in fields if name != "__metadata__"]
        second = sorted(names, key=lambda name: fields[name]["data_offsets"])[1]
        fields[second]["data_offsets"] = [offset + by for offset in fields[second]["data_offsets"]]
        return with_header(json.dumps(fields), body + bytes(max(by, 0)))

    return changed


def _metadata(value: object) -> Change:
    def changed(data: bytes) -> bytes:
        fields, body = _fields(data)
        return with_header(json.dumps({**fields, "__metadata__": value}), body)

    return changed


def _crowd(n: int, text: str) -> Change:
    """So many entries more, each of a few letters."""
    return lambda data: with_header("{" + ",".join(text % number for number in range(n)) + "}", b"")


# Their headers are as short as so many entries can be.
EMPTY = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'

FILES: dict[str, tuple[Change, str]] = {
    "no bytes": (lambda data: b"", "short"),
    "seven bytes": (lambda data: data[:7], "short"),
    "a header of nine quintillion bytes": (lambda data: (2**63).to_bytes(8, "little") + data[8:], "long_header"),
    "a header one byte too long": (lambda data: with_header(b"{" * (MAX_HEADER_BYTES + 1), b""), "long_header"),
    "cut off in the header": (lambda data: data[:40], "header_cut_off"),
    "cut off in the numbers": (lambda data: data[:-3], "cut_off"),
    "a byte after the end": (lambda data: data + b"\0", "trailing"),
    "a zip after the end": (lambda data: data + b"PK\x05\x06" + bytes(18), "trailing"),
    "a pickle": (lambda data: with_header(b"\x80\x04cos\nsystem\n(S'true'\ntR.", b""), "not_safetensors"),
    "a list": (_text(lambda text: f"[{text}]"), "not_safetensors"),
    "white space first": (_text(lambda text: f" {text}"), "not_safetensors"),
    "no UTF-8": (_text(lambda text: text.encode()[:2] + b"\xff" + text.encode()[3:]), "utf8"),
    "half a JSON": (_text(lambda text: text[: len(text) // 2]), "json"),
    "a number of ten thousand digits": (_text(lambda text: '{"a":' + "9" * 10_000 + "}"), "json"),
    "NaN in the header": (_entry(lambda entry: entry.update(shape=[float("nan")])), "constant"),
    "brackets in brackets": (_text(lambda text: '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "too_deep"),
    "a million brackets": (_text(lambda text: '{"a":[' + "[]," * 1_000_000 + "[]]}"), "many_values"),
    "a million objects": (_text(lambda text: '{"a":[' + "{}," * 1_000_000 + "{}]}"), "many_tensors"),
    "a name twice": (_text(_twice), "name_twice"),
    "metadata of numbers": (_metadata({"tinylora": 1}), "metadata"),
    "metadata with five keys": (_metadata(dict.fromkeys("abcde", "")), "many_metadata"),
    "half a letter in the metadata": (_metadata({"tinylora": "\ud800"}), "not_readable"),
    "a path as a name": (_named("../../etc/passwd"), "name"),
    "a script as a name": (_named("<script>alert(1)</script>"), "name"),
    "a name with a zero byte": (_named("node.0.proj.lora_A\0"), "name"),
    "a name of letters that look alike": (_named("nоde.0.proj.lora_A"), "name"),  # a Cyrillic o
    "a hundred thousand empty tensors": (_crowd(100_000, EMPTY), "many_tensors"),
    "objects by the ten thousand": (_crowd(MAX_TENSORS + 2, '"t%d":{}'), "many_tensors"),
    "an entry that is a number": (_text(lambda text: '{"a":1}'), "entry"),
    "a field too many": (_entry(lambda entry: entry.update(code="import os")), "entry"),
    "a dtype of eight bits": (_entry(lambda entry: entry.update(dtype="F8_E4M3")), "dtype"),
    "a dtype that is a list": (_entry(lambda entry: entry.update(dtype=["F32"])), "dtype"),
    "a negative size": (_entry(lambda entry: entry.update(shape=[-1, 2])), "shape"),
    "a size that is no whole number": (_entry(lambda entry: entry.update(shape=[2.0])), "shape"),
    "sizes whose product overflows": (_entry(lambda entry: entry.update(shape=[2**40, 2**40])), "huge_shape"),
    "nine axes": (_entry(lambda entry: entry.update(shape=[1] * 9)), "huge_shape"),
    "three offsets": (_entry(lambda entry: entry.update(data_offsets=[0, 1, 2])), "offsets"),
    "an offset beyond all files": (_entry(lambda entry: entry.update(data_offsets=[0, 2**64])), "offsets"),
    "an end before its beginning": (_entry(lambda entry: entry["data_offsets"].reverse()), "size"),
    "another shape than bytes": (_entry(lambda entry: entry.update(shape=[7])), "size"),
    "two tensors on one place": (_moved(-4), "overlap"),
    "a hole between two": (_moved(4), "hole"),
}
"""Name to maker and the rule that it breaks."""
