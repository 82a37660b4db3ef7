import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts, ProjectionShape, RunSettings, make_settings, read_settings, settings_hash
from tinylora.errors import SettingError


def test_derived_numbers() -> None:
    settings = RunSettings(rank=4, alpha=16.0, batch_windows=2, window_tokens=32)
    assert settings.scale == 4.0
    assert settings.unit_tokens == 64


def test_the_adapters_of_a_run_are_one_spec() -> None:
    values: dict[str, object] = {"adapter": "nested", "rank": 8, "ranks": "mlp.up_proj=4, self_attn.q_proj=2"}
    settings = make_settings("run.toml", values)
    assert settings.spec == AdapterSpec("nested", 8, {"mlp.up_proj": 4, "self_attn.q_proj": 2})
    assert settings == make_settings("run.toml", values | {"ranks": dict(settings.spec.ranks)})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunSettings().rank = 4  # pyright: ignore[reportAttributeAccessIssue]  (that it fails is what we look at)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 17),
        ("depth", -1),
        ("rank", 0),
        ("rank", 1025),
        ("adapter", "mora"),
        ("ranks", {"up": 9}),
        ("ranks", "up=many"),
        ("learning_rate", 0.0),
        ("router_sync", "magic"),
        ("unit_steps", 0),
        ("seed", -1),
        ("deadline_slack", 0.5),
        ("colour", "red"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_place(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"^run\.toml: {name}: .*got {re.escape(repr(value))}") as caught:
        make_settings("run.toml", {name: value})
    assert "\n" not in str(caught.value)


def test_a_file_is_read_and_overrides_win_unless_they_are_none(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('name = "spring"\nrank = 4\ndepth = 3\n')
    settings = read_settings(file, rank=2, depth=None)
    assert (settings.name, settings.rank, settings.depth) == ("spring", 2, 3)


@pytest.mark.parametrize(
    ("content", "message"), [(b"rank = = 2", "not readable as TOML"), (b"name = '\xff'", "not readable as TOML")]
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(SettingError, match=message):
        read_settings(file)


def test_a_missing_file_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="tinylora-coordinator init"):
        read_settings(tmp_path / "run.toml")


@given(st.integers(1, 64), st.sampled_from(["statistics", "weights", "both"]), st.floats(1e-6, 1.0))
def test_settings_survive_json_and_keep_their_hash(rank: int, router_sync: str, learning_rate: float) -> None:
    settings = make_settings("here", {"rank": rank, "router_sync": router_sync, "learning_rate": learning_rate})
    again = RunSettings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert settings_hash(again) == settings_hash(settings)


def test_facts_of_a_base_refuse_an_empty_projection() -> None:
    with pytest.raises(ValidationError, match="in_features"):
        ProjectionShape(n_layers=2, in_features=0, out_features=8)
    facts = BaseFacts(
        base_id="tiny",
        fingerprint="0" * 64,
        tokenizer_fingerprint="1" * 64,
        feature_dim=8,
        feature_hash="2" * 64,
        max_window_tokens=64,
        projections={"q_proj": ProjectionShape(n_layers=2, in_features=8, out_features=8)},
    )
    assert BaseFacts.model_validate_json(facts.model_dump_json()) == facts
