"""Random numbers that adapters begin with, alike on every machine."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def draw(size: tuple[int, ...], *, fan_in: int, seed: int, path: str, label: str) -> Tensor:
    """Gaussian numbers that depend on seed, path, label and size, on nothing else.

    They come from NumPy's counter-based Philox, because torch draws other last digits with other vector instructions.

    Args:
        size: Shape of the result.
        fan_in: Numbers that each result of a product with these is summed over; their variance is one over it.
        seed: Of the run.
        path: Of the node; "" also for what all nodes share.
        label: What is drawn, such as a projection's name.
    """
    digest = hashlib.sha256(f"{seed}/{path}/{label}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    normal = generator.standard_normal(size) / np.sqrt(fan_in)
    return torch.from_numpy(normal.astype(np.float32))
