"""A text's way through a bundle, from the base's tokenizer and one tensor: the same as the model's router finds it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.helpers import tiny_base_dir
from tests.model.families import FAMILIES, family_base
from tinylora import text_router
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase, fingerprint_of, load_base, load_embeddings, save_base
from tinylora.bundle import Bundle, write_bundle
from tinylora.cli import app
from tinylora.command_line import exit_code_of
from tinylora.errors import BaseModelError, DataError
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Policy, Router
from tinylora.routing.ways import likeliest, n_deciding, posterior_of, way_of, weights_of
from tinylora.text_router import TextRouter, report, report_lines
from tinylora.tree import Topology

TREE = Topology(("00", "010", "011", "1"))
TEXTS = ("Once upon a time", "a", "été \N{GRINNING FACE} <s></s> 42 " * 9)
POLICIES = ("soft", "top2", "hard", "elastic:0.4", "hard@window:5", "soft@sequence:7")


def gates_of(dim: int, seed: int = 0) -> Gates:
    draw = np.random.default_rng(seed)
    return Gates(
        {node: Gate(draw.standard_normal(dim), 0.1 * draw.standard_normal(), 0.35) for node in TREE.inner}, dim
    )


def bundle_of(base: LoadedBase) -> Bundle:
    spec = AdapterSpec("lora", 2)
    states = {path: init_adapter(base.facts, spec, seed=0, path=path) for path in ("01", "1")}
    return Bundle(
        run="ways", topology=TREE, base=base.facts, spec=spec, scale=1.0,
        nodes=states, gates=gates_of(base.facts.feature_dim), projection=base.routing_feature.projection,
        data_notes={"010": ("poems", "letters")},
    )  # fmt: skip


def by_model(base: LoadedBase, ids: list[int], policy: str) -> tuple[dict[str, float], str, dict[str, float]]:
    """Posterior and hard leaf at the end of all tokens, and what the policy holds there, from the model's router."""
    router = Router(base.routing_feature, gates_of(base.facts.feature_dim), TREE, TREE.nodes)
    means, _, _ = base.routing_feature(torch.tensor([ids]))
    scores = router.scores(means)[:, -1:]
    posterior = router.log_posterior(scores).exp()[0, 0].tolist()
    hard = router.decide(scores, Policy("hard"))[0, 0]
    held = router(torch.tensor([ids]), policy=Policy.parse(policy))[1].held.dense(len(TREE.nodes))[0].tolist()
    leaf = next(leaf for leaf in TREE.leaves if hard[TREE.nodes.index(leaf)])
    return dict(zip(TREE.leaves, posterior, strict=True)), leaf, dict(zip(TREE.nodes, held, strict=True))


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    base = family_base(request.param)
    save_base(base.model, base.tokenizer, folder, dtype=torch.bfloat16)
    return folder


@pytest.mark.parametrize("dim", [8, 16, 40])
def test_the_way_is_what_the_model_finds(saved: Path, dim: int, tmp_path: Path) -> None:
    base = load_base(saved, feature_dim=dim)
    write_bundle(bundle_of(base), tmp_path / "bundle")
    router = TextRouter.open(tmp_path / "bundle", saved, check_base=True)
    for text in TEXTS:
        ids = router.ids_of(text)
        for policy in POLICIES:
            posterior, leaf, held = by_model(base, ids, policy)
            way = router.way(text, Policy.parse(policy))
            assert way.n_tokens == len(ids)
            if "@" not in policy:
                assert way.path == leaf and list(way.posterior) == likeliest(way.posterior)
                assert way.posterior == pytest.approx(posterior, abs=1e-6)
                assert "".join(step.went for step in way.gates) == leaf
            above = {node: sum(w for leaf, w in way.weights.items() if leaf.startswith(node)) for node in TREE.nodes}
            assert {node: above[node] for node in TREE.leaves} == pytest.approx(
                {node: held[node] for node in TREE.leaves}, abs=1e-6
            )
            if policy.startswith("elastic"):
                assert list(way.weights) == [max((node for node in TREE.nodes if held[node]), key=len)]


def test_untrained_leaves_are_told(tmp_path: Path) -> None:
    base = load_base(tiny_base_dir())
    write_bundle(bundle_of(base), tmp_path / "bundle")
    router = TextRouter.open(tmp_path / "bundle", tiny_base_dir())
    assert router.trained_leaves == ("010", "011", "1")
    assert router.way("a").data_notes == {"010": ("poems", "letters")}


# --- the wrong base ---------------------------------------------------------------------------------------------------


def test_other_bases_are_refused(tmp_path: Path) -> None:
    base = load_base(tiny_base_dir(), feature_dim=20)
    file = tmp_path / "bundle"
    write_bundle(bundle_of(base), file)
    with pytest.raises(BaseModelError, match="nowhere"):
        TextRouter.open(file, tmp_path / "nowhere")
    with pytest.raises(BaseModelError, match="fingerprint"):
        TextRouter.open(file, tiny_base_dir(1), check_base=True)  # without it, these two look alike
    assert fingerprint_of(tiny_base_dir()) == base.facts.fingerprint
    gpt2 = family_base("gpt2")
    save_base(gpt2.model, gpt2.tokenizer, tmp_path / "narrow", dtype=torch.float32)
    with pytest.raises(BaseModelError, match="not 16 wide"):
        TextRouter.open(file, tmp_path / "narrow")
    gpt2.tokenizer.add_tokens(["more"])
    gpt2.tokenizer.save_pretrained(tmp_path / "narrow")
    with pytest.raises(BaseModelError, match="the tokenizer of"):
        TextRouter.open(file, tmp_path / "narrow")


@pytest.mark.parametrize("rename", [lambda name: name.removeprefix("model."), "language_model.{}".format])
def test_embeddings_are_found_where_files_name_them_otherwise(rename, tmp_path: Path) -> None:
    base = family_base("llama")
    save_base(base.model, base.tokenizer, tmp_path, dtype=torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    assert torch.equal(load_embeddings(tmp_path), stored["model.embed_tokens.weight"])
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"no tensor model\.embed_tokens\.weight"):
        load_embeddings(tmp_path)


def test_tokens_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    base = load_base(tiny_base_dir())
    write_bundle(bundle_of(base), tmp_path / "bundle")
    router = TextRouter.open(tmp_path / "bundle", tiny_base_dir())
    for ids in ([3, 10**6], [-1], []):
        with pytest.raises(DataError, match="expected tokens from 0 to"):
            router.way_of_ids(ids)


# --- policies ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from(["soft", "top2", "hard", "elastic:0.0", "elastic:0.99"]))
def test_weights_are_those_of_one_text(seed: int, policy: str) -> None:
    gates = gates_of(4, seed)
    posterior = posterior_of(gates, np.ones(4))
    path = "".join(step.went for step in way_of(gates, np.ones(4)))
    weights = weights_of(posterior, path, Policy.parse(policy))
    assert sum(weights.values()) == pytest.approx(1.0) and set(weights) <= set(TREE.nodes)
    if policy in ("hard", "elastic:0.0"):
        assert weights == {path: 1.0}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("soft", [0, 1, 9]), ("hard@window:4", [None, None, 8]), ("hard@sequence:4", [None, None, 4])],
)
def test_a_decision_reads_so_many_tokens(policy: str, expected: list[int | None]) -> None:
    assert [n_deciding(Policy.parse(policy), n) for n in (0, 1, 9)] == expected


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_tells_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    base = load_base(tiny_base_dir())
    file, text = tmp_path / "bundle", "Once upon a time"
    write_bundle(bundle_of(base), file)
    (tmp_path / "text").write_text(text)
    options = ["route", str(file), "--base", str(tiny_base_dir())]
    told = []
    for more in ([text], ["--in", str(tmp_path / "text")], [text, "--policy", "soft", "--top", "2"]):
        assert exit_code_of(lambda more=more: app([*options, *more, "--json"])) == 0
        told.append(json.loads(capsys.readouterr().out))
    way = TextRouter.open(file, tiny_base_dir()).way(text)
    assert told[0] == told[1] == report(way, Policy("hard"), n_leaves=16)
    assert len(told[2]["leaves"]) == 2 and told[2]["n_leaves"] == 4 and told[2]["weights"] == dict(way.posterior)
    assert exit_code_of(lambda: app([*options, text])) == 0
    assert capsys.readouterr().out.splitlines() == report_lines(told[0])
    assert exit_code_of(lambda: app([*options, text, "--policy", "sideways"])) == 2
    assert exit_code_of(lambda: app([*options, "--in", str(tmp_path / "none")])) == 3
    assert exit_code_of(lambda: app([*options, text, "--policy", "hard@sequence:99"])) == 0
    assert "too few for a decision" in capsys.readouterr().out


def test_what_workers_said_is_shown() -> None:
    way = text_router.Way("1", (), {"1": 1.0}, {"1": 1.0}, 3, {"1": ("poems", "letters")})
    assert report_lines(report(way, Policy("hard"), n_leaves=4))[-1].endswith("100.00%  poems; letters")
    assert report(replace(way, data_notes={}), Policy("hard"), n_leaves=4)["leaves"][0]["data_notes"] == []
