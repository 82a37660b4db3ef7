"""A base in 8 or 4 bits: what a volunteer may ask for, and how bitsandbytes is kept sound under adapters.

Only the linears are quantised. Adapters, embeddings, norms and the head stay as they are, and gradients flow through
the quantised linears to the adapters below (QLoRA). What a run knows of a base does not change: facts and fingerprint
are those of the files, so volunteers with and without quantisation work for the same run.

Source:
    int8: Dettmers et al. 2022, arXiv:2208.07339. nf4: Dettmers et al. 2023, arXiv:2305.14314, section 3.
"""

import copy
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tinylora.errors import BaseModelError, SettingError

QUANTISATIONS = ("int8", "nf4")


def bitsandbytes_options(quantise: str, compute_dtype: Any) -> dict[str, Any]:
    """What transformers' BitsAndBytesConfig is made of.

    int8 keeps LLM.int8()'s outliers in 16 bits; nf4 has blocks of 64 whose scales are quantised again, which makes
    4.127 bits a weight.

    Args:
        quantise: "int8" or "nf4".
        compute_dtype: Of the products with nf4 weights.

    Raises:
        SettingError: Another word.
    """
    if quantise not in QUANTISATIONS:
        raise SettingError(f"quantise {quantise!r}: expected {' or '.join(QUANTISATIONS)}")
    if quantise == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": compute_dtype,
    }


def import_bitsandbytes(quantise: str) -> None:
    """Make sure that bitsandbytes is there and works; it is imported by those who quantise, and by nobody else.

    Raises:
        BaseModelError: It is missing, or has no build for this machine.
    """
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise BaseModelError(
                f"quantise {quantise}: {package} is not installed; pip install 'tinylora[quant]', or load the base "
                "without quantisation"
            )
    # It tells at every product that it casts to fp16, and at import that an optional kernel is absent.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # a broken native library shows in many ways
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BaseModelError(
            f"quantise {quantise}: bitsandbytes does not work on this machine ({reason}); load the base without "
            "quantisation"
        ) from None


def make_sound(model: nn.Module) -> None:
    """From now on every 4-bit linear gives the products of its own weights, and lets gradients pass.

    On CPUs with bf16 vector instructions bitsandbytes packs the weights of a model in evaluation mode anew at their
    first pass, for a product that has no backward: after an evaluation, adapters in lower layers would get no gradient,
    without a word. It also rounds the scales to bf16 and refuses widths that are no multiples of 64. So it stays off.
    """
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if module.weight.device.type == "cpu" and module.in_features % module.weight.blocksize:
                model.set_submodule(name, FlatLinear4bit(module))


class FlatLinear4bit(nn.Module):
    """A 4-bit linear of bitsandbytes on a CPU, for rows that are no whole number of blocks.

    Blocks are quantised over the flattened weight and run across the ends of rows. With AVX-512, bitsandbytes (0.50)
    reads them back as if each row began a block, which takes the scales of other blocks: at a width of 96 the weights
    are wrong by 30 % in place of 9 %. Here they are read as what they are, rows of one block each, or one long row.
    """

    def __init__(self, packed: Any) -> None:
        """Take over the weights of a `bitsandbytes.nn.Linear4bit`."""
        super().__init__()
        self.weight, self.bias = packed.weight, packed.bias
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.compute_dtype = packed.compute_dtype
        state, n_numbers = packed.weight.quant_state, packed.in_features * packed.out_features
        width = n_numbers if n_numbers % state.blocksize else state.blocksize
        self._state = copy.copy(state)
        self._state.shape = torch.Size((n_numbers // width, width))

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The product in `compute_dtype`, in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return _DequantisedProduct.apply(x.to(self.compute_dtype), bias, self.dequantise).to(x.dtype)

    def dequantise(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The weights that the bits stand for; a new tensor."""
        functional: Any = importlib.import_module("bitsandbytes.functional")
        numbers = functional.dequantize_4bit(self.weight.data, self._state)
        return numbers.view(self.out_features, self.in_features).to(dtype)


class _DequantisedProduct(torch.autograd.Function):
    """x W^T, with W made for the product and again for its backward, so that no graph keeps it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, dequantise: Callable[[torch.dtype], Tensor]) -> Tensor:
        ctx.dequantise = dequantise
        return F.linear(x, dequantise(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.dequantise(gradient.dtype), None, None


@contextmanager
def without_outliers(model: nn.Module) -> Iterator[None]:
    """Meanwhile every row of an int8 product is computed on its own.

    LLM.int8() takes a whole column of activations in 16 bits when one token of the batch has an outlier in it, so
    tokens change each other's last digits, earlier ones too. It is rounding, and would look like sight of the future.
    """
    states: list[Any] = [
        module.state for module in model.modules() if _is_quantised(module) and hasattr(module, "state")
    ]
    thresholds = [state.threshold for state in states]
    try:
        for state in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold


def n_quantised(model: nn.Module) -> int:
    """How many linears of a model are in bits."""
    return sum(map(_is_quantised, model.modules()))


def _is_quantised(module: nn.Module) -> bool:
    return isinstance(module, FlatLinear4bit) or type(module).__module__.startswith("bitsandbytes.")
