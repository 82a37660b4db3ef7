"""A leaf as a PEFT adapter: PEFT loads it without a missing name, and says what our model says with hard routing."""

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from tests.bundle.leaves import LEAF, make_bundle, ours, places_of, theirs
from tests.model.families import family_base, some_ids
from tinylora.bundle import read_bundle, write_bundle
from tinylora.errors import BaseModelError, SettingError, StorageError
from tinylora.export import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Card, Origin, Places, export_leaf
from tinylora.tensors import read_file_header


@pytest.mark.parametrize(
    ("family", "kind", "nodes", "ranks"),
    [
        ("llama", "lora", (LEAF, "11"), {}),
        ("llama", "lora", ("", "0", LEAF, "10"), {"mlp.up_proj": 2, "self_attn.q_proj": 1}),
        ("llama", "nested", (LEAF,), {"mlp.up_proj": 2}),
        ("llama", "tied:A,B,uv", ("0", LEAF), {}),
        ("gpt2", "lora", ("0", LEAF), {"mlp.c_fc": 2}),
        ("bloom", "tied:uv", (LEAF,), {}),
    ],
)
def test_peft_says_what_our_tree_says(
    tmp_path: Path, family: str, kind: str, nodes: tuple[str, ...], ranks: dict[str, int]
) -> None:
    base = family_base(family)
    bundle, ids = make_bundle(base, kind, nodes, 3, ranks), some_ids(base)
    expected, bare = ours(bundle, base, ids), base.model(input_ids=ids, use_cache=False).logits
    made = export_leaf(bundle, LEAF, tmp_path / "leaf", places=places_of(base), base="org/base")
    assert made.nodes == tuple(node for node in nodes if LEAF.startswith(node))
    assert made.rank == 3 * len(made.nodes)
    found = theirs(base, made.folder, ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - bare).abs().max() > 1e-2


def test_a_bundle_of_bf16_gives_its_very_numbers(tmp_path: Path) -> None:
    base = family_base("llama")
    write_bundle(make_bundle(base, "lora", ("0", LEAF), 3, {}), tmp_path / "b.safetensors")
    bundle, ids = read_bundle(tmp_path / "b.safetensors"), some_ids(base)
    expected = ours(bundle, base, ids)
    export_leaf(bundle, LEAF, tmp_path / "leaf", places=places_of(base))
    header = read_file_header(tmp_path / "leaf" / WEIGHTS_FILE)
    assert {entry.dtype for entry in header.entries.values()} == {"BF16"}
    assert header.metadata == {"format": "pt"}
    torch.testing.assert_close(theirs(base, tmp_path / "leaf", ids), expected, rtol=0, atol=1e-5)


def test_names_configuration_and_card(tmp_path: Path) -> None:
    base = family_base("llama")
    bundle = make_bundle(base, "lora", ("", LEAF), 4, {"mlp.up_proj": 2})
    card = Card(n_steps=120, bundle_sha256="ab" * 32)
    export_leaf(bundle, LEAF, tmp_path, places=places_of(base), base="org/base", card=card)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("org/base", 8, 6)
    assert config["target_modules"] == sorted(base.linears)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"mlp.up_proj": 4}, {"mlp.up_proj": 3})
    names = set(read_file_header(tmp_path / WEIGHTS_FILE).entries)
    assert len(names) == 2 * sum(map(len, base.linears.values()))
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in names
    text = (tmp_path / CARD_FILE).read_text()
    assert text.startswith("---\nbase_model: org/base\nlibrary_name: peft\n")
    for said in ("exact for hard routing", "| leaf | 01, ", "| steps | 120 |", "2 workers", "abababab", "two-lives"):
        assert said in text


def test_a_card_tells_licences_notes_and_results_and_no_markup_of_others(tmp_path: Path) -> None:
    base = family_base("llama")
    bundle = replace(
        make_bundle(base, "lora", (LEAF,), 2, {}),
        run="<img src=x>|`run`",
        licences=("CC-BY-4.0",),
        data_notes={LEAF: ("letters of 1900", "<script>")},
        report={"systems": {"routed:hard": {"nll_mean": 2.5}, "odd": 3}},
    )
    origin = Origin("org/base", "0" * 40, "llama3")
    export_leaf(bundle, LEAF, tmp_path / "leaf", places=places_of(base), base=origin)
    text = (tmp_path / "leaf" / CARD_FILE).read_text()
    told = huggingface_hub.metadata_load(tmp_path / "leaf" / CARD_FILE) or {}
    assert (told["license"], told["base_model"], told["library_name"]) == ("cc-by-4.0", "org/base", "peft")
    for said in (
        "| licence of the base | llama3 |", "letters of 1900; (script)", "| routed:hard | 2.5000 |", "0" * 40, "w0, w1"
    ):  # fmt: skip
        assert said in text
    assert "<img" not in text and "<script" not in text
    assert json.loads((tmp_path / "leaf" / CONFIG_FILE).read_text())["revision"] == "0" * 40
    plain = replace(bundle, licences=())
    export_leaf(plain, LEAF, tmp_path / "folder", places=places_of(base), base=replace(origin, base="/a/folder"))
    told = huggingface_hub.metadata_load(tmp_path / "folder" / CARD_FILE) or {}
    assert (told["license"], told.get("base_model")) == ("llama3", None)
    assert "/a/folder" not in (tmp_path / "folder" / CARD_FILE).read_text()


def test_the_same_leaf_is_the_same_bytes(tmp_path: Path) -> None:
    base = family_base("llama")
    bundle = make_bundle(base, "lora", (LEAF,), 2, {})
    for folder in ("a", "b"):
        export_leaf(bundle, LEAF, tmp_path / folder, places=places_of(base))
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("leaf", "sentence"), [("0", "no such leaf; it has 00, 01, 10, 11"), ("10", "nobody has trained it")]
)
def test_a_leaf_that_cannot_be_exported(tmp_path: Path, leaf: str, sentence: str) -> None:
    base = family_base("llama")
    with pytest.raises(SettingError, match=sentence):
        export_leaf(make_bundle(base, "lora", (LEAF,), 2, {}), leaf, tmp_path / "leaf", places=places_of(base))
    assert not (tmp_path / "leaf").exists()


def test_places_of_another_base_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    base = family_base("llama")
    bundle = make_bundle(base, "lora", (LEAF,), 2, {})
    with pytest.raises(SettingError, match="give the base that the run is on"):
        export_leaf(bundle, LEAF, tmp_path / "leaf", places=places_of(family_base("gpt2")))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another place"):
        export_leaf(bundle, LEAF, tmp_path / "file" / "leaf", places=places_of(base))


def test_a_base_tells_its_places_by_its_config_alone(tmp_path: Path) -> None:
    for family in ("llama", "gpt2"):
        base = family_base(family)
        base.model.config.save_pretrained(tmp_path / family)
        found = Places.find(tmp_path / family)
        assert found == places_of(base)
        (tmp_path / "places.json").write_text(found.to_json())
        assert Places.read(tmp_path / "places.json") == found
    with pytest.raises(BaseModelError, match="modules can be looked up"):
        Places.find(tmp_path / "nothing")
    with pytest.raises(SettingError, match="give the base"):
        Places.read(tmp_path / "missing.json")
