"""Scores against a slow reading of each document alone, and what is counted once, carried on, put back."""

import math

import numpy as np
import pytest
import torch

from tests.helpers import WINDOW_TOKENS
from tests.learning.units import WORDS, base, documents
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.errors import SettingError
from tinylora.evaluation import (
    LATE_TOKENS,
    ROUTED,
    best_leaves,
    evaluate_tree,
    routing_table,
    score,
    score_base,
    score_domains,
    score_leaves,
)
from tinylora.model import TreeModel
from tinylora.report import systems
from tinylora.routing.gates import Gate, Gates, solve_gates
from tinylora.routing.policy import Policy, Router, reference_posterior
from tinylora.routing.sketch import collect
from tinylora.shards import Document
from tinylora.tree import Topology

LORA = AdapterSpec("lora", 2)

LEAVES = ("0", "1")
POLICIES = ["soft", "top2", "hard", "elastic", "hard@window:12", "soft@sequence:20"]


def _adapter(path, strength):
    state = init_adapter(base().facts, LORA, seed=5, path=path)
    draw = torch.Generator().manual_seed(7 + int(path))
    return {
        name: tensor + strength * torch.randn(tensor.shape, generator=draw) if name.endswith("B") else tensor
        for name, tensor in state.items()
    }


@pytest.fixture
def tree():
    """Two leaves that differ, and gates that waver: they send much text to either side."""
    dim = base().facts.feature_dim
    gate = Gate(np.random.default_rng(0).normal(size=dim), 0.05, 0.8)
    router = Router(base().routing_feature, Gates({"": gate}, dim), Topology(LEAVES), LEAVES)
    model = TreeModel(base(), nodes=LEAVES, spec=LORA, scale=2.0, router=router)
    for path in LEAVES:
        model.load_node(path, _adapter(path, 0.5))
    yield model
    model.detach_adapters()


def _slow(model, tokens, window_tokens):
    """Token by token: route with everything before in the document, attend to what is in the window."""
    nats = []
    ids = torch.tensor(tokens, dtype=torch.int64)[None]
    for target in range(1, len(tokens)):
        start = (target - 1) // window_tokens * window_tokens
        state = None
        if start:
            _, state = model.router(ids[:, :start], policy=model.policy)
        with torch.no_grad():
            logits = model.forward(ids[:, start:target], state=state).logits[0, -1]
        nats.append(-torch.log_softmax(logits.double(), dim=-1)[tokens[target]].item())
    return nats


def _uneven():
    """Documents of uneven length, among them lengths at the edges of windows of 16."""
    lengths = (2, 16, 17, 18, 37)
    long = [document for kind in WORDS for document in documents(kind, 3, n_words=60)]
    return [Document(f"{n}", long[i].tokens[:n], 2 * n) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("policy", POLICIES)
def test_scores_equal_the_slow_reading(tree, policy):
    tree.policy = Policy.parse(policy)
    found = _uneven()
    scores = score(tree, found, window_tokens=16, domain="d", batch_tokens=32)
    for item, document in zip(scores, found, strict=True):
        nats = _slow(tree, document.tokens.tolist(), 16)
        assert (item.domain, item.name, item.n_tokens) == ("d", document.name, len(document.tokens) - 1)
        assert item.nll_sum == pytest.approx(math.fsum(nats), rel=1e-5)
        assert item.nll_sum_late == pytest.approx(math.fsum(nats[LATE_TOKENS - 1 :]), rel=1e-5)
        assert item.n_tokens_late == max(0, len(nats) - LATE_TOKENS + 1)


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_scores_do_not_depend_on_the_batch(tree, batch_tokens):
    found = _uneven()
    one = score(tree, found, window_tokens=16)
    other = score(tree, found, window_tokens=16, batch_tokens=batch_tokens)
    for a, b in zip(one, other, strict=True):
        assert a.nll_sum == pytest.approx(b.nll_sum, rel=1e-5)
        assert (a.name, a.n_tokens) == (b.name, b.n_tokens)


def test_routing_goes_on_from_the_document_s_start(tree):
    """Two documents that end alike are told apart by how they began, in windows that no longer see the beginning."""
    ending = documents("signs", 1)[0].tokens[:33]
    begins = [documents(kind, 1)[0].tokens[:32] for kind in ("letters", "capitals")]
    whole = [Document(f"{i}", np.concatenate([begin, ending]), 1) for i, begin in enumerate(begins)]
    alone = [Document(f"{i}", np.concatenate([begin[-1:], ending]), 1) for i, begin in enumerate(begins)]
    with_start = score(tree, whole, window_tokens=32)
    heads = score(tree, [Document("h", document.tokens[:33], 1) for document in whole], window_tokens=32)
    tails = [a.nll_sum - b.nll_sum for a, b in zip(with_start, heads, strict=True)]
    forgetful = [item.nll_sum for item in score(tree, alone, window_tokens=40)]
    assert abs(tails[0] - tails[1]) > 1e-3
    assert all(abs(a - b) > 1e-3 for a, b in zip(tails, forgetful, strict=True))


def test_only_the_beginning_of_long_documents(tree):
    document = documents("letters", 1)[0]
    (short,) = score(tree, [document], window_tokens=32, max_tokens_per_document=50)
    (cut,) = score(tree, [Document("c", document.tokens[:50], 1)], window_tokens=32)
    assert (short.nll_sum, short.n_tokens) == (cut.nll_sum, 49)
    assert short.n_bytes == round(document.n_bytes * 50 / len(document.tokens))


@pytest.mark.parametrize("n_tokens", [0, 1])
def test_documents_without_predictions_count_nothing(tree, n_tokens):
    nothing = Document("x", np.zeros(n_tokens, dtype=np.int32), 1)
    (item,) = score(tree, [nothing], window_tokens=32)
    assert (item.nll_sum, item.n_tokens, item.n_tokens_late) == (0.0, 0, 0)
    assert score(tree, [nothing, documents("signs", 1)[0]], window_tokens=32)[0].n_tokens == 0


def test_windows_longer_than_the_base_s_are_refused(tree):
    with pytest.raises(SettingError, match="window of 65 tokens: this base can attend to 1 to 64"):
        score(tree, documents("signs", 1), window_tokens=65)


# --- systems ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def heldout():
    return {"letters": documents("letters", 4), "digits": documents("digits", 3)}


def test_all_systems_are_scored_on_the_same_documents(tree, heldout):
    leaf_of = {"letters": "1", "digits": "0"}
    scores = evaluate_tree(tree, heldout, window_tokens=WINDOW_TOKENS, leaf_of=leaf_of)
    assert list(scores) == ["base", "oracle", *(f"routed:{name}" for name in ROUTED)]
    for rows in scores.values():
        assert [(row.domain, row.name) for row in rows] == [(d, doc.name) for d in heldout for doc in heldout[d]]
    assert {str(tree.policy), str(Policy.parse(ROUTED["sequence"]))} == {"soft", "hard@sequence:32"}
    letters = score_leaves(tree, heldout, {"letters": "1", "digits": "1"}, window_tokens=WINDOW_TOKENS)
    assert scores["oracle"][:4] == letters[:4]
    assert scores["oracle"][4:] != letters[4:]
    rows = {name: systems.system_row(found, active_rank=1) for name, found in scores.items()}
    assert set(systems.regrets(rows)) == set(ROUTED)


def test_the_base_is_scored_without_adapters_and_they_come_back(tree, heldout):
    before = score_domains(tree, heldout, window_tokens=32)
    bare = score_base(tree, heldout, window_tokens=32)
    assert score_domains(tree, heldout, window_tokens=32) == before
    for path in LEAVES:
        tree.load_node(path, init_adapter(base().facts, LORA, seed=5, path=path))
    for a, b in zip(score_domains(tree, heldout, window_tokens=32), bare, strict=True):
        assert a.nll_sum == pytest.approx(b.nll_sum, rel=1e-6)


def test_best_leaves_are_those_with_the_lowest_loss(tree, heldout):
    losses = {
        leaf: systems.system_row(
            score_leaves(tree, heldout, dict.fromkeys(heldout, leaf), window_tokens=32), active_rank=2
        )["nll"]
        for leaf in LEAVES
    }
    expected = {domain: min(LEAVES, key=lambda leaf: losses[leaf][domain]) for domain in heldout}
    assert best_leaves(tree, heldout, window_tokens=32) == expected
    only = {"letters": ["1"], "digits": ["0", "1"]}
    assert best_leaves(tree, heldout, window_tokens=32, candidates=only) == expected | {"letters": "1"}


# --- routing ---------------------------------------------------------------------------------------------------------


def test_routing_table_against_the_reference(heldout):
    feature = base().routing_feature
    topology = Topology(("0", "10", "11"))
    kinds = {"0": "letters", "10": "digits", "11": "signs"}
    sums = {leaf: collect(feature, [d.tokens for d in documents(kind, 8, seed=2)]) for leaf, kind in kinds.items()}
    gates = solve_gates(sums, topology)
    router = Router(feature, gates, topology, ("0", "10", "11"))
    table = routing_table(router, heldout, {"letters": "0", "digits": "10"}, max_tokens_per_document=40)
    posteriors, hits = [], []
    for document in heldout["digits"]:
        for n_read in range(1, 41):
            mean = feature.table[torch.from_numpy(document.tokens[:n_read].astype(np.int64))].double().mean(dim=0)
            found = reference_posterior(gates, mean.numpy(), topology)
            posteriors.append([found[leaf] for leaf in topology.leaves])
            at_root, at_1 = (float(gates.nodes[node].scores(mean[None].numpy())[0]) for node in ("", "1"))
            hits.append(at_root >= 0 > at_1)
    np.testing.assert_allclose(table.posterior["digits"], np.mean(posteriors, axis=0), atol=1e-5)
    assert table.accuracy["digits"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert table.accuracy["letters"] > 0.9
    assert table.to_dict()["leaf_of"] == {"letters": "0", "digits": "10"}
