"""One optimiser step on a leaf against the same step with PEFT's LoRA.

Both sides hold the same Llama (hidden 512, 4 layers, 7 projections), the same rank, the same starting adapters, the
same 4 x 128 tokens and the same AdamW; PEFT's side takes its loss the way its documentation does,
`model(input_ids, labels=input_ids).loss`. Both losses are compared before the clock starts.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.measure import take_turns
from tests.helpers import byte_tokenizer
from tinylora import base_model
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.model import TreeModel

GOAL = 1.10
RANK = 8
ALPHA = 16.0
LEARNING_RATE = 1e-3
N_ROUNDS = 15
WINDOWS = (4, 128)
CONFIG = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 256,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}


def measure() -> dict[str, Any]:
    """Ratio of CPU times of one step: forward, backward, AdamW."""
    torch.set_num_threads(1)
    base = _base()
    start = init_adapter(base.facts, AdapterSpec("lora", RANK), seed=0, path="0")
    ids = torch.randint(CONFIG["vocab_size"], WINDOWS, generator=torch.Generator().manual_seed(1))
    ours, our_parameters = _tree_step(base, start, ids)
    other, other_parameters = _peft_step(start, ids)
    if sum(map(Tensor.numel, our_parameters)) != sum(map(Tensor.numel, other_parameters)):
        raise RuntimeError("the two sides do not train the same number of parameters")
    for _ in range(3):
        torch.testing.assert_close(ours(), other(), rtol=1e-4, atol=1e-4)
    rounds = take_turns(ours, other, n_rounds=N_ROUNDS)
    ratio = rounds.ratio()
    return {
        "compares": "one optimiser step on a leaf with one of PEFT's LoRA; same model, rank, tokens, optimiser",
        "goal": f"<= {GOAL}",
        "is_met": ratio["median"] <= GOAL,
        "figure": {"ratio": ratio},
        "details": {"rank": RANK, "windows_x_tokens": WINDOWS, "model": CONFIG, **rounds.seconds()},
    }


def _model() -> Any:
    torch.manual_seed(0)
    return base_model.new_causal_lm("llama", CONFIG)


def _base() -> LoadedBase:
    model = _model()
    tokenizer = base_model.wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=256)
    return LoadedBase(model, tokenizer, base_model.describe(model, tokenizer, "benchmark"))


def _tree_step(
    base: LoadedBase, start: dict[str, Tensor], ids: Tensor
) -> tuple[Callable[[], Tensor], list[nn.Parameter]]:
    model = TreeModel(base, nodes=("0",), spec=AdapterSpec("lora", RANK), scale=ALPHA / RANK)
    model.load_node("0", start)
    parameters = list(model.adapter_parameters())
    return _step(lambda: model.loss(ids), parameters), parameters


def _peft_step(start: dict[str, Tensor], ids: Tensor) -> tuple[Callable[[], Tensor], list[nn.Parameter]]:
    projections = {name.rpartition(".")[2] for name in _projections_of(start)}
    config = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=sorted(projections), lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name that will go
        model: Any = get_peft_model(_model(), config)
    model.eval()  # as ours: no dropout anywhere, gradients all the same
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(_same_start(name, start))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _step(lambda: model(input_ids=ids, labels=ids, use_cache=False).loss, parameters), parameters


def _projections_of(state: dict[str, Tensor]) -> set[str]:
    return {name.rpartition(".lora_")[0] for name in state}


def _same_start(name: str, start: dict[str, Tensor]) -> Tensor:
    """The slice of our stacked state that is PEFT's `...layers.2.self_attn.q_proj.lora_A.default.weight`."""
    layer = int(name.partition(".layers.")[2].partition(".")[0])
    linear, _, part = name.removesuffix(".default.weight").rpartition(".lora_")
    ours = next(key for key in start if key.endswith(f"{linear.rpartition('.')[2]}.lora_{part}"))
    return start[ours][layer]


def _step(loss_of: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Callable[[], Tensor]:
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    def step() -> Tensor:
        loss = loss_of()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step
