"""PEFT adapters come in: the same function, or one sentence why not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.bundle.leaves import LEAF, make_bundle, ours, peft_talks, places_of, theirs
from tests.helpers import tiny_base_dir, tiny_base_model
from tests.model.families import some_ids
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, inspect, read_bundle, write_bundle
from tinylora.derive import leaf_state
from tinylora.errors import SettingError, StorageError, TinyLoraError
from tinylora.export import CONFIG_FILE, WEIGHTS_FILE, export_leaf, import_peft
from tinylora.export.adapter_config import read_config
from tinylora.export.importing import fill_leaf
from tinylora.export.reading import read_adapter

NAME = "base_model.model.model.layers.{}.{}.lora_{}.weight"


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base_model()


def from_peft(folder: Path, **options: Any) -> None:
    """An adapter as PEFT itself saves it, with B drawn too."""
    with peft_talks():
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(tiny_base_model().model, LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))


def shapes_of(base: LoadedBase) -> Any:
    return base.facts.projections


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {
            "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj", "down_proj"], "use_rslora": True,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 3}, "alpha_pattern": {"up_proj": 5},
            "layers_to_transform": [1],
        },
    ],
    ids=["two projections", "ranks, alphas and layers of their own"],
)  # fmt: skip
def test_what_peft_saved_is_the_same_function(tmp_path: Path, base: LoadedBase, options: dict[str, Any]) -> None:
    from_peft(tmp_path / "lora", **options)
    made = import_peft(tmp_path / "lora", tmp_path / "b.safetensors", base=tiny_base_dir())
    assert made.n_modules + made.n_without == sum(map(len, base.linears.values()))
    bundle, ids = read_bundle(tmp_path / "b.safetensors"), some_ids(base)
    assert (made.rank, bundle.spec.rank) == (4, 4)
    assert bundle.data_notes == {"": ("imported PEFT adapter lora",)}
    found, expected = ours(bundle, base, ids), theirs(tiny_base_model(), tmp_path / "lora", ids)
    bare = base.model(input_ids=ids, use_cache=False).logits
    assert (found - bare).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@given(
    nodes=st.sampled_from([(LEAF,), ("0", LEAF), ("", "0", LEAF)]),
    kind=st.sampled_from(["lora", "nested", "tied:A,B,uv", "tied:uv"]),
    rank=st.integers(1, 5),
    lower=st.integers(1, 5),
    scale=st.sampled_from([0.3, 1.0, 2.0, 0.1234]),
)
def test_out_and_in_again_is_the_same_update(
    tmp_path_factory: pytest.TempPathFactory, base: LoadedBase, nodes: tuple[str, ...], kind: str, rank: int,
    lower: int, scale: float,
) -> None:  # fmt: skip
    bundle = make_bundle(base, kind, nodes, rank, {"mlp.up_proj": min(lower, rank)}, scale=scale)
    folder, places = tmp_path_factory.mktemp("out") / "leaf", places_of(base)
    export_leaf(bundle, LEAF, folder, places=places)
    state = leaf_state(bundle, LEAF)
    back = read_adapter(folder, places, shapes_of(base))
    same = read_adapter(folder, places, shapes_of(base), scale=scale)
    for projection in base.linears:
        wanted = scale * state[f"{projection}.lora_B"] @ state[f"{projection}.lora_A"]
        for found in (back, same):
            update = found.scale * found.state[f"{projection}.lora_B"] @ found.state[f"{projection}.lora_A"]
            torch.testing.assert_close(update, wanted, rtol=1e-6, atol=1e-6)
    assert back.n_without == 0


@pytest.mark.parametrize(
    ("kind", "nodes"), [("lora", (LEAF, "10")), ("lora", ("", "0", "10")), ("tied:A,B,uv", ("0", LEAF, "10"))]
)
def test_into_a_leaf_of_a_bundle(tmp_path: Path, base: LoadedBase, kind: str, nodes: tuple[str, ...]) -> None:
    bundle, ids = replace(make_bundle(base, kind, nodes, 3, {}), licences=("mit",)), some_ids(base)
    write_bundle(bundle, tmp_path / "old.safetensors", dtype="F32")
    from_peft(tmp_path / "lora", r=5, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    (tmp_path / "lora" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    out = tmp_path / "new.safetensors"
    made = import_peft(tmp_path / "lora", out, base=tiny_base_dir(), into=tmp_path / "old.safetensors", leaf=LEAF)
    new = read_bundle(out)
    torch.testing.assert_close(
        ours(new, base, ids), theirs(tiny_base_model(), tmp_path / "lora", ids), rtol=0, atol=1e-6
    )
    for path in set(nodes) - {LEAF}:  # what other leaves do is what it was
        sides = (leaf_state(replace(one, nodes={path: one.nodes[path]}), leaf_under(path)) for one in (bundle, new))
        before, after = sides
        for projection in base.linears:
            a, b = f"{projection}.lora_A", f"{projection}.lora_B"
            torch.testing.assert_close(after[b] @ after[a], before[b] @ before[a])
    assert (new.licences, new.derived_from != ()) == (("apache-2.0", "mit"), True)
    assert any("takes off again" in note for note in made.notes) == ("0" in nodes or "" in nodes)
    assert made.rank == new.spec.rank == 5 + 3 * len({"", "0"} & set(nodes))


def leaf_under(path: str) -> str:
    return path.ljust(2, "0")


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, base: LoadedBase) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "lora"
    export_leaf(make_bundle(base, "lora", (LEAF,), 2, {}), LEAF, folder, places=places_of(base))
    return folder


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"peft_type": "IA3"}, "an adapter of type IA3; only LORA"),
        ({"task_type": "SEQ_CLS"}, "an adapter for SEQ_CLS"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "it holds biases"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"trainable_token_indices": [1, 2]}, "rows of the embeddings"),
        ({"init_lora_weights": "pissa_niter_4"}, "trained on a changed base"),
        ({"field_of_2030": {"a": 1}}, "does not know"),
        ({"r": 0}, "rank 0: expected a whole number"),
        ({"r": "4; drop"}, "expected a whole number"),
        ({"r": True}, "expected a whole number"),
        ({"r": 3}, r"expected \(3, \d+\) of F32.* got \(2, \d+\)"),
        ({"lora_alpha": "x"}, "lora_alpha 'x'"),
        ({"lora_alpha": 1e300}, "expected a number"),
        ({"lora_alpha": 0}, "adds nothing"),
        ({"rank_pattern": {"(.+)+x": 4}}, "is an expression"),
        ({"rank_pattern": [1]}, "expected numbers by name"),
    ],
)
def test_configurations_that_mean_something_else(
    tmp_path: Path, base: LoadedBase, sound: Path, fields: dict[str, Any], sentence: str
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "lora"))
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | fields))
    with pytest.raises(TinyLoraError, match=sentence):
        read_adapter(folder, places_of(base), shapes_of(base))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"r": NaN}', '{"a":' * 5000, "\xff"])
def test_configurations_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(TinyLoraError, match=CONFIG_FILE):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({NAME.format(0, "self_attn.q_proj", "A"): None}, "expected a lora_A and a lora_B"),
        ({NAME.format(7, "self_attn.q_proj", "A"): torch.zeros(2, 32)}, "no such linear in its blocks"),
        ({NAME.format(0, "self_attn.q_proj", "A"): torch.zeros(2, 31)}, r"got \(2, 31\) of F32"),
        ({NAME.format(0, "self_attn.q_proj", "A"): torch.zeros(2, 32).int()}, "of I32"),
        ({NAME.format(0, "self_attn.q_proj", "B"): torch.full((32, 2), torch.nan)}, "64 of 64 not finite"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 9)}, "on the embeddings"),
        ({"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.zeros(32)}, "DoRA"),
        ({"base_model.model.model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, "biases"),
        ({"base_model.model.lm_head.weight": torch.zeros(259, 32)}, "no pair of a linear"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, base: LoadedBase, sound: Path, change: dict[str, torch.Tensor | None], sentence: str
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "lora"))
    named = safetensors.torch.load_file(folder / WEIGHTS_FILE) | change
    safetensors.torch.save_file({k: v for k, v in named.items() if v is not None}, folder / WEIGHTS_FILE)
    with pytest.raises(TinyLoraError, match=sentence):
        read_adapter(folder, places_of(base), shapes_of(base))


def test_files_that_are_missing_cut_or_pickled(tmp_path: Path, base: LoadedBase, sound: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "lora"))
    data = (folder / WEIGHTS_FILE).read_bytes()
    for wrong in (b"", data[:100], data[:-1], data + b"x", b"\xff" * 64):
        (folder / WEIGHTS_FILE).write_bytes(wrong)
        with pytest.raises(TinyLoraError, match=f"{WEIGHTS_FILE}: "):
            read_adapter(folder, places_of(base), shapes_of(base))
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(SettingError, match="expected a folder that PEFT"):
        read_adapter(folder, places_of(base), shapes_of(base))
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(SettingError, match="pickled weights are not opened"):
        read_adapter(folder, places_of(base), shapes_of(base))


def test_places_that_are_taken(tmp_path: Path, base: LoadedBase, sound: Path) -> None:
    out = tmp_path / "b.safetensors"
    out.write_text("mine")
    with pytest.raises(StorageError, match="is there already"):
        import_peft(sound, out, base=tiny_base_dir())
    write_bundle(make_bundle(base, "lora", (LEAF,), 2, {}), out)
    with pytest.raises(SettingError, match="is the bundle that is read"):
        import_peft(sound, out, base=tiny_base_dir(), into=out, leaf=LEAF, is_forced=True)
    with pytest.raises(SettingError, match="name one of 00, 01, 10, 11"):
        import_peft(sound, tmp_path / "c", base=tiny_base_dir(), into=out)
    with pytest.raises(SettingError, match="no such leaf"):
        import_peft(sound, tmp_path / "c", base=tiny_base_dir(), into=out, leaf="0")
    assert not (tmp_path / "c").exists()


def test_a_bf16_adapter_stays_bf16_where_nothing_is_folded(tmp_path: Path, base: LoadedBase) -> None:
    write_bundle(make_bundle(base, "lora", (LEAF,), 2, {}), tmp_path / "a.safetensors")
    bundle: Bundle = read_bundle(tmp_path / "a.safetensors")
    export_leaf(bundle, LEAF, tmp_path / "leaf", places=places_of(base))
    import_peft(tmp_path / "leaf", tmp_path / "b.safetensors", base=tiny_base_dir())
    assert inspect(tmp_path / "b.safetensors")["dtype"] == "BF16"
    adapter = read_adapter(tmp_path / "leaf", places_of(base), shapes_of(base), scale=bundle.scale * 3)
    assert adapter.dtype == "F32"
    filled, notes = fill_leaf(bundle, "11", adapter, "leaf")
    assert (sorted(filled.nodes), notes) == ([LEAF, "11"], ())
