"""A base in 8 or 4 bits: what a volunteer may ask for, and how bitsandbytes is kept sound under adapters.

Only the linears are quantised. Adapters, embeddings, norms and the head stay as they are, and gradients flow through
the quantised linears to the adapters below (QLoRA). What a run knows of a base does not change: facts and fingerprint
are those of the files, so volunteers with and without quantisation work for the same run.

Source:
    int8: Dettmers et al. 2022, arXiv:2208.07339. nf4: Dettmers et al. 2023, arXiv:2305.14314, section 3.
"""

import importlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

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


def keep_trainable(model: nn.Module) -> None:
    """From now on gradients pass through every 4-bit linear, whatever ran before.

    On CPUs with bf16 vector instructions bitsandbytes packs the weights of a model in evaluation mode anew at their
    first pass, for a product that has no backward: after an evaluation, adapters in lower layers would get no gradient,
    without a word. It also rounds the scales to bf16 and refuses widths that are no multiples of 64. So it stays off.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


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
    """How many linears of a model bitsandbytes holds."""
    return sum(map(_is_quantised, model.modules()))


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith("bitsandbytes.")
