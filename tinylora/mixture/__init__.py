"""Many adapters in one batch: `leaf_lora` adds to a linear's output what each token's nodes contribute.

    y = base(x) + scale · Σ over nodes n of  gate_n(token) · B_n A_n x

* `routing`: which nodes, and how much: `Fixed`, `ByRow`, `ByToken`, `Weighted`; made once per forward pass;
* `sums`: the sum as torch computes it, a way for each kind, and the slow, obvious reference that tests compare with;
* `batched`: rows with the matrices of their own nodes;
* `grouped`: products of sorted rows, each with the matrix of its own node;
* `thresholds`: which way is cheaper where.
"""

from tinylora.mixture.routing import ByRow, ByToken, Fixed, Routing, Weighted
from tinylora.mixture.sums import Impl, add_own, leaf_lora

__all__ = ["ByRow", "ByToken", "Fixed", "Impl", "Routing", "Weighted", "add_own", "leaf_lora"]
