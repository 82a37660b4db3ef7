"""Small things that many tests need: a base model of a few thousand parameters, a tree, numbers one can recognise."""

import atexit
import functools
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tinylora import base_model
from tinylora.tree import Topology

WINDOW_TOKENS = 64
TINY_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW_TOKENS,
    "tie_word_embeddings": True,
}


def byte_tokenizer() -> Tokenizer:
    """One token per byte, after the three special ones: no training, any text goes through and comes back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@functools.cache
def tiny_base_dir(seed: int = 0) -> Path:
    """A saved Llama of 2 layers and 32 numbers with a byte tokenizer; removed when Python ends."""
    folder = tempfile.TemporaryDirectory(prefix="tinylora-base-")
    atexit.register(folder.cleanup)
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    model = base_model.new_causal_lm("llama", TINY_LLAMA | {"vocab_size": tokenizer.get_vocab_size()})
    wrapped = base_model.wrap_tokenizer(tokenizer, bos="<s>", eos="</s>", pad="<pad>", max_tokens=WINDOW_TOKENS)
    base_model.save_base(model, wrapped, Path(folder.name), dtype=torch.float32)
    return Path(folder.name)


def tiny_base_model(seed: int = 0) -> base_model.LoadedBase:
    """A fresh copy of that base, loaded the ordinary way."""
    return base_model.load_base(str(tiny_base_dir(seed)))


def tiny_tree(depth: int = 2) -> Topology:
    """The perfect tree of 2**depth leaves."""
    return Topology.perfect(depth)


def ramp(*shape: int, step: float = 0.01) -> torch.Tensor:
    """0, step, 2 step ... in the given shape: every element differs, so a swap of two axes shows."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) * step
