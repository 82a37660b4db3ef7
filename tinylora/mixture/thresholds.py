"""Which way of adding up adapters is cheaper where, as measured.

`python -m benchmarks.mixed_leaves` measures whole models. Numbers of one device stand for all of its kind: they say
where curves cross, and on either side of a crossing both ways cost about the same.
"""

from dataclasses import dataclass

import torch

from tinylora.mixture.grouped import HALVES


@dataclass(frozen=True)
class Thresholds:
    """Up to where all nodes in one wide product are cheaper than each token's own."""

    wide_rank: int
    """Nodes times rank."""


_MEASURED = {
    ("cpu", False): Thresholds(wide_rank=32),
    ("cpu", True): Thresholds(wide_rank=32),
    ("cuda", False): Thresholds(wide_rank=128),
    ("cuda", True): Thresholds(wide_rank=128),
}
_OTHERWISE = Thresholds(wide_rank=128)


def thresholds(dtype: torch.dtype, device: torch.device) -> Thresholds:
    """Those of the kind of device and the precision."""
    return _MEASURED.get((device.type, dtype in HALVES), _OTHERWISE)
