"""A base in 8 or 4 bits: the same base to a run, the same function under empty adapters, sound gradients."""

import importlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import byte_tokenizer, tiny_base_dir
from tests.model.families import base_logits, fill_randomly, some_ids
from tinylora import base_model
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase, load_base
from tinylora.errors import BaseModelError, SettingError
from tinylora.model import TreeModel
from tinylora.quantised import QUANTISATIONS

functional = pytest.importorskip("bitsandbytes.functional")  # there is no build for macOS
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
RANK_4 = AdapterSpec.parse("lora", 4)

both = pytest.mark.parametrize("quantise", QUANTISATIONS)


def saved(folder: Path, family: str, *, size: float = 1.0, **config: Any) -> Path:
    """A random base of that family in a folder, its matrices `size` times as large as a new model's."""
    wrapped = base_model.wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=64)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = base_model.new_causal_lm(family, {"vocab_size": len(wrapped), **special, **config})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(size)
    base_model.save_base(model, wrapped, folder, dtype=torch.float32)
    return folder


def one_node(base: LoadedBase) -> TreeModel:
    return TreeModel(base, nodes=("",), spec=RANK_4, scale=2.0)


def linears_of(base: LoadedBase) -> dict[str, Any]:
    return {name: base.model.get_submodule(name) for names in base.linears.values() for name in names}


def bits_of(base: LoadedBase) -> dict[str, torch.Tensor]:
    """Every number of the base, and the weights that its bits stand for."""
    numbers = {name: tensor.clone() for name, tensor in base.model.state_dict().items() if "lora_" not in name}
    return numbers | {f"{name} in full": numbers_of(linear) for name, linear in linears_of(base).items()}


def numbers_of(linear: Any) -> torch.Tensor:
    """The weights that a quantised linear stands for, by the book and slowly."""
    weight = linear.weight
    if weight.dtype == torch.int8:
        scales = linear.state.SCB if linear.state.SCB is not None else weight.SCB
        return weight.data.float() * scales[:, None] / 127
    state = weight.quant_state
    digits = torch.stack([weight.data.flatten() >> 4, weight.data.flatten() & 15], dim=1).flatten()
    first = state.state2.code[state.absmax.long()].view(-1)
    blocks = torch.arange(len(first), device=first.device) // state.state2.blocksize
    scales = first * state.state2.absmax[blocks] + state.offset
    numbers = state.code[digits.long()] * scales.repeat_interleave(state.blocksize)[: len(digits)]
    return numbers.view(linear.out_features, linear.in_features)


def dequantised(base: LoadedBase) -> LoadedBase:
    """The plain tiny base with the weights that the quantised one stands for."""
    plain = load_base(tiny_base_dir())
    for name, linear in linears_of(base).items():
        plain.model.get_submodule(name).weight.data.copy_(numbers_of(linear))
    return plain


# --- the same base ----------------------------------------------------------------------------------------------------


@both
def test_to_a_run_it_is_the_same_base(quantise: str) -> None:
    plain, base = load_base(tiny_base_dir()), load_base(tiny_base_dir(), quantise=quantise)
    assert base.facts == plain.facts
    assert base.routing_feature.hash == plain.routing_feature.hash
    assert base.is_head_plain == plain.is_head_plain


@both
def test_linears_are_in_bits_and_the_rest_stays(quantise: str) -> None:
    plain, base = (load_base(tiny_base_dir(), dtype=torch.bfloat16, quantise=q) for q in (None, quantise))
    share = {"int8": 1.0, "nf4": 0.5}[quantise]
    for name, linear in linears_of(base).items():
        assert linear.weight.nbytes == share * plain.model.get_submodule(name).weight.numel()
    assert base.model.get_memory_footprint() < plain.model.get_memory_footprint()
    inside = tuple(linears_of(base))
    numbers, wanted = base.model.state_dict(), plain.model.state_dict()
    for name in (name for name in wanted if not name.startswith(inside)):
        assert numbers[name].dtype == torch.bfloat16
        assert torch.equal(numbers[name], wanted[name])


def test_what_lies_between_embeddings_and_blocks_is_not_quantised(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    where = saved(tmp_path, "opt", **sizes, word_embed_proj_dim=8, max_position_embeddings=64)
    base = load_base(where, quantise="nf4")
    for name in ("model.decoder.project_in", "model.decoder.project_out", "lm_head"):
        assert type(base.model.get_submodule(name)) is torch.nn.Linear


@both
@pytest.mark.parametrize("width", [24, 64, 96])
def test_weights_are_off_by_no_more_than_their_bits_cost(quantise: str, width: int, tmp_path: Path) -> None:
    where = saved(tmp_path, "llama", **SIZES | {"hidden_size": width, "intermediate_size": width})
    plain, base = load_base(where), load_base(where, quantise=quantise)
    for name, linear in linears_of(base).items():
        weight = plain.model.get_submodule(name).weight
        with torch.no_grad():
            seen = linear(torch.eye(width)).T  # what the products see
        for numbers in (numbers_of(linear), seen):
            assert (numbers - weight).norm() < {"int8": 0.015, "nf4": 0.12}[quantise] * weight.norm()


# --- what it computes -------------------------------------------------------------------------------------------------


@both
def test_its_function_is_that_of_the_weights_it_stands_for(quantise: str) -> None:
    base = load_base(tiny_base_dir(), quantise=quantise)
    ids = some_ids(base)
    got, wanted, original = (base_logits(b, ids) for b in (base, dequantised(base), load_base(tiny_base_dir())))
    assert (got - wanted).norm() < 0.02 * wanted.norm()  # activations in 8 bits, or products in bf16
    assert (got - original).norm() < {"int8": 0.03, "nf4": 0.3}[quantise] * original.norm()


@both
def test_empty_adapters_change_no_bit(quantise: str) -> None:
    base = load_base(tiny_base_dir(), quantise=quantise)
    ids = some_ids(base)
    before = base_logits(base, ids)
    model = one_node(base)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)  # with a graph for gradients, too


@both
def test_gradients_are_those_of_the_weights_it_stands_for(quantise: str) -> None:
    base = load_base(tiny_base_dir(), quantise=quantise)
    ids, gradients = some_ids(base), []
    for one in (base, dequantised(base)):
        model = one_node(one)
        fill_randomly(model, size=0.1)
        with torch.no_grad():
            model(ids)  # an evaluation before the training must not cost gradients
        model.loss(ids).backward()
        gradients.append([parameter.grad for parameter in model.adapter_parameters()])
    for got, wanted in zip(*gradients, strict=True):
        assert wanted.norm() > 0
        assert torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.99


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_adapters_learn_and_the_base_keeps_every_bit(quantise: str, dtype: torch.dtype, device: str) -> None:
    base = load_base(tiny_base_dir(), dtype=dtype, quantise=quantise, device=device)
    before, ids = bits_of(base), some_ids(base).to(base.model.device)
    model = one_node(base)
    model.load_node("", {name: torch.randn(t.shape) / 8 for name, t in model.node_state("").items()})
    optimizer = torch.optim.AdamW(model.adapter_parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.loss(ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.adapter_parameters())
    assert losses[-1] < losses[0] - 0.1
    model.detach_adapters()
    after = bits_of(base)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@both
def test_conv1d_of_gpt2_is_quantised_the_right_way_round(quantise: str, tmp_path: Path) -> None:
    where = saved(tmp_path, "gpt2", size=4.0, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    plain, base = load_base(where), load_base(where, quantise=quantise)
    assert base.facts == plain.facts
    ids = some_ids(base)
    error = base_logits(base, ids) - base_logits(plain, ids)
    assert error.norm() < {"int8": 0.03, "nf4": 0.3}[quantise] * base_logits(plain, ids).norm()


def test_outliers_are_no_sight_of_the_future(tmp_path: Path) -> None:
    """LLM.int8() rounds earlier tokens otherwise when a later one has an outlier; such a base is causal nonetheless."""
    where = saved(tmp_path, "llama", size=60.0, **SIZES | {"hidden_size": 64})
    base = load_base(where, quantise="int8")
    assert {linear.state.threshold for linear in linears_of(base).values()} == {6.0}


@both
def test_nothing_is_said(quantise: str, capfd: pytest.CaptureFixture[str]) -> None:
    base = load_base(tiny_base_dir(), dtype=torch.bfloat16, quantise=quantise)
    base_logits(base, some_ids(base))
    assert capfd.readouterr() == ("", "")


# --- what cannot be ---------------------------------------------------------------------------------------------------


def sentence(where: Path, quantise: str) -> str:
    with pytest.raises(BaseModelError) as raised:
        load_base(where, quantise=quantise)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_another_word() -> None:
    with pytest.raises(SettingError, match="quantise 'int4': expected int8 or nf4"):
        load_base(tiny_base_dir(), quantise="int4")


def test_bitsandbytes_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = sentence(tiny_base_dir(), "nf4")
    assert message.startswith("quantise nf4: bitsandbytes is not installed; pip install 'tinylora[quant]'")


def test_bitsandbytes_has_no_build_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str, *more: Any) -> Any:
        if name == "bitsandbytes":
            raise RuntimeError("no such library\nand a page of advice")
        return ordinary(name, *more)

    ordinary = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", import_module)
    assert "does not work on this machine (no such library); load the base without" in sentence(tiny_base_dir(), "int8")


def test_linears_that_bitsandbytes_does_not_know(tmp_path: Path) -> None:
    where = saved(tmp_path, "falcon", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    assert "cannot be quantised to nf4 (bitsandbytes takes none of its linears)" in sentence(where, "nf4")


def test_a_family_that_reads_weights_past_the_call(tmp_path: Path) -> None:
    where = saved(tmp_path, "mamba", hidden_size=16, num_hidden_layers=1, state_size=4)
    assert "cannot be quantised to int8 (" in sentence(where, "int8")


def test_a_base_that_is_stored_quantised(tmp_path: Path) -> None:
    where = Path(shutil.copytree(tiny_base_dir(), tmp_path / "base"))
    config = json.loads((where / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (where / "config.json").write_text(json.dumps(config))
    assert "stored quantised already; load it without quantisation" in sentence(where, "nf4")
