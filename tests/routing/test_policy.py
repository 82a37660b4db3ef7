from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.helpers import (
    DIM,
    LEANING,
    TOPOLOGIES,
    UNEVEN,
    VOCAB,
    a_feature,
    random_gates,
    token_rows,
    topologies,
)
from tinylora.errors import SettingError, ShapeMismatch
from tinylora.routing.decision import DEFAULT_THRESHOLD, Policy
from tinylora.routing.gates import Gate, Gates, leaf_posteriors
from tinylora.routing.policy import Router, RouterState, reference_posterior
from tinylora.tree import Topology

DECISIONS = ("soft", "top2", "hard", "elastic", "elastic:0.2")
POLICIES = [f"{decision}{when}" for decision in DECISIONS for when in ("", "@window:4", "@sequence:5")]


def a_router(topology: Topology = UNEVEN, *, nodes=None, seed: int = 0, tau: float = 1.0, trainable=False) -> Router:
    gates = random_gates(topology, seed=seed, tau=tau)
    return Router(a_feature(), gates, topology, nodes or topology.leaves, trainable=trainable)


def weights_of(router: Router, ids: torch.Tensor, policy: str, **options) -> torch.Tensor:
    routing, _ = router(ids, policy=Policy.parse(policy), **options)
    return routing.dense()


# --- a slow, obvious router ------------------------------------------------------------------------------------------


def greedy_leaf(gates: Gates, means: np.ndarray, topology: Topology) -> str:
    node = ""
    while node not in topology.leaves:
        node += "1" if means @ gates.nodes[node].w + gates.nodes[node].b >= 0 else "0"
    return node


def decide(policy: Policy, gates: Gates, means: np.ndarray, topology: Topology, nodes) -> list[float]:
    posterior = reference_posterior(gates, means, topology)
    if policy.decision == "top2":
        best = sorted(posterior, key=lambda leaf: -posterior[leaf])[:2]
        posterior = {
            leaf: posterior[leaf] / sum(posterior[b] for b in best) if leaf in best else 0 for leaf in posterior
        }
    if policy.decision in ("soft", "top2"):
        return [sum(p for leaf, p in posterior.items() if leaf.startswith(node)) for node in nodes]
    chosen = greedy_leaf(gates, means, topology)
    reached = chosen
    if policy.decision == "elastic":
        below = {n: sum(p for leaf, p in posterior.items() if leaf.startswith(n)) for n in topology.nodes}
        inside = [chosen[:level] for level in range(len(chosen) + 1) if below[chosen[:level]] > policy.threshold]
        reached = inside[-1] if inside else None
    return [float(reached is not None and reached.startswith(node)) for node in nodes]


def reference_weights(policy, gates, table, ids, documents, topology, nodes) -> list[list[float]]:
    start = [float(node == "") for node in nodes]
    found, held, total, count, present = [], start, np.zeros(DIM), 0, None
    for token, document in zip(ids, documents, strict=True):
        if present is not None and document != present:
            held, total, count = start, np.zeros(DIM), 0
        present, total, count = document, total + table[token], count + 1
        due = {"token": True, "window": policy.size and count % policy.size == 0, "sequence": count == policy.size}
        if due[policy.granularity]:
            held = decide(policy, gates, total / count, topology, nodes)
        found.append(held)
    return found


@given(topologies(), st.sampled_from(POLICIES), st.integers(0, 1000), st.booleans())
def test_router_equals_the_slow_one(topology, text, seed, with_inner):
    nodes = topology.nodes if with_inner else topology.leaves[::-1]
    router, policy = a_router(topology, nodes=nodes, seed=seed), Policy.parse(text)
    ids = token_rows(2, 14, seed)
    documents = torch.randint(2, ids.shape, generator=torch.Generator().manual_seed(seed)).sort(dim=1).values
    weights = weights_of(router, ids, text, documents=documents)
    table = router.feature.table.double().numpy()
    for row in range(2):
        expected = reference_weights(
            policy, router.gates(), table, ids[row].tolist(), documents[row].tolist(), topology, nodes
        )
        assert np.allclose(weights[row].numpy(), expected, atol=1e-5)
    assert weights.dtype == torch.float32


@given(topologies(), st.integers(0, 1000), st.sampled_from([0.05, 0.35, 1.0, 5.0]))
def test_fast_posteriors_equal_the_references(topology, seed, tau):
    router = a_router(topology, seed=seed, tau=tau)
    means = torch.randn(1, 7, DIM, generator=torch.Generator().manual_seed(seed))
    fast = router.log_posterior(router.scores(means)).exp()[0]
    rows = means[0].double().numpy()
    assert np.allclose(fast.numpy(), leaf_posteriors(router.gates(), rows, topology), atol=1e-12)
    for row, found in zip(rows, fast.tolist(), strict=True):
        assert found == pytest.approx(list(reference_posterior(router.gates(), row, topology).values()), abs=1e-9)


# --- what every policy keeps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("policy", ["soft", "top2", "hard"])
def test_leaf_weights_sum_to_one(topology, policy):
    weights = weights_of(a_router(topology, tau=3.0), token_rows(3, 20), policy)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(3, 20), atol=1e-6)
    assert (weights >= 0).all()


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_soft_without_temperature_is_hard(topology):
    ids, cold = token_rows(3, 20), a_router(topology, tau=1e7)
    assert torch.equal(weights_of(cold, ids, "soft"), weights_of(a_router(topology), ids, "hard"))


def test_hard_does_not_see_the_temperature():
    ids = token_rows(3, 20)
    assert torch.equal(weights_of(a_router(tau=0.1), ids, "hard"), weights_of(a_router(tau=9.0), ids, "hard"))


def test_extreme_temperatures_stay_finite():
    for policy in ("soft", "top2", "elastic"):
        assert weights_of(a_router(tau=1e300), token_rows(1, 9), policy).isfinite().all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_nothing_after_a_token_changes_its_weights(topology, policy):
    router, ids = a_router(topology), token_rows(2, 16)
    documents = torch.tensor([[0] * 9 + [1] * 7] * 2)
    for place in (0, 3, 8, 14):
        changed = ids.clone()
        changed[:, place + 1 :] = (changed[:, place + 1 :] + 7) % VOCAB
        for given_documents in (None, documents):
            before = weights_of(router, ids, policy, documents=given_documents)
            after = weights_of(router, changed, policy, documents=given_documents)
            assert torch.equal(before[:, : place + 1], after[:, : place + 1])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("cuts", [range(1, 17), [3, 4, 11]], ids=["token by token", "in parts"])
def test_a_carried_state_is_one_pass(topology, policy, cuts):
    router, ids = a_router(topology, nodes=topology.nodes), token_rows(2, 17)
    documents = torch.tensor([[0] * 6 + [1] * 11] * 2)
    whole = weights_of(router, ids, policy)
    state, parts = None, []
    for start, stop in zip([0, *cuts], [*cuts, 17], strict=True):
        routing, state = router(ids[:, start:stop], policy=Policy.parse(policy), state=state)
        parts.append(routing.dense())
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-7)
    packed = weights_of(router, ids, policy, documents=documents)
    assert torch.equal(packed[:, :6], whole[:, :6])
    assert torch.allclose(packed[:, 6:], weights_of(router, ids[:, 6:], policy), atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_padding_changes_nothing(policy):
    router, ids = a_router(), token_rows(1, 12)
    expected, end = router(ids, policy=Policy.parse(policy))
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    mask = torch.tensor([[False] * 5 + [True] * 12 + [False] * 4])
    found, after = router(padded, mask=mask, policy=Policy.parse(policy))
    assert torch.allclose(found.dense()[:, 5:17], expected.dense(), atol=1e-7)
    assert torch.allclose(after.held.dense(4), end.held.dense(4), atol=1e-7)
    assert torch.equal(after.feature.total, end.feature.total)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_tree_of_one_leaf_takes_every_token(policy):
    router = a_router(TOPOLOGIES[0])
    assert torch.equal(weights_of(router, token_rows(2, 12), policy), torch.ones(2, 12, 1))


# --- one policy after the other --------------------------------------------------------------------------------------


def test_top2_has_two_leaves_in_the_right_proportion():
    soft, top2 = (weights_of(a_router(), token_rows(1, 30), policy) for policy in ("soft", "top2"))
    assert ((top2 > 0).sum(dim=-1) == 2).all()
    kept = soft * (top2 > 0)
    assert torch.allclose(kept / kept.sum(dim=-1, keepdim=True), top2, atol=1e-6)
    assert (kept.sum(dim=-1) >= soft.topk(2).values.sum(dim=-1) - 1e-6).all()


def test_two_leaves_make_top2_soft():
    router = a_router(Topology.perfect(1))
    ids = token_rows(2, 10)
    assert torch.allclose(weights_of(router, ids, "top2"), weights_of(router, ids, "soft"), atol=1e-6)


def undecided(topology: Topology, **scores: float) -> Gates:
    """Gates that do not look: node `n0` has the logit given for it, others 0."""
    return Gates({n: Gate(np.zeros(DIM), scores.get(f"n{n}", 0.0), 1.0) for n in topology.inner}, DIM)


def test_elastic_stops_where_it_is_no_longer_sure():
    """The root is sure of its right side, the node "1" is not: the path ends there."""
    router = Router(a_feature(), undecided(UNEVEN, n=9.0), UNEVEN, ("", "1", "0", "10", "110", "111"))
    assert weights_of(router, token_rows(1, 2), "elastic")[0, 0].tolist() == [1, 1, 0, 0, 0, 0]
    leaves = Router(a_feature(), undecided(UNEVEN, n=9.0), UNEVEN, UNEVEN.leaves)
    assert not weights_of(leaves, token_rows(1, 2), "elastic").any()
    sure = Router(a_feature(), undecided(UNEVEN, n=9.0, n1=-9.0), UNEVEN, UNEVEN.leaves)
    assert weights_of(sure, token_rows(1, 2), "elastic")[0, 0].tolist() == [0, 1, 0, 0]


def test_a_low_threshold_goes_to_the_leaf_and_a_high_one_nowhere():
    router, ids = a_router(tau=0.5), token_rows(2, 30)
    assert torch.equal(weights_of(router, ids, "elastic:0"), weights_of(router, ids, "hard"))
    assert not weights_of(router, ids, "elastic:0.9999").any()


def test_a_path_of_adapters_is_weighed_as_a_whole():
    router = a_router(nodes=("", "1", "11", *UNEVEN.leaves))
    soft, hard = (weights_of(router, token_rows(1, 20), policy)[0] for policy in ("soft", "hard"))
    assert torch.allclose(soft[:, 0], torch.ones(20)) and torch.equal(hard[:, 0], torch.ones(20))
    leaf = {path: soft[:, 3 + index] for index, path in enumerate(UNEVEN.leaves)}
    assert torch.allclose(soft[:, 1], leaf["10"] + leaf["110"] + leaf["111"], atol=1e-6)
    assert torch.allclose(soft[:, 2], leaf["110"] + leaf["111"], atol=1e-6)


def test_a_window_decides_at_its_end_and_keeps_that():
    router, ids = a_router(), token_rows(1, 11)
    fresh, held = weights_of(router, ids, "soft"), weights_of(router, ids, "soft@window:4")
    assert not held[:, :3].any()
    assert torch.equal(held[:, 3:7], fresh[:, 3:4].expand(-1, 4, -1))
    assert torch.equal(held[:, 7:], fresh[:, 7:8].expand(-1, 4, -1))


def test_a_sequence_decides_once():
    router, ids = a_router(), token_rows(1, 11)
    fresh, held = weights_of(router, ids, "hard"), weights_of(router, ids, "hard@sequence:4")
    assert not held[:, :3].any()
    assert torch.equal(held[:, 3:], fresh[:, 3:4].expand(-1, 8, -1))


def test_before_a_decision_the_roots_adapter_is_there():
    router = a_router(nodes=("", *UNEVEN.leaves))
    assert weights_of(router, token_rows(1, 3), "hard@sequence:32").tolist() == [[[1, 0, 0, 0, 0]] * 3]


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["soft", "top2"])
def test_trainable_gates_get_gradients(policy):
    router = a_router(trainable=True)
    target = torch.randn(2, 10, 4)
    (weights_of(router, token_rows(2, 10), policy) * target).sum().backward()
    assert {name for name, _ in router.named_parameters()} == {"w", "b"}
    assert router.w.grad is not None and router.b.grad is not None
    assert router.w.grad.abs().sum() > 0 and router.b.grad.abs().sum() > 0


def test_the_gradient_is_that_of_the_reference():
    router, ids, step = a_router(trainable=True), token_rows(1, 6), 1e-6
    weights_of(router, ids, "soft")[..., 1].sum().backward()
    means, slopes = router.feature(ids)[0][0].double().numpy(), router.b.grad
    assert slopes is not None
    for node in range(3):
        sums = []
        for change in (step, -step):
            gates = router.gates()
            path = UNEVEN.inner[node]
            gates.nodes[path] = replace(gates.nodes[path], b=gates.nodes[path].b + change)
            sums.append(leaf_posteriors(gates, means, UNEVEN)[:, 1].sum())
        assert slopes[node].item() == pytest.approx((sums[0] - sums[1]) / (2 * step), abs=1e-5)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_frozen_gates_read_a_few_numbers_of_each_token_and_decide_alike(topology):
    """Trainable gates see the whole feature; frozen ones what they make of it."""
    ids, documents = token_rows(2, 40), torch.arange(40).div(15, rounding_mode="floor").expand(2, -1)
    policy, routers = Policy("soft"), (a_router(topology), a_router(topology, trainable=True))
    (frozen, state), (trained, whole) = (router(ids, documents=documents, policy=policy) for router in routers)
    assert torch.allclose(frozen.dense(), trained.dense(), atol=1e-6)
    assert state.feature.total.shape[1] == len(topology.inner) and whole.feature.total.shape[1] == DIM


def test_frozen_gates_are_no_parameters():
    assert not list(a_router().parameters())


def test_gates_come_back_as_they_went_in():
    gates = random_gates(LEANING, tau=0.7)
    found = Router(a_feature(), gates, LEANING, LEANING.leaves).gates()
    for node, gate in gates.nodes.items():
        assert np.array_equal(found.nodes[node].w, gate.w)
        assert (found.nodes[node].b, found.nodes[node].tau) == (gate.b, gate.tau)


def test_entropy_is_that_of_the_gates_and_descending_it_hardens_them():
    router, ids = a_router(trainable=True, tau=0.5), token_rows(2, 9)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 6:] = False
    means = router.feature(ids)[0]
    p = (0.5 * (means.double() @ router.w.T + router.b)).sigmoid()
    expected = -(p * p.log() + (1 - p) * (1 - p).log()).sum(dim=-1)
    assert torch.allclose(router.entropy(ids), expected.mean())
    masked = router.entropy(ids, mask=mask)
    assert torch.allclose(masked, expected[:, :6].mean())
    optimiser = torch.optim.Adam(router.parameters(), lr=0.3)
    before = router.entropy(ids).item()
    for _ in range(40):
        optimiser.zero_grad()
        router.entropy(ids).backward()
        optimiser.step()
    assert router.entropy(ids).item() < 0.5 * before


def test_entropy_of_one_leaf_and_of_certain_gates():
    assert a_router(TOPOLOGIES[0]).entropy(token_rows(1, 4)).item() == 0
    assert a_router(tau=1e6).entropy(token_rows(1, 4)).item() == pytest.approx(0, abs=1e-9)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_gate_that_is_missing_or_too_short():
    gates = random_gates(UNEVEN)
    with pytest.raises(ShapeMismatch, match="gate of node '11': expected one for every inner node"):
        Router(a_feature(), gates.above("11"), UNEVEN, UNEVEN.leaves)
    with pytest.raises(ShapeMismatch, match="gate of node '': expected 6 weights as the routing feature has, got 3"):
        Router(a_feature(), random_gates(UNEVEN, dim=3), UNEVEN, UNEVEN.leaves)


def test_a_node_that_is_not_in_the_tree():
    with pytest.raises(ShapeMismatch, match="node '01': no such node; the tree's leaves are 0, 10, 110, 111"):
        Router(a_feature(), random_gates(UNEVEN), UNEVEN, ("01",))


def test_gates_may_be_more_than_the_tree_needs():
    assert a_router(Topology.perfect(1)).nodes == ("0", "1")
    Router(a_feature(), random_gates(Topology.perfect(3)), Topology.perfect(1), ("0", "1"))


def test_state_of_a_fresh_batch():
    state = a_router(nodes=("", "0")).initial_state(2)
    assert isinstance(state, RouterState) and state.held.dense(2).tolist() == [[1, 0], [1, 0]]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy", "shown"),
    [
        ("soft", Policy(), "soft"),
        ("soft@token", Policy(), "soft"),
        ("top2", Policy("top2"), "top2"),
        ("hard@window:64", Policy("hard", "window", 64), "hard@window:64"),
        ("soft@window", Policy("soft", "window", 64), "soft@window:64"),
        ("sequence", Policy("hard", "sequence", 32), "hard@sequence:32"),
        ("sequence:16", Policy("hard", "sequence", 16), "hard@sequence:16"),
        ("window:8", Policy("hard", "window", 8), "hard@window:8"),
        ("elastic", Policy("elastic"), "elastic"),
        ("elastic:0.7", Policy("elastic", threshold=0.7), "elastic:0.7"),
        ("elastic:0.25@sequence:32", Policy("elastic", "sequence", 32, 0.25), "elastic:0.25@sequence:32"),
    ],
)
def test_policies_by_name(text, policy, shown):
    assert Policy.parse(text) == policy and str(policy) == shown


@given(
    st.sampled_from(["soft", "top2", "hard", "elastic"]),
    st.sampled_from(["token", "window", "sequence"]),
    st.integers(1, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_names_round_trip(decision, granularity, size, threshold):
    limit = threshold if decision == "elastic" else DEFAULT_THRESHOLD
    policy = Policy(decision, granularity, 0 if granularity == "token" else size, limit)
    assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sof",
        "soft@",
        "soft@page:3",
        "hard@window:0",
        "hard@window:-4",
        "hard@window:x",
        "hard@window:",
        "soft@token:3",
        "elastic:1",
        "elastic:-0.1",
        "elastic:nan",
        "elastic:",
        "hard:0.7",
        "soft@window:4@window:4",
        "window:0",
        "token",
    ],
)
def test_names_that_are_none(text):
    with pytest.raises(SettingError, match="policy"):
        Policy.parse(text)


def test_a_threshold_belongs_to_elastic():
    with pytest.raises(SettingError, match="only elastic has a threshold"):
        Policy("hard", threshold=0.7)
