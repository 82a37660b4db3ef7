"""`tinylora report` on text of this machine: tables, pictures, going on where it stopped, and what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tinylora.cli import app
from tinylora.command_line import run
from tinylora.errors import SettingError

SMALL = """
rows = [1, 2, 4]
seeds = [0]
depth = 1
rank = 2
leaf_steps = 2
round_steps = 2
batch_windows = 2
window_tokens = 64
shard_chars = 60000
n_documents = 9
scored_tokens = 64
n_bootstrap = 20

[presets.cpu]

[rates]
"tree:2" = { learning_rate = 1e-3 }
"fedavg:2" = { learning_rate = 1e-3 }
"fedavg:4" = { learning_rate = 1e-3 }
"""


def report(folder: Path, *options: str, config: str = SMALL):
    file = folder / "quality.toml"
    file.write_text(config)
    arguments = ["report", "--config", str(file), "--out", str(folder / "out"), "--processes", "1", *options]
    return CliRunner().invoke(app, arguments)


def test_a_report_is_written_and_a_second_one_only_reads(tmp_path):
    first = report(tmp_path)
    assert first.exit_code == 0, first.output
    assert "4 jobs, 0 of them are done" in first.output
    document = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert set(document["rows"]) == {"1", "2", "4"}
    for row in document["rows"].values():
        assert row["seeds"] == 1 and row["tokens_per_s"] > 0 and isinstance(row["met"], bool)
    page = (tmp_path / "out" / "quality.md").read_text()
    assert "| tree:2 | soft | 4 | 4 |" in page and "gain-domain.png" in page
    assert (tmp_path / "out" / "gain-domain.png").stat().st_size > 10_000

    again = report(tmp_path, "--json")
    assert again.exit_code == 0, again.output
    assert "4 jobs, 4 of them are done" in again.stderr
    assert json.loads(again.stdout)["rows"] == document["rows"]


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(json.dumps({"rank": 16}))
    found = report(tmp_path)
    assert isinstance(found.exception, SettingError)
    assert "holds a report of another configuration" in str(found.exception)


@pytest.mark.parametrize(
    ("options", "config", "sentence"),
    [
        (("--rows", "1,x"), SMALL, "--rows 1,x: expected numbers from 1 to 17"),
        (("--rows", "18"), SMALL, "rows.0: input should be less than or equal to 17"),
        (("--preset", "huge"), SMALL, "no preset 'huge'; expected one of cpu"),
        ((), "ranks = 3\n" + SMALL, "ranks: extra inputs are not permitted, got 3; known keys"),
        (("--rows", "3"), SMALL, "rates: no entry for"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path, options, config, sentence):
    found = report(tmp_path, *options, config=config)
    assert isinstance(found.exception, SettingError) and sentence in str(found.exception)
    assert not (tmp_path / "out").exists(), "nothing is made before the configuration is known to be right"


def test_the_exit_code_of_a_wrong_configuration_is_that_of_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tinylora", "report", "--config", str(tmp_path / "none.toml")])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 2
    assert "no such file" in capsys.readouterr().err
