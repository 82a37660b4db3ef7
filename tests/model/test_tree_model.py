"""`TreeModel` without a router: adapters in and out, losses, generation."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.model.families import base_logits, family_base, fill_randomly, some_ids
from tinylora import base_model
from tinylora.adapters.lora import AdapterLinear, init_adapter
from tinylora.adapters.shapes import adapter_manifest, n_adapter_parameters
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.errors import BaseModelError, SettingError, ShapeMismatch
from tinylora.generation import left_pad
from tinylora.likelihood import IGNORED_LABEL
from tinylora.model import TreeModel
from tinylora.tensors import manifest_of, with_prefix

LORA = AdapterSpec("lora", 2)
LORA_4 = AdapterSpec("lora", 4)


@pytest.fixture
def base() -> LoadedBase:
    return family_base("llama")


def single(base: LoadedBase, seed: int = 0) -> TreeModel:
    model = TreeModel(base, nodes=("0",), spec=LORA, scale=0.7)
    fill_randomly(model, seed)
    return model


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_and_is_the_same_everywhere(base: LoadedBase) -> None:
    state = init_adapter(base.facts, LORA_4, seed=1, path="01")
    assert manifest_of(with_prefix(state, "node.01.")) == adapter_manifest(base.facts, LORA_4, path="01")
    assert sum(tensor.numel() for tensor in state.values()) == n_adapter_parameters(base.facts, LORA_4)
    assert not any(tensor.any() for name, tensor in state.items() if name.endswith("lora_B"))
    again = init_adapter(base.facts, LORA_4, seed=1, path="01")
    assert all(torch.equal(state[name], again[name]) for name in state)
    # Whoever changes these numbers makes workers of one run begin differently.
    first = [0.23924101889133453, -0.009337078779935837, 0.20927302539348602]
    assert state["self_attn.q_proj.lora_A"].flatten()[:3].tolist() == first


def test_adapters_begin_differently(base: LoadedBase) -> None:
    states = [init_adapter(base.facts, LORA_4, seed=seed, path=path) for seed, path in ((0, "0"), (0, "1"), (1, "0"))]
    numbers = [state[f"self_attn.{part}_proj.lora_A"] for state in states for part in ("q", "k")]
    for index, left in enumerate(numbers):
        assert not any(torch.equal(left, right) for right in numbers[index + 1 :])


def test_variance_of_a_is_one_over_in(base: LoadedBase) -> None:
    numbers = init_adapter(base.facts, AdapterSpec("lora", 512), seed=0, path="")["mlp.down_proj.lora_A"]
    assert numbers.mean().abs() < 0.01
    assert abs(numbers.var().item() * 24 - 1) < 0.05


def test_what_is_loaded_is_read_back(base: LoadedBase) -> None:
    model = single(base)
    state = {name: torch.randn_like(tensor) for name, tensor in model.node_state("0").items()}
    model.load_node("0", state)
    again = model.node_state("0")
    assert all(torch.equal(state[name], again[name]) for name in state)
    again["mlp.up_proj.lora_A"].zero_()
    assert torch.equal(model.node_state("0")["mlp.up_proj.lora_A"], state["mlp.up_proj.lora_A"])


def test_layers_are_not_mixed_up(base: LoadedBase) -> None:
    model = single(base)
    state = model.node_state("0")
    for layer in range(2):
        adapter = base.model.get_submodule(f"model.layers.{layer}.mlp.up_proj")
        assert isinstance(adapter, AdapterLinear)
        assert torch.equal(adapter.pairs[0].lora_a, state["mlp.up_proj.lora_A"][layer])
        assert torch.equal(adapter.pairs[0].lora_b, state["mlp.up_proj.lora_B"][layer])


def test_states_that_do_not_fit_are_refused(base: LoadedBase) -> None:
    model = single(base)
    before = model.node_state("0")
    name = "mlp.up_proj.lora_A"
    with pytest.raises(
        ShapeMismatch, match=r"node '0', tensor mlp.up_proj.lora_A: expected \(2, 2, 16\), got \(2, 3, 16\)"
    ):
        model.load_node("0", before | {name: torch.zeros(2, 3, 16)})
    with pytest.raises(ShapeMismatch, match=r"tensor mlp.up_proj.lora_A: expected \(2, 2, 16\), got no such tensor"):
        model.load_node("0", {key: tensor for key, tensor in before.items() if key != name})
    with pytest.raises(ShapeMismatch, match=r"tensor x: expected no such tensor, got \(1,\)"):
        model.load_node("0", before | {"x": torch.zeros(1)})
    with pytest.raises(SettingError, match="node '1'"):
        model.load_node("1", before)
    after = model.node_state("0")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_half_precision_states_are_taken(base: LoadedBase) -> None:
    model = single(base)
    state = {name: tensor.bfloat16() for name, tensor in model.node_state("0").items()}
    model.load_node("0", state)
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in model.node_state("0").items())


def test_one_base_serves_one_model_at_a_time(base: LoadedBase) -> None:
    ids = some_ids(base)
    first = single(base, seed=1)
    expected = first(ids).logits
    with pytest.raises(BaseModelError, match="attached already"):
        TreeModel(base, nodes=("1",), spec=LORA, scale=1.0)
    with pytest.raises(BaseModelError, match="attached already"):
        TreeModel(base, nodes=(), spec=LORA, scale=1.0)
    first.detach_adapters()
    first.detach_adapters()
    second = single(base, seed=2)
    assert not torch.allclose(second(ids).logits, expected)
    with pytest.raises(BaseModelError, match="detached"):
        first(ids)
    second.detach_adapters()
    first.attach_adapters()
    assert torch.equal(first(ids).logits, expected)


def test_without_nodes_it_is_the_base(base: LoadedBase) -> None:
    ids = some_ids(base)
    expected = base_logits(base, ids)
    model = TreeModel(base, nodes=(), spec=LORA, scale=1.0)
    assert torch.equal(model(ids).logits, expected)
    assert model.adapter_parameters() == []
    nll, _ = model.token_nll(ids)
    assert torch.allclose(nll.mean(), model.loss(ids))


def test_several_nodes_need_a_router(base: LoadedBase) -> None:
    with pytest.raises(SettingError, match="need a router"):
        TreeModel(base, nodes=("0", "1"), spec=LORA, scale=1.0)


def test_reference_and_fast_path_are_one_function(base: LoadedBase) -> None:
    ids = some_ids(base)
    fast = single(base)
    logits, loss = fast(ids).logits, fast.loss(ids)
    gradients = torch.autograd.grad(loss, fast.adapter_parameters())
    fast.detach_adapters()
    slow = TreeModel(base, nodes=("0",), spec=LORA, scale=0.7, impl="reference")
    slow.load_node("0", fast.node_state("0"))
    assert torch.allclose(slow(ids).logits, logits, atol=1e-5)
    for left, right in zip(torch.autograd.grad(slow.loss(ids), slow.adapter_parameters()), gradients, strict=True):
        assert torch.allclose(left, right, atol=1e-6, rtol=1e-4)


def test_an_adapter_is_what_merging_it_would_be(base: LoadedBase) -> None:
    ids = some_ids(base)
    model = single(base)
    logits, state = model(ids).logits, model.node_state("0")
    model.detach_adapters()
    with torch.no_grad():
        for projection, names in base.linears.items():
            for layer, name in enumerate(names):
                lora_a, lora_b = state[f"{projection}.lora_A"][layer], state[f"{projection}.lora_B"][layer]
                base.model.get_submodule(name).weight += 0.7 * lora_b @ lora_a
    assert torch.allclose(base_logits(base, ids), logits, atol=1e-4)


# --- losses -----------------------------------------------------------------------------------------------------------


def plain_nll(model: TreeModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("chunk", [64, 1, 5])
def test_chunks_do_not_show(base: LoadedBase, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreeModel, "_chunk_rows", chunk)
    model, ids = single(base), some_ids(base)
    assert torch.allclose(model.token_nll(ids)[0], plain_nll(model, ids), atol=1e-6)
    plain = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = torch.autograd.grad(plain, model.adapter_parameters())
    for left, right in zip(torch.autograd.grad(model.loss(ids), model.adapter_parameters()), expected, strict=True):
        assert torch.allclose(left, right, atol=1e-6, rtol=1e-4)


def test_the_gradient_of_the_loss_is_right() -> None:
    base = family_base("gpt2")  # Llama's norms compute in single precision whatever they are given
    model, ids = single(base).double(), some_ids(base, tokens=5)
    parameters = [model.adapters["mlp.c_proj"][0].pairs[0].lora_b, model.adapters["attn.c_attn"][1].pairs[0].lora_a]

    def loss(*_: torch.Tensor) -> torch.Tensor:
        return model.loss(ids)

    assert torch.autograd.gradcheck(loss, parameters)


def test_padding_is_not_counted(base: LoadedBase) -> None:
    model, ids = single(base), some_ids(base)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 6:] = False
    expected = torch.cat([plain_nll(model, ids)[0], plain_nll(model, ids[1:, :6])[0]])
    assert torch.allclose(model.loss(ids, mask=mask), expected.mean(), atol=1e-6)
    nll, _ = model.token_nll(ids, mask=mask)
    assert torch.allclose(nll[mask[:, 1:]], expected, atol=1e-6)
    assert not nll[~mask[:, 1:]].any()


def test_labels_choose_what_is_predicted(base: LoadedBase) -> None:
    model, ids = single(base), some_ids(base)
    labels = ids.clone()
    labels[:, :8] = IGNORED_LABEL
    assert torch.allclose(model.loss(ids, labels=labels), plain_nll(model, ids)[:, 7:].mean(), atol=1e-6)
    nothing = model.loss(ids, labels=torch.full_like(ids, IGNORED_LABEL))
    nothing.backward()
    assert nothing.item() == 0.0


def test_a_half_precision_base_trains_single_precision_adapters() -> None:
    base = family_base("llama")
    base.model.bfloat16()
    model = single(base)
    loss = model.loss(some_ids(base))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.adapter_parameters())
    assert all(parameter.grad is not None for parameter in model.adapter_parameters())


def test_training_lowers_the_loss_and_leaves_the_base_alone(base: LoadedBase) -> None:
    ids = some_ids(base, batch=4)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    model = TreeModel(base, nodes=("0",), spec=LORA, scale=1.0)
    model.load_node("0", init_adapter(base.facts, LORA, seed=0, path="0"))
    optimizer = torch.optim.AdamW(model.adapter_parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = model.loss(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    model.detach_adapters()
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- generating -------------------------------------------------------------------------------------------------------


def test_prompts_of_different_length_go_together(base: LoadedBase) -> None:
    model = single(base)
    prompts = [some_ids(base, batch=1, tokens=n, seed=n)[0].tolist() for n in (2, 5, 3)]
    ids, mask = left_pad(prompts)
    together = model.generate(ids, attention_mask=mask, max_new_tokens=6, eos_token_id=())
    assert together.shape == (3, 11)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=6, eos_token_id=())
        assert together[row, -len(prompt) - 6 :].tolist() == alone[0].tolist()


def test_a_row_ends_with_its_token(base: LoadedBase) -> None:
    model = single(base)
    ids = some_ids(base, batch=3, tokens=4)
    free = model.generate(ids, max_new_tokens=8, eos_token_id=())
    end = int(free[0, 6])
    heard: list[tuple[int, int]] = []
    stopped = model.generate(ids, max_new_tokens=8, eos_token_id=end, on_token=lambda *pair: heard.append(pair))
    for row in range(3):
        new = free[row, 4:].tolist()
        kept = new[: new.index(end) + 1] if end in new else new
        own = stopped[row, 4:].tolist()
        assert own[: len(kept)] == kept
        assert set(own[len(kept) :]) <= {end}
        assert [token for heard_row, token in heard if heard_row == row] == kept


def test_generation_stops_when_all_rows_ended(base: LoadedBase) -> None:
    model = single(base)
    ids = some_ids(base, batch=1, tokens=4)
    end = int(model.generate(ids, max_new_tokens=3, eos_token_id=())[0, 4])
    assert model.generate(ids, max_new_tokens=9, eos_token_id=[end]).shape == (1, 5)


def test_the_tokenizer_says_what_ends_a_row(base: LoadedBase) -> None:
    base = replace(base, tokenizer=copy.deepcopy(base.tokenizer))
    model = single(base)
    ids = some_ids(base, batch=1, tokens=4)
    token = base.tokenizer.convert_ids_to_tokens(int(model.generate(ids, max_new_tokens=1)[0, -1]))
    base.tokenizer.eos_token = token
    assert model.generate(ids, max_new_tokens=9).shape == (1, 5)


def test_a_seed_draws_the_same_tokens(base: LoadedBase) -> None:
    model, ids = single(base), some_ids(base, tokens=4)

    def draw(seed: int | None, top_p: float = 1.0) -> list[list[int]]:
        settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.5, "eos_token_id": ()}
        return model.generate(ids, seed=seed, top_p=top_p, **settings).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)
    greedy = model.generate(ids, max_new_tokens=8, eos_token_id=()).tolist()
    assert draw(3, top_p=1e-6) == greedy


def test_draws_follow_the_probabilities(base: LoadedBase) -> None:
    model = single(base)
    ids = some_ids(base, batch=1, tokens=4)
    shares = (model(ids).logits[0, -1].detach() / 2.0).softmax(-1)
    many = model.generate(ids.expand(4000, -1), max_new_tokens=1, temperature=2.0, seed=0)[:, -1]
    counted = many.bincount(minlength=len(shares)) / 4000
    assert (counted - shares).abs().max() < 0.03
    likeliest = shares.argsort(descending=True)
    kept = likeliest[: int((shares[likeliest].cumsum(0) < 0.5).sum()) + 1]
    half = model.generate(ids.expand(500, -1), max_new_tokens=1, temperature=2.0, top_p=0.5, seed=0)[:, -1]
    assert set(half.tolist()) <= set(kept.tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0: expected at least 1"),
        ({"max_new_tokens": 61}, "prompt of 4 tokens and 61 new ones: this base attends to 64"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature -1.0"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature nan"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p 0.0"),
        ({"max_new_tokens": 1, "attention_mask": torch.tensor([[1, 0, 1, 1]] * 2)}, "padding between tokens"),
        ({"max_new_tokens": 1, "attention_mask": torch.tensor([[0] * 4, [1] * 4])}, "at least one token in each row"),
        ({"max_new_tokens": 1, "top_k": 0}, "top_k 0"),
        ({"max_new_tokens": 1, "stop": [".", ""]}, "an empty text"),
        ({"max_new_tokens": 1, "seed": [1]}, "one for each of 2 rows, got 1"),
    ],
)
def test_settings_out_of_range(base: LoadedBase, settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        single(base).generate(some_ids(base, tokens=4), **settings)


def test_an_empty_prompt(base: LoadedBase) -> None:
    with pytest.raises(SettingError, match="at least one token"):
        single(base).generate(torch.zeros(1, 0, dtype=torch.long), max_new_tokens=1)


def test_a_base_without_a_cache_says_so() -> None:
    sizes = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16}
    rwkv = base_model.new_causal_lm("rwkv", sizes)
    tokenizer = family_base("llama").tokenizer
    base = LoadedBase(rwkv, tokenizer, base_model.describe(rwkv, tokenizer, "rwkv"))
    model = TreeModel(base, nodes=("",), spec=LORA, scale=1.0)
    model.loss(some_ids(base)).backward()
    with pytest.raises(BaseModelError, match="rwkv: this base keeps no cache"):
        model.generate(some_ids(base), max_new_tokens=1)
