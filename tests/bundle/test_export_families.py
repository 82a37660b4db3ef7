"""One leaf, five ways: by hand, our tree, PEFT's adapter, the merged model, a leaf that came back. All say the same."""

from pathlib import Path

import pytest
import torch

from tests.bundle.leaves import LEAF, by_hand, make_bundle, ours, theirs
from tests.model.families import family_base, some_ids
from tinylora.base_model import load_base, save_base
from tinylora.bundle import read_bundle, write_bundle
from tinylora.derive import leaf_state
from tinylora.errors import BaseModelError
from tinylora.export import Origin, Places, export_leaf, export_merged, import_peft
from tinylora.export.merged import merge_state

FAMILIES = ("llama", "bloom", "gpt2", "gpt_neox", "qwen2", "mistral", "gemma", "gemma2", "phi")


@pytest.mark.parametrize("family", FAMILIES)
def test_by_hand_our_tree_peft_and_merged_model_agree(tmp_path: Path, family: str) -> None:
    made = family_base(family)
    save_base(made.model, made.tokenizer, tmp_path / "base", dtype=torch.float32)
    base = load_base(tmp_path / "base")
    bundle, ids = make_bundle(base, "lora", ("", LEAF), 2, {}, size=0.1), some_ids(base)
    places = Places.find(tmp_path / "base")
    with torch.no_grad():
        bare = base.model(input_ids=ids, use_cache=False).logits
    expected = by_hand(base, leaf_state(bundle, LEAF), bundle.scale, ids)
    origin = Origin(str(tmp_path / "base"))
    export_leaf(bundle, LEAF, tmp_path / "leaf", places=places, base=origin)
    export_merged(bundle, LEAF, tmp_path / "merged", base=tmp_path / "base", origin=origin)
    found = {
        "ours": ours(bundle, base, ids),
        "merged": load_base(tmp_path / "merged").model(input_ids=ids, use_cache=False).logits,
        "peft": theirs(base, tmp_path / "leaf", ids),
    }
    assert (expected - bare).abs().max() > 1e-2
    for name, logits in found.items():
        assert (logits - expected).abs().max() < 1e-5, name


def test_a_merged_model_keeps_its_dtype_and_its_tied_embeddings(tmp_path: Path) -> None:
    made = family_base("gemma")
    save_base(made.model, made.tokenizer, tmp_path / "base", dtype=torch.bfloat16)
    base = load_base(tmp_path / "base", dtype=None)
    bundle = make_bundle(base, "lora", (LEAF,), 2, {})
    export_merged(bundle, LEAF, tmp_path / "merged", base=tmp_path / "base")
    after = load_base(tmp_path / "merged", dtype=None).model
    assert {parameter.dtype for parameter in after.parameters()} == {torch.bfloat16}
    assert after.get_output_embeddings().weight.data_ptr() == after.get_input_embeddings().weight.data_ptr()
    state = leaf_state(bundle, LEAF)
    name = base.linears["mlp.up_proj"][1]
    update = bundle.scale * state["mlp.up_proj.lora_B"][1] @ state["mlp.up_proj.lora_A"][1]
    wanted = (base.model.get_submodule(name).weight.float() + update).bfloat16()
    torch.testing.assert_close(after.get_submodule(name).weight.data, wanted)
    assert (tmp_path / "merged" / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")
    with pytest.raises(BaseModelError, match="needs the base"):
        export_merged(bundle, LEAF, tmp_path / "again", base=tmp_path / "merged")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["base", "merged"]


def test_what_nothing_can_be_merged_into(tmp_path: Path) -> None:
    made = family_base("llama")
    bundle = make_bundle(made, "lora", (LEAF,), 2, {})
    made.model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    made.model.config.save_pretrained(tmp_path / "base")
    with pytest.raises(BaseModelError, match="stored quantised"):
        export_merged(bundle, LEAF, tmp_path / "merged", base=tmp_path / "base")
    first, second = (made.model.get_submodule(name) for name in made.linears["mlp.up_proj"])
    second.weight = first.weight
    with pytest.raises(BaseModelError, match="share one weight"):
        merge_state(made.model, made.linears, leaf_state(bundle, LEAF), 1.0)
    assert not (tmp_path / "merged").exists()


def test_transformers_finds_the_base_of_a_leaf_and_the_leaf_comes_back(tmp_path: Path) -> None:
    made = family_base("llama")
    save_base(made.model, made.tokenizer, tmp_path / "base", dtype=torch.float32)
    base = load_base(tmp_path / "base")
    bundle, ids = make_bundle(base, "lora", ("0", LEAF), 2, {"mlp.up_proj": 1}), some_ids(base)
    origin = Origin(str(tmp_path / "base"))
    export_leaf(bundle, LEAF, tmp_path / "leaf", places=Places.find(tmp_path / "base"), base=origin)
    expected = ours(bundle, base, ids)

    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "leaf"), dtype=torch.float32)
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected, rtol=0, atol=1e-5)

    import_peft(tmp_path / "leaf", tmp_path / "back.safetensors", base=tmp_path / "base")
    back = read_bundle(tmp_path / "back.safetensors")
    torch.testing.assert_close(ours(back, base, ids), expected, rtol=0, atol=1e-6)
    assert (back.scale, back.spec.rank, back.topology.leaves) == (bundle.scale, 4, ("",))
    write_bundle(back, tmp_path / "again.safetensors", dtype="F32")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "back.safetensors").read_bytes()
