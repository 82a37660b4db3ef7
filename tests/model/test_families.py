"""What holds for the adapters on every family of bases."""

import pytest
import torch
from torch import nn

from tests.model.families import FAMILIES, PROJECTIONS, WINDOW_TOKENS, base_logits, family_base, fill_randomly, some_ids
from tinylora.adapters.lora import AdapterLinear
from tinylora.adapters.shapes import adapter_manifest
from tinylora.adapters.spec import AdapterSpec
from tinylora.generation import left_pad
from tinylora.model import TreeModel
from tinylora.tensors import manifest_of, with_prefix

LORA = AdapterSpec("lora", 2)

every_family = pytest.mark.parametrize("family", FAMILIES)


def expand(text: str) -> set[str]:
    """The names that shell braces stand for."""
    names = set()
    for word in text.split():
        before, _, rest = word.partition("{")
        inside, _, after = rest.partition("}")
        names |= {before + part + after for part in inside.split(",")} if rest else {word}
    return names


@every_family
def test_every_linear_of_every_block_is_found(family: str) -> None:
    base = family_base(family)
    assert set(base.facts.projections) == expand(PROJECTIONS[family])
    assert {shape.n_layers for shape in base.facts.projections.values()} == {2}
    adapted = {name for names in base.linears.values() for name in names}
    for name, module in base.model.named_modules():
        is_linear = type(module).__name__ in ("Linear", "Conv1D")
        assert (name in adapted) == (is_linear and module is not base.model.get_output_embeddings())


@every_family
def test_shapes_are_those_of_the_linears(family: str) -> None:
    base = family_base(family)
    for projection, names in base.linears.items():
        shape = base.facts.projections[projection]
        for name in names:
            module = base.model.get_submodule(name)
            out = module(torch.zeros(1, shape.in_features))
            assert out.shape == (1, shape.out_features)


@every_family
def test_zero_b_is_the_base_bit_by_bit_and_detaching_restores_it(family: str) -> None:
    base = family_base(family)
    ids = some_ids(base)
    expected = base_logits(base, ids)
    before = {name: module for name, module in base.model.named_modules()}
    model = TreeModel(base, nodes=("",), spec=LORA, scale=1.0)
    fill_randomly(model)
    state = {name: tensor if name.endswith("A") else tensor * 0 for name, tensor in model.node_state("").items()}
    model.load_node("", state)
    assert torch.equal(model(ids).logits, expected)
    fill_randomly(model)
    assert not torch.allclose(model(ids).logits, expected, atol=1e-2)
    model.detach_adapters()
    assert torch.equal(base_logits(base, ids), expected)
    assert {name: module for name, module in base.model.named_modules()} == before


@every_family
def test_every_adapter_learns_and_the_base_does_not(family: str) -> None:
    base = family_base(family)
    model = TreeModel(base, nodes=("",), spec=LORA, scale=1.0)
    fill_randomly(model)
    model.train()
    model.loss(some_ids(base)).backward()
    for adapters in model.adapters.values():
        for adapter in adapters:
            for parameter in adapter.pairs[0].factors().values():
                assert parameter.grad is not None and parameter.grad.any()
    adapters = {id(parameter) for parameter in model.adapter_parameters()}
    for name, parameter in model.named_parameters():
        assert id(parameter) in adapters or (parameter.grad is None and not parameter.requires_grad), name
    assert not any(module.training for module in base.model.modules())


@every_family
def test_the_loss_is_the_cross_entropy_of_the_logits(family: str) -> None:
    base = family_base(family)
    model = TreeModel(base, nodes=("",), spec=LORA, scale=1.0)
    fill_randomly(model)
    ids = some_ids(base)
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    plain = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    loss = model.loss(ids)
    assert torch.allclose(loss, plain, atol=1e-6)
    names = [parameter for parameter in model.adapter_parameters()]
    for left, right in zip(torch.autograd.grad(plain, names), torch.autograd.grad(loss, names), strict=True):
        assert torch.allclose(left, right, atol=1e-6, rtol=1e-4)


def test_heads_that_do_more_than_multiply_are_noticed() -> None:
    assert {family: family_base(family).is_head_plain for family in FAMILIES} == {
        family: family != "gemma2" for family in FAMILIES
    }


@every_family
def test_the_future_changes_nothing(family: str) -> None:
    base = family_base(family)
    model = TreeModel(base, nodes=("",), spec=LORA, scale=1.0)
    fill_randomly(model)
    ids = some_ids(base)
    other = torch.cat([ids[:, :7], some_ids(base, seed=1)[:, 7:]], dim=1)
    left, right = model(ids).logits, model(other).logits
    assert torch.equal(left[:, :7], right[:, :7])
    assert not torch.allclose(left[:, 7:], right[:, 7:], atol=1e-3)


@every_family
def test_the_cache_changes_nothing(family: str) -> None:
    base = family_base(family)
    model = TreeModel(base, nodes=("",), spec=LORA, scale=1.0)
    fill_randomly(model)
    ids = some_ids(base)
    expected = model(ids).logits
    for cut in (1, 5, 11):
        first = model(ids[:, :cut], use_cache=True)
        second = model(ids[:, cut:], past_key_values=first.past_key_values, use_cache=True)
        assert torch.allclose(torch.cat([first.logits, second.logits], dim=1), expected, atol=1e-5)


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(family: str, side: str) -> None:
    base = family_base(family)
    model = TreeModel(base, nodes=("",), spec=LORA, scale=1.0)
    fill_randomly(model)
    ids = some_ids(base)
    padding = torch.full((2, 3), 2)
    parts = [padding, ids] if side == "left" else [ids, padding]
    padded = torch.cat(parts, dim=1)
    mask = torch.cat([torch.full_like(part, int(part is ids)) for part in parts], dim=1)
    logits = model(padded, attention_mask=mask).logits
    own = logits[:, 3:] if side == "left" else logits[:, :-3]
    assert torch.allclose(own, model(ids).logits, atol=1e-5)


@every_family
def test_facts_and_node_state_agree(family: str) -> None:
    base = family_base(family)
    model = TreeModel(base, nodes=("01",), spec=AdapterSpec("lora", 3), scale=1.0)
    state = with_prefix(model.node_state("01"), "node.01.")
    assert manifest_of(state) == adapter_manifest(base.facts, AdapterSpec("lora", 3), path="01")
    assert base.facts.max_window_tokens == (2048 if family == "bloom" else WINDOW_TOKENS)


@every_family
def test_generating_equals_recomputing(family: str) -> None:
    base = family_base(family)
    model = TreeModel(base, nodes=("",), spec=LORA, scale=1.0)
    fill_randomly(model)
    prompts = [some_ids(base, batch=1, tokens=n, seed=n)[0].tolist() for n in (2, 5)]
    ids, mask = left_pad(prompts)
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, eos_token_id=())
    for row, prompt in enumerate(prompts):
        text = torch.tensor([prompt])
        for _ in range(8):
            text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], dim=1)
        assert together[row, -text.shape[1] :].tolist() == text[0].tolist()
        assert torch.equal(model.generate(torch.tensor([prompt]), max_new_tokens=8, eos_token_id=()), text)


def test_shapes_that_differ_between_layers_are_projections_of_their_own() -> None:
    base = family_base("llama")
    block = base.model.model.layers[1]
    block.mlp.up_proj, block.mlp.gate_proj = nn.Linear(16, 30, bias=False), nn.Linear(16, 30, bias=False)
    block.mlp.down_proj = nn.Linear(30, 16, bias=False)
    changed = type(base)(base.model, base.tokenizer, base.facts.model_copy(update={"projections": {}}))
    assert {name: len(names) for name, names in changed.linears.items() if "mlp" in name} == {
        f"mlp.{part}_proj-{layer}": 1 for part in ("gate", "up", "down") for layer in (0, 1)
    }
    assert changed.linears["mlp.up_proj-1"] == ("model.layers.1.mlp.up_proj",)


class Opaque(nn.Module):
    """A linear that hides its weight, as quantised ones do; looking for it is an error."""

    def __init__(self, inner: nn.Module, in_features: int, out_features: int) -> None:
        super().__init__()
        self.inner, self.in_features, self.out_features = (inner,), in_features, out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[0](x)

    @property
    def weight(self) -> torch.Tensor:
        raise RuntimeError("nobody may look")


def test_the_base_linear_is_opaque() -> None:
    base = family_base("llama")
    ids = some_ids(base)
    expected = base_logits(base, ids)
    for name in [name for names in base.linears.values() for name in names]:
        linear = base.model.get_submodule(name)
        base.model.set_submodule(name, Opaque(linear, linear.in_features, linear.out_features))
    hidden = type(base)(base.model, base.tokenizer, base.facts)
    model = TreeModel(hidden, nodes=("",), spec=LORA, scale=1.0)
    assert torch.equal(model(ids).logits, expected)
    model.loss(ids).backward()
    model.detach_adapters()
    assert not any(isinstance(module, AdapterLinear) for module in base.model.modules())
