"""Tiny bases with random weights, one for each family of causal LMs that the tests look at."""

import copy
import functools

import torch

from tests.helpers import byte_tokenizer
from tinylora import base_model
from tinylora.base_model import LoadedBase
from tinylora.model import TreeModel

WINDOW_TOKENS = 64
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": WINDOW_TOKENS,
}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": WINDOW_TOKENS}
FAMILIES = {
    "llama": _SIZES,
    "mistral": _SIZES | {"sliding_window": 8},
    "qwen2": _SIZES,
    "gemma": _SIZES | {"head_dim": 8},  # tied embeddings
    "gemma2": _SIZES | {"head_dim": 8, "sliding_window": 8},  # caps its logits
    "phi": _SIZES | {"num_key_value_heads": 2},
    "gpt_neox": _SIZES | {"tie_word_embeddings": False},
    "gpt2": _GPT2,  # Conv1D
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},  # fused query_key_value, no positions
}
PROJECTIONS = {
    "llama": "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj",
    "mistral": "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj",
    "qwen2": "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj",
    "gemma": "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj",
    "gemma2": "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj",
    "phi": "self_attn.{q,k,v}_proj self_attn.dense mlp.fc1 mlp.fc2",
    "gpt_neox": "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h",
    "gpt2": "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj",
    "bloom": "self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h",
}


def family_base(family: str) -> LoadedBase:
    """A fresh base of that family in memory, its weights larger than at the beginning of a training."""
    made = _make_base(family)
    return LoadedBase(copy.deepcopy(made.model), made.tokenizer, made.facts)


@functools.cache
def _make_base(family: str) -> LoadedBase:
    wrapped = base_model.wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=WINDOW_TOKENS)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    torch.manual_seed(0)
    model = base_model.new_causal_lm(family, {"vocab_size": len(wrapped), **special, **FAMILIES[family]})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return LoadedBase(model, wrapped, base_model.describe(model, wrapped, family))


def some_ids(base: LoadedBase, batch: int = 2, tokens: int = 12, seed: int = 0) -> torch.Tensor:
    """Random tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, len(base.tokenizer), (batch, tokens), generator=generator)


def fill_randomly(model: TreeModel, seed: int = 0, size: float = 0.3) -> None:
    """Give every node an adapter that visibly changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    for path in model.nodes:
        state = model.node_state(path)
        model.load_node(path, {k: size * torch.randn(v.shape, generator=generator) for k, v in state.items()})


def base_logits(base: LoadedBase, ids: torch.Tensor) -> torch.Tensor:
    """What the base says on its own; its model must carry no adapters."""
    with torch.no_grad():
        return base.model(input_ids=ids, use_cache=False).logits
