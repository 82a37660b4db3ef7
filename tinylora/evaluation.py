"""Held-out loss of a model, document by document, and where its router sends them.

A document is scored from its first token to its last in windows that follow each other. The base sees one window at a
time; the router's state goes on from window to window, because a reader of the document would have read it all. Every
token but the first is predicted once and counted once: windows overlap by the one token that is predicted in the first
and read in the second.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylora.errors import DataError, SettingError
from tinylora.model import TreeModel
from tinylora.routing.policy import Policy, Router, RouterState
from tinylora.shards import Document
from tinylora.tree import NodePath

LATE_TOKENS = 32
"""Tokens predicted from at least so many others count as late: a router has had something to go by."""
ROUTED = {"soft": "soft", "top2": "top2", "hard": "hard", "elastic": "elastic", "sequence": "hard@sequence:32"}
"""Policies of the report: name in `routed:<name>` to what `Policy.parse` reads."""
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class DocumentScore:
    """How well a model predicted one document."""

    domain: str
    name: str
    nll_sum: float
    """Nats over all predicted tokens."""
    n_tokens: int
    """Predicted tokens: all but the first."""
    n_bytes: int
    """Bytes of text; where only the beginning was scored, the same share of the document's bytes as of its tokens."""
    nll_sum_late: float = 0.0
    """Nats over the tokens behind the first `LATE_TOKENS`."""
    n_tokens_late: int = 0


def score(
    model: TreeModel,
    documents: Sequence[Document],
    *,
    window_tokens: int,
    domain: str = "",
    max_tokens_per_document: int | None = None,
    batch_tokens: int = _BATCH_TOKENS,
) -> list[DocumentScore]:
    """Score documents under the model's current policy; results in the order of `documents`.

    Args:
        model: Routes as it is set to: by its policy, or to the node of `route_to`.
        documents: Tokenised texts.
        window_tokens: Tokens that are read at once; the base must be able to attend to so many.
        domain: Written into every score.
        max_tokens_per_document: Only the beginning of longer documents is scored.
        batch_tokens: Tokens of one forward pass. The result does not depend on it but for rounding.

    Raises:
        SettingError: The base cannot attend to `window_tokens`.
    """
    return score_domains(
        model,
        {domain: documents},
        window_tokens=window_tokens,
        max_tokens_per_document=max_tokens_per_document,
        batch_tokens=batch_tokens,
    )


def score_domains(
    model: TreeModel,
    heldout: Mapping[str, Sequence[Document]],
    *,
    window_tokens: int,
    max_tokens_per_document: int | None = None,
    batch_tokens: int = _BATCH_TOKENS,
) -> list[DocumentScore]:
    """Score the documents of several domains together, see `score`; results by domain, then in the order given."""
    longest = model.base.facts.max_window_tokens
    if not 1 <= window_tokens <= longest:
        raise SettingError(f"window of {window_tokens} tokens: this base can attend to 1 to {longest}")
    named = [(domain, document) for domain, documents in heldout.items() for document in documents]
    texts = [_beginning(document, max_tokens_per_document) for _, document in named]
    scores: list[DocumentScore | None] = [None] * len(named)
    for group in _groups(texts, max(1, batch_tokens // window_tokens)):
        for index, nll in zip(group, _nll_of(model, [texts[i] for i in group], window_tokens), strict=True):
            scores[index] = _as_score(*named[index], nll)
    return [item for item in scores if item is not None]


def _beginning(document: Document, n_tokens: int | None) -> Tensor:
    return torch.from_numpy(np.asarray(document.tokens[:n_tokens], dtype=np.int64))


def _as_score(domain: str, document: Document, nll: Tensor) -> DocumentScore:
    late = nll[LATE_TOKENS - 1 :]
    share = (len(nll) + 1) / max(1, len(document.tokens))
    return DocumentScore(
        domain=domain,
        name=document.name,
        nll_sum=float(nll.sum()),
        n_tokens=len(nll),
        n_bytes=round(document.n_bytes * min(1.0, share)),
        nll_sum_late=float(late.sum()),
        n_tokens_late=len(late),
    )


def _groups(texts: Sequence[Tensor], n_rows: int) -> Iterator[list[int]]:
    """Indices of documents that go through the model together, the longest first, so that neighbours end together."""
    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
    for start in range(0, len(order), n_rows):
        yield order[start : start + n_rows]


def _nll_of(model: TreeModel, texts: Sequence[Tensor], window_tokens: int) -> list[Tensor]:
    """Nats of every token but the first, in float64, for documents sorted from long to short."""
    device = next(iter(model.base.model.parameters())).device
    found: list[list[Tensor]] = [[] for _ in texts]
    state: RouterState | None = None
    for start in range(0, max(0, len(texts[0]) - 1), window_tokens):
        parts = [text[start : start + window_tokens + 1] for text in texts if len(text) - 1 > start]
        state = None if state is None else state.first(len(parts))
        nll, state = model.token_nll(_pad(parts).to(device), state=state)
        for row, part in enumerate(parts):
            found[row].append(nll[row, : len(part) - 1].double().cpu())
    return [torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64) for parts in found]


def _pad(parts: Sequence[Tensor]) -> Tensor:
    """One row per part, filled up on the right: nothing before the filling can see it, so no mask is needed."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


# --- systems ---------------------------------------------------------------------------------------------------------


def evaluate_tree(
    model: TreeModel,
    heldout: Mapping[str, Sequence[Document]],
    *,
    window_tokens: int,
    leaf_of: Mapping[str, NodePath] | None = None,
    policies: Mapping[str, str] = ROUTED,
    max_tokens_per_document: int | None = None,
) -> dict[str, list[DocumentScore]]:
    """Scores of the base, of the oracle and of the routed tree under every policy, all on the same documents.

    Args:
        model: A tree with a router; its policy is put back in the end.
        heldout: Documents by domain.
        window_tokens: Tokens that are read at once.
        leaf_of: The true leaf of each domain, for `oracle`; see `best_leaves` where a worker holds several domains.
        policies: Name in `routed:<name>` to policy.
        max_tokens_per_document: Only the beginning of longer documents is scored.

    Returns:
        Scores by system: `base`, `oracle`, `routed:soft`, ...
    """
    options = {"window_tokens": window_tokens, "max_tokens_per_document": max_tokens_per_document}
    scores = {"base": score_base(model, heldout, **options)}
    if leaf_of is not None:
        scores["oracle"] = score_leaves(model, heldout, leaf_of, **options)
    before = model.policy
    for name, text in policies.items():
        model.policy = Policy.parse(text)
        scores[f"routed:{name}"] = score_domains(model, heldout, **options)
    model.policy = before
    return scores


def score_base(model: TreeModel, heldout: Mapping[str, Sequence[Document]], **options: Any) -> list[DocumentScore]:
    """Scores of the base under a tree, which is taken off for so long; options as of `score_domains`."""
    model.detach_adapters()
    try:
        return score_domains(TreeModel(model.base, nodes=(), spec=model.spec, scale=model.scale), heldout, **options)
    finally:
        model.attach_adapters()


def score_leaves(
    model: TreeModel, heldout: Mapping[str, Sequence[Document]], leaf_of: Mapping[str, NodePath], **options: Any
) -> list[DocumentScore]:
    """Scores of each domain through one given leaf; options as of `score_domains`."""
    scores = []
    try:
        for domain, documents in heldout.items():
            model.route_to(leaf_of[domain])
            scores += score_domains(model, {domain: documents}, **options)
    finally:
        model.route_to(None)
    return scores


def best_leaves(
    model: TreeModel,
    validation: Mapping[str, Sequence[Document]],
    *,
    window_tokens: int,
    candidates: Mapping[str, Sequence[NodePath]] | None = None,
    max_tokens_per_document: int | None = None,
) -> dict[str, NodePath]:
    """For each domain the leaf that predicts its validation documents best: the oracle's choice.

    Choose on other documents than those that are scored: the best of several leaves is better by luck, too.

    Args:
        model: A tree.
        validation: Documents by domain.
        window_tokens: Tokens that are read at once.
        candidates: Leaves to choose from by domain, such as those of the subtree that its text was trained in; None is
            all leaves.
        max_tokens_per_document: Only the beginning of longer documents is read.
    """
    options = {"window_tokens": window_tokens, "max_tokens_per_document": max_tokens_per_document}
    found = {}
    for domain, documents in validation.items():
        leaves = list(candidates[domain]) if candidates is not None else list(model.nodes)
        losses = {}
        for leaf in leaves if len(leaves) > 1 else []:
            losses[leaf] = _nats_per_token(score_leaves(model, {domain: documents}, {domain: leaf}, **options))
        found[domain] = min(losses, key=lambda leaf: (losses[leaf], leaf)) if losses else leaves[0]
    return found


def _nats_per_token(scores: Sequence[DocumentScore]) -> float:
    n_tokens = sum(item.n_tokens for item in scores)
    if not n_tokens:
        raise DataError("evaluation: no validation document with at least two tokens; give it more text")
    return math.fsum(item.nll_sum for item in scores) / n_tokens


# --- routing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoutingTable:
    """Where the tokens of each domain go."""

    leaves: list[NodePath]
    leaf_of: dict[str, NodePath]
    """True leaf of each domain."""
    posterior: dict[str, list[float]]
    """Mean posterior of each leaf over the domain's tokens."""
    accuracy: dict[str, float]
    """Share of the domain's tokens that hard gates send to its leaf."""

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


@torch.no_grad()
def routing_table(
    router: Router,
    heldout: Mapping[str, Sequence[Document]],
    leaf_of: Mapping[str, NodePath],
    *,
    max_tokens_per_document: int | None = None,
) -> RoutingTable:
    """Mean posteriors and hard accuracy over all tokens, each read from its document's start.

    Args:
        router: Of a tree whose leaves carry the adapters.
        heldout: Documents by domain.
        leaf_of: True leaf of each domain.
        max_tokens_per_document: Only the beginning of longer documents is read.
    """
    leaves = list(router.topology.leaves)
    posterior, accuracy = {}, {}
    for domain, documents in heldout.items():
        texts = [_beginning(document, max_tokens_per_document) for document in documents if len(document.tokens)]
        soft, hard = zip(*(_decisions(router, text) for text in texts), strict=True)
        order = [router.nodes.index(leaf) for leaf in leaves]
        posterior[domain] = torch.cat(soft).mean(dim=0)[order].tolist()
        accuracy[domain] = torch.cat(hard)[:, router.nodes.index(leaf_of[domain])].mean().item()
    return RoutingTable(leaves, {domain: leaf_of[domain] for domain in heldout}, posterior, accuracy)


def _decisions(router: Router, text: Tensor) -> tuple[Tensor, Tensor]:
    """Soft and hard weights of the nodes at every token of a document."""
    means, _, _ = router.feature(text[None].to(router.tau.device))
    scores = router.scores(means)
    soft, hard = (router.decide(scores, Policy(decision))[0].double().cpu() for decision in ("soft", "hard"))
    return soft, hard
