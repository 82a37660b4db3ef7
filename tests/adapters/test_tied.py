"""Tied adapters: A and B shared by all layers, in states, in the model, and in numbers."""

import pytest
import torch

from tests.federation.facts import FACTS
from tests.model.families import base_logits, family_base, fill_randomly, some_ids
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.shapes import adapter_manifest, adapter_shapes, n_adapter_parameters, shared_shapes
from tinylora.adapters.spec import TIED, AdapterSpec
from tinylora.adapters.tied import expand, shared_factors
from tinylora.base_model import LoadedBase
from tinylora.config import BaseFacts, ProjectionShape
from tinylora.errors import SettingError, ShapeMismatch
from tinylora.model import TreeModel
from tinylora.tensors import manifest_of, with_prefix

RANKS = {"mlp.up_proj": 1}
SPECS = [AdapterSpec("tied", 3, RANKS, trained) for trained in TIED]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


@pytest.fixture
def base() -> LoadedBase:
    return family_base("llama")


def tied(base: LoadedBase, spec: AdapterSpec, nodes: tuple[str, ...] = ("0",)) -> TreeModel:
    shared = shared_factors(base.facts, spec, seed=5)
    return TreeModel(base, nodes=nodes, spec=spec, scale=0.5, shared=shared)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "n_trained"),
    [
        ("lora", 32 * 8 * (4096 + 12288)),
        ("tied:A", 8 * 4096),
        ("tied:A,uv", 8 * 4096 + 32 * (8 + 12288)),
        ("tied:B", 8 * 12288),
        ("tied:uv", 32 * (8 + 12288)),
        ("tied:A,B", 8 * (4096 + 12288)),
        ("tied:A,B,uv", 8 * (4096 + 12288) + 32 * (8 + 12288)),
    ],
)
def test_how_many_numbers_are_trained(kind: str, n_trained: int) -> None:
    """The fused query_key_value of a model with hidden size 4,096 and 32 layers, at rank 8."""
    shape = ProjectionShape(n_layers=32, in_features=4096, out_features=12288)
    facts = FACTS.model_copy(update={"projections": {"query_key_value": shape}})
    assert n_adapter_parameters(facts, AdapterSpec.parse(kind, 8)) == n_trained
    assert n_adapter_parameters(facts, AdapterSpec("lora", 8)) == 4_194_304
    if kind == "tied:A,B,uv":
        assert n_trained == 524_544
        assert n_trained / 4_194_304 == pytest.approx(0.125, abs=1e-3)


# --- states -----------------------------------------------------------------------------------------------------------


@every_spec
def test_a_new_adapter_is_the_same_everywhere_and_as_its_shapes_say(base: LoadedBase, spec: AdapterSpec) -> None:
    state, again = (init_adapter(base.facts, spec, seed=1, path="01") for _ in range(2))
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert manifest_of(with_prefix(state, "node.01.")) == adapter_manifest(base.facts, spec, path="01")
    factors = {name.rpartition(".")[2] for name in state}
    assert factors == {f"lora_{part}" for name in spec.trained for part in (name if name == "uv" else [name])}
    shared = shared_factors(base.facts, spec, seed=1)
    assert {name: tuple(tensor.shape) for name, tensor in shared.items()} == shared_shapes(base.facts, spec)
    assert {name.rpartition("_")[2] for name in shared} == {"A", "B"} - set(spec.trained)
    assert not any(
        torch.equal(shared[name], tensor) for name, tensor in shared_factors(base.facts, spec, seed=2).items()
    )


def test_shapes_say_which_layers_share_what(base: LoadedBase) -> None:
    shapes = adapter_shapes(base.facts, AdapterSpec("tied", 3, RANKS, ("A", "B", "uv")))
    assert {name: shape for name, shape in shapes.items() if name.startswith("mlp.up_proj")} == {
        "mlp.up_proj.lora_A": (1, 16),
        "mlp.up_proj.lora_B": (24, 1),
        "mlp.up_proj.lora_u": (2, 1),
        "mlp.up_proj.lora_v": (2, 24),
    }


def test_drawn_factors_keep_the_size_of_their_input() -> None:
    shape = ProjectionShape(n_layers=2, in_features=300, out_features=400)
    facts = FACTS.model_copy(update={"projections": {"proj": shape}})
    shared = shared_factors(facts, AdapterSpec("tied", 200, trained=("uv",)), seed=0)
    x = torch.randn(100, 300, generator=torch.Generator().manual_seed(0))
    y = x @ shared["proj.lora_A"].t() @ shared["proj.lora_B"].t()
    assert y.var().item() == pytest.approx(1.0, rel=0.15)


def test_a_base_whose_layers_differ_in_shape_is_refused() -> None:
    shape = ProjectionShape(n_layers=1, in_features=3, out_features=5)
    facts = BaseFacts.model_validate(FACTS.model_dump() | {"projections": {"proj-0": shape, "proj-1": shape}})
    with pytest.raises(SettingError, match=r"tied:A: the layers of fake differ in shape \(proj-0\)"):
        adapter_shapes(facts, AdapterSpec("tied", 2, trained=("A",)))
    assert len(adapter_shapes(facts, AdapterSpec("lora", 2))) == 4


# --- the model --------------------------------------------------------------------------------------------------------


@every_spec
def test_it_begins_as_nothing_and_something_can_leave_zero(base: LoadedBase, spec: AdapterSpec) -> None:
    ids = some_ids(base)
    expected = base_logits(base, ids)
    model = tied(base, spec)
    assert torch.equal(model(ids).logits, expected)
    model.load_node("0", init_adapter(base.facts, spec, seed=5, path="0"))
    assert torch.equal(model(ids).logits, expected)
    optimizer = torch.optim.AdamW(model.adapter_parameters(), lr=0.02)
    losses = []
    for _ in range(15):
        loss = model.loss(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    before = init_adapter(base.facts, spec, seed=5, path="0")
    assert not any(torch.equal(tensor, before[name]) for name, tensor in model.node_state("0").items())


@every_spec
def test_it_is_the_plain_lora_that_it_expands_to(base: LoadedBase, spec: AdapterSpec) -> None:
    model, ids = tied(base, spec), some_ids(base)
    fill_randomly(model, size=0.5)
    logits, state = model(ids).logits, model.node_state("0")
    model.detach_adapters()
    plain = expand(state, spec, shared_factors(base.facts, spec, seed=5), base.facts)
    wide = TreeModel(base, nodes=("0",), spec=AdapterSpec("lora", 3, RANKS), scale=0.5)
    wide.load_node("0", plain)
    assert torch.allclose(wide(ids).logits, logits, atol=1e-5)
    assert not torch.allclose(base_logits_under(wide, ids), logits, atol=1e-2)


def base_logits_under(model: TreeModel, ids: torch.Tensor) -> torch.Tensor:
    model.detach_adapters()
    return base_logits(model.base, ids)


def test_the_formula_by_hand(base: LoadedBase) -> None:
    spec = AdapterSpec("tied", 3, trained=("A", "B", "uv"))
    model = tied(base, spec)
    fill_randomly(model)
    state = model.node_state("0")
    for layer in range(2):
        adapter = model.adapters["mlp.down_proj"][layer]
        x = torch.randn(5, 24)
        a, b, u, v = (state[f"mlp.down_proj.lora_{part}"] for part in ("A", "B", "u", "v"))
        update = v[layer].diag() @ b @ u[layer].diag() @ a
        assert torch.allclose(adapter(x), adapter.base(x) + 0.5 * x @ update.t(), atol=1e-5)


@every_spec
def test_what_is_loaded_is_read_back_and_only_it_learns(base: LoadedBase, spec: AdapterSpec) -> None:
    model = tied(base, spec, ("", "0"))
    fill_randomly(model)
    for path in ("", "0"):
        state = {name: torch.randn_like(tensor) for name, tensor in model.node_state(path).items()}
        model.load_node(path, state)
        assert all(torch.equal(tensor, model.node_state(path)[name]) for name, tensor in state.items())
    trained = model.adapter_parameters()
    assert sum(parameter.numel() for parameter in trained) == 2 * n_adapter_parameters(base.facts, spec)
    trained = model.adapter_parameters(nodes=("0",))
    assert sum(parameter.numel() for parameter in trained) == n_adapter_parameters(base.facts, spec)
    model.loss(some_ids(base)).backward()
    learning = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    assert learning == {id(parameter) for parameter in trained}


def test_factors_can_be_trained_in_turn(base: LoadedBase) -> None:
    model = tied(base, AdapterSpec("tied", 3, trained=("A", "B", "uv")))
    uv = model.adapter_parameters(factors=("lora_u", "lora_v"))
    assert sum(parameter.numel() for parameter in uv) == n_adapter_parameters(
        base.facts, AdapterSpec("tied", 3, trained=("uv",))
    )
    with pytest.raises(SettingError, match="factor 'lora_u': expected one of lora_A"):
        model.detach_adapters()
        tied(base, AdapterSpec("tied", 3, trained=("A",))).adapter_parameters(factors=("lora_u",))


def test_frozen_factors_must_be_there(base: LoadedBase) -> None:
    spec = AdapterSpec("tied", 3, trained=("A",))
    with pytest.raises(ShapeMismatch, match=r"frozen factors, tensor mlp.down_proj.lora_B: expected \(16, 3\), got no"):
        TreeModel(base, nodes=("0",), spec=spec, scale=1.0)
    other = shared_factors(base.facts, AdapterSpec("tied", 2, trained=("A",)), seed=0)
    with pytest.raises(ShapeMismatch, match=r"expected \(16, 3\), got \(16, 2\)"):
        TreeModel(base, nodes=("0",), spec=spec, scale=1.0, shared=other)


def test_ranks_by_layer_are_not_for_shared_rows(base: LoadedBase) -> None:
    model = tied(base, AdapterSpec("tied", 3, trained=("A", "B")))
    with pytest.raises(SettingError, match="layers share the rows of adapters of kind tied:A,B"):
        model.limit_ranks({"mlp.up_proj": (1, 1)})
    model.limit_ranks(None)
