"""Up to where all nodes in one wide product are cheaper than each token's own.

Measured on a CPU in fp32 (docs/log.md, 2026-11-22): forward and backward at 32 took 4.2 ms wide and 5.0 grouped, at 64
6.8 and 4.6. On other devices it is an estimate until somebody measures one: there a product has to be larger to pay.
"""

import torch

_ON_CPU, _ELSEWHERE = 32, 128


def wide_rank(device: torch.device) -> int:
    """Nodes times rank, for each node that a token has."""
    return _ON_CPU if device.type == "cpu" else _ELSEWHERE
