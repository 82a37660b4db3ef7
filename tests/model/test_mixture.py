"""`leaf_lora`: the fast sums against the obvious one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.helpers import ramp
from tinylora.errors import ShapeMismatch
from tinylora.mixture import Fixed, Impl, Routing, Weighted, leaf_lora

IMPLS: tuple[Impl, ...] = ("reference", "torch")


def case(
    n_nodes: int = 3, rank: int = 2, dtype: torch.dtype = torch.float64, is_weighted: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Routing]:
    x, base_out = torch.randn(2, 5, 4, dtype=dtype), torch.randn(2, 5, 6, dtype=dtype)
    lora_a, lora_b = torch.randn(n_nodes, rank, 4, dtype=dtype), torch.randn(n_nodes, 6, rank, dtype=dtype)
    weights = torch.rand(2, 5, n_nodes, dtype=dtype) if is_weighted else None
    return x, base_out, lora_a, lora_b, Fixed() if weights is None else Weighted(weights)


def mix(
    x: torch.Tensor,
    base_out: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    routing: Routing,
    scale: float,
    impl: Impl = "auto",
) -> torch.Tensor:
    """`leaf_lora` on stacked adapters."""
    return leaf_lora(x, base_out, lora_a, lora_b, routing, scale, impl)


def token_by_token(x, base_out, lora_a, lora_b, routing, scale):
    """The formula as it is written, one token and one node at a time."""
    out = base_out.clone()
    for row in range(x.shape[0]):
        for token in range(x.shape[1]):
            for node in range(lora_a.shape[0]):
                update = lora_b[node] @ (lora_a[node] @ x[row, token])
                out[row, token] += scale * routing.weights[row, token, node] * update
    return out


@pytest.mark.parametrize("impl", IMPLS)
def test_is_the_formula(impl: Impl) -> None:
    arguments = case()
    assert torch.allclose(mix(*arguments, 0.7, impl), token_by_token(*arguments, 0.7))


@pytest.mark.parametrize("impl", IMPLS)
def test_numbers_on_paper(impl: Impl) -> None:
    x, base_out = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[10.0]]])
    lora_a, lora_b = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[[3.0]], [[5.0]]])
    routing = Weighted(torch.tensor([[[0.5, 0.25]]]))
    # 10 + 2 · (0.5 · 3 · 1 + 0.25 · 5 · 2)
    assert mix(x, base_out, lora_a, lora_b, routing, 2.0, impl).item() == 18.0


@given(n_nodes=st.integers(1, 9), rank=st.integers(1, 5), seed=st.integers(0, 99))
def test_both_agree_forward_and_backward(n_nodes: int, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    *tensors, routing = case(n_nodes, rank)
    assert isinstance(routing, Weighted)
    outputs, gradients = [], []
    for impl in IMPLS:
        leaves = [tensor.clone().requires_grad_() for tensor in (*tensors, routing.weights)]
        x, base_out, lora_a, lora_b, weights = leaves
        out = mix(x, base_out, lora_a, lora_b, Weighted(weights), 0.7, impl)
        out.mul(ramp(*out.shape)).sum().backward()
        outputs.append(out)
        gradients.append([leaf.grad for leaf in leaves])
    assert torch.allclose(*outputs)
    for left, right in zip(*gradients, strict=True):
        assert torch.allclose(left, right)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("is_weighted", [True, False])
def test_gradients_are_right(impl: Impl, is_weighted: bool) -> None:
    *tensors, routing = case(is_weighted=is_weighted)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    if isinstance(routing, Weighted):
        leaves.append(routing.weights.requires_grad_())

    def mixed(x, base_out, lora_a, lora_b, weights=None) -> torch.Tensor:
        return mix(x, base_out, lora_a, lora_b, Fixed((0, 2)) if weights is None else Weighted(weights), 0.7, impl)

    assert torch.autograd.gradcheck(mixed, leaves)


@pytest.mark.parametrize("impl", IMPLS)
def test_without_weights_one_node_takes_every_token(impl: Impl) -> None:
    x, base_out, lora_a, lora_b, _ = case()
    for node in range(3):
        plain = base_out + 0.7 * F.linear(F.linear(x, lora_a[node]), lora_b[node])
        assert torch.allclose(mix(x, base_out, lora_a, lora_b, Fixed((node,)), 0.7, impl), plain)
        one_hot = F.one_hot(torch.tensor(node), 3).expand(2, 5, 3).double()
        assert torch.allclose(mix(x, base_out, lora_a, lora_b, Weighted(one_hot), 0.7, impl), plain)


def test_without_weights_other_nodes_get_no_gradient() -> None:
    x, base_out, lora_a, lora_b, _ = case()
    lora_b.requires_grad_()
    mix(x, base_out, lora_a, lora_b, Fixed((1,)), 0.7).sum().backward()
    assert lora_b.grad is not None
    assert [bool(node.any()) for node in lora_b.grad] == [False, True, False]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("nodes", [(0, 2), (2, 1, 0)])
def test_without_weights_the_updates_of_several_nodes_add_up(impl: Impl, nodes: tuple[int, ...]) -> None:
    x, base_out, lora_a, lora_b, _ = case()
    together = mix(x, base_out, lora_a, lora_b, Fixed(nodes), 0.7, impl)
    parts = [mix(x, base_out, lora_a, lora_b, Fixed((node,)), 0.7, impl) - base_out for node in nodes]
    assert torch.allclose(together, base_out + torch.stack(parts).sum(dim=0))
    ones = torch.tensor([float(node in nodes) for node in range(3)], dtype=x.dtype).expand(2, 5, 3)
    assert torch.allclose(together, mix(x, base_out, lora_a, lora_b, Weighted(ones), 0.7, impl))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_b_and_zero_weights_leave_the_base_as_it_is(impl: Impl, dtype: torch.dtype) -> None:
    x, base_out, lora_a, lora_b, routing = case(dtype=dtype)
    assert torch.equal(mix(x, base_out, lora_a, torch.zeros_like(lora_b), routing, 0.7, impl), base_out)
    assert torch.equal(mix(x, base_out, lora_a, torch.zeros_like(lora_b), Fixed(), 0.7, impl), base_out)
    assert isinstance(routing, Weighted)
    weights = routing.weights.clone()
    weights[0, 2:4] = 0
    out = mix(x, base_out, lora_a, lora_b, Weighted(weights), 0.7, impl)
    assert torch.equal(out[0, 2:4], base_out[0, 2:4])
    assert not torch.equal(out[0, 1], base_out[0, 1])


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_is_written_in_place(impl: Impl) -> None:
    arguments = case()
    before = [tensor.clone() for tensor in arguments[:4]]
    mix(*arguments, 0.7, impl)
    assert all(torch.equal(left, right) for left, right in zip(before, arguments[:4], strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_single_precision_adapters_on_a_half_precision_base(impl: Impl) -> None:
    x, base_out, lora_a, lora_b, routing = case(dtype=torch.float32)
    exact = mix(x, base_out, lora_a, lora_b, routing, 0.7, "reference")
    half = mix(x.bfloat16(), base_out.bfloat16(), lora_a, lora_b, routing, 0.7, impl)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), exact, atol=0.2, rtol=0.05)


@pytest.mark.parametrize("impl", IMPLS)
def test_batch_and_token_may_be_folded_into_one_axis(impl: Impl) -> None:
    x, base_out, lora_a, lora_b, routing = case()
    flat = mix(x.flatten(0, 1), base_out.flatten(0, 1), lora_a, lora_b, routing, 0.7, impl)
    assert torch.equal(flat.view(2, 5, 6), mix(x, base_out, lora_a, lora_b, routing, 0.7, impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_some_tokens_alone_cannot_be_routed(impl: Impl) -> None:
    x, base_out, lora_a, lora_b, routing = case()
    with pytest.raises(ShapeMismatch, match="expected 10 tokens as in the routing, got 3"):
        mix(x.flatten(0, 1)[:3], base_out.flatten(0, 1)[:3], lora_a, lora_b, routing, 0.7, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_depends_on_itself_alone(impl: Impl) -> None:
    x, base_out, lora_a, lora_b, routing = case(dtype=torch.float32)
    other = torch.randn_like(x)
    other[:, :3] = x[:, :3]
    left, right = (mix(each, base_out, lora_a, lora_b, routing, 0.7, impl) for each in (x, other))
    assert torch.equal(left[:, :3], right[:, :3])
