"""Tied adapters: all layers share A and B of a projection, and scale them by vectors u and v of their own.

    z = W x + s · diag(v_l) B diag(u_l) A x        A (rank, in), B (out, rank), u (n_layers, rank), v (n_layers, out)

Kinds are named by what is trained; the rest is the same for all nodes: drawn from the run's seed, or one. Something
that is trained begins at zero, so that a new adapter changes nothing, and it gets a gradient at once:

| kind          | A               | B              | u            | v             |
| ------------- | --------------- | -------------- | ------------ | ------------- |
| `tied:A`      | trained, zero   | frozen, drawn  | one          | one           |
| `tied:A,uv`   | trained, drawn  | frozen, drawn  | trained, one | trained, zero |
| `tied:B`      | frozen, drawn   | trained, zero  | one          | one           |
| `tied:uv`     | frozen, drawn   | frozen, drawn  | trained, one | trained, zero |
| `tied:A,B`    | trained, drawn  | trained, zero  | one          | one           |
| `tied:A,B,uv` | trained, drawn  | trained, zero  | trained, one | trained, one  |

A is drawn with variance 1 / in, B with variance 1 / rank, so that B A x is about as large as x.

States hold what is trained: `<projection>.lora_A`, `.lora_B`, `.lora_u`, `.lora_v`. `shared_factors` are the rest.

Source:
    Renduchintala, Konuk and Kuchaiev 2023, Tied-LoRA, arXiv:2311.09578; the last row is the variant that they call TL6
    in the first version. `tied:uv` is VeRA, Kopiczko et al. 2023, arXiv:2310.11454. Where zeros stand is our choice.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinylora.adapters.drawing import draw
from tinylora.adapters.shapes import adapter_shapes, shared_shapes
from tinylora.adapters.spec import AdapterSpec
from tinylora.config import BaseFacts, ProjectionShape
from tinylora.tensors import Tensors


def init_tied(facts: BaseFacts, spec: AdapterSpec, *, seed: int, path: str) -> Tensors:
    """What is trained of a new node, as the table above says."""
    state: Tensors = {}
    for name, size in adapter_shapes(facts, spec).items():
        projection, _, factor = name.rpartition(".")
        if factor == "lora_u" or (factor == "lora_v" and "B" in spec.trained):
            state[name] = torch.ones(size)
        elif factor == "lora_A" and spec.trained != ("A",):
            state[name] = draw(size, fan_in=size[1], seed=seed, path=path, label=projection)
        else:
            state[name] = torch.zeros(size)
    return state


def shared_factors(facts: BaseFacts, spec: AdapterSpec, *, seed: int) -> Tensors:
    """The frozen factors of tied adapters, the same for all nodes of a run; nothing for other kinds."""
    return {
        name: draw(size, fan_in=size[1], seed=seed, path="", label=name)
        for name, size in shared_shapes(facts, spec).items()
    }


def expand(state: Tensors, spec: AdapterSpec, shared: Tensors, facts: BaseFacts) -> Tensors:
    """The plain LoRA state of the same function: u and v are folded into each layer's own A and B.

    Args:
        state: What is trained of a node.
        spec: Its kind and ranks.
        shared: The frozen factors.
        facts: Of the base, which say how many layers there are.
    """
    known, expanded = shared | state, dict[str, Tensor]()
    for projection, shape in sorted(facts.projections.items()):
        lora_a, lora_b = known[f"{projection}.lora_A"], known[f"{projection}.lora_B"]
        u, v = known.get(f"{projection}.lora_u"), known.get(f"{projection}.lora_v")
        wide_a, wide_b = lora_a.expand(shape.n_layers, -1, -1), lora_b.expand(shape.n_layers, -1, -1)
        expanded[f"{projection}.lora_A"] = wide_a.clone() if u is None else wide_a * u.unsqueeze(-1)
        expanded[f"{projection}.lora_B"] = wide_b.clone() if v is None else wide_b * v.unsqueeze(-1)
    return expanded


class TiedPair(nn.Module):
    """One node's A and B on one linear, with the layer's u and v: parameters where they are trained, else buffers.

    The same A and B stand in the pairs of all layers, so their gradients add up.
    """

    has_own_factors = False
    """Whether the product's factors are this pair's own parameters."""
    lora_a: Float[Tensor, "rank in"]
    lora_b: Float[Tensor, "out rank"]

    def __init__(
        self,
        lora_a: Float[Tensor, "rank in"],
        lora_b: Float[Tensor, "out rank"],
        lora_u: nn.Parameter | None,
        lora_v: nn.Parameter | None,
    ) -> None:
        super().__init__()
        for name, tensor in (("lora_a", lora_a), ("lora_b", lora_b)):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor, persistent=False)
        self.lora_u, self.lora_v = lora_u, lora_v

    def product(self) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]:
        """diag(u) A and diag(v) B, whose product is the update; cheap beside a batch of tokens."""
        lora_a = self.lora_a if self.lora_u is None else self.lora_u.unsqueeze(-1) * self.lora_a
        lora_b = self.lora_b if self.lora_v is None else self.lora_v.unsqueeze(-1) * self.lora_b
        return lora_a, lora_b

    def factors(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in states."""
        known = {"lora_A": self.lora_a, "lora_B": self.lora_b, "lora_u": self.lora_u, "lora_v": self.lora_v}
        return {name: tensor for name, tensor in known.items() if isinstance(tensor, nn.Parameter)}


def tied_pairs(
    spec: AdapterSpec, projection: str, shape: ProjectionShape, shared: Tensors, device: torch.device
) -> list[TiedPair]:
    """One node's pairs on all layers of a projection; what is trained is zero, so they add nothing yet."""

    def trained(*size: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(size, device=device))

    def frozen(factor: str) -> Tensor:
        return shared[f"{projection}.{factor}"].to(device)

    rank, has_uv = spec.rank_of(projection), "uv" in spec.trained
    lora_a = trained(rank, shape.in_features) if "A" in spec.trained else frozen("lora_A")
    lora_b = trained(shape.out_features, rank) if "B" in spec.trained else frozen("lora_B")
    return [
        TiedPair(lora_a, lora_b, trained(rank) if has_uv else None, trained(shape.out_features) if has_uv else None)
        for _ in range(shape.n_layers)
    ]
