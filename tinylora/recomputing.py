"""Gradient checkpointing of a frozen base: keep each block's input alone, and run the block again on the way back.

Transformers' own switch works in training mode only, which would bring dropout back into a base that is a frozen
function here. So each block's call is wrapped for as long as a forward pass takes; the recomputation happens later, by
what the pass has recorded. No random number is drawn in a block, so none has to be put back.

Source:
    Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Meanwhile no pass through `blocks` keeps what lies inside of them."""
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
