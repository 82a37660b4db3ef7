"""All leaves for vLLM: what its reader makes of each folder is our leaf, and the command is whole."""

import json
import shlex
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.bundle.leaves import LEAF, make_bundle, ours, places_of, theirs
from tests.model.families import family_base, some_ids
from tinylora.derive import leaf_state
from tinylora.errors import SettingError, StorageError
from tinylora.export import Origin, export_vllm
from tinylora.export.peft_format import PREFIX
from tinylora.export.vllm import allowed_rank, uniform
from tinylora.tensors import Tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_vllm_reads(folder: Path) -> dict[str, torch.Tensor]:
    """The update of each module by vLLM's rules: one scale for all, no patterns, no rank above r (peft_helper.py)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert isinstance(config["r"], int) and isinstance(config["lora_alpha"], int)
    assert config["bias"] == "none" and not config["modules_to_save"] and not config["use_dora"]
    scale = config["lora_alpha"] / config["r"]
    named = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    updates = {}
    for name in named:
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if name.endswith(".lora_A.weight"):
            a, b = named[name].float(), named[name.replace("lora_A", "lora_B")].float()
            assert a.shape[0] == b.shape[1] == config["r"]
            updates[module] = scale * b @ a
    assert 2 * len(updates) == len(named)
    return updates


@pytest.mark.parametrize(("kind", "scale"), [("lora", 0.75), ("tied:A,B,uv", 0.75), ("lora", 0.3)])
def test_vllm_reads_every_leaf_as_it_is(tmp_path: Path, kind: str, scale: float) -> None:
    base = family_base("llama")
    bundle = make_bundle(base, kind, ("0", LEAF, "10"), 4, {"mlp.up_proj": 2}, scale=scale)
    made = export_vllm(bundle, tmp_path / "leaves", places=places_of(base), base=Origin("org/base", COMMIT))
    assert (made.rank, made.untrained) == (8, ("11",))
    assert sorted(place.name for place in made.folder.iterdir()) == [
        "README.md", "leaf-00", "leaf-01", "leaf-10", "leaf-11",
    ]  # fmt: skip
    for leaf in ("00", LEAF, "10"):
        state, updates = leaf_state(bundle, leaf), as_vllm_reads(made.folder / f"leaf-{leaf}")
        for projection, modules in base.linears.items():
            for layer, module in enumerate(modules):
                wanted = scale * state[f"{projection}.lora_B"][layer] @ state[f"{projection}.lora_A"][layer]
                torch.testing.assert_close(updates[module], wanted, rtol=1e-5, atol=1e-6)
    assert all(not update.any() for update in as_vllm_reads(made.folder / "leaf-11").values())


def test_peft_loads_every_leaf(tmp_path: Path) -> None:
    base = family_base("bloom")
    bundle, ids = make_bundle(base, "lora", ("0", LEAF), 3, {"mlp.dense_h_to_4h": 1}), some_ids(base)
    expected = ours(bundle, base, ids)
    bare = base.model(input_ids=ids, use_cache=False).logits
    made = export_vllm(bundle, tmp_path / "x", places=places_of(base), architecture=type(base.model).__name__)
    assert any("takes no LoRA" in note for note in made.notes)
    torch.testing.assert_close(theirs(base, made.folder / "leaf-01", ids), expected, rtol=0, atol=1e-5)
    others = [theirs(family_base("bloom"), made.folder / f"leaf-{leaf}", ids) for leaf in ("00", "10", "11")]
    assert (others[0] - bare).abs().max() > 1e-2
    assert (others[1] == bare).all() and (others[2] == bare).all()


def test_the_command_is_whole(tmp_path: Path) -> None:
    base = family_base("llama")
    out = tmp_path / "with a space"
    origin = Origin("org/base", COMMIT)
    made = export_vllm(make_bundle(base, "lora", ("00", LEAF), 9, {}), out, places=places_of(base), base=origin)
    words = shlex.split(made.command)
    assert words[:5] == ["vllm", "serve", "org/base", "--revision", COMMIT]
    assert words[5:11] == ["--enable-lora", "--max-loras", "4", "--max-lora-rank", "16", "--lora-modules"]
    assert words[11:] == [f"leaf-{leaf}={out}/leaf-{leaf}" for leaf in ("00", "01", "10", "11")]
    readme = (out / "README.md").read_text()
    for said in ("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", "VLLM_LORA_RESOLVER_CACHE_DIR", "leaf-00=leaf-00"):
        assert said in readme
    for leaf in ("00", "11"):  # what vLLM's resolver compares
        config = json.loads((out / f"leaf-{leaf}" / "adapter_config.json").read_text())
        assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "org/base")
        assert not config["rank_pattern"] and not config["alpha_pattern"]


def test_ranks_that_vllm_allows(tmp_path: Path) -> None:
    assert [allowed_rank(rank) for rank in (1, 2, 8, 9, 56, 257, 512)] == [1, 8, 8, 16, 64, 320, 512]
    base = family_base("llama")
    bundle = make_bundle(base, "lora", ("0", LEAF), 257, {})
    with pytest.raises(SettingError, match="rank 514 on the way to a leaf: vLLM takes at most 512; cut the bundle"):
        export_vllm(bundle, tmp_path / "x", places=places_of(base))
    with pytest.raises(SettingError, match="nobody has trained any leaf"):
        export_vllm(make_bundle(base, "lora", (), 2, {}), tmp_path / "x", places=places_of(base))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.md").write_text("")
    with pytest.raises(StorageError, match="is not empty"):
        export_vllm(bundle, tmp_path / "full", places=places_of(base))
    assert [place.name for place in tmp_path.iterdir()] == ["full"]


def test_one_rank_and_a_whole_alpha() -> None:
    state: Tensors = {
        "p.lora_A": torch.ones(1, 2, 3), "p.lora_B": torch.ones(1, 5, 2),
        "q.lora_A": torch.ones(1, 3, 3), "q.lora_B": torch.ones(1, 4, 3),
    }  # fmt: skip
    same, scale = uniform(state, 2.0)
    assert (scale, same["p.lora_A"].shape, same["p.lora_B"].shape) == (2.0, (1, 3, 3), (1, 5, 3))
    assert torch.equal(same["p.lora_B"] @ same["p.lora_A"], state["p.lora_B"] @ state["p.lora_A"])
    folded, scale = uniform(state, 0.1)
    assert scale == 1.0
    torch.testing.assert_close(folded["q.lora_B"] @ folded["q.lora_A"], 0.1 * state["q.lora_B"] @ state["q.lora_A"])
