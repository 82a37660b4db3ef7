"""Data that is broken in some way: one clear sentence each, with file and line, and nothing half-written."""

import gzip
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.helpers import tiny_base_model
from tinylora import shards
from tinylora.errors import DataError
from tinylora.reading import opening, rows
from tinylora.reading.examples import read_examples

GOOD = b'{"text": "one"}\n{"text": "two"}\n'


def bytes_of(data: bytes) -> Callable[[Path], None]:
    return lambda file: (file.write_bytes(data), None)[1]


def lines_of(*lines: object) -> Callable[[Path], None]:
    return bytes_of("".join(json.dumps(line) + "\n" for line in lines).encode())


def parquet_of(**columns: object) -> Callable[[Path], None]:
    return lambda file: pyarrow.parquet.write_table(pyarrow.table(columns), file)


def cut_parquet(file: Path) -> None:
    parquet_of(text=["x" * 100] * 100)(file)
    file.write_bytes(file.read_bytes()[:200])


def holed_parquet(file: Path) -> None:
    """The end, where the schema is, is whole; the pages are not."""
    pyarrow.parquet.write_table(pyarrow.table({"text": [os.urandom(50).hex() for _ in range(200)]}), file)
    data = bytearray(file.read_bytes())
    data[20:3000] = bytes(2980)
    file.write_bytes(bytes(data))


def bound_socket(file: Path) -> None:
    here = os.getcwd()
    os.chdir(file.parent)  # a socket's path holds 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    finally:
        os.chdir(here)


def chat(*messages: object) -> dict[str, object]:
    return {"messages": list(messages)}


def said(role: str, content: object = "hm") -> dict[str, object]:
    return {"role": role, "content": content}


USER, ANSWER = said("user"), said("assistant")
Case = tuple[str, Callable[[Path], object], str]
CASES: dict[str, Case] = {
    # packed
    "gzip cut short": ("a.jsonl.gz", bytes_of(gzip.compress(GOOD * 99)[:-9]), "a.jsonl.gz: cut short: the gzip data"),
    "zstd cut short": ("a.jsonl.zst", bytes_of(zstandard.compress(GOOD * 99)[:-4]), "cut short: the Zstandard data"),
    "gzip that is none": ("a.txt.gz", bytes_of(b"plain text"), "not readable as gzip: .*; pack it again"),
    "zstd that is none": ("a.txt.zst", bytes_of(b"plain text"), "not readable as Zstandard: .*; pack it again"),
    "gzip with rubbish behind": ("a.txt.gz", bytes_of(gzip.compress(b"x") + b"rubbish"), "not readable as gzip"),
    "gzip with a wrong sum": ("a.txt.gz", bytes_of(gzip.compress(b"x")[:-8] + b"\1" * 8), "not readable as gzip"),
    "packed nothing": ("a.txt.gz", bytes_of(b""), "cut short"),
    "a bomb": ("a.txt.gz", bytes_of(gzip.compress(bytes(2**22))), "unpacks to more than 250 times its size"),
    "a bomb in zstd": ("a.txt.zst", bytes_of(zstandard.compress(bytes(2**22))), "unpacks to more than 250 times"),
    # text
    "UTF-16": ("a.txt", bytes_of("text".encode("utf-16")), "a file in UTF-16, save it as UTF-8"),
    "NUL": ("a.txt", bytes_of(b"te\0xt"), r"a binary file \(byte 2 is NUL\)"),
    "Latin-1": ("a.txt", bytes_of("é".encode("latin-1")), r"a binary file \(byte 0 is not UTF-8\)"),
    "too long a text": ("a.txt", bytes_of(b"x" * 5000), "larger than 0 MiB, which is the most for one document"),
    # JSON lines
    "a broken line": ("a.jsonl", bytes_of(GOOD + b'{"text": "thr\n'), "a.jsonl, line 3: not readable as JSON"),
    "a line cut short": ("a.jsonl", bytes_of(GOOD[:-4]), "a.jsonl, line 2: not readable as JSON"),
    "a number for text": (
        "a.jsonl",
        lines_of({"text": "x"}, {"text": 3}),
        "line 2: column 'text': expected text, got int",
    ),
    "null": ("a.jsonl", lines_of({"text": "x"}, {"text": None}), "line 2: column 'text': expected text, got null"),
    "a list for an object": ("a.jsonl", lines_of({"text": "x"}, ["x"]), "line 2: expected an object with columns, got"),
    "blank alone": ("a.jsonl", lines_of({"text": " "}), "no document in this file; expected .* column 'text'"),
    "other columns": ("a.jsonl", lines_of({"body": "x"}), "line 1: no column 'text', .*; found: body; name one of"),
    "mixed layouts": (
        "a.jsonl",
        lines_of({"text": "x"}, chat(USER, ANSWER)),
        "line 2: no column 'text', which the rows",
    ),
    "half a surrogate": ("a.jsonl", lines_of({"text": "\ud800"}), "line 1: column 'text': half of a surrogate pair"),
    "NUL in a column": ("a.jsonl", lines_of({"text": "a\0"}), "line 1: column 'text': holds NUL"),
    "nested too deep": ("a.jsonl", bytes_of(b"[" * 10**5), "a.jsonl, line 1: not readable as JSON: nested too deeply"),
    "UTF-16 lines": ("a.jsonl", bytes_of('{"text": "x"}'.encode("utf-16")), "a file in UTF-16; save it as UTF-8"),
    "too long a line": ("a.jsonl", lines_of({"text": "x" * 5000}), "line 1: longer than 0 MiB"),
    # conversations
    "an unknown role": (
        "a.jsonl",
        lines_of(chat(said("narrator"))),
        "line 1: message 1: unknown role 'narrator'; known:",
    ),
    "no answer": ("a.jsonl", lines_of(chat(USER)), "line 1: column 'messages': no message of the assistant"),
    "an empty conversation": ("a.jsonl", lines_of(chat()), "line 1: column 'messages': no message of the assistant"),
    "a message without text": (
        "a.jsonl",
        lines_of(chat({"role": "user"})),
        "line 1: message 1: no 'content'; found: role",
    ),
    "a message that is text": ("a.jsonl", lines_of(chat("hello")), "line 1: message 1: expected an object with role"),
    "content null": (
        "a.jsonl",
        lines_of(chat(USER, said("assistant", None))),
        "message 2: content: expected text, got",
    ),
    "an image": (
        "a.jsonl",
        lines_of(chat(said("user", [{"type": "image"}]))),
        "message 1: content: expected text, got",
    ),
    "no list of messages": (
        "a.jsonl",
        lines_of({"messages": 3}),
        "column 'messages': expected a list of messages, got",
    ),
    "no completion": ("a.jsonl", lines_of({"prompt": "x", "completion": ""}), "line 1: column 'completion': an empty"),
    # JSON
    "an array cut short": ("a.json", bytes_of(b'[{"text": "x"},\n{"text"'), r"a.json, line 2 \(item 2\): not readable"),
    "an array without end": ("a.json", bytes_of(b'[{"text": "x"}\n'), r"line 2: not readable as JSON: expected ',' or"),
    "one object": ("a.json", bytes_of(b'{"text": "x"}'), "one JSON object whose values are no columns"),
    "uneven columns": ("a.json", bytes_of(b'{"text": ["x"], "n": []}'), "its columns differ in length: text 1, n 0"),
    "a JSON string": ("a.json", bytes_of(b'"text"'), "expected a JSON array of objects, or an object of columns"),
    "an array too deep": ("a.json", bytes_of(b'[{"text":' + b"[" * 10**5), "nested too deeply"),
    # CSV
    "a ragged row": ("a.csv", bytes_of(b"text,n\nx,1\ny\n"), "a.csv, line 3: 1 values, but the first line names 2"),
    "a row too wide": ("a.csv", bytes_of(b"text\nx\ny,2\n"), "a.csv, line 3: 2 values, but the first line names 1"),
    "no header": ("a.csv", bytes_of(b"hello,1\nworld,2\n"), "a.csv, line 2: no column 'text', .*; found: 1, hello"),
    "an open quote": ("a.csv", bytes_of(b'text\nfine\n"open\nline\n'), "a.csv, line 3: not readable as CSV: .* quote"),
    "a column named twice": ("a.csv", bytes_of(b"text,text\nx,y\n"), "line 1: column 'text' is named twice"),
    "Latin-1 in a table": ("a.csv", bytes_of("text\né\n".encode("latin-1")), "a.csv: not UTF-8"),
    "a header alone": ("a.csv", bytes_of(b"text\n"), "no document in this file"),
    # Parquet
    "Parquet cut short": ("a.parquet", cut_parquet, "a.parquet: not readable as Parquet: "),
    "Parquet with a hole": ("a.parquet", holed_parquet, "a.parquet: not readable as Parquet: "),
    "Parquet of numbers": ("a.parquet", parquet_of(text=[1, 2]), "row 1: column 'text': expected text, got int"),
    "Parquet with null": ("a.parquet", parquet_of(text=["x", None]), "row 2: column 'text': expected text, got null"),
    "Parquet without rows": ("a.parquet", parquet_of(text=pyarrow.array([], "string")), "no document in this file"),
    "packed Parquet cut short": ("a.parquet.gz", bytes_of(gzip.compress(b"PAR1")[:-3]), "cut short: the gzip data"),
    # places
    "a pipe": ("a.txt", os.mkfifo, "a.txt: a pipe, which is neither a file nor a folder"),
    "a socket": ("a.txt", bound_socket, "a.txt: a socket, which is neither a file nor a folder"),
    "a link to itself": ("a.txt", lambda file: file.symlink_to(file), "a symbolic link that leads back to itself"),
    "nothing there": ("a.txt", lambda file: None, "a.txt: no such file or folder; expected text files"),
    "a pattern without a file": ("*.txt", lambda file: None, r"\*.txt: no file fits this pattern"),
    "an empty folder": ("folder", lambda file: file.mkdir(), "no text in this folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_has_its_sentence_and_leaves_nothing_behind(tmp_path, monkeypatch, case):
    name, make, message = CASES[case]
    monkeypatch.setattr(opening, "FREE_BYTES", 2**20)
    monkeypatch.setattr(opening, "MAX_DOCUMENT_BYTES", 4096 if "too long" in case else 2**24)
    monkeypatch.setattr(rows, "MAX_DOCUMENT_BYTES", 4096 if "too long" in case else 2**24)
    make(tmp_path / name)
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=message) as caught:
        shards.load_shard([tmp_path / name], _BASE, cache=cache)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    assert not cache.exists() or list(cache.iterdir()) == []


_BASE = tiny_base_model()


def test_an_address_is_no_data():
    with pytest.raises(DataError, match="an address; data is read from this machine alone, so download it first"):
        list(read_examples([Path("https://example.org/a.jsonl")]))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch, what):
    """As root everything may be read, so the refusal is made up."""
    (tmp_path / "a.txt").write_text("x")

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    path = tmp_path / "a.txt" if what == "file" else tmp_path
    with pytest.raises(DataError, match=f"{path.name}: cannot be read: Permission denied"):
        list(read_examples([path]))
