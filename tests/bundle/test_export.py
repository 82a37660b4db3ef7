"""A leaf as a PEFT adapter: PEFT loads it without a missing name, and says what our model says with hard routing."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from tests.model.families import family_base, some_ids
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import shared_factors
from tinylora.base_model import LoadedBase, has_transposed_linears
from tinylora.bundle import Bundle, read_bundle, write_bundle
from tinylora.errors import BaseModelError, SettingError, StorageError
from tinylora.export import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Card, Places, export_leaf
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.tensors import read_file_header
from tinylora.tree import Topology

LEAF = "01"


def places_of(base: LoadedBase) -> Places:
    return Places(modules=base.linears, is_transposed=has_transposed_linears(base.model))


def make_bundle(base: LoadedBase, kind: str, nodes: tuple[str, ...], rank: int, ranks: dict[str, int]) -> Bundle:
    """Adapters that visibly change the logits, and gates that send every text to the leaf."""
    spec = AdapterSpec.parse(kind, rank, ranks)
    generator = torch.Generator().manual_seed(7)
    states = {}
    for path in nodes:
        drawn = init_adapter(base.facts, spec, seed=3, path=path)
        states[path] = {name: 0.3 * torch.randn(t.shape, generator=generator) for name, t in drawn.items()}
    topology = Topology.perfect(2)
    towards = {"": -50.0, "0": 50.0, "1": 50.0}
    dim = base.facts.feature_dim
    gates = Gates({node: Gate(torch.zeros(dim).double().numpy(), b, 1.0) for node, b in towards.items()}, dim)
    return Bundle(
        run="two-lives", topology=topology, base=base.facts, spec=spec, scale=0.75, nodes=states, gates=gates,
        projection=base.routing_feature.projection, contributors=("w0", "w1"),
        shared=shared_factors(base.facts, spec, seed=3),
    )  # fmt: skip


def ours(bundle: Bundle, base: LoadedBase, ids: torch.Tensor) -> torch.Tensor:
    model = TreeModel.from_bundle(bundle, base, "hard")
    try:
        with torch.no_grad():
            return model(ids).logits
    finally:
        model.detach_adapters()


def theirs(base: LoadedBase, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What PEFT makes of the folder: it misses nothing in it, and meets nothing that it does not know."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about what PEFT asks
        from peft import PeftModel

        model = PeftModel.from_pretrained(base.model, str(folder)).eval()
        again = model.load_adapter(str(folder), "again")
    own = {name for name in again.missing_keys if "lora_" in name and ".again." in name}
    assert not own and not again.unexpected_keys
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


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
    assert text.startswith('---\nbase_model: "org/base"\nlibrary_name: peft\n')
    for said in ("exact for hard routing", "| leaf | 01, ", "| steps | 120 |", "2 workers", "abababab", "two-lives"):
        assert said in text


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
