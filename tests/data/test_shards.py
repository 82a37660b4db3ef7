"""Files to documents to tokens to windows: what is read, what is refused and in which words, and what is repeatable."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny_base_model
from tinylora import shards
from tinylora.errors import DataError, SettingError
from tinylora.reading.examples import read_examples

BOS = 256
FINGERPRINT = "ab" * 32


def encode(text: str) -> list[int]:
    """One token per byte, with a beginning."""
    return [BOS, *text.encode()]


def decode(tokens: np.ndarray) -> str:
    return bytes(token for token in tokens.tolist() if token != BOS).decode()


def make(texts: list[str], **options) -> shards.Shard:
    named = [(f"text-{index}", text) for index, text in enumerate(texts)]
    return shards.make_shard(named, encode, tokenizer_fingerprint=FINGERPRINT, **options)


def some_texts(n: int, length: int = 30) -> list[str]:
    return [f"{index} " + "abcdefghij"[index % 10] * length for index in range(n)]


def read(*paths: Path, **options) -> list[tuple[str, str]]:
    return [(example.name, example.text) for example in read_examples(paths, **options)]


def write_parquet(file: Path, **columns) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


def write_lines(file: Path, *lines: object) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_file_is_one_document(tmp_path):
    file = tmp_path / "a.md"
    file.write_bytes(b"\xef\xbb\xbfDer Fluss\r\nflie\xc3\x9ft.\n")
    assert read(file) == [("a.md", "Der Fluss\r\nfließt.\n")]


def test_a_folder_is_read_in_sorted_order_without_hidden_binary_and_empty_files(tmp_path, caplog):
    top = tmp_path / "notes"
    for name, data in {
        "b.txt": b"b",
        "a/z.py": b"z",
        "a/.hidden": b"h",
        ".git/config": b"g",
        "image.png": b"\x89PNG\0",
        "latin.txt": b"\xe9t\xe9",
        "empty.txt": b" \n",
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    write_lines(top / "c.jsonl", {"text": "one"}, {"text": "two"})
    write_parquet(top / "d.parquet", text=["three"])
    with caplog.at_level(logging.INFO, logger="tinylora.reading"):
        found = read(top)
    assert found == [
        ("notes/a/z.py", "z"),
        ("notes/b.txt", "b"),
        ("notes/c.jsonl:1", "one"),
        ("notes/c.jsonl:2", "two"),
        ("notes/d.parquet:1", "three"),
    ]
    assert "skipped 2 hidden, 2 binary and 1 empty files" in caplog.text


def test_json_lines_with_a_column_and_blank_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('\ufeff{"body": "one", "text": 1}\n\n{"body": "z\\u00e9ro"}\n{"body": " "}', encoding="utf-8")
    assert read(file, columns={"text": "body"}) == [("a.jsonl:1", "one"), ("a.jsonl:3", "zéro")]


def test_parquet_in_several_row_groups_and_text_types(tmp_path):
    file = tmp_path / "a.parquet"
    texts = [f"text {index}" for index in range(2500)]
    table = pyarrow.table({"n": list(range(2500)), "text": pyarrow.array(texts).dictionary_encode()})
    pyarrow.parquet.write_table(table, file, row_group_size=700)
    found = read(file)
    assert [text for _, text in found] == texts
    assert found[-1][0] == "a.parquet:2500"


def test_several_paths_follow_each_other(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    assert [text for _, text in read(tmp_path / "b.txt", tmp_path / "a.txt")] == ["b", "a"]


def test_missing_path(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; expected text files, .jsonl, .json, .csv"):
        read(tmp_path / "nowhere")


def test_no_path_at_all():
    with pytest.raises(DataError, match="no data was named"):
        read()


def test_empty_folder_says_what_it_skipped(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\0")
    (tmp_path / ".x").write_text("x")
    with pytest.raises(DataError, match=r"no text in this folder \(skipped 1 hidden, 1 binary and 0 empty files\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b"\n \n", "the file is empty"),
        ("a.txt", b"text\0more", r"a binary file \(byte 4 is NUL\)"),
        ("a.txt", b"text\xff", r"a binary file \(byte 4 is not UTF-8\)"),
        ("a.jsonl", b"", "no document in this file; expected at least one with column 'text'"),
        ("a.jsonl", b'{"text":"x"}\n{"text":\n', r"a.jsonl, line 2: not readable as JSON: Expecting value at column"),
        ("a.jsonl", b'\n{"text":"\xff"}', "a.jsonl, line 2: not readable as JSON: 'utf-8' codec"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not readable as JSON: nested too deeply"),
        ("a.jsonl", b'["text"]', "line 1: expected an object with columns, got list"),
        ("a.jsonl", b'{"title":"x","body":"y"}', r"line 1: no column 'text', .* found: body, title; name one"),
        ("a.jsonl", b"{}", r"line 1: no column 'text', .*; found: \(none\)"),
        ("a.jsonl", b'{"text":3}', "line 1: column 'text': expected text, got int"),
        ("a.jsonl", b'{"text":"x"}\n{"text":null}', "line 2: column 'text': expected text, got null"),
        ("a.jsonl", b'{"text":"\\ud800"}', "line 1: column 'text': half of a surrogate pair"),
        ("a.parquet", b"PAR1 and nothing else", "a.parquet: not readable as Parquet: "),
        ("a.parquet", b"", "a.parquet: not readable as Parquet: "),
    ],
)
def test_each_wrong_file_has_its_sentence(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"title": ["x"], "body": ["y"]}, "no column 'text', .*; found: body, title"),
        ({"text": [1, 2]}, "row 1: column 'text': expected text, got int"),
        ({"text": ["x", None]}, "row 2: column 'text': expected text, got null"),
        ({"text": pyarrow.array([], pyarrow.string())}, "no document in this file"),
    ],
)
def test_each_wrong_parquet_column_has_its_sentence(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read(write_parquet(tmp_path / "a.parquet", **columns))


def test_a_broken_line_inside_a_folder_is_an_error_too(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"b.jsonl, line 1"):
        read(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read(tmp_path / "pipe")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a.txt: cannot be read: Permission denied"):
        read(tmp_path)


# --- the split -------------------------------------------------------------------------------------------------------


def test_documents_begin_as_encode_says_and_know_their_bytes():
    shard = make(some_texts(5))
    for document in (*shard.train, *shard.heldout):
        assert document.tokens[0] == BOS
        assert document.tokens.dtype == np.int32
        assert document.n_bytes == len(document.tokens) - 1
        assert not document.tokens.flags.writeable


def test_the_split_is_by_document_and_neither_side_is_empty():
    for n in (2, 3, 5, 40):
        shard = make(some_texts(n))
        train, heldout = ({document.name for document in side} for side in (shard.train, shard.heldout))
        assert train and heldout and not train & heldout
        assert len(train) + len(heldout) == n


def test_the_share_is_met_roughly_and_nothing_is_held_out_on_request():
    assert 70 <= len(make(some_texts(500), heldout_share=0.2).heldout) <= 130
    assert make(some_texts(10), heldout_share=0.0).heldout == ()
    with pytest.raises(SettingError, match=r"heldout_share 1.0: expected 0 or more and less than 1"):
        make(some_texts(3), heldout_share=1.0)


@given(st.permutations(range(8)))
def test_order_and_names_change_nothing(order):
    texts = some_texts(8)
    assert make([texts[index] for index in order]).version == make(texts).version


def test_a_document_stays_on_its_side_when_others_come():
    before, after = make(some_texts(100)), make(some_texts(150))
    trained = {decode(document.tokens) for document in before.train}
    held_out = {decode(document.tokens) for document in after.heldout}
    assert not trained & held_out


def test_version_follows_the_training_tokens_and_the_tokenizer():
    shard = make(some_texts(20))
    assert shard.version == make(some_texts(20)).version
    assert shard.version != make(some_texts(21) + some_texts(1, 50)).version
    assert shard.version != make(some_texts(20), seed=1).version
    texts = [("x", text) for text in some_texts(20)]
    assert shard.version != shards.make_shard(texts, encode, tokenizer_fingerprint="cd" * 32).version


def test_duplicates_are_dropped_and_counted():
    shard = make(["one text", "one  text\n", "another text", "one text", "third"])
    assert shard.n_duplicates == 2
    assert len(shard.train) + len(shard.heldout) == 3


def test_a_single_document_is_cut_at_a_line_break():
    lines = "".join(f"line {index}\n" for index in range(100))
    shard = make([" ", lines], heldout_share=0.25)
    (train,), (heldout,) = shard.train, shard.heldout
    assert decode(train.tokens) + "\n" + decode(heldout.tokens) == lines.strip()
    assert 0.2 < len(heldout.tokens) / len(train.tokens) < 0.5
    assert (train.name, heldout.name) == ("text-1 (beginning)", "text-1 (end)")
    assert train.tokens[0] == heldout.tokens[0] == BOS


def test_a_single_document_without_breaks_is_cut_all_the_same():
    assert decode(make(["abcdefghij"], heldout_share=0.2).train[0].tokens) == "abcdefgh"


def test_a_single_document_too_short_to_cut():
    with pytest.raises(DataError, match="text-0: one document of 1 characters is too short to hold a part of it out"):
        make(["a"])


def test_no_text_in_a_shard():
    with pytest.raises(DataError, match=r"shard \(unnamed\): no text in it"):
        make([" ", "\n"])


# --- windows ---------------------------------------------------------------------------------------------------------


def naive_windows(shard: shards.Shard, window: int, seed: int, epoch: int) -> Counter:
    """Windows cut from the documents written out one after the other, in the epoch's order."""
    order = shards.Epoch.of(shard, window, seed, epoch).numbers
    tokens = [token for number in order for token in shard.train[number].tokens.tolist()]
    numbers = [number for number in order.tolist() for _ in shard.train[number].tokens]
    return Counter(
        (tuple(tokens[start : start + window]), tuple(numbers[start : start + window]))
        for start in range(0, len(tokens) - window + 1, window)
    )


@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 3), st.integers(0, 3))
def test_windows_are_the_documents_end_to_end(n, window, seed, epoch):
    shard = make(some_texts(n, length=n))
    ids, documents, is_target = shard.windows(min(window, shard.n_tokens), seed, epoch)
    assert ids.shape == documents.shape == (shard.n_windows(min(window, shard.n_tokens)), min(window, shard.n_tokens))
    assert ids.dtype == documents.dtype == np.int64
    assert is_target is None
    found = Counter((tuple(row), tuple(numbers)) for row, numbers in zip(ids.tolist(), documents.tolist(), strict=True))
    assert found == naive_windows(shard, min(window, shard.n_tokens), seed, epoch)


def with_targets(shard: shards.Shard) -> shards.Shard:
    """Every second byte is a target, from the second token of each document on; one document has no mask of its own."""
    train = [dataclasses.replace(document, is_target=document.tokens % 2 == 0) for document in shard.train]
    return dataclasses.replace(shard, train=(*train[:-1], shard.train[-1]))


def test_targets_go_with_their_tokens():
    shard = with_targets(make(some_texts(9)))
    unmasked = len(shard.train) - 1
    for rows in (shard.windows(16, 3, 1), next(shards.batches(shard, window_tokens=16, batch_windows=50, seed=3))):
        assert rows.is_target is not None
        assert np.array_equal(rows.is_target, (rows.ids % 2 == 0) | (rows.documents == unmasked))
    plain = make(some_texts(9))
    assert np.array_equal(plain.windows(16, 3, 1).ids, shard.windows(16, 3, 1).ids)
    assert shard.n_targets < plain.n_targets == plain.n_tokens == shard.n_tokens


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_spaced_windows_against_the_text_written_out(sizes, window, most, is_masked):
    tokens = [np.arange(size, dtype=np.int32) for size in sizes]
    masks = [part % 3 == 0 if is_masked else None for part in tokens]
    documents = [shards.Document("d", part, 1, mask) for part, mask in zip(tokens, masks, strict=True)]
    rows = shards.spaced_windows(documents, window, most)
    stream, numbers = np.concatenate(tokens), np.repeat(np.arange(len(sizes)), sizes)
    if len(stream) < 2:
        assert rows is None
        return
    width = min(window, len(stream))
    starts = np.linspace(0, len(stream) - width, min(most, len(stream) // width)).astype(np.int64)
    places = starts[:, None] + np.arange(width)
    assert rows is not None
    assert np.array_equal(rows.ids, stream[places]) and np.array_equal(rows.documents, numbers[places])
    assert (rows.is_target is not None) == is_masked
    assert rows.is_target is None or np.array_equal(rows.is_target, stream[places] % 3 == 0)


def test_epochs_and_seeds_differ_and_repeat():
    shard = make(some_texts(20))
    rows = {key: shard.windows(16, *key)[0].tobytes() for key in [(0, 0), (0, 1), (1, 0)]}
    assert len(set(rows.values())) == 3
    assert shard.windows(16, 0, 1)[0].tobytes() == rows[0, 1]


def test_the_order_is_pinned():
    assert shards._permutation(8, "windows", 0, 0).tolist() == [0, 5, 2, 6, 7, 1, 3, 4]


def test_step_k_needs_no_steps_before_it():
    shard = make(some_texts(9))
    options = {"window_tokens": 16, "batch_windows": 5, "seed": 3}
    everything = list(islice(shards.batches(shard, **options), 30))
    for step in (0, 1, 7, 29):
        ids, documents, _ = next(shards.batches(shard, first_step=step, **options))
        assert np.array_equal(ids, everything[step][0])
        assert np.array_equal(documents, everything[step][1])


@pytest.mark.parametrize("batch_windows", [1, 5, 50])
def test_batches_are_the_epochs_one_after_the_other(batch_windows):
    shard = make(some_texts(9))
    n_rows = 3 * shard.n_windows(16)
    stream = shards.batches(shard, window_tokens=16, batch_windows=batch_windows, seed=3)
    rows = np.concatenate([rows.ids for rows in islice(stream, n_rows // batch_windows + 1)])[:n_rows]
    assert np.array_equal(rows, np.concatenate([shard.windows(16, 3, epoch)[0] for epoch in range(3)]))


def test_a_shard_too_small_says_what_it_has_and_what_is_needed():
    shard = make(some_texts(3, length=4), name="mine")
    message = r"shard mine is too small: its \d+ training tokens make 0 windows of 512, needed are 1"
    with pytest.raises(DataError, match=message):
        shard.windows(512, 0, 0)
    with pytest.raises(DataError, match=message):
        next(shards.batches(shard, window_tokens=512, batch_windows=1, seed=0))
    with pytest.raises(DataError, match="needed are 2000"):
        shards.check_size(shard, window_tokens=4, min_windows=2000)


def test_documents_for_an_evaluation_keep_their_order_and_lose_only_duplicates():
    texts = [("b", "bb"), ("a", "aa"), ("blank", " "), ("again", "bb ")]
    assert [document.name for document in shards.encode_documents(texts, encode)] == ["b", "a"]


def test_reading_data_needs_no_torch():
    heavy = {"torch", "transformers", "datasets", "pyarrow"}
    code = f"import sys, tinylora.shards; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_shard_from_files_and_a_base(tmp_path):
    base = tiny_base_model()
    write_lines(tmp_path / "a.jsonl", *({"body": text} for text in some_texts(12)))
    shard = shards.load_shard([tmp_path / "a.jsonl"], base, columns={"text": "body"}, heldout_share=0.3)
    assert shard.name == "a.jsonl"
    assert len(shard.train) + len(shard.heldout) == 12
    for document in shards.load_documents([tmp_path / "a.jsonl"], base, columns={"text": "body"}):
        assert document.tokens[0] == base.tokenizer.bos_token_id
        assert document.tokens[-1] == base.tokenizer.eos_token_id
    assert shard.version != shards.load_shard([tmp_path / "a.jsonl"], base, columns={"text": "body"}, seed=5).version
