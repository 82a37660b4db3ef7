import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.helpers import DIM, VOCAB, a_feature
from tinylora.routing.sketch import collect, document_features
from tinylora.routing.statistics import PREFIXES, statistics_of


def documents(lengths, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(VOCAB, size=length, dtype=np.int32) for length in lengths]


def plain_rows(table: np.ndarray, tokens: np.ndarray):
    """Rows of one document: prefixes that double, and as many further whole windows of 256 as their number's root."""
    if not len(tokens):
        return []
    doubling = [8 * 2**power for power in range(12) if 8 * 2**power <= len(tokens)] or [len(tokens)]
    rows = [(table[tokens[:n]].mean(axis=0), n) for n in doubling]
    windows = [tokens[start : start + 256] for start in range(256, len(tokens), 256)]
    windows = [window for window in windows if len(window) == 256]
    kept = int(len(windows) ** 0.5)
    places = [int(i * (len(windows) - 1) / (kept - 1)) for i in range(kept)] if kept > 1 else [0] * kept
    return rows + [(table[windows[place]].mean(axis=0), 256) for place in places]


@given(st.lists(st.sampled_from([0, 1, 7, 8, 9, 31, 64, 255, 256, 300, 512, 800, 2900]), min_size=1, max_size=12))
def test_rows_are_the_plain_ones(lengths):
    feature, texts = a_feature(), documents(lengths)
    rows = [row for text in texts for row in plain_rows(feature.table.double().numpy(), text)]
    found = collect(feature, texts)
    expected = statistics_of(
        np.array([row for row, _ in rows]).reshape(-1, DIM), np.array([n for _, n in rows], dtype=np.int64)
    )
    assert found.count.tolist() == expected.count.tolist()
    assert np.allclose(found.total, expected.total, atol=1e-4)
    assert np.allclose(found.scatter, expected.scatter, atol=1e-4)


def test_lists_and_arrays_are_the_same_and_no_document_is_nothing():
    feature, texts = a_feature(), documents([20, 300])
    listed, given_arrays = collect(feature, [text.tolist() for text in texts]), collect(feature, texts)
    assert np.array_equal(listed.scatter, given_arrays.scatter)
    assert collect(feature, []).n == 0 and collect(feature, []).dim == DIM


def test_a_sketch_is_the_same_twice():
    feature, texts = a_feature(), documents([700] * 20)
    assert np.array_equal(collect(feature, texts).scatter, collect(feature, texts).scatter)


def test_a_long_document_does_not_stand_for_its_leaf():
    """It has more rows than a short one, but not in proportion to its length."""
    feature = a_feature()
    short, long = (collect(feature, documents([length])).n for length in (256, 256 * 101))
    assert short == len(PREFIXES) and long < 5 * short


def test_document_features_are_means_over_whole_documents():
    feature, texts = a_feature(), documents([1, 900, 0])
    found = document_features(feature, texts)
    for text, row in zip(texts[:2], found, strict=False):
        assert np.allclose(row, feature.table[torch.from_numpy(text.astype(np.int64))].double().mean(dim=0).numpy())
    assert not found[2].any()
