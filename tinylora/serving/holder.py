"""What one process holds: the base, the adapters of some leaves, and the router of the whole tree.

The router lies in main memory in every process, whatever the device, so that all of them decide by the same numbers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tinylora.base_model import LoadedBase, load_base
from tinylora.bundle import Bundle, check_base, read_bundle
from tinylora.errors import DataError, SettingError, TinyLoraError
from tinylora.generation import continue_prompts, left_pad
from tinylora.model import TreeModel
from tinylora.routing.features import RoutingFeature
from tinylora.routing.policy import Policy, Router
from tinylora.routing.ways import posterior_of
from tinylora.serving.plan import Way, batches
from tinylora.training.out_of_memory import give_memory_back
from tinylora.tree import NodePath, Topology, by_level, is_under

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": None}
_ROUTED_AT_ONCE = 256


class LeafHolder:
    """A part of a tree on its base.

    Args:
        base: The base, on its device. It carries the adapters from now on.
        bundle: With the adapters on the way to the leaves, at least; others are left out.
        leaves: Those that are held.
    """

    def __init__(self, base: LoadedBase, bundle: Bundle, leaves: Sequence[NodePath]) -> None:
        self.leaves = tuple(leaves)
        nodes = held_nodes(bundle.topology, leaves, bundle.nodes)
        feature = _feature_in_main_memory(base, bundle)
        self._everywhere = Router(feature, bundle.gates, bundle.topology, bundle.topology.nodes)
        self.model = TreeModel(
            base,
            nodes=nodes,
            spec=bundle.spec,
            scale=bundle.scale,
            router=Router(feature, bundle.gates, bundle.topology, nodes),
            policy=Policy.parse(bundle.policy),
            shared=bundle.shared,
        )
        for path in nodes:
            if path in bundle.nodes:
                self.model.load_node(path, bundle.nodes[path])
        self.n_adapter_bytes = sum(t.nbytes for path in nodes for t in bundle.nodes.get(path, {}).values())
        """Of the adapters in the bundle's file."""

    @classmethod
    def open(
        cls,
        file: Path,
        base_where: str,
        *,
        device: str,
        leaves: Sequence[NodePath],
        dtype: str = "fp32",
        quantise: str | None = None,
        verify: bool = True,
    ) -> "LeafHolder":
        """Read these leaves of a bundle, and load its base.

        Args:
            file: The bundle.
            base_where: Folder of the base, or its hub id.
            device: As a device map names it.
            leaves: Those to hold.
            dtype: Of the base: "fp32", "bf16", "fp16", or "auto" for the one it is stored in.
            quantise: As in `load_base`.
            verify: Whether to check the numbers that are read against their sums.

        Raises:
            BundleError: The file is not a sound bundle.
            BaseModelError: The base cannot be loaded, or the bundle belongs to another one.
            SettingError: There is no such device here.
        """
        check_device(device)
        bundle = read_bundle(file, leaves=leaves, verify=verify)
        where = torch.device("cpu") if device.startswith("cpu") else torch.device(device)
        base = load_base(
            base_where, dtype=DTYPES[dtype], quantise=quantise, device=where, feature_dim=bundle.base.feature_dim
        )
        check_base(bundle, base.facts)
        return cls(base, bundle, leaves)

    @property
    def told(self) -> dict[str, Any]:
        """What is here, for the parent."""
        return {"nodes": list(self.model.nodes), "adapter_bytes": self.n_adapter_bytes}

    @property
    def policy(self) -> Policy:
        """How the gates decide."""
        return self.model.policy

    def use(self, policy: str) -> None:
        """Decide by another policy from now on.

        Raises:
            SettingError: The text names no policy.
        """
        self.model.policy = Policy.parse(policy)

    def give_memory_back(self) -> None:
        """Give what nothing holds any more back to the device."""
        give_memory_back()

    # --- what it is asked for ----------------------------------------------------------------------------------------

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        vocabulary = len(self.model.base.model.get_input_embeddings().weight)
        wrong = next((token for row in rows for token in row if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise DataError(f"token {wrong}: this base has tokens 0 to {vocabulary - 1}")

    @torch.no_grad()
    def route(self, rows: Sequence[Sequence[int]]) -> list[Way]:
        """The path of every row by the gates of the whole tree, and how probable it is; rows are all long enough.

        Raises:
            DataError: A token is none of the base's.
        """
        self._check(rows)
        return [
            way for start in range(0, len(rows), _ROUTED_AT_ONCE) for way in self._ways(rows[start:][:_ROUTED_AT_ONCE])
        ]

    def _ways(self, rows: Sequence[Sequence[int]]) -> list[Way]:
        router, policy = self._everywhere, self.policy
        ids = torch.tensor([list(row[: policy.size]) for row in rows])
        _, state = router(ids, policy=policy)
        weights = state.held.dense(len(router.nodes)).tolist()
        features, _, _ = router.feature(ids)
        gates, found = router.gates(), []
        for own, feature in zip(weights, features[:, -1].double().numpy(), strict=True):
            path = max((node for node, weight in zip(router.nodes, own, strict=True) if weight > 0), key=len)
            shares = posterior_of(gates, feature)
            found.append((path, min(1.0, sum(share for leaf, share in shares.items() if is_under(leaf, path)))))
        return found

    def generate(
        self,
        rows: Sequence[Sequence[int]],
        *,
        limits: Sequence[int],
        n_begun: Sequence[int],
        seeds: Sequence[int | None],
        batch_size: int,
        **options: Any,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Continue every row, row by row as batches are done: a row's index, its new tokens, text, and what ended it.

        Args:
            rows: Prompts, and what was added to them before.
            limits: As `max_new_tokens` of `continue_prompts`, as the others are.
            n_begun: How much was added before.
            seeds: Of the draws.
            batch_size: Rows that go through the base together.
            **options: Of `continue_prompts`.

        Raises:
            SettingError: As `continue_prompts` does.
            DataError: A token is none of the base's.
        """
        self._check(rows)
        for batch in batches([len(row) for row in rows], limits, batch_size):
            own = [seeds[index] for index in batch]
            found = continue_prompts(
                self.model,
                [rows[index] for index in batch],
                max_new_tokens=[limits[index] for index in batch],
                n_begun=[n_begun[index] for index in batch],
                seed=None if None in own else [seed for seed in own if seed is not None],
                **options,
            )
            for index, row in zip(batch, found, strict=True):
                yield index, {"tokens": row.tokens, "text": row.text, "finish": row.finish}

    def score(self, rows: Sequence[Sequence[int]], *, batch_size: int) -> Iterator[tuple[int, list[float]]]:
        """Negative log-likelihood of every token but the first, in nats, row by row as batches are done.

        Raises:
            SettingError: A row is longer than the base's window.
            DataError: A token is none of the base's.
        """
        self._check(rows)
        window = self.model.base.facts.max_window_tokens
        longest = max((len(row) for row in rows), default=0)
        if longest > window:
            raise SettingError(f"row of {longest} tokens: this base attends to {window} at most; cut it")
        yield from ((index, []) for index, row in enumerate(rows) if len(row) < 2)
        long = [index for index, row in enumerate(rows) if len(row) >= 2]
        lengths = [len(rows[index]) for index in long]
        for batch in batches(lengths, lengths, batch_size):
            some = [long[position] for position in batch]
            ids, mask = left_pad([rows[index] for index in some])
            device = self.model.model.device
            found, _ = self.model.token_nll(ids.to(device), mask=mask.bool().to(device))
            for index, values in zip(some, found.float().cpu(), strict=True):
                yield index, values[1 - len(rows[index]) :].tolist()


def held_nodes(topology: Topology, leaves: Sequence[NodePath], trained: Sequence[NodePath] | Any) -> tuple[str, ...]:
    """Nodes that a process with these leaves has an adapter of: the leaves, and what was trained above them."""
    above = {node for node in trained if any(is_under(leaf, node) for leaf in leaves)}
    return by_level({*(leaf for leaf in topology.leaves if leaf in leaves), *above})


def check_device(device: str) -> None:
    """Check that torch has this device here.

    Raises:
        SettingError: It has not.
    """
    if device.startswith("cpu"):
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise SettingError(f"device {device}: torch cannot use it here ({first_line}); name another device") from None


def _feature_in_main_memory(base: LoadedBase, bundle: Bundle) -> RoutingFeature:
    table = base.model.get_input_embeddings().weight.detach().cpu()
    feature = RoutingFeature.from_embeddings(table, dim=bundle.base.feature_dim)
    if feature.hash != bundle.base.feature_hash:
        raise TinyLoraError(f"routing feature {feature.hash[:12]}: the bundle needs {bundle.base.feature_hash[:12]}")
    return feature
