"""`TreeModel`: a frozen base, the adapters of some nodes on its linears, and a router that says which token uses which.

The base stays resident. A `TreeModel` puts its adapters in front of the base's linears and takes them away again
(`detach_adapters`), so that one base in memory serves many units of work, one after the other.

Batches may be packed (several documents in a row; attention is plain causal across them, only the routing mean
restarts) or padded. `attention_mask` is 1 on tokens and 0 on padding, at either side, in a pass without a cache;
prompts of different length for `generate` are padded on the left (`generation.left_pad`). Positions count real tokens.
"""

import inspect
import itertools
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylora.adapters.lora import AdapterLinear, SharedRouting, lora_pairs
from tinylora.adapters.rank_plan import RankPlan, apply_plan, check_plan
from tinylora.adapters.shapes import adapter_shapes, shared_shapes
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import tied_pairs
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, check_base
from tinylora.errors import BaseModelError, SettingError, ShapeMismatch
from tinylora.generation import generate
from tinylora.hub import TreeHub
from tinylora.likelihood import IGNORED_LABEL, nll, summed_nll, targets_of
from tinylora.mixture import ByRow, Fixed, Impl, Routing
from tinylora.recomputing import recomputing
from tinylora.routing.policy import Policy, Router, RouterState
from tinylora.tensors import Tensors
from tinylora.tree import NodePath, by_level, is_under

SOFT = Policy.parse("soft")
_KEPT_BYTES = 2**29
_CHUNK_NUMBERS = 2**22  # logits that are in memory at once while a loss is taken


@dataclass(frozen=True)
class TreeOutput:
    """What a forward pass gives: logits, and what the next pass over the same rows continues from."""

    logits: Float[Tensor, "batch token vocab"]
    past_key_values: Any
    state: RouterState | None


class TreeModel(TreeHub, nn.Module):
    """A base with the adapters of `nodes`, stacked in this order, and a router over them.

    Without a router every token has all nodes: one, or several on one path, whose updates add up; or none, which is the
    base. New adapters are zero and add nothing until `load_node` fills them. The base stays frozen and in evaluation
    mode, whatever mode this module is in.

    Args:
        base: The base; its model carries the adapters until `detach_adapters`.
        nodes: Paths of the nodes that have an adapter.
        spec: Kind and ranks of every adapter.
        scale: alpha / rank.
        router: Gates over `nodes`, in the same order.
        policy: How the router's posterior becomes weights; may be set anew between calls.
        impl: How many adapters are added up; "reference" is for tests.
        shared: The frozen factors of tied adapters, as of `adapters.tied.shared_factors`.

    Raises:
        SettingError: No router, and several nodes that do not lie on one path, or a router over other nodes.
        ShapeMismatch: A frozen factor is missing, unexpected, or of another shape.
        BaseModelError: The base carries another model's adapters.
    """

    def __init__(
        self,
        base: LoadedBase,
        *,
        nodes: tuple[str, ...],
        spec: AdapterSpec,
        scale: float,
        router: Router | None = None,
        policy: Policy = SOFT,
        impl: Impl = "auto",
        shared: Tensors | None = None,
    ) -> None:
        super().__init__()
        if router is None and not _is_path(nodes):
            raise SettingError(
                f"nodes {', '.join(map(repr, nodes))}: several nodes need a router to choose between them, unless all "
                "lie on one path, the upper ones first"
            )
        if router is not None and tuple(router.nodes) != nodes:
            raise SettingError(f"router over nodes {tuple(router.nodes)}: expected the adapters' nodes {nodes}")
        self.base, self.nodes, self.spec, self.scale = base, nodes, spec, scale
        self.router, self.policy = router, policy
        self.is_recomputing = False
        """Gradient checkpointing, in losses alone; may be set anew between calls."""
        self._fixed: Fixed | ByRow | None = None
        self._rank: int | None = None
        self._plan: RankPlan = {}
        self._shared = SharedRouting(Fixed(), impl, is_lower_frozen=spec.is_lower_frozen)
        self._has_plain_head = base.is_head_plain
        accepted = inspect.signature(base.model.forward).parameters
        self._accepts_positions, self._can_keep_logits = "position_ids" in accepted, "logits_to_keep" in accepted
        self.model: Any = base.model
        self.adapters = self._make_adapters(shared or {})
        self._shared.n_kept = self._n_kept()
        self.route_to(None)
        self.attach_adapters()

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        base: LoadedBase,
        policy: Policy | str | None = None,
        leaves: Collection[NodePath] | None = None,
    ) -> "TreeModel":
        """Put a bundle's adapters and gates on its base.

        Every leaf has a place in the model. One that nobody has trained stays zero there: text that is routed to it
        meets the base alone.

        Args:
            bundle: As read by `read_bundle`, or fresh from a run.
            base: The base it was made for. It carries the adapters until the model's `detach_adapters`.
            policy: How the gates decide; None takes the bundle's own.
            leaves: Make places for these alone, where the bundle was read without the others.

        Raises:
            BaseModelError: The bundle was made for another base, or the base carries adapters already.
            SettingError: The policy is none.
        """
        base = base.with_feature(bundle.base.feature_dim)
        check_base(bundle, base.facts)
        # What stays is copied: one view that is left keeps the file mapped, and all that was read of it in memory.
        projection = None if bundle.projection is None else bundle.projection.clone()
        shared = {name: tensor.clone() for name, tensor in bundle.shared.items()}
        bundle = replace(bundle, projection=projection, shared=shared)
        wanted = policy if isinstance(policy, Policy) else Policy.parse(policy or bundle.policy)
        nodes = by_level({*(bundle.topology.leaves if leaves is None else leaves), *bundle.nodes})
        model = cls(
            base,
            nodes=nodes,
            spec=bundle.spec,
            scale=bundle.scale,
            router=Router(base.routing_feature, bundle.gates, bundle.topology, nodes),
            policy=wanted,
            shared=bundle.shared,
        )
        for path, state in bundle.nodes.items():
            model.load_node(path, state)
        model.origin = replace(bundle, nodes={})
        return model

    # --- adapters ----------------------------------------------------------------------------------------------------

    def _make_adapters(self, shared: Tensors) -> dict[str, list[AdapterLinear]]:
        if not self.nodes:
            return {}
        _check_shapes("frozen factors", shared, shared_shapes(self.base.facts, self.spec))
        return {projection: self._make_layers(projection, shared) for projection in self.base.linears}

    def _make_layers(self, projection: str, shared: Tensors) -> list[AdapterLinear]:
        shape, device = self.base.facts.projections[projection], self.model.device
        if self.spec.kind == "tied":
            of_nodes = [tied_pairs(self.spec, projection, shape, shared, device) for _ in self.nodes]
            of_layers = list(zip(*of_nodes, strict=True))
        else:
            of_layers = lora_pairs(len(self.nodes), shape, self.spec.rank_of(projection), device)
        return [
            AdapterLinear(self.model.get_submodule(name), pairs, scale=self.scale, shared=self._shared)
            for name, pairs in zip(self.base.linears[projection], of_layers, strict=True)
        ]

    def _n_kept(self) -> int:
        """How many adapters may be kept gathered by row: at most as many as there are, within `_KEPT_BYTES`."""
        n_bytes = sum(
            part.nbytes
            for adapters in self.adapters.values()
            for adapter in adapters
            for part in adapter.pairs[0].product()
        )
        return min(len(self.nodes), _KEPT_BYTES // max(1, n_bytes))

    def attach_adapters(self) -> None:
        """Put the adapters in front of the base's linears; done once at construction, and again after a detachment.

        Raises:
            BaseModelError: Adapters are attached already, this model's or another's.
        """
        names = [name for names in self.base.linears.values() for name in names]
        if any(isinstance(self.model.get_submodule(name), AdapterLinear) for name in names):
            raise BaseModelError(
                f"{self.base.facts.base_id}: adapters are attached already; detach_adapters() comes first"
            )
        for projection, adapters in self.adapters.items():
            for name, adapter in zip(self.base.linears[projection], adapters, strict=True):
                self.model.set_submodule(name, adapter)
        self._is_attached = True

    def detach_adapters(self) -> None:
        """Give the base its own linears back; the adapters can still be read, and attached again."""
        if self._is_attached:
            for projection, adapters in self.adapters.items():
                for name, adapter in zip(self.base.linears[projection], adapters, strict=True):
                    self.model.set_submodule(name, adapter.base)
        self._is_attached = False

    def __enter__(self) -> "TreeModel":
        """For a while: the base is bare again after the `with`."""
        return self

    def __exit__(self, *_raised: object) -> None:
        """Take the adapters off."""
        self.detach_adapters()

    def adapter_parameters(
        self, nodes: Collection[str] | None = None, factors: Collection[str] | None = None
    ) -> list[nn.Parameter]:
        """Parameters that are trained, in a fixed order; at first all.

        Given nodes or factors, these alone are trained from now on: all others get no gradient and stay bit by bit as
        they are, such as the ancestors of a leaf, or A while B is trained.

        Args:
            nodes: Paths of the nodes to train; None is all.
            factors: Names in states, such as "lora_A", of those to train; None is all.

        Raises:
            SettingError: No adapter of this model belongs to a node, or has such a factor.
        """
        named = self._named_parameters()
        if nodes is not None or factors is not None:
            self._check_chosen(nodes, factors, {factor for _, factor, _ in named})
            for node, factor, parameter in named:
                parameter.requires_grad_((nodes is None or node in nodes) and (factors is None or factor in factors))
        return [parameter for _, _, parameter in named if parameter.requires_grad]

    def _named_parameters(self) -> list[tuple[str, str, nn.Parameter]]:
        """Every parameter of every adapter once, with its node and factor, such as ("01", "lora_A", ...)."""
        found = {
            id(parameter): (node, factor, parameter)
            for adapters in self.adapters.values()
            for adapter in adapters
            for node, pair in zip(self.nodes, adapter.pairs, strict=True)
            for factor, parameter in pair.factors().items()
        }
        return list(found.values())

    def _check_chosen(self, nodes: Collection[str] | None, factors: Collection[str] | None, known: set[str]) -> None:
        for node in nodes or ():
            self._index(node)
        strange = sorted(set(factors or ()) - known)
        if strange:
            raise SettingError(f"factor {strange[0]!r}: expected one of {', '.join(sorted(known))}")

    @torch.no_grad()
    def load_node(self, path: str, state: Tensors) -> None:
        """Copy a node's adapter in; `state` is as `adapter_shapes` says, in whatever float dtype.

        Raises:
            SettingError: No adapter of this model belongs to `path`.
            ShapeMismatch: A tensor is missing, unexpected, or of another shape.
        """
        index = self._index(path)
        _check_shapes(f"node {path!r}", state, adapter_shapes(self.base.facts, self.spec))
        for projection, adapters in self.adapters.items():
            for layer, adapter in enumerate(adapters):
                for factor, parameter in adapter.pairs[index].factors().items():
                    tensor = state[f"{projection}.{factor}"]
                    parameter.copy_(tensor[layer] if tensor.ndim > parameter.ndim else tensor)

    @torch.no_grad()
    def node_state(self, path: str) -> Tensors:
        """A copy of what is trained of a node: fp32, in main memory; zero beyond `limit_ranks`.

        Raises:
            SettingError: No adapter of this model belongs to `path`.
        """
        index, state = self._index(path), {}
        for name, shape in adapter_shapes(self.base.facts, self.spec).items():
            projection, _, factor = name.rpartition(".")
            layers: list[Tensor] = [adapter.pairs[index].factors()[factor] for adapter in self.adapters[projection]]
            is_stacked = len(shape) > layers[0].ndim
            state[name] = (torch.stack(layers) if is_stacked else layers[0].clone()).float().cpu()
        return apply_plan(state, self._plan)

    def _index(self, path: str) -> int:
        if path not in self.nodes:
            raise SettingError(f"node {path!r}: expected one of {self.nodes}")
        return self.nodes.index(path)

    # --- ranks -------------------------------------------------------------------------------------------------------

    def use_rank(self, rank: int | None) -> None:
        """Use the first `rank` rows of every adapter alone, from the next pass on; None is all of them.

        The scale stays: it belongs to the whole rank. An adapter of lower rank is used whole. Where the spec says that
        lower rows are frozen, row number `rank` alone gets a gradient.

        Raises:
            SettingError: Out of range.
        """
        if rank is not None and not 1 <= rank <= self.spec.rank:
            raise SettingError(f"rank {rank}: expected 1 to {self.spec.rank}, the rank of the adapters")
        self._rank = rank

    def limit_ranks(self, plan: RankPlan | None) -> None:
        """Neither use nor train rows beyond a plan, layer by layer, from the next pass on; None lifts all limits.

        What lies beyond is kept while the plan may change, as in a search; `node_state` gives zeros there.

        Raises:
            SettingError: The plan does not fit the base or the adapters, or they are tied.
        """
        check_plan(plan or {}, self.base.facts, self.spec)
        self._plan = dict(plan or {})
        for projection, adapters in self.adapters.items():
            ranks = self._plan.get(projection, [None] * len(adapters))
            for adapter, limit in zip(adapters, ranks, strict=True):
                adapter.limit = limit

    # --- routing -----------------------------------------------------------------------------------------------------

    def route_to(self, path: str | Sequence[str] | None) -> None:
        """Send every token to all adapters on the way to `path`, as an oracle would; None gives the choice back.

        Back to the router, or without one to the whole path that the model holds.

        Args:
            path: A node, or one for every row of the batches that follow.

        Raises:
            SettingError: No adapter of this model belongs to a path.
        """
        for each in (path,) if isinstance(path, str) else path or ():
            self._index(each)
        self.routed_to = path if path is None or isinstance(path, str) else tuple(path)
        if isinstance(path, str):
            self._fixed = Fixed(tuple(self._way_to(path)))
        elif path is not None:
            self._fixed = self._by_row(path)
        else:
            self._fixed = Fixed(tuple(range(len(self.nodes)))) if self.router is None else None

    def _way_to(self, path: str) -> list[int]:
        return [index for index, node in enumerate(self.nodes) if is_under(path, node)]

    def _by_row(self, paths: Sequence[str]) -> ByRow:
        """A list of nodes for each row; how many tokens each has is said by the pass."""
        ways = [self._way_to(path) for path in paths]
        width, device = max(map(len, ways), default=1), self.model.device
        nodes = torch.tensor([way + [0] * (width - len(way)) for way in ways], device=device)
        gates = torch.tensor([[[1.0] * len(way) + [0.0] * (width - len(way))] for way in ways], device=device)
        is_full = all(len(way) == width for way in ways)
        return ByRow(nodes, None if is_full else gates, 0, len(self.nodes))

    def _route(
        self, input_ids: Tensor, documents: Tensor | None, mask: Tensor | None, state: RouterState | None
    ) -> RouterState | None:
        """Set rank and routing of the pass that begins; returns the router's state after it."""
        if not self._is_attached:
            raise BaseModelError(f"{self.base.facts.base_id}: the adapters are detached; attach_adapters() comes first")
        self._shared.rank = self._rank
        if self._fixed is not None or self.router is None:
            self._shared.take(self._fixed_for(input_ids))
            return state
        where = self.router.start.device  # the model's own, except beside a device without float64
        routing, state = self.router(
            input_ids.to(where),
            documents=None if documents is None else documents.to(where),
            mask=None if mask is None else mask.to(where),
            state=state,
            policy=self.policy,
        )
        self._shared.take(routing.to(input_ids.device))
        return state

    def _fixed_for(self, input_ids: Tensor) -> Routing:
        if not isinstance(self._fixed, ByRow):
            return self._fixed or Fixed()
        n_rows, n_tokens = input_ids.shape
        if n_rows != len(self._fixed.nodes):
            raise SettingError(f"a batch of {n_rows} rows: route_to was given a node for {len(self._fixed.nodes)}")
        return replace(self._fixed, n_tokens=n_tokens)

    # --- passes ------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "TreeModel":
        """Set the mode of the router; the base stays in evaluation mode: dropout is no part of a frozen function."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        *,
        attention_mask: Tensor | None = None,
        documents: Int[Tensor, "batch token"] | None = None,
        past_key_values: Any = None,
        state: RouterState | None = None,
        use_cache: bool = False,
        last_only: bool = False,
    ) -> TreeOutput:
        """Route every token, then run the base with the adapters.

        Args:
            input_ids: New tokens; those in the cache are not repeated.
            attention_mask: 1 on tokens, 0 on padding; with a cache it covers the cached tokens too.
            documents: Number of the document that each token of a packed row belongs to.
            past_key_values: Cache of earlier passes. It comes with the `state` of the same pass: without it, routing
                begins anew.
            state: The router's, from the pass before.
            use_cache: Whether to return a cache.
            last_only: The logits of each row's last place are enough; bases that can leave the others out, do.

        Raises:
            BaseModelError: A cache is asked for, and the base has none of keys and values.
        """
        state = self._route(input_ids, documents, _last(attention_mask, input_ids), state)
        output = self.model(
            input_ids=input_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **self._mask_arguments(attention_mask, input_ids),
            **({"logits_to_keep": 1} if last_only and self._can_keep_logits else {}),
        )
        cache = output.get("past_key_values") if use_cache else None
        if use_cache and cache is None:
            raise BaseModelError(
                f"{self.base.facts.base_id}: this base keeps no cache of keys and values to go on from"
            )
        return TreeOutput(output.logits, cache, state)

    def _mask_arguments(self, attention_mask: Tensor | None, input_ids: Tensor) -> dict[str, Tensor]:
        """What the base needs to skip padding; nothing without a mask, which leaves it its fast path."""
        if attention_mask is None:
            return {}
        attention_mask = attention_mask.long()
        if not self._accepts_positions:
            return {"attention_mask": attention_mask}
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        return {"attention_mask": attention_mask, "position_ids": positions[:, -input_ids.shape[1] :]}

    def _before_head(
        self, input_ids: Tensor, mask: Tensor | None, documents: Tensor | None, state: RouterState | None
    ) -> tuple[Tensor, nn.Module, RouterState | None]:
        """Per token, what the head is applied to, and the head: the whole logits never exist where they need not."""
        if not self._has_plain_head:
            output = self.forward(input_ids, attention_mask=mask, documents=documents, state=state)
            return output.logits, nn.Identity(), output.state
        state = self._route(input_ids, documents, _last(mask, input_ids), state)
        arguments = self._mask_arguments(mask, input_ids)
        output = self.model.base_model(input_ids=input_ids, use_cache=False, **arguments)
        return output[0], self.model.get_output_embeddings(), state

    # --- losses ------------------------------------------------------------------------------------------------------

    def loss(
        self,
        input_ids: Int[Tensor, "batch token"],
        *,
        mask: Tensor | None = None,
        documents: Int[Tensor, "batch token"] | None = None,
        labels: Int[Tensor, "batch token"] | None = None,
        is_target: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of next tokens, in nats; 0 where there is none to predict.

        Args:
            input_ids: Windows of tokens.
            mask: True on tokens, False on padding, which is neither seen nor counted.
            documents: Number of the document that each token of a packed row belongs to.
            labels: What stands at each place when it is not `input_ids`; `IGNORED_LABEL` where nothing is to be
                predicted. The token at t is predicted from those before t.
            is_target: False on tokens that are seen, but not predicted; None predicts all.
        """
        with recomputing(self.base.blocks) if self._must_recompute() else nullcontext():
            rows, head, _ = self._before_head(input_ids, mask, documents, None)
        targets = targets_of(input_ids if labels is None else labels, mask, is_target)
        total = summed_nll(rows[:, :-1].flatten(0, 1), targets.flatten(), head, self._chunk_rows)
        return total / (targets != IGNORED_LABEL).sum().clamp(min=1)

    @torch.no_grad()
    def token_nll(
        self,
        input_ids: Int[Tensor, "batch token"],
        *,
        mask: Tensor | None = None,
        documents: Int[Tensor, "batch token"] | None = None,
        state: RouterState | None = None,
        is_target: Bool[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token-1"], RouterState | None]:
        """Negative log-likelihood of each token but the first, in nats; 0 on padding and on what is no target.

        The last token is predicted but not read: neither the base nor the router has seen it afterwards. So a long
        document is scored in windows that overlap by one token, [0..W], [W..2W], ..., handing the state on, and every
        token is predicted once and counted once.
        """
        rows, head, state = self._before_head(input_ids[:, :-1], _but_last(mask), _but_last(documents), state)
        chunks = zip(
            rows.flatten(0, 1).split(self._chunk_rows),
            targets_of(input_ids, mask, is_target).flatten().split(self._chunk_rows),
            strict=True,
        )
        found = torch.cat([nll(head(chunk), targets, "none") for chunk, targets in chunks])
        return found.view(len(input_ids), -1), state

    def _must_recompute(self) -> bool:
        return self.is_recomputing and torch.is_grad_enabled()

    @property
    def _chunk_rows(self) -> int:
        return max(64, _CHUNK_NUMBERS // len(self.model.get_input_embeddings().weight))

    # --- generating --------------------------------------------------------------------------------------------------

    def generate(self, input_ids: Int[Tensor, "batch token"], **options: Any) -> Int[Tensor, "batch total"]:
        """Continue prompts, routing every token that is read or written; see `generation.generate`."""
        return generate(self, input_ids, **options)


def _is_path(nodes: tuple[str, ...]) -> bool:
    """Whether each node lies below the one before it."""
    return all(is_under(lower, upper) and lower != upper for upper, lower in itertools.pairwise(nodes))


def _last(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
    """The mask of the new tokens alone, which is what the router reads."""
    return None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].bool()


def _but_last(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor[:, :-1]


def _check_shapes(what: str, state: Tensors, expected: dict[str, tuple[int, ...]]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(shapes.keys() | expected.keys()):
        wanted, got = (str(known.get(name, "no such tensor")) for known in (expected, shapes))
        if wanted != got:
            raise ShapeMismatch(f"{what}, tensor {name}: expected {wanted}, got {got}")
