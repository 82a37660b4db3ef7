"""The way of a text through a bundle's tree, without the base in memory: its tokenizer and one tensor are enough.

    router = TextRouter.open(Path("bundle.safetensors"), "path/to/base")
    way = router.way("Once upon a time")       # way.path, way.gates, way.posterior, way.data_notes

Of the bundle the header, the gates and the projection are read, of the base the tokenizer and the table of input
embeddings, which is mapped and not copied. A routing feature is linear in the embeddings, so the mean is taken first
and projected once: a text costs as many rows as it has different tokens.

That the base is the bundle's own is judged by its tokenizer and by the hash of the routing feature. Two bases of one
tokenizer and one width look alike to these; `check_base` compares the fingerprint over all weights, which reads them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinylora import base_model, fingerprints
from tinylora import bundle as bundles
from tinylora.bundle import Bundle
from tinylora.config import BaseFacts
from tinylora.errors import BaseModelError, DataError
from tinylora.routing.decision import Policy
from tinylora.routing.features import feature_hash, table_moments, token_signs
from tinylora.routing.gates import Gates
from tinylora.routing.ways import GatePass, likeliest, mean_row, n_deciding, posterior_of, way_of, weights_of
from tinylora.tree import NodePath, Topology, is_under

_EVERY_TOKEN = Policy("hard")


@dataclass(frozen=True)
class Way:
    """Where a text belongs."""

    path: NodePath
    """The leaf of hard decisions; empty where the tree is one leaf, or nothing was decided yet."""
    gates: tuple[GatePass, ...]
    """From the root down."""
    posterior: dict[NodePath, float]
    """Of every leaf, the most probable one first; empty where nothing was decided yet."""
    weights: dict[NodePath, float]
    """What the policy makes of it."""
    n_tokens: int
    data_notes: Mapping[NodePath, tuple[str, ...]] = field(default_factory=dict)
    """What the workers of each leaf said of their text."""


class EmbeddingMean:
    """Routing features of whole texts from the table of input embeddings, as `RoutingFeature` has them token by token.

    Args:
        embeddings: The base's table, in any dtype. Mean and spread are taken at once, in one pass over it.
        projection: P, where the embeddings are wider than the feature.
        n_signs: Numbers of the feature that are random signs of the token.
    """

    def __init__(
        self,
        embeddings: Float[Tensor, "vocab embed"],
        projection: Float[Tensor, "projected embed"] | None = None,
        *,
        n_signs: int = 0,
    ) -> None:
        self._embeddings, self._projection = embeddings, None if projection is None else projection.double()
        self._centre, self._scale = table_moments(embeddings)
        self._signs = token_signs(len(embeddings), n_signs).numpy()

    def at_end(self, ids: Sequence[int]) -> Float[np.ndarray, " feature"]:
        """The feature at the end of a document of at least one token.

        Raises:
            DataError: A token is not in the table, or there is none.
        """
        n_known = len(self._embeddings)
        if not ids or min(ids) < 0 or max(ids) >= n_known:
            wrong = next((f"token {token}" for token in ids if not 0 <= token < n_known), "no tokens")
            raise DataError(f"text: expected tokens from 0 to {n_known - 1}, got {wrong}")
        tokens, counts = torch.tensor(ids).unique(return_counts=True)
        mean = counts.double() @ self._embeddings[tokens].double() / len(ids)
        centred = (mean - self._centre) * self._scale
        seen = centred if self._projection is None else self._projection @ centred
        return np.concatenate([seen.numpy(), mean_row(self._signs, ids)])


class TextRouter:
    """Routes texts by the gates of one bundle. It may be used by one thread at a time, as its tokenizer.

    Args:
        tokenizer: The base's, as transformers loads it.
        feature: Of the base.
        gates: Of the bundle.
        topology: Of the bundle.
        trained: Nodes that have an adapter.
        data_notes: By leaf.
        base_id: Name of the base.
    """

    def __init__(
        self,
        tokenizer: Any,
        feature: EmbeddingMean,
        gates: Gates,
        topology: Topology,
        *,
        trained: Collection[NodePath] = (),
        data_notes: Mapping[NodePath, tuple[str, ...]] | None = None,
        base_id: str = "",
    ) -> None:
        self.tokenizer, self.topology, self.data_notes = tokenizer, topology, dict(data_notes or {})
        self.trained_leaves = tuple(leaf for leaf in topology.leaves if any(is_under(leaf, node) for node in trained))
        """Leaves that somebody trained, or a node above them: the others are the base itself."""
        self.base_id, self._feature, self._gates = base_id, feature, gates
        self._begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    @classmethod
    def open(cls, file: Path, base_where: str | Path, *, check_base: bool = False) -> "TextRouter":
        """Of a bundle's file and a base on this machine.

        Args:
            file: The bundle.
            base_where: Folder of the base, or its hub id where the local cache has it.
            check_base: Whether to compare the fingerprint over all weights of the base, too.

        Raises:
            BundleError: The file is not a sound bundle.
            BaseModelError: The base is not on this machine, or is another one than the bundle's.
        """
        bundle, told = bundles.read_bundle(file, leaves=()), bundles.inspect(file)
        tokenizer = base_model.load_tokenizer(base_where)
        _check_tokenizer(bundle.base, tokenizer)
        if check_base:
            _check_weights(bundle.base, base_where)
        embeddings = base_model.load_embeddings(base_where)
        feature = EmbeddingMean(embeddings, bundle.projection, n_signs=_n_signs(bundle, embeddings.shape[1]))
        return cls(
            tokenizer, feature, bundle.gates, bundle.topology, trained=told["nodes"], data_notes=bundle.data_notes,
            base_id=bundle.base.base_id,
        )  # fmt: skip

    def ids_of(self, text: str) -> list[int]:
        """Tokens of a text as a model reads it that is to go on with it: nothing behind it; markup is text."""
        (ids,) = base_model.encode_plain(self.tokenizer, [text.encode(errors="replace").decode()])
        return [*self._begin, *ids]

    def ids_of_chat(self, messages: Sequence[Mapping[str, str]], *, max_chars: int) -> list[int]:
        """Tokens of a conversation that asks for an answer; of a longer one those of its beginning.

        As the tokenizer's chat template writes it; without one, or where it refuses, the messages' texts line by line.

        Args:
            messages: Each with `role` and `content`.
            max_chars: Characters that are looked at.
        """
        plain = "\n".join(message["content"] for message in messages)[:max_chars]
        if not getattr(self.tokenizer, "chat_template", None):
            return self.ids_of(plain)
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception:  # jinja's own, and whatever a template makes of odd input
            return self.ids_of(plain)
        written = text[:max_chars].encode(errors="replace").decode()
        return self.tokenizer(written, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def way(self, text: str, policy: Policy = _EVERY_TOKEN) -> Way:
        """The way of a text, by what is decided at its end."""
        return self.way_of_ids(self.ids_of(text), policy)

    def way_of_ids(self, ids: Sequence[int], policy: Policy = _EVERY_TOKEN) -> Way:
        """The way of a text in tokens.

        Raises:
            DataError: A token is none of the base's.
        """
        n_read = n_deciding(policy, len(ids))
        if n_read is None:
            return Way("", (), {}, {}, len(ids), self.data_notes)
        feature = self._feature.at_end(ids[:n_read])
        passes, posterior = way_of(self._gates, feature), posterior_of(self._gates, feature)
        path = "".join(step.went for step in passes)
        ordered = {leaf: posterior[leaf] for leaf in likeliest(posterior)}
        return Way(path, passes, ordered, weights_of(ordered, path, policy), len(ids), self.data_notes)


def _n_signs(bundle: Bundle, embed_dim: int) -> int:
    """Numbers of the bundle's routing feature that are signs, if it is a feature of these embeddings."""
    dim = bundle.base.feature_dim
    if feature_hash(bundle.projection, embed_dim, dim) != bundle.base.feature_hash:
        raise BaseModelError(
            f"the bundle of run {bundle.run} routes by features of {bundle.base.base_id}, whose embeddings are not "
            f"{embed_dim} wide; name the base that the bundle was trained on"
        )
    return max(0, dim - embed_dim)


def _check_tokenizer(needed: BaseFacts, tokenizer: Any) -> None:
    found = fingerprints.of_tokenizer(tokenizer)
    if found != needed.tokenizer_fingerprint:
        raise BaseModelError(
            f"the bundle needs the tokenizer of {needed.base_id} ({needed.tokenizer_fingerprint[:12]}), got another "
            f"one ({found[:12]}); name the base that the bundle was trained on"
        )


def _check_weights(needed: BaseFacts, where: str | Path) -> None:
    found = base_model.fingerprint_of(where)
    if found != needed.fingerprint:
        raise BaseModelError(
            f"the bundle needs the base {needed.base_id} (fingerprint {needed.fingerprint[:12]}), got {where} "
            f"({found[:12]}); name the base that the bundle was trained on"
        )


# --- for people and programs -----------------------------------------------------------------------------------------


def report(way: Way, policy: Policy, *, n_leaves: int) -> dict[str, Any]:
    """One JSON document; of the leaves at most so many, the most probable ones."""
    shown = list(way.posterior.items())[:n_leaves]
    return {
        "path": way.path if way.posterior else None,
        "policy": str(policy),
        "n_tokens": way.n_tokens,
        "gates": [{"node": step.node, "right": step.right, "went": step.went} for step in way.gates],
        "weights": way.weights,
        "leaves": [
            {"leaf": leaf, "posterior": share, "data_notes": list(way.data_notes.get(leaf, ()))}
            for leaf, share in shown
        ],
        "n_leaves": len(way.posterior),
    }


def report_lines(found: Mapping[str, Any]) -> list[str]:
    """The same in words."""
    if found["path"] is None:
        return [f"{found['n_tokens']} tokens: too few for a decision by {found['policy']}, so the base goes on alone"]
    lines = [f"leaf {_name(found['path'])}, of {found['n_tokens']} tokens"]
    for gate in found["gates"]:
        side = "right" if gate["went"] == "1" else "left"
        lines.append(f"  gate {_name(gate['node']):<8} right {gate['right']:.4f}  goes {side}")
    for row in found["leaves"]:
        notes = "; ".join(row["data_notes"])
        lines.append(f"  leaf {_name(row['leaf']):<8} {row['posterior']:7.2%}" + (f"  {notes}" if notes else ""))
    if len(found["leaves"]) < found["n_leaves"]:
        lines.append(f"  and {found['n_leaves'] - len(found['leaves'])} leaves less probable")
    if found["policy"].partition("@")[0] != "hard":
        parts = ", ".join(f"{_name(node)} {weight:.2%}" for node, weight in list(found["weights"].items())[:8])
        lines.append(f"  {found['policy']}: {parts}")
    return lines


def _name(path: NodePath) -> str:
    return path or "root"
