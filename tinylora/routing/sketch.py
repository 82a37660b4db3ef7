"""Documents to statistics: what a worker's text looks like to the gates."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64

from tinylora.routing.features import RoutingFeature
from tinylora.routing.statistics import PREFIXES, RouterStatistics, statistics_of

WINDOW_TOKENS = PREFIXES[-1]
_BATCH_WINDOWS = 32
Tokens: TypeAlias = Sequence[int] | np.ndarray
_Sample: TypeAlias = tuple[np.ndarray, list[int]]
"""Tokens of one window, and after how many of them its running mean is a row."""


def collect(feature: RoutingFeature, documents: Sequence[Tokens]) -> RouterStatistics:
    """Sums over rows of the running mean.

    The rows of a document are its mean after 8, 16, ... 256 tokens from its start, or after its last token if it has
    fewer than 8; and the mean of every further whole window of 256 tokens, so that long documents say more than how
    they begin. The gates need both: starts for short prefixes, windows for long ones.

    Args:
        feature: Tokens to features.
        documents: Token ids of each; empty ones have no rows.
    """
    total = RouterStatistics.zero(feature.dim)
    batch: list[_Sample] = []
    for sample in _samples(documents):
        batch.append(sample)
        if len(batch) == _BATCH_WINDOWS:
            total, batch = total + _sum(feature, batch), []
    return total + _sum(feature, batch) if batch else total


def _samples(documents: Sequence[Tokens]) -> Iterator[_Sample]:
    for document in documents:
        tokens = np.asarray(document, dtype=np.int64)
        if not len(tokens):
            continue
        lengths = [length for length in PREFIXES if length <= len(tokens)]
        yield tokens[:WINDOW_TOKENS], lengths or [len(tokens)]
        for start in range(WINDOW_TOKENS, len(tokens) - WINDOW_TOKENS + 1, WINDOW_TOKENS):
            yield tokens[start : start + WINDOW_TOKENS], [WINDOW_TOKENS]


@torch.no_grad()
def _sum(feature: RoutingFeature, batch: Sequence[_Sample]) -> RouterStatistics:
    rows = [torch.from_numpy(tokens) for tokens, _ in batch]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(feature.table.device)
    means = feature(ids)[0]  # filled up on the right, where no row is taken
    taken = [(row, length) for row, (_, lengths) in enumerate(batch) for length in lengths]
    index = torch.tensor(taken, device=means.device)
    features = means[index[:, 0], index[:, 1] - 1].double().cpu().numpy()
    return statistics_of(features, np.array([length for _, length in taken]))


@torch.no_grad()
def document_features(feature: RoutingFeature, documents: Sequence[Tokens]) -> Float64[np.ndarray, "document feature"]:
    """The feature of each document as a whole: the mean over all its tokens; zeros for an empty one."""
    found = np.zeros((len(documents), feature.dim))
    for index, document in enumerate(documents):
        if len(document):
            ids = torch.from_numpy(np.asarray(document, dtype=np.int64)).to(feature.table.device)
            found[index] = feature.table[ids].double().mean(dim=0).cpu().numpy()
    return found
