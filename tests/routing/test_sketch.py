import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.helpers import DIM, VOCAB, a_feature
from tinylora.routing.sketch import collect, document_features, log_volume, sketch
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


# --- room ------------------------------------------------------------------------------------------------------------


def _kind(words: range, n: int, seed: int, length: int = 400) -> list[np.ndarray]:
    """Texts over some of the words, each with its own taste among them."""
    generator = np.random.default_rng(seed)
    tastes = [generator.dirichlet(np.ones(len(words))) for _ in range(n)]
    return [generator.choice(words, size=length, p=taste).astype(np.int32) for taste in tastes]


def room(feature, texts) -> float:
    found = sketch(feature, texts)[1]
    assert found is not None
    return found


def test_a_mixed_shard_takes_up_more_room_than_its_kinds_at_equal_size():
    feature = a_feature()
    one, other = _kind(range(VOCAB // 2), 40, 1), _kind(range(VOCAB // 2, VOCAB), 40, 2)
    rooms = [room(feature, texts) for texts in (one, other, [*one[:20], *other[:20]])]
    assert rooms[2] > max(rooms[:2])


def test_room_is_that_of_long_prefixes_alone():
    feature, texts = a_feature(), _kind(range(VOCAB), 30, 3)
    rows = np.array([row for text in texts for row, n in plain_rows(feature.table.double().numpy(), text) if n >= 128])
    centred = rows - rows.mean(axis=0)
    covariance = centred.T @ centred / len(rows)
    expected = np.linalg.slogdet(covariance + 0.01 * np.trace(covariance) / DIM * np.eye(DIM))[1]
    assert np.isclose(room(feature, texts), expected, atol=1e-3)


def test_texts_without_long_prefixes_take_up_no_known_room():
    feature = a_feature()
    assert sketch(feature, [])[1] is None
    assert sketch(feature, documents([100] * 20))[1] is None
    assert sketch(feature, [np.zeros(400, dtype=np.int32)] * 3)[1] is None
    assert log_volume(statistics_of(np.ones((2, DIM)), np.array([256, 256]))) is None
