"""A tree goes to a folder or the hub and comes back as it was."""

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelHubMixin

from tests.helpers import tiny_base_dir, tiny_base_model
from tests.model.fake_hub import FakeHub, serving
from tests.model.families import fill_randomly
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.adapters.tied import shared_factors
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle, inspect, open_bundle, read_bundle, read_open, write_bundle
from tinylora.errors import BaseModelError, BundleError, NetworkError, SettingError
from tinylora.hub import BUNDLE_FILE, find_bundle, model_card
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Router
from tinylora.tree import Topology

LORA = AdapterSpec("lora", 4)
TREE = Topology(("00", "01", "1"))
IDS = torch.arange(3, 27).reshape(2, 12)


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base_model()


def make(base: LoadedBase, *paths: str) -> Bundle:
    dim, draw = base.facts.feature_dim, np.random.default_rng(0)
    gates = Gates({node: Gate(3 * draw.normal(size=dim), 0.1, 0.5) for node in TREE.inner}, dim)
    model = TreeModel(base, nodes=paths, spec=LORA, scale=2.0, router=Router(base.routing_feature, gates, TREE, paths))
    fill_randomly(model)
    nodes = {path: {name: t.bfloat16() for name, t in model.node_state(path).items()} for path in paths}
    model.detach_adapters()
    return Bundle(
        run="run", topology=TREE, base=base.facts, spec=LORA, scale=2.0, nodes=nodes, gates=gates, policy="hard",
        projection=base.routing_feature.projection, contributors=("ann", "bob"), versions={"router": 3},
        data_notes={"00": ("letters <b>of</b> a *friend* [x](http://y) | more",)}, licences=("apache-2.0",),
        report={"note": 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def file(base, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("hub") / BUNDLE_FILE
    write_bundle(make(base, *TREE.leaves), file)
    return file


@torch.no_grad()
def logits_of(model: TreeModel) -> torch.Tensor:
    found = model(IDS).logits
    model.detach_adapters()
    return found


def test_a_folder_holds_the_bundle_and_its_card_and_comes_back_as_it_was(base, file, tmp_path):
    model = TreeModel.from_pretrained(base, file)
    assert str(model.policy) == "hard" and model.nodes == ("1", "00", "01")
    model.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["README.md", BUNDLE_FILE]
    assert (tmp_path / "saved" / BUNDLE_FILE).read_bytes() == file.read_bytes()
    expected = logits_of(model)
    again = TreeModel.from_pretrained(base, tmp_path / "saved", policy="hard")
    assert torch.equal(logits_of(again), expected)


@pytest.mark.parametrize("kind", ["lora", "tied:A,uv"])
def test_a_model_keeps_no_file_mapped(base, tmp_path, kind):
    """One view that is left keeps the file's pages in this process's memory."""
    spec = AdapterSpec.parse(kind, 4, {})
    nodes = {path: init_adapter(base.facts, spec, seed=0, path=path) for path in TREE.leaves}
    shared = shared_factors(base.facts, spec, seed=0) if spec.kind == "tied" else {}
    write_bundle(replace(make(base, *TREE.leaves), spec=spec, nodes=nodes, shared=shared), tmp_path / "b")
    opened = open_bundle(tmp_path / "b")
    mapped = weakref.ref(opened.mapped)
    model = TreeModel.from_bundle(read_open(opened), base)
    del opened
    gc.collect()
    assert mapped() is None
    logits_of(model)


def test_what_was_changed_is_saved_without_losing_a_bit(base, file, tmp_path):
    model = TreeModel.from_pretrained(base, file, policy="top2")
    fill_randomly(model, seed=7)  # numbers that bf16 does not hold
    expected = {path: model.node_state(path) for path in model.nodes}
    model.save_pretrained(tmp_path)
    model.detach_adapters()
    assert inspect(tmp_path / BUNDLE_FILE)["dtype"] == "F32"
    found = read_bundle(tmp_path / BUNDLE_FILE)
    assert found.policy == "top2"
    assert all(torch.equal(found.nodes[path][name], t) for path in expected for name, t in expected[path].items())


def test_leaves_that_nobody_trained_stay_untrained(base, tmp_path):
    write_bundle(make(base, "01"), tmp_path / "one.safetensors", dtype="F16")
    model = TreeModel.from_pretrained(base, tmp_path / "one.safetensors")
    assert list(model.to_bundle().nodes) == ["01"]
    model.detach_adapters()


def test_a_model_made_by_hand_is_saved_too(base, tmp_path):
    bundle = make(base, *TREE.leaves)
    router = Router(base.routing_feature, bundle.gates, TREE, TREE.leaves)
    model = TreeModel(base, nodes=TREE.leaves, spec=LORA, scale=2.0, router=router)
    fill_randomly(model)
    model.save_pretrained(tmp_path)
    expected = logits_of(model)
    assert torch.allclose(logits_of(TreeModel.from_pretrained(base, tmp_path)), expected, atol=1e-6)
    plain = TreeModel(base, nodes=("0",), spec=LORA, scale=2.0)
    with pytest.raises(SettingError, match="no router"):
        plain.to_bundle()
    plain.detach_adapters()


@pytest.mark.parametrize(("asked", "loaded"), [(["1"], ("1",)), (["0"], ("00", "01")), ([""], ("1", "00", "01"))])
def test_a_subtree_alone(base, file, asked, loaded):
    """Under hard routing the leaves that are there say what they said; the others are the base."""
    whole = TreeModel.from_pretrained(base, file)
    expected = {}
    for path in TREE.leaves:
        whole.route_to(path)
        with torch.no_grad():
            expected[path] = whole(IDS).logits
    whole.detach_adapters()
    part = TreeModel.from_pretrained(base, file, leaves=asked)
    assert part.nodes == loaded
    for path in loaded:
        part.route_to(path)
        with torch.no_grad():
            assert torch.equal(part(IDS).logits, expected[path])
    part.detach_adapters()


def test_the_base_may_be_a_folder_and_in_another_dtype(file):
    model = TreeModel.from_pretrained(tiny_base_dir(), file, dtype=torch.bfloat16, verify=False)
    assert model.model.dtype == torch.bfloat16
    assert torch.isfinite(model(IDS).logits).all()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("missing.safetensors", "no such file; expected a bundle, a folder with"),
        ("a/b/c", "no such file"),
        ("../up/.safetensors", "no such file"),
    ],
)
def test_a_bundle_that_is_not_there(where, message):
    with pytest.raises(BundleError, match=message):
        find_bundle(where)


def test_a_folder_without_a_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle in this folder; expected bundle\.safetensors"):
        find_bundle(tmp_path)


def test_no_connection():
    with pytest.raises(NetworkError, match=r"org/name: no such file or folder here, nor a bundle in the hub's cache"):
        find_bundle("org/name")


def test_settings_that_there_are_not(base, file):
    with pytest.raises(SettingError, match=r"leaf '11': no such node; the tree's leaves are 00, 01, 1"):
        TreeModel.from_pretrained(base, file, leaves=["11"])
    with pytest.raises(SettingError, match="sideways"):
        TreeModel.from_pretrained(tiny_base_dir(), "nowhere", policy="sideways")
    with pytest.raises(SettingError, match="device 'moon'"):
        TreeModel.from_pretrained(tiny_base_dir(), file, device="moon")
    with pytest.raises(BaseModelError, match="org/base: the base is not on this machine"):
        TreeModel.from_pretrained("org/base", file, local_files_only=True)


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_tells_what_the_hub_reads_and_lets_nothing_act(base):
    bundle = make(base, "1")
    at_home = replace(bundle, base=bundle.base.model_copy(update={"base_id": "org/base"}), run="<script>run")
    text = str(model_card(at_home, "me/tree"))
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "tinylora",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "tinylora"],
    }
    assert 'from_pretrained(None, "me/tree")' in text and "ann, bob" in text
    assert "&lt;b&gt;of&lt;/b&gt; a \\*friend\\* \\[x\\](http://y) \\| more" in text and "<script>" not in text
    assert "base_model" not in yaml.safe_load(str(model_card(bundle, "me/tree")).split("---")[1])


def test_saving_and_sharing_at_once(base, file, tmp_path, monkeypatch):
    asked = {}

    def push(_self: object, repo_id: str, **more: object) -> str:
        asked.update(more, id=repo_id)
        return "where it is"

    monkeypatch.setattr(ModelHubMixin, "push_to_hub", push)
    model = TreeModel.from_pretrained(base, file)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/tree", private=True)
    model.detach_adapters()
    assert asked == {"id": "me/tree", "private": True, "model_card_kwargs": {"repo_id": "me/tree"}}


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_up_to_a_hub_and_down_again(file, tmp_path):
    hub, bundle = FakeHub(), read_bundle(file)
    file = tmp_path / "at_home.safetensors"
    write_bundle(replace(bundle, base=bundle.base.model_copy(update={"base_id": "me/base"})), file)
    hub.files["me/base"] = {path.name: path.read_bytes() for path in tiny_base_dir().iterdir()}
    hub.files["me/empty"] = {}
    with serving(hub) as address:
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # its protocol is a library of its own; the hub's older one is spoken here
            "HF_HOME": str(tmp_path / "home"),
        }
        told = subprocess.run(
            [sys.executable, "-m", "tests.model.through_a_hub", tiny_base_dir(), file, str(tmp_path / "cache")],
            env=environment, capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
    assert told.returncode == 0, told.stderr + "\n".join(hub.asked)
    assert told.stdout.splitlines()[1:3] == ["equal True hard me/base", "cached True"]
    assert told.stdout.startswith(f"commit {address}/me/tree/commit/")
    assert sorted(hub.files["me/tree"]) == ["README.md", BUNDLE_FILE]
    assert hub.files["me/tree"][BUNDLE_FILE] == file.read_bytes()
    assert "Bearer hf_secret" in hub.tokens
    assert b'from_pretrained(None, "me/tree")' in hub.files["me/tree"]["README.md"]
    for line, words in zip(
        told.stdout.splitlines()[3:],
        ("no such repository", "no such revision", "has no bundle.safetensors", "was not reached"),
        strict=True,
    ):
        assert words in line
    assert json.dumps(hub.asked).count("PUT /stored/") == 1
