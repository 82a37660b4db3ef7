"""A tree of random leaves on a random base, and the same base with PEFT's LoRA: what the mixed-leaf benchmarks compare.

All sides share the base's weights in memory, the rank, the leaves' numbers and the batch. PEFT is in evaluation mode
(no dropout anywhere) with one adapter (`Sides.plain`) or with all leaves and a name for each row (`Sides.named`).
"""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import byte_tokenizer
from tinylora import base_model
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Policy, Router
from tinylora.tensors import Tensors
from tinylora.tree import Topology

SCALE = 2.0
PER_SEQUENCE, PER_TOKEN, SOFT = "hard@sequence:1", "hard", "soft"
FAMILIES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    # A small vocabulary: the head of a large model is a few per cent of its work, and would hide the adapters here.
    "llama": lambda hidden, layers: {
        "hidden_size": hidden,
        "intermediate_size": math.ceil(hidden * 8 / 3 / 32) * 32,
        "num_hidden_layers": layers,
        "num_attention_heads": max(2, hidden // 64),
        "num_key_value_heads": max(2, hidden // 64),
        "max_position_embeddings": 4096,
    },
    "bloom": lambda hidden, layers: {"hidden_size": hidden, "n_layer": layers, "n_head": max(2, hidden // 64)},
}


@dataclass(frozen=True)
class Shape:
    """A base with random weights."""

    family: str
    hidden: int
    layers: int = 4
    vocabulary: int = 2048
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __str__(self) -> str:
        """For people."""
        return f"{self.family} {self.hidden} x {self.layers}"


@dataclass(frozen=True)
class Batch:
    """Rows of one shape, their leaves spread evenly: row i belongs to leaf i modulo `leaves`."""

    rows: int
    tokens: int
    leaves: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.rows} x {self.tokens}, {self.leaves} leaves"


class Sides:
    """One base under three roofs, and a batch of tokens for them.

    Args:
        shape: Of the base.
        batch: Rows, and leaves of the tree.
        rank: Of every adapter.
    """

    def __init__(self, shape: Shape, batch: Batch, rank: int) -> None:
        self.shape, self.batch = shape, batch
        self.base = _make_base(shape)
        self.topology = Topology.perfect(batch.leaves.bit_length() - 1)
        spec, facts = AdapterSpec("lora", rank), self.base.facts
        self.states = {leaf: _random_state(self.base, spec, leaf) for leaf in self.topology.leaves}
        self._lora = {
            "r": rank,
            "lora_alpha": SCALE * rank,
            "lora_dropout": 0.0,
            "target_modules": sorted(facts.projections),
        }
        # PEFT's copies first: they must find the linears that the tree is going to cover.
        first = self.topology.leaves[0]
        self.plain = self._peft({first: self.states[first]})
        self._named: Any = None
        self._bare = _sharing_copy(self.base.model)
        self.tree = self._tree(spec)
        self.ids = self._even_rows()

    @property
    def named(self) -> Any:
        """PEFT with every leaf as an adapter of its own; made when first asked for."""
        if self._named is None:
            self._named = self._peft(self.states, self._bare)
        return self._named

    @property
    def names(self) -> list[str]:
        """The adapter of each row, as PEFT calls it."""
        leaves = self.topology.leaves
        return [_name(leaves[row % len(leaves)]) for row in range(self.batch.rows)]

    def routed(self, policy: str) -> TreeModel:
        """The tree under a policy."""
        self.tree.route_to(None)
        self.tree.policy = Policy.parse(policy)
        return self.tree

    def single(self) -> TreeModel:
        """The tree with every token at its first leaf, which is `plain`'s."""
        self.tree.route_to(self.topology.leaves[0])
        return self.tree

    def spread(self) -> dict[str, float]:
        """How many leaves the tokens of the batch go to under hard routing, token by token.

        `effective` is the exponential of the entropy of the leaves' shares, `longest` the largest share.
        """
        counts = torch.bincount(self._hard_leaves(self.ids).flatten(), minlength=self.batch.leaves).double()
        shares = counts / counts.sum()
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
        return {
            "met": int((counts > 0).sum()),
            "effective": round(float(entropy.exp()), 1),
            "largest_share": round(float(shares.max()), 3),
        }

    def _peft(self, states: dict[str, Tensors], model: Any = None) -> Any:
        model = _sharing_copy(self.base.model) if model is None else model
        first, *others = states
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks transformers by names that will go
            made: Any = get_peft_model(model, LoraConfig(**self._lora), adapter_name=_name(first))
            for leaf in others:
                made.add_adapter(_name(leaf), LoraConfig(**self._lora))
        made.eval()
        with torch.no_grad():
            for leaf, state in states.items():
                for projection, modules in self.base.linears.items():
                    for layer, module in enumerate(modules):
                        linear = made.base_model.model.get_submodule(module)
                        linear.lora_A[_name(leaf)].weight.copy_(state[f"{projection}.lora_A"][layer])
                        linear.lora_B[_name(leaf)].weight.copy_(state[f"{projection}.lora_B"][layer])
        return made

    def _tree(self, spec: AdapterSpec) -> TreeModel:
        draw = np.random.default_rng(0)
        dim = self.base.facts.feature_dim
        gates = Gates({node: Gate(draw.standard_normal(dim), 0.0, 1.0) for node in self.topology.inner}, dim)
        router = Router(self.base.routing_feature, gates, self.topology, self.topology.leaves)
        tree = TreeModel(self.base, nodes=self.topology.leaves, spec=spec, scale=SCALE, router=router)
        for leaf, state in self.states.items():
            tree.load_node(leaf, state)
        return tree

    def _hard_leaves(self, ids: Tensor) -> Tensor:
        """Number of the leaf that each token's gates point to."""
        router: Any = self.tree.router
        scores = router.scores(router.feature(ids.to(router.tau.device))[0])
        inner = {node: number for number, node in enumerate(self.topology.inner)}
        found = torch.zeros(ids.shape, dtype=torch.long)
        for number, leaf in enumerate(self.topology.leaves):
            turns = [(scores[..., inner[leaf[:level]]] >= 0) == (turn == "1") for level, turn in enumerate(leaf)]
            found[torch.stack(turns).all(dim=0).cpu() if turns else ...] = number
        return found

    def _even_rows(self) -> Tensor:
        """Random tokens; each row's first one alone decides under `PER_SEQUENCE`, and is drawn to fit the row."""
        draw = torch.Generator().manual_seed(1)
        ids = torch.randint(self.shape.vocabulary, (self.batch.rows, self.batch.tokens), generator=draw)
        leaf_of = self._hard_leaves(torch.arange(self.shape.vocabulary)[:, None])[:, 0]
        for row in range(self.batch.rows):
            fitting = (leaf_of == row % self.batch.leaves).nonzero().flatten()
            if not len(fitting):
                raise RuntimeError(f"no token leads to leaf {row % self.batch.leaves}: draw other gates")
            ids[row, 0] = fitting[int(torch.randint(len(fitting), (), generator=draw))]
        return ids.to(self.shape.device)


# --- what is timed ---------------------------------------------------------------------------------------------------


def read(model: Any, ids: Tensor, **options: Any) -> Any:
    """One pass of either kind of model; without a cache unless `use_cache` says so."""
    options = {"use_cache": False, **options}
    return model(ids, **options) if isinstance(model, TreeModel) else model(input_ids=ids, **options)


@torch.no_grad()
def prefill(model: Any, ids: Tensor, **options: Any) -> Tensor:
    """Logits of all tokens, without a cache and without gradients."""
    return read(model, ids, **options).logits


@torch.no_grad()
def decoder(model: Any, ids: Tensor, **options: Any) -> Callable[[], Tensor]:
    """A call that reads one more token behind a prompt in the cache, and forgets it again; its logits."""
    prompt, last = ids[:, :-1], ids[:, -1:]
    before = read(model, prompt, use_cache=True, **options)
    if isinstance(model, TreeModel):
        options = {"state": before.state}
    cache = before.past_key_values

    @torch.no_grad()
    def step() -> Tensor:
        logits = read(model, last, past_key_values=cache, use_cache=True, **options).logits
        cache.crop(-1)
        return logits

    return step


def training(model: Any, ids: Tensor) -> Callable[[], Tensor]:
    """A call that reads, takes the loss and goes back to every adapter that is trained; its loss."""
    parameters = trained(model)

    def step() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        logits = read(model, ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        return loss.detach()

    return step


def trained(model: Any) -> list[torch.nn.Parameter]:
    """What gets a gradient: all leaves of a tree, the one adapter of PEFT's model."""
    if isinstance(model, TreeModel):
        return model.adapter_parameters()
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# --- making ----------------------------------------------------------------------------------------------------------


def _make_base(shape: Shape) -> LoadedBase:
    torch.manual_seed(0)
    config = FAMILIES[shape.family](shape.hidden, shape.layers) | {"vocab_size": shape.vocabulary}
    with torch.device(shape.device):
        model = base_model.new_causal_lm(shape.family, config | {"dtype": str(shape.dtype).removeprefix("torch.")})
    model = model.to(shape.dtype)
    tokenizer = base_model.wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=4096)
    facts = base_model.describe(model, tokenizer, "benchmark", fingerprint="0" * 64)
    return LoadedBase(model, tokenizer, facts)


def _sharing_copy(model: Any) -> Any:
    """Another model around the same tensors."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _random_state(base: LoadedBase, spec: AdapterSpec, leaf: str) -> Tensors:
    """A leaf that has visibly learned something: B as large as A."""
    state = init_adapter(base.facts, spec, seed=0, path=leaf)
    draw = torch.Generator().manual_seed(int(f"1{leaf}", 2))
    return {
        name: 0.02 * torch.randn(tensor.shape, generator=draw) if name.endswith("lora_B") else tensor
        for name, tensor in state.items()
    }


def _name(leaf: str) -> str:
    return f"leaf-{leaf or 'root'}"
