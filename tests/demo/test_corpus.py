"""Sides are fixed by name, cut by file, and never share a text."""

from collections import Counter
from pathlib import Path

import pytest

from tinylora.demo import corpus
from tinylora.demo.corpus import Document, Domain, read_documents, side_of


def folder_domain(folder: Path) -> Domain:
    return Domain("files", "files", lambda: ((path.name, path) for path in folder.iterdir()), corpus._read_code)


def write_files(folder: Path, n_files: int) -> Domain:
    folder.mkdir()
    for number in range(n_files):
        (folder / f"file{number}.txt").write_text(f"line {number} of many\n" * 40)
    return folder_domain(folder)


def test_sides_have_the_shares_they_should():
    counts = Counter(side_of(f"package/module{number}.py") for number in range(4000))
    assert counts["base"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert counts["shard"] / 4000 == pytest.approx(0.3, abs=0.03)
    assert counts["heldout"] / 4000 == pytest.approx(0.2, abs=0.03)


def test_a_side_is_a_fact_about_the_name_alone():
    assert [side_of(name) for name in ("stdlib/json/decoder.py", "numpy/core.pyi", "torch/x.h")] == [
        "shard",
        "shard",
        "base",
    ]


def test_every_file_falls_on_exactly_one_side(tmp_path):
    domain = write_files(tmp_path / "text", 60)
    names = [doc.name for side in corpus.SIDES for doc in read_documents(domain, side)]
    assert sorted(names) == sorted(f"file{number}.txt" for number in range(60))


def test_reading_is_the_same_every_time_and_stops_at_the_limit(tmp_path):
    domain = write_files(tmp_path / "text", 60)
    some = read_documents(domain, "base", max_chars=2000)
    assert some == read_documents(domain, "base")[: len(some)]
    assert sum(len(doc.text) for doc in some[:-1]) < 2000 <= sum(len(doc.text) for doc in some)


def test_duplicates_and_unwanted_texts_are_left_out(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(30):
        (folder / f"copy{number}.py").write_text(f"# Copyright {number}, some licence\n" + "the same words\n" * 60)
    found = read_documents(folder_domain(folder), "base")
    assert len(found) == 1  # the licence comment differs, the text below it does not
    assert read_documents(folder_domain(folder), "base", unwanted_hashes={found[0].text_hash}) == []


def test_text_hash_ignores_white_space_only():
    assert Document("a", "x  y\n z").text_hash == Document("b", "x y z").text_hash
    assert Document("a", "x y z").text_hash != Document("a", "x y Z").text_hash


def test_binary_and_broken_files_are_passed_over(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(20):
        (folder / f"junk{number}.txt").write_bytes(b"\xff\xfe\x00" * 400)
    assert [doc for side in corpus.SIDES for doc in read_documents(folder_domain(folder), side)] == []


def test_eight_domains_come_with_python_and_our_packages():
    everywhere = [domain for domain in corpus.available_domains() if domain.is_everywhere]
    assert len(everywhere) >= 8
    assert [domain.name for domain in everywhere[:4]] == ["python", "docs", "headers", "decimals"]


def test_docs_are_docstrings_not_code(tmp_path):
    file = tmp_path / "module.py"
    words = "These words explain at length what the function does and why one would want to call it. " * 4
    file.write_text(f'def f():\n    """{words}"""\n    return 17\n')
    text = corpus._read_docs(file)
    assert text.startswith("These words") and "17" not in text
