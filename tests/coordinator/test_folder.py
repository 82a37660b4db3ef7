"""A run's folder: what `init` writes is what `serve` reads, and what is wrong is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_coordinator.folder import (
    SECTIONS,
    RunFolder,
    changed,
    check_is_new,
    parse_changes,
    read_run,
    run_id,
    settings_text,
    write_run,
)

from tests.federation.facts import FACTS
from tinylora.config import RunSettings, read_settings
from tinylora.errors import SettingError, StorageError

SETTINGS = RunSettings(window_tokens=64, name="a run")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    write_run(made, SETTINGS, FACTS, None)
    return made


def test_what_was_written_is_read_back(folder: RunFolder) -> None:
    files = read_run(folder)
    assert (files.settings, files.base) == (SETTINGS, FACTS)
    assert folder.root.stat().st_mode & 0o777 == 0o700


def test_every_setting_has_its_line_and_comment() -> None:
    assert {name for section in SECTIONS.values() for name in section} == set(RunSettings.model_fields)


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=80),
    st.floats(1e-12, 1.0),
    st.sampled_from([0, 3, 2**62]),
)
def test_any_settings_survive_their_file(tmp_path_factory: pytest.TempPathFactory, name: str, rate: float, seed: int):
    settings = RunSettings(name=name, learning_rate=rate, seed=seed)
    file = tmp_path_factory.mktemp("toml") / "run.toml"
    file.write_text(settings_text(settings), encoding="utf-8")
    assert read_settings(file) == settings


@given(st.text(max_size=80))
def test_any_name_gives_a_run_id(name: str) -> None:
    made = run_id(RunSettings.model_construct(name=name))
    assert made and made.isascii() and made[0].isalnum()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no run here .*tinylora-coordinator init"):
        read_run(RunFolder(tmp_path))


def test_a_folder_with_a_run_is_not_overwritten(folder: RunFolder) -> None:
    with pytest.raises(SettingError, match="holds a run already"):
        check_is_new(folder)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("run.toml", "depth = 99", "depth: .*got 99"),
        ("run.toml", "speed = 1", "speed"),
        ("run.toml", "depth = = 1", "not readable as TOML"),
        ("run.toml", "ranks = {head = 1}", "ranks: head: no such projection; fake has proj"),
        ("run.toml", "window_tokens = 65", "attends to at most 64 tokens"),
        ("base.json", "{", "base.json: document"),
        ("base.json", "{}", "base.json: base_id"),
    ],
)
def test_a_spoiled_file_is_named_with_what_is_wrong(folder: RunFolder, name: str, text: str, reason: str) -> None:
    (folder.root / name).write_text(text)
    with pytest.raises(SettingError, match=reason):
        read_run(folder)


def test_a_missing_file_is_named(folder: RunFolder) -> None:
    folder.base_file.unlink()
    with pytest.raises(SettingError, match=r"base\.json"):
        read_run(folder)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another folder"):
        write_run(RunFolder(tmp_path / "file" / "run"), SETTINGS, FACTS, None)


def test_ranks_of_single_projections_survive_the_file(tmp_path: Path) -> None:
    settings = changed(parse_changes(["adapter=nested", "ranks=proj=4,mlp.up_proj=2"]))
    assert settings.ranks == {"proj": 4, "mlp.up_proj": 2}
    write_run(RunFolder(tmp_path), settings, FACTS, None)
    assert read_settings(RunFolder(tmp_path).settings_file) == settings


def test_changes_are_read_and_checked() -> None:
    assert changed(parse_changes(["depth=3", "router_sync = weights"])) == RunSettings(depth=3, router_sync="weights")
    with pytest.raises(SettingError, match="--set depth: expected key=value"):
        parse_changes(["depth"])
    for change, reason in {"depth=17": "depth", "rank=0": "rank", "colour=red": "colour", "rank=many": "rank"}.items():
        with pytest.raises(SettingError, match=f"--set: {reason}"):
            changed(parse_changes([change]))
