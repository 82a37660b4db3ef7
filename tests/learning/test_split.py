"""Who gets which document: balance, kinds kept together, determinism, the nearest quarter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.learning.units import base, documents
from tinylora.errors import DataError
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.sketch import document_features
from tinylora.shards import Document
from tinylora.training.split import PIECE_TOKENS, by_gates, deal, nearest, pieces
from tinylora.tree import Topology


def _documents(*sizes):
    return [Document(f"d{i}", np.arange(size, dtype=np.int32), 3 * size) for i, size in enumerate(sizes)]


@given(st.integers(8, 60), st.integers(0, 100), st.sampled_from([("0", "1"), ("0", "10", "11"), ("00", "01", "1")]))
def test_every_leaf_gets_text_and_halves_are_balanced(n, seed, leaves):
    random = np.random.default_rng(seed)
    features, sizes = random.normal(size=(n, 5)), random.integers(50, 60, size=n)
    leaf_of = deal(features, sizes, Topology(leaves))
    assert set(leaf_of) == set(leaves)
    right = sum(size for size, leaf in zip(sizes, leaf_of, strict=True) if leaf.startswith("1"))
    assert abs(right - sizes.sum() / 2) <= 60
    assert deal(features, sizes, Topology(leaves)) == leaf_of


def test_kinds_stay_together():
    kinds = ["letters", "digits", "signs", "capitals"]
    found = [document for kind in kinds for document in documents(kind, 10)]
    features = document_features(base().routing_feature, [document.tokens for document in found])
    leaf_of = deal(features, np.full(len(found), 100), Topology.perfect(2))
    leaves_of_kinds = [set(leaf_of[start : start + 10]) for start in range(0, 40, 10)]
    assert [len(leaves) for leaves in leaves_of_kinds] == [1, 1, 1, 1]
    assert set.union(*leaves_of_kinds) == {"00", "01", "10", "11"}


def test_many_even_documents_are_dealt_whole():
    found = _documents(*[100] * 16)
    assert pieces(found, 2) == found


@pytest.mark.parametrize("sizes", [(3000,), (100,) * 15, (100,) * 30 + (5000,)])
def test_few_or_uneven_documents_are_cut(sizes):
    found = pieces(_documents(*sizes), 2)
    assert max(len(piece.tokens) for piece in found) <= PIECE_TOKENS
    assert sum(len(piece.tokens) for piece in found) == sum(sizes)
    assert found[0].name == "d0#0"


def test_too_little_text_for_the_leaves_is_said():
    with pytest.raises(DataError, match="too little text to deal to 4 leaves"):
        deal(np.zeros((3, 2)), np.array([5, 5, 5]), Topology.perfect(2))


def test_gates_decide_hard():
    gates = Gates({"": Gate(np.array([1.0, 0.0]), 0.0, 1.0), "1": Gate(np.array([0.0, 1.0]), -2.0, 0.1)}, 2)
    features = np.array([[-1.0, 9.0], [1.0, 1.0], [1.0, 2.0]])
    assert by_gates(features, gates, Topology(("0", "10", "11"))) == ["0", "10", "11"]


def test_nearest_quarter_by_posterior_in_the_order_of_the_shard():
    features = np.array([[float(i)] for i in (5, -1, 7, 0, 6, -3, 2, 1)])
    gates = Gates({"": Gate(np.ones(1), 0.0, 1.0)}, 1)
    found = _documents(*range(10, 18))
    assert [d.name for d in nearest(found, features, gates, "1", min_tokens=1)] == ["d2", "d4"]
    assert [d.name for d in nearest(found, features, gates, "0", min_tokens=1)] == ["d1", "d5"]
    assert len(nearest(found, features, gates, "1", min_tokens=60)) == 5
    assert len(nearest(found, features, Gates({}, 1), "1", min_tokens=1)) == 2
