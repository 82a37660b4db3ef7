"""Every way of adding up many adapters, against the loop over nodes."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from tests.helpers import ramp
from tinylora.errors import ShapeMismatch
from tinylora.mixture import ByRow, ByToken, Fixed, Impl, Routing, Weighted, leaf_lora, sums
from tinylora.mixture.routing import Order

IN, OUT = 16, 24
KINDS = ("fixed", "row", "row, gated", "token", "token, gated", "weighted")


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way is taken whatever the size, also where another one is cheaper."""
    monkeypatch.setattr(sums, "wide_rank", lambda _device: 0)


def routing_of(kind: str, rows: int, tokens: int, n_nodes: int, width: int, dtype=torch.float64) -> Routing:
    """Random; gates are random too, and some of them zero, as of tokens without a leaf."""
    name, _, gated = kind.partition(", ")
    gates = torch.rand(rows, tokens, width, dtype=dtype).round(decimals=1).relu() if gated else None
    if gates is not None:
        gates[0, : tokens // 2] = 0.0
    if name == "fixed":
        return Fixed(tuple(torch.randperm(n_nodes)[: max(1, n_nodes // 2)].tolist()))
    if name == "row":
        return ByRow(torch.randint(n_nodes, (rows, width)), gates, tokens, n_nodes)
    if name == "token":
        return ByToken(torch.randint(n_nodes, (rows, tokens, width)), gates, n_nodes)
    return Weighted(torch.rand(rows, tokens, n_nodes, dtype=dtype))


def tensors_of(rows: int, tokens: int, n_nodes: int, rank: int, dtype=torch.float64) -> list[torch.Tensor]:
    """Input, output of the base, A and B."""
    sizes = ((rows, tokens, IN), (rows, tokens, OUT), (n_nodes, rank, IN), (n_nodes, OUT, rank))
    return [torch.randn(size, dtype=dtype) for size in sizes]


def mix(given: Sequence[torch.Tensor], routing: Routing, impl: Impl = "auto") -> torch.Tensor:
    """`leaf_lora` of the four tensors, scale 0.7."""
    x, base_out, lora_a, lora_b = given[:4]
    return leaf_lora(x, base_out, lora_a, lora_b, routing, 0.7, impl)


def with_gradients(
    function: Callable[[list[torch.Tensor]], torch.Tensor], tensors: list[torch.Tensor], weigh: bool = True
) -> list[torch.Tensor]:
    """What comes out, and the gradients of all that goes in."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(tensors)
    total = out.mul(ramp(*out.shape).to(out)).sum() if weigh else out.sum()  # the sum's gradient has strides of zero
    return [out.detach(), *torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)]


def gated(routing: Routing, gates: torch.Tensor | None) -> Routing:
    """The same with other gates."""
    if isinstance(routing, ByRow):
        return ByRow(routing.nodes, gates, routing.n_tokens, routing.n_nodes)
    assert isinstance(routing, ByToken)
    return ByToken(routing.nodes, gates, routing.n_nodes)


def fresh(routing: Routing) -> Routing:
    """The same without what it has gathered."""
    return gated(routing, routing.gates) if isinstance(routing, ByToken) else routing


shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@given(shape=shapes, weigh=st.booleans(), seed=st.integers(0, 99))
def test_every_way_is_the_reference(kind, dtype, shape, weigh, seed) -> None:
    torch.manual_seed(seed)
    rows, tokens, n_nodes, width, rank = shape
    routing = routing_of(kind, rows, tokens, n_nodes, width, dtype)
    tensors = tensors_of(rows, tokens, n_nodes, rank, dtype)
    found, expected = (
        with_gradients(lambda given, impl=impl: mix(given, routing, impl), tensors, weigh)
        for impl in ("torch", "reference")
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, atol=tolerance * max(1.0, float(right.abs().max())), rtol=0)


@pytest.mark.parametrize("kind", ["row, gated", "token, gated"])
@pytest.mark.parametrize("width", [1, 2])
def test_gates_get_the_reference_s_gradient(kind: str, width: int) -> None:
    routing, tensors = routing_of(kind, 2, 5, 3, width), tensors_of(2, 5, 3, 4)
    gates = torch.rand(2, 5, width, dtype=torch.float64)

    def mixed(impl: Impl) -> list[torch.Tensor]:
        return with_gradients(lambda given: mix(given, gated(routing, given[4]), impl), [*tensors, gates])

    found, expected = mixed("torch"), mixed("reference")
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 4])
def test_gradients_are_right(kind: str, tokens: int) -> None:
    routing = routing_of(kind, 2, tokens, 3, 2)
    inputs = [tensor.requires_grad_() for tensor in tensors_of(2, tokens, 3, 2)]
    gates = routing.gates if isinstance(routing, (ByRow, ByToken)) else None
    if gates is None:
        # A routing of its own each time: the check changes numbers behind autograd's back.
        assert torch.autograd.gradcheck(lambda *given: mix(given, fresh(routing)), inputs)
        return
    inputs.append(gates.requires_grad_())
    assert torch.autograd.gradcheck(lambda *given: mix(given, gated(routing, given[4])), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [3, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(kind: str, rank: int, dtype: torch.dtype) -> None:
    """Adapters in fp32, as they are kept; ranks that fill 16 bytes and others."""
    routing, tensors = routing_of(kind, 2, 9, 4, 2, torch.float32), tensors_of(2, 9, 4, rank, torch.float32)

    def mixed(given: list[torch.Tensor]) -> torch.Tensor:
        x, base_out, lora_a, lora_b = given
        return leaf_lora(x.to(dtype), base_out.to(dtype), lora_a, lora_b, routing, 0.7).float()

    found = with_gradients(mixed, tensors)
    expected = with_gradients(lambda given: mix(given, routing, "reference"), tensors)
    for left, right in zip(found, expected, strict=True):
        assert (left - right).abs().max() <= 2e-2 * right.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_traced", [True, False])
def test_views_go_in_and_nothing_is_written_in_place(kind: str, is_traced: bool) -> None:
    """What the base gives may be a view, as `Conv1D`'s is, and what it reads may be read again."""
    routing, (x, base_out, lora_a, lora_b) = routing_of(kind, 2, 5, 3, 2), tensors_of(2, 5, 3, 4)
    whole = torch.cat([base_out, base_out], dim=-1).requires_grad_(is_traced)
    before = [tensor.detach().clone() for tensor in (x, whole, lora_a, lora_b)]
    view = whole[..., :OUT]
    out = leaf_lora(x, view, lora_a, lora_b, routing, 0.7)
    assert torch.allclose(out, leaf_lora(x, base_out, lora_a, lora_b, routing, 0.7, "reference"))
    for tensor, kept in zip((x, whole, lora_a, lora_b), before, strict=True):
        assert torch.equal(tensor, kept)
    out.add_(1.0)
    assert torch.equal(whole, before[1])
    if is_traced:
        (gradient,) = torch.autograd.grad(out.sum(), whole)
        assert torch.equal(gradient[..., :OUT], torch.ones_like(view)) and not gradient[..., OUT:].any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fixed"])
def test_rows_in_another_order_give_the_same(kind: str) -> None:
    routing, (x, base_out, lora_a, lora_b) = routing_of(kind, 5, 4, 3, 2), tensors_of(5, 4, 3, 4)
    order = torch.randperm(5)
    if isinstance(routing, Weighted):
        moved: Routing = Weighted(routing.weights[order])
    elif isinstance(routing, ByRow):
        gates = None if routing.gates is None else routing.gates[order]
        moved = ByRow(routing.nodes[order], gates, routing.n_tokens, routing.n_nodes)
    else:
        assert isinstance(routing, ByToken)
        moved = ByToken(routing.nodes[order], None if routing.gates is None else routing.gates[order], routing.n_nodes)
    expected = leaf_lora(x, base_out, lora_a, lora_b, routing, 0.7)[order]
    assert torch.allclose(leaf_lora(x[order], base_out[order], lora_a, lora_b, moved, 0.7), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_b_is_the_base_bit_by_bit(kind: str) -> None:
    routing, (x, base_out, lora_a, lora_b) = routing_of(kind, 3, 5, 4, 2), tensors_of(3, 5, 4, 4, torch.float32)
    if isinstance(routing, Weighted):
        routing = Weighted(routing.weights.float())
    assert torch.equal(leaf_lora(x, base_out, lora_a, torch.zeros_like(lora_b), routing, 0.7), base_out)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fixed"])
def test_tokens_in_one_axis_and_some_alone(kind: str) -> None:
    routing, (x, base_out, lora_a, lora_b) = routing_of(kind, 2, 5, 3, 1), tensors_of(2, 5, 3, 4)
    expected = leaf_lora(x, base_out, lora_a, lora_b, routing, 0.7)
    flat = leaf_lora(x.flatten(0, 1), base_out.flatten(0, 1), lora_a, lora_b, routing, 0.7)
    assert torch.equal(flat.view_as(expected), expected)
    with pytest.raises(ShapeMismatch, match="expected 10 tokens as in the routing, got 3"):
        leaf_lora(x.flatten(0, 1)[:3], base_out.flatten(0, 1)[:3], lora_a, lora_b, routing, 0.7)


def test_linears_of_one_input_share_what_was_gathered() -> None:
    routing = ByToken(torch.randint(3, (2, 5, 2)), None, 3)
    x = torch.randn(2, 5, IN)
    first = routing.gathered(x)
    assert routing.gathered(x) is first and first.shape == (20, IN)
    x.add_(1.0)
    second = routing.gathered(x)
    assert torch.allclose(second, first + 1.0)
    other = x.clone()
    assert routing.gathered(other) is not second
    assert routing.gathered(x) is not second
    del x, other
    assert routing._seen._made is None


def test_the_order_is_by_node_and_then_by_token() -> None:
    order = Order.of(torch.tensor([[[2], [0], [2], [0]]]), 4)
    assert order.entry.tolist() == [1, 3, 0, 2] and order.place.tolist() == [2, 0, 3, 1]
    assert order.ends.tolist() == [2, 2, 4, 4] and order.bounds == [(0, 2), (2, 2), (2, 4), (4, 4)]
    pairs = Order.of(torch.tensor([[1, 0], [1, 1]]), 2)
    assert pairs.token.tolist() == [0, 0, 1, 1] and pairs.ends.tolist() == [1, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_running_again_on_the_way_back_changes_nothing(kind: str) -> None:
    """Three linears of one input, then one of another, in a checkpoint, as a block is."""
    routing, tensors = routing_of(kind, 2, 5, 3, 2), tensors_of(2, 5, 3, 4)
    lora_a, lora_b, square = tensors[2], torch.randn(3, IN, 4, dtype=torch.float64), torch.randn(IN, IN).double()

    def block(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (leaf_lora(x, x @ square, a, lora_b, routing, 0.7) for a in (lora_a, 2 * lora_a, 3 * lora_a))
        inner = torch.tanh(q) * k + v
        return leaf_lora(inner, inner @ square, lora_a, lora_b, routing, 0.7)

    def twice(given: list[torch.Tensor], is_again: bool) -> torch.Tensor:
        x = given[0]
        for _ in range(2):
            x = checkpoint(block, x, use_reentrant=False) if is_again else block(x)
        return x

    plain = with_gradients(lambda given: twice(given, False), tensors[:1])
    again = with_gradients(lambda given: twice(given, True), tensors[:1])
    assert all(torch.equal(left, right) for left, right in zip(plain, again, strict=True))


def test_all_at_one_node_and_empty_nodes() -> None:
    x, base_out, lora_a, lora_b = tensors_of(2, 7, 64, 4, torch.float32)
    routing = ByToken(torch.full((2, 7, 1), 63), None, 64)
    expected = leaf_lora(x, base_out, lora_a[63:], lora_b[63:], Fixed((0,)), 0.7)
    assert torch.allclose(leaf_lora(x, base_out, lora_a, lora_b, routing, 0.7), expected, atol=1e-5)
    gradients = with_gradients(lambda given: mix(given, routing), [x, base_out, lora_a, lora_b])
    assert not gradients[3][:63].any() and gradients[3][63].any()
