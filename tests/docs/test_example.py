"""The research script in examples/, run whole and tiny: what it asks, draws and writes down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.docs, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "federations.py"
RUNS = {"split": 6, "churn": 2, "attackers": 8}
PNG = b"\x89PNG\r\n"


def example(out: Path, *words: str) -> str:
    """Run the script from a foreign folder, as somebody does who has only installed the package."""
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--threads", "1", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=out.parent, env=os.environ, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_answers_all_questions_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    example(out, "--tiny", "--only", "split")
    said = example(out, "--tiny")
    assert "split iid, seed" not in said and "churn calm, seed 0: base" in said
    document = json.loads((out / "results.json").read_text())
    assert {question: len(rows) for question, rows in document["results"].items()} == RUNS
    for row in (row for rows in document["results"].values() for row in rows):
        has_churn = row["name"] == "churn half leave"  # in which nobody may be left for the last steps
        assert has_churn or row["finished"] == "every leaf has had its steps", row["name"]
        assert all(0 < losses["mean"] < 20 for losses in row["losses"].values())
    churn = {row["name"]: row for row in document["results"]["churn"]}
    assert len(churn["churn half leave"]["presence"]) > len(churn["churn calm"]["presence"]) == 4
    pictures = sorted((out / "pictures").iterdir())
    assert [picture.stem for picture in pictures] == ["attackers", "churn", "split"]
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)


def test_another_seed_deals_otherwise_and_the_same_one_gives_the_same_numbers(tmp_path: Path) -> None:
    def losses(name: str, seed: str) -> list[object]:
        example(tmp_path / name, "--tiny", "--only", "split", "--seeds", seed)
        rows = json.loads((tmp_path / name / "results.json").read_text())["results"]["split"]
        return [row["losses"] for row in rows]

    first = losses("first", "0")
    assert first == losses("again", "0")
    assert first != losses("other", "1")


def test_what_is_committed_is_what_the_readme_speaks_of() -> None:
    document = json.loads((SCRIPT.parent / "results.json").read_text())
    assert document["command"] in (SCRIPT.parent / "README.md").read_text()
    assert {question: len(rows) / len(document["seeds"]) for question, rows in document["results"].items()} == RUNS
    for question in RUNS:
        assert f"pictures/{question}.png" in (SCRIPT.parent / "README.md").read_text()
        assert (SCRIPT.parent / "pictures" / f"{question}.png").stat().st_size < 200_000
