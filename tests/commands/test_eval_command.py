"""`tinylora eval`: every policy beside the base, what each costs, the regret against each domain's best leaf."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.commands.test_simulate_command import run, write_text
from tests.helpers import tiny_base_dir, tiny_base_model
from tests.model.families import fill_randomly
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import load_base
from tinylora.bundle import Bundle, write_bundle
from tinylora.eval_files import evaluate_bundle
from tinylora.evaluation import score_leaves
from tinylora.model import TreeModel
from tinylora.report.costs import flops_per_token, nodes_at_a_token
from tinylora.routing.decision import EVERY, named_policies
from tinylora.routing.gates import Gate, Gates
from tinylora.shards import load_documents
from tinylora.tree import Topology

RANK = 4


def three_leaves(file: Path) -> Path:
    """A bundle with leaves "0", "10" and "11", each with something learned, and gates that send text to all of them."""
    base, topology = load_base(tiny_base_dir(), feature_dim=32), Topology(("0", "10", "11"))
    draw = torch.Generator().manual_seed(3)
    spec = AdapterSpec("lora", RANK)
    model = TreeModel(base, nodes=("0",), spec=spec, scale=1.0)
    nodes = {}
    for number, leaf in enumerate(topology.leaves):
        fill_randomly(model, seed=number, size=0.1)
        nodes[leaf] = model.node_state("0")
    gates = Gates(
        {node: Gate(torch.randn(32, generator=draw).double().numpy(), 0.0, 3.0) for node in topology.inner}, 32
    )
    bundle = Bundle(run="r", topology=topology, base=base.facts, spec=spec, scale=1.0, nodes=nodes, gates=gates)
    write_bundle(bundle, file, dtype="F32")
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def data(place) -> list[Path]:
    return [write_text(place / "a" / "text", "the cat ran ", 3), write_text(place / "b" / "text", "1 2 3 4 ", 3)]


@pytest.fixture(scope="module")
def bundle(place) -> Path:
    return three_leaves(place / "bundle.safetensors")


@pytest.fixture(scope="module")
def result(bundle, data):
    ticks = iter(range(1000))
    return evaluate_bundle(
        bundle, tiny_base_dir(), data, policies=["all"], with_oracle=True, threads=1, clock=lambda: float(next(ticks))
    )


def test_every_policy_stands_beside_the_base_and_the_oracle(result, data):
    assert list(result["systems"]) == ["base", *(f"routed:{name}" for name in EVERY), "oracle"]
    for row in result["systems"].values():
        assert set(row["nll"]) == set(map(str, data))  # both folders are called "text"
        assert row["tokens_per_s"] == row["n_tokens"]  # one second each
    assert set(result["comparison"]) == set(result["systems"]) - {"base"}


def test_ranks_and_products_are_those_of_the_adapters_at_a_token(result):
    rows = result["systems"]
    names = ("base", "routed:soft", "routed:top2", "routed:hard", "routed:elastic", "oracle")
    assert [rows[name]["active_rank"] for name in names] == [0, 3 * RANK, 2 * RANK, RANK, RANK, RANK]
    flops = [rows[name]["flops_per_token"] for name in ("base", "routed:hard", "routed:soft")]
    assert flops[2] - flops[0] == 3 * (flops[1] - flops[0]) > 0


def test_products_by_hand():
    base = tiny_base_model()
    attention = 2 * 32 * 32 + 2 * 32 * 16  # q and o; k and v have half the heads
    shapes = 2 * (attention + 3 * 32 * 48)
    adapters = 2 * RANK * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    found = flops_per_token(base.facts, AdapterSpec("lora", RANK), n_nodes=2, n_head=7)
    assert found == 2 * (shapes + 7 + 2 * adapters)


@pytest.mark.parametrize(
    ("decision", "nodes", "expected"),
    [
        ("soft", ("", "0", "1", "10", "11"), 5),
        ("hard", ("", "0", "1", "10", "11"), 3),
        ("top2", ("", "0", "1", "10", "11"), 4),  # "", "1", "10", "11"
        ("elastic", ("0", "10", "11"), 1),
        ("top2", ("0", "10", "11"), 2),
        ("hard", (), 0),
    ],
)
def test_adapters_at_a_token(decision, nodes, expected):
    assert nodes_at_a_token(decision, nodes, ("0", "10", "11")) == expected


def test_the_best_leaf_is_the_one_with_the_lowest_loss(result, bundle, data):
    model = TreeModel.from_pretrained(tiny_base_dir(), bundle)
    for path in data:
        heldout = {str(path): load_documents([path], model.base)}
        losses = {
            leaf: sum(item.nll_sum for item in score_leaves(model, heldout, {str(path): leaf}, window_tokens=64))
            for leaf in ("0", "10", "11")
        }
        assert result["oracle_leaf"][str(path)] == min(losses, key=lambda leaf: losses[leaf])
    base_nll, best = (result["systems"][name]["nll_mean"] for name in ("base", "oracle"))
    for name, regret in result["regret"].items():
        routed = result["systems"][f"routed:{name}"]["nll_mean"]
        assert regret is None or regret == pytest.approx((routed - best) / (base_nll - best))


def test_the_table_shows_each_system_and_each_domain(bundle, data, capsys):
    options = ("--base", tiny_base_dir(), "--threads", 1, "--max-tokens", 40, "--data", data[0])
    assert run("eval", bundle, *options, "--policy", "hard", "--policy", "soft", "--oracle") == 0
    systems, domains = capsys.readouterr().out.split("\n\n")
    names = ["base", "routed:hard", "routed:soft", "oracle"]
    assert re.findall(r"^\S+", systems, flags=re.MULTILINE) == ["system", *names]
    assert domains.split()[:6] == ["domain", *names, "best"]
    assert run("eval", bundle, *options, "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["systems"]) == ["base", "routed:soft"]


def test_words_for_policies():
    assert list(named_policies(["hard", "all"])) == ["hard", "soft", "top2", "elastic", "hard@sequence:32"]
