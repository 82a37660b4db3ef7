"""`data check`: what it counts against a slow count, what it shows, what it refuses, and that it sends nothing."""

import copy
import gzip
import io
import json
import socket
from collections import Counter

import pytest
from tinylora_worker.data_check import run_data_check

from tests.data.test_reading import parquet_of
from tests.data.test_shards import some_texts, write_lines
from tests.data.test_stored import chat
from tests.helpers import tiny_base_dir, tiny_base_model
from tinylora.base_model import encode
from tinylora.errors import DataError, SettingError
from tinylora.reading.report import check_data

BASE = tiny_base_model()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    texts = [*some_texts(20), "short", "short\n", "x" * 300]
    write_lines(folder / "a.jsonl", *({"text": text} for text in texts), {"text": " "})
    write_lines(folder / "chat.jsonl", chat("Yes."), chat("No."))
    (folder / "note.md").write_text("a note")
    (folder / "image.png").write_bytes(b"\x89PNG\0")
    return folder


def texts_of(folder) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "a.jsonl").read_text().splitlines()]


def test_counts_against_counting(data):
    report = check_data([data / "a.jsonl"], BASE.tokenizer, window_tokens=64)
    texts = [text for text in texts_of(data) if text.strip()]
    sizes = [len(encode(BASE.tokenizer, text)) for text in texts]
    assert report.n_documents == len(texts) == 23
    assert report.n_duplicates == len(texts) - len({" ".join(text.split()) for text in texts}) == 1
    assert (report.n_blank, report.n_rejected, report.n_files) == (1, 0, 1)
    assert report.n_tokens == report.n_targets == sum(sizes)
    assert report.n_characters == sum(map(len, texts))
    assert report.n_longer == sum(size > 64 for size in sizes) == 1
    assert report.longest == max(sizes)
    bins = Counter(size.bit_length() for size in sizes)
    assert [(2 ** (k - 1), 2**k - 1, bins[k]) for k in range(min(bins), max(bins) + 1)] == report.histogram()


def test_a_folder_of_all_kinds(data):
    report = check_data([data], BASE.tokenizer)
    assert report.layouts == {"text (text)": 1, "messages (messages)": 1, "plain text": 1}
    assert report.skipped == "skipped 0 hidden, 1 binary and 0 empty files"
    assert report.template.startswith("plain: User: ...")
    assert report.n_targets < report.n_tokens
    assert report.refused() == ""


def test_without_a_base_characters_are_counted(data):
    report = check_data([data / "a.jsonl"])
    assert report.n_tokens == 0 and report.longest == 300
    assert [sample.pieces for sample in report.samples] == [((text, True),) for text in texts_of(data)[:3]]


def test_samples_show_what_is_learnt(data):
    (first, second) = check_data([data / "chat.jsonl"], BASE.tokenizer).samples
    assert first.pieces == (("<s>User: Say it\nAssistant:", False), (" Yes.</s>", True), ("\n", False))
    assert first.n_targets == len(" Yes.") + 1 and not second.is_cut


def test_a_long_sample_is_cut_and_nothing_found_is_shown_in_it(tmp_path):
    secret = "ghp_" + "q7Zt2LmX9vKd4RbW8sYc1NfH5gJp3TaE6uQo"
    write_lines(tmp_path / "a.jsonl", {"text": f"key {secret} " + "word " * 400})
    for tokenizer in (None, BASE.tokenizer):
        report = check_data([tmp_path / "a.jsonl"], tokenizer)
        (sample,) = report.samples
        assert sample.is_cut and sum(len(text) for text, _ in sample.pieces) == 600
        assert secret[6:14] not in json.dumps(report.to_json())
        assert "gh*** (40 characters)" in sample.pieces[0][0]


def test_bad_rows_and_broken_files_are_told_and_the_others_are_read(data):
    write_lines(data / "b.jsonl", {"text": 1}, {"text": "good"}, ["x"])
    (data / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "also good"}\n' * 9)[:-5])
    report = check_data([data], BASE.tokenizer)
    assert report.n_documents == 23 + 2 + 1 + 1 + 9
    assert report.n_rejected == 3
    places = [where.replace(str(data), "") for where, _ in report.rejected]
    assert places == ["/b.jsonl, line 1", "/b.jsonl, line 3", "/c.jsonl.gz"]
    assert report.rejected[0][1] == "column 'text': expected text, got int"
    assert report.rejected[2][1].startswith("cut short: the gzip data ends in the middle")
    assert report.refused().startswith("3 rows cannot be used; the first: ")


def test_a_conversation_that_the_template_refuses_is_rejected(data):
    tokenizer = copy.deepcopy(BASE.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    report = check_data([data / "chat.jsonl"], tokenizer)
    assert report.n_rejected == 2 and report.n_documents == 0
    assert "the base's chat template refuses this conversation: no" in report.rejected[0][1]


def forbidden(*_, **__):
    raise AssertionError("a socket was opened")


def run(data, *, base: bool = True, allow: tuple[str, ...] = (), as_json: bool = False, **options) -> str:
    out = io.StringIO()
    try:
        run_data_check([data], str(tiny_base_dir()) if base else None, {}, allow, as_json, out=out, **options)
    except DataError as error:
        return out.getvalue() + f"\nerror: {error}"
    return out.getvalue()


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_it_sends_nothing(data, monkeypatch, base, as_json):
    (data / "d.parquet").write_bytes(parquet_of([{"text": "from Parquet"}]))
    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    told = run(data, base=base, as_json=as_json)
    assert "27" in told and "error" not in told


def test_lines_for_people(data):
    told = run(data, window_tokens=64)
    for line in (
        "layout      messages (messages): 1 file; plain text: 1 file; text (text): 1 file",
        "documents   26 in 3 files",
        "duplicates  1, white space aside",
        "rejected    0 rows or files",
        "windows     1 documents are longer than a window of 64 tokens. Nothing is cut off",
        "findings    no secrets",
        "sample      data/a.jsonl:1, 34 tokens, 34 to be learnt; «what is to be learnt»",
        "Nothing was sent.",
    ):
        assert line in told, line


def test_targets_are_marked_for_people(data):
    assert "\n  <s>User: Say it\n  Assistant:« Yes.</s>»\n" in run(data / "chat.jsonl")


def test_findings_refuse_unless_they_are_allowed(data):
    (data / "mail.txt").write_text("line\nask ada.lovelace@analytical-engine.org")
    told = run(data)
    assert "1 × e-mail address: refused without --allow emails" in told
    assert "mail.txt (line 2 of it): ad*** (34 characters)" in told
    assert "error: the data holds what a model should perhaps not learn" in told
    assert "lovelace" not in told
    assert "error" not in run(data, allow=("emails",))
    with pytest.raises(SettingError, match="--allow all: expected one of secrets, emails, phones"):
        run(data, allow=("all",))


def test_json_for_programs(data):
    (data / "mail.txt").write_text("ask ada.lovelace@analytical-engine.org")
    told = json.loads(run(data, as_json=True, allow=("emails",), window_tokens=64))
    assert told["findings"]["e-mail address"]["count"] == 1 and told["refused"] == ""
    assert told["n_documents"] == 27 and told["histogram"][0][2] > 0
    assert told["samples"][0]["pieces"][0][0].startswith("<s>")


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "a.txt").write_text("red \x1b[31m text\x07")
    assert "\x1b" not in run(tmp_path / "a.txt", base=False)
    assert "red ·[31m text·" in run(tmp_path / "a.txt", base=False)


def test_a_mistyped_path_is_no_bad_row(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        check_data([tmp_path / "nowhere"])
