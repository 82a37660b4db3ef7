"""Bundles whose gates send every text to one leaf, and what three programs make of it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import shared_factors
from tinylora.base_model import LoadedBase, has_transposed_linears
from tinylora.bundle import Bundle
from tinylora.export import Places
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.tensors import Tensors
from tinylora.tree import Topology

LEAF = "01"


def places_of(base: LoadedBase) -> Places:
    return Places(modules=base.linears, is_transposed=has_transposed_linears(base.model))


def make_bundle(
    base: LoadedBase,
    kind: str,
    nodes: tuple[str, ...],
    rank: int,
    ranks: dict[str, int],
    *,
    size: float = 0.3,
    scale: float = 0.75,
) -> Bundle:
    """Adapters that visibly change the logits, and gates that send every text to the leaf."""
    spec = AdapterSpec.parse(kind, rank, ranks)
    generator = torch.Generator().manual_seed(7)
    states = {}
    for path in nodes:
        drawn = init_adapter(base.facts, spec, seed=3, path=path)
        states[path] = {name: size * torch.randn(t.shape, generator=generator) for name, t in drawn.items()}
    topology = Topology.perfect(2)
    towards = {"": -50.0, "0": 50.0, "1": 50.0}
    dim = base.facts.feature_dim
    gates = Gates({node: Gate(torch.zeros(dim).double().numpy(), b, 1.0) for node, b in towards.items()}, dim)
    return Bundle(
        run="two-lives", topology=topology, base=base.facts, spec=spec, scale=scale, nodes=states, gates=gates,
        projection=base.routing_feature.projection, contributors=("w0", "w1"),
        shared=shared_factors(base.facts, spec, seed=3),
    )  # fmt: skip


def ours(bundle: Bundle, base: LoadedBase, ids: torch.Tensor) -> torch.Tensor:
    model = TreeModel.from_bundle(bundle, base, "hard")
    try:
        with torch.no_grad():
            return model(ids).logits
    finally:
        model.detach_adapters()


@contextmanager
def peft_talks() -> Iterator[None]:
    """PEFT's own warnings, and those of transformers about what PEFT asks of it, are not ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def theirs(base: LoadedBase, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What PEFT makes of the folder: it misses nothing in it, and meets nothing that it does not know."""
    with peft_talks():
        from peft import PeftModel

        model = PeftModel.from_pretrained(base.model, str(folder)).eval()
        again = model.load_adapter(str(folder), "again")
    own = {name for name in again.missing_keys if "lora_" in name and ".again." in name}
    assert not own and not again.unexpected_keys
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def by_hand(base: LoadedBase, state: Tensors, scale: float, ids: torch.Tensor) -> torch.Tensor:
    """The slow reference: each linear's output plus scale · B (A x), the formula as it stands."""
    hooks = []
    for projection, modules in base.linears.items():
        for layer, name in enumerate(modules):
            a, b = (state[f"{projection}.lora_{part}"][layer].float() for part in "AB")

            def add(_module: object, inputs: tuple, output: torch.Tensor, a=a, b=b) -> torch.Tensor:
                return output + scale * (inputs[0] @ a.T @ b.T)

            hooks.append(base.model.get_submodule(name).register_forward_hook(add))
    try:
        with torch.no_grad():
            return base.model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
