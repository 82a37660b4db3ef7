"""Documents to statistics: what a worker's text looks like to the gates."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64

from tinylora.routing.features import RoutingFeature
from tinylora.routing.statistics import PREFIXES, RouterStatistics, statistics_of

WINDOW_TOKENS = PREFIXES[-1]
MAX_PREFIX_TOKENS = 2**16
"""Longest prefix that is a row: a running mean hardly moves any more by then."""
LONG_TOKENS = 128
"""From here on a prefix says more of its text than of the words that it happens to begin with."""
RIDGE = 0.01
_BATCH_WINDOWS = 32
_BATCH_DOCUMENTS = 32
Tokens: TypeAlias = Sequence[int] | np.ndarray
_Rows: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Running means, and of how many tokens each is the mean."""
_Sample: TypeAlias = tuple[np.ndarray, list[int]]
"""Tokens of one window, and after how many of them its running mean is a row."""


def collect(feature: RoutingFeature, documents: Sequence[Tokens]) -> RouterStatistics:
    """Sums over rows of the running mean.

    The rows of a document are its mean after 8, 16, 32, ... tokens from its start, as far as it goes, or after its last
    token if it has fewer than 8: what the gates will meet. Of its further whole windows of 256 tokens as many as the
    square root of their number are rows, too, evenly spaced. Were all of them, a few long documents would stand for
    their leaf: that cost half of what routing now keeps (docs/log.md).

    Args:
        feature: Tokens to features.
        documents: Token ids of each; empty ones have no rows.
    """
    return sketch(feature, documents)[0]


def sketch(feature: RoutingFeature, documents: Sequence[Tokens]) -> tuple[RouterStatistics, float | None]:
    """`collect`, and how much room the texts take up beside each other: see `log_volume`.

    Args:
        feature: Tokens to features.
        documents: Token ids of each; empty ones have no rows.
    """
    total, long = RouterStatistics.zero(feature.dim), RouterStatistics.zero(feature.dim)
    for rows, n_tokens in chain(_window_rows(feature, documents), _late_rows(feature, documents)):
        is_long = n_tokens >= LONG_TOKENS
        total, long = total + statistics_of(rows, n_tokens), long + statistics_of(rows[is_long], n_tokens[is_long])
    return total, log_volume(long)


def log_volume(statistics: RouterStatistics) -> float | None:
    """Logarithm of the volume that rows take up: log det of their covariance, with a ridge of 1 % of its mean variance.

    Of rows of long prefixes, where what is left of the scatter lies between texts and not between their words, it tells
    a shard that mixes kinds of text from one that does not. None for fewer than two rows, or rows that are all alike.

    Args:
        statistics: Sums over the rows.
    """
    covariance = statistics.covariance()
    ridge = RIDGE * float(np.trace(covariance)) / statistics.dim
    if statistics.n < 2 or ridge <= 0:
        return None
    return float(np.linalg.slogdet(covariance + ridge * np.eye(statistics.dim))[1])


def _window_rows(feature: RoutingFeature, documents: Sequence[Tokens]) -> Iterator[_Rows]:
    samples = _samples(documents)
    while batch := list(islice(samples, _BATCH_WINDOWS)):
        yield _read(feature, batch)


def _samples(documents: Sequence[Tokens]) -> Iterator[_Sample]:
    """The start of each document, and some of the windows behind it."""
    for document in documents:
        tokens = np.asarray(document, dtype=np.int64)
        if not len(tokens):
            continue
        lengths = [length for length in PREFIXES if length <= len(tokens)]
        yield tokens[:WINDOW_TOKENS], lengths or [len(tokens)]
        for number in _evenly_spaced(len(tokens) // WINDOW_TOKENS - 1):
            yield tokens[(number + 1) * WINDOW_TOKENS : (number + 2) * WINDOW_TOKENS], [WINDOW_TOKENS]


def _evenly_spaced(n: int) -> list[int]:
    """As many of the numbers below `n` as its square root, the first one and the last among them."""
    n_kept = math.isqrt(max(0, n))
    return [index * (n - 1) // max(1, n_kept - 1) for index in range(n_kept)]


@torch.no_grad()
def _read(feature: RoutingFeature, batch: Sequence[_Sample]) -> _Rows:
    rows = [torch.from_numpy(tokens) for tokens, _ in batch]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(feature.table.device)
    means = feature(ids)[0]  # filled up on the right, where no row is taken
    taken = [(row, length) for row, (_, lengths) in enumerate(batch) for length in lengths]
    index = torch.tensor(taken, device=means.device)
    return means[index[:, 0], index[:, 1] - 1].double().cpu().numpy(), index[:, 1].cpu().numpy()


def _late_rows(feature: RoutingFeature, documents: Sequence[Tokens]) -> Iterator[_Rows]:
    """Means after 512, 1024, ... tokens of the documents that are so long."""
    long = (document for document in documents if len(document) >= 2 * WINDOW_TOKENS)
    while batch := list(islice(long, _BATCH_DOCUMENTS)):
        rows = [row for document in batch for row in _doubled(feature, document)]
        yield np.stack([mean for mean, _ in rows]), np.array([n_tokens for _, n_tokens in rows])


@torch.no_grad()
def _doubled(feature: RoutingFeature, document: Tokens) -> Iterator[tuple[np.ndarray, int]]:
    """Each mean from the sum behind the one before it."""
    ids = torch.from_numpy(np.asarray(document[:MAX_PREFIX_TOKENS], dtype=np.int64)).to(feature.table.device)
    length = WINDOW_TOKENS
    total = feature.table[ids[:length]].double().sum(dim=0)
    while 2 * length <= len(ids):
        total = total + feature.table[ids[length : 2 * length]].double().sum(dim=0)
        length *= 2
        yield (total / length).cpu().numpy(), length


@torch.no_grad()
def document_features(feature: RoutingFeature, documents: Sequence[Tokens]) -> Float64[np.ndarray, "document feature"]:
    """The feature of each document as a whole: the mean over all its tokens; zeros for an empty one."""
    found = np.zeros((len(documents), feature.dim))
    for index, document in enumerate(documents):
        if len(document):
            ids = torch.from_numpy(np.asarray(document, dtype=np.int64)).to(feature.table.device)
            found[index] = feature.table[ids].double().mean(dim=0).cpu().numpy()
    return found
