"""Each format and layout as it should be: what is written is what is read, whatever it is packed in."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylora.errors import DataError, SettingError
from tinylora.reading import rows
from tinylora.reading.examples import Findings, read_examples
from tinylora.reading.layouts import layout_of, parse_columns
from tinylora.reading.sources import find_sources

TEXTS = ["2024-01-01", "007", "NA", "null", "1.50", 'with "quotes", commas\nand lines', "é 水 🌳", "  spaces  "]
"""Texts that other readers change: dates, numbers, words that mean nothing."""
TABLE = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def csv_of(texts: list[str], sign: str) -> bytes:
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    return ("id" + sign + "text\r\n" + "".join(f"{n}{sign}{text}\r\n" for n, text in enumerate(quoted))).encode()


def parquet_of(table: list[dict]) -> bytes:
    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), out, row_group_size=3)
    return out.getvalue().to_pybytes()


FORMATS = {
    "a.jsonl": "\n".join(json.dumps(row) for row in TABLE).encode(),
    "a.ndjson": ("\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in TABLE)).encode(),
    "array.json": json.dumps(TABLE, indent=1).encode(),
    "columns.json": json.dumps({"id": list(range(len(TEXTS))), "text": TEXTS}).encode(),
    "a.csv": csv_of(TEXTS, ","),
    "semicolons.csv": csv_of(TEXTS, ";"),
    "a.tsv": csv_of(TEXTS, "\t"),
    "a.parquet": parquet_of(TABLE),
}
PACKINGS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def texts_at(*paths: Path, **options) -> list[str]:
    return [example.text for example in read_examples(paths, **options)]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_back_what_was_written(tmp_path, name, packing):
    file = tmp_path / (name + packing)
    file.write_bytes(PACKINGS[packing](FORMATS[name]))
    assert texts_at(file) == TEXTS


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_text_file_is_one_document_however_it_is_packed(tmp_path, packing):
    file = tmp_path / ("a.md" + packing)
    file.write_bytes(PACKINGS[packing](b"one\ntwo\n"))
    assert texts_at(file) == ["one\ntwo\n"]


def test_frames_that_follow_each_other_are_one_file(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two") + bytes(20))
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert texts_at(tmp_path / "a.txt.gz", tmp_path / "b.txt.zst") == ["one two", "one two"]


ROW = st.fixed_dictionaries({"text": st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text)})


@settings(max_examples=15)
@given(st.lists(ROW, min_size=1, max_size=5))
def test_a_json_array_read_in_pieces_is_the_array_read_at_once(tmp_path_factory, table):
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(json.dumps(table, indent=2), encoding="utf-8")
    before = rows._READ_CHARS
    try:
        rows._READ_CHARS = 7
        found = list(read_examples([file]))
    finally:
        rows._READ_CHARS = before
    assert [example.text for example in found] == [row["text"] for row in table]
    lines = file.read_text(encoding="utf-8").split("\n")
    for example in found:
        line = int(example.where.split("line ")[1].split(" ")[0])
        assert lines[line - 1].strip() == "{"


def test_globs_folders_and_names(tmp_path):
    for name in ("data/one/a.txt", "data/two/b.txt", "data/two/c.md", "data/.hidden/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts_at(tmp_path / "data/*/*.txt") == ["data/one/a.txt", "data/two/b.txt"]
    assert texts_at(tmp_path / "data/**/*.md") == ["data/two/c.md"]
    assert [source.name for source in find_sources([tmp_path / "data"])][-1] == "data/two/c.md"


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1]*.parquet").write_bytes(FORMATS["a.parquet"])
    assert texts_at(tmp_path / "a[1]*.parquet") == TEXTS


def test_tables_among_code_are_text_unless_they_hold_rows(tmp_path):
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "tsconfig.json").write_text("// with a comment\n{}")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "rows.json").write_text('[{"text": "a row"}]')
    findings = Findings()
    assert sorted(texts_at(tmp_path, findings=findings))[-1] == '{"name": "x"}'
    assert findings.layouts == {"plain text": 3, "text (text)": 1}
    with pytest.raises(DataError, match="values are no columns"):
        texts_at(tmp_path / "package.json")


@pytest.mark.parametrize(
    ("found", "columns", "layout"),
    [
        (["text"], {}, "text (text)"),
        (["id", "messages", "text"], {}, "messages (messages)"),
        (["conversations"], {}, "messages (conversations)"),
        (["completion", "prompt"], {}, "prompt+completion (prompt, completion)"),
        (["prompt"], {}, None),
        (["body"], {"text": "body"}, "text (body)"),
        (["text"], {"text": "body"}, None),
        (["chat", "messages"], {"messages": "chat"}, "messages (chat)"),
        (["q", "a"], {"prompt": "q", "completion": "a"}, "prompt+completion (q, a)"),
        (["q", "completion"], {"prompt": "q"}, "prompt+completion (q, completion)"),
    ],
)
def test_the_layout_follows_from_columns_and_mapping(found, columns, layout):
    chosen = layout_of(found, columns)
    assert (chosen and str(chosen)) == layout


def test_mappings_are_read_from_the_command_line():
    assert parse_columns(["prompt=q", "completion=a=b"]) == {"prompt": "q", "completion": "a=b"}
    for wrong in (["text"], ["text="], ["title=x"], ["text=a", "text=b"]):
        with pytest.raises(SettingError, match="--map"):
            read_examples_of(parse_columns(wrong))
    with pytest.raises(SettingError, match="choose one of text, messages, prompt"):
        read_examples_of({"text": "a", "messages": "b"})


def read_examples_of(columns: dict[str, str]) -> None:
    list(read_examples([Path("unread")], columns=columns))


CHAT = [("system", "Be kind."), ("user", "Hello?"), ("assistant", "Hello.")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("style", ["messages", "conversations", "parts"])
def test_conversations_in_every_style_and_format(tmp_path, name, style):
    other = {"user": "human", "assistant": "gpt"}
    if style == "conversations":
        messages = [{"from": other.get(role, role), "value": text} for role, text in CHAT]
    else:
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if style == "parts" else text}
            for role, text in CHAT
        ]
    column = "conversations" if style == "conversations" else "messages"
    if name == "a.csv":
        (tmp_path / name).write_bytes(csv_of([json.dumps(messages)], ",").replace(b"text", column.encode(), 1))
    elif name == "a.parquet":
        (tmp_path / name).write_bytes(parquet_of([{column: messages}]))
    else:
        row = json.dumps({column: messages})
        (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else row)
    (example,) = read_examples([tmp_path / name])
    assert [(part.role, part.text) for part in example.parts] == CHAT


def test_rows_that_cannot_be_used_are_handed_over_where_that_is_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": 2}\n{"text": " "}\n{"tex\n{"text": "three"}\n')
    rejected, findings = [], Findings()
    found = read_examples([tmp_path / "a.jsonl"], on_rejected=rejected.append, findings=findings)
    assert [example.text for example in found] == ["one", "three"]
    assert [row.where.rpartition(" ")[2] for row in rejected] == ["2", "4"]
    assert findings.n_blank == 1
