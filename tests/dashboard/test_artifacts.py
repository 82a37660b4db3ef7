"""What can be taken away from a run: bundles by their hash, leaves that PEFT would load; nothing made twice."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.artifacts import KEEP_LEAVES, RunArtifacts
from tinylora_coordinator.dashboard.press import Ended, Press
from tinylora_coordinator.folder import RunFolder, write_run
from tinylora_coordinator.keys import run_public
from tinylora_coordinator.leaf_file import leaf_file
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.service import bundle, publish

from tests.dashboard.fakes import FakeViews
from tests.federation.events import JOINED, STARTED
from tests.federation.facts import DIM, FACTS, SETTINGS
from tests.federation.world import crowd
from tinylora.bundle import inspect, read_bundle, verify
from tinylora.errors import BaseModelError, SettingError, StorageError
from tinylora.export import Places
from tinylora.federation.campaign import fold
from tinylora.federation.events import BundlePublished, WorkerErased, WorkerRevoked
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.routing.features import feature_hash
from tinylora.simulate import run_simulated

BASE = FACTS.model_copy(update={"feature_hash": feature_hash(None, DIM, DIM)})
PLACES = Places(modules={"proj": ("model.layers.0.proj", "model.layers.1.proj")}).to_json()


class TreeViews(FakeViews):
    """Views of a tree whose nodes are what a test says."""

    nodes: tuple[doc.Node, ...] = ()

    def state(self) -> doc.State:
        return super().state().model_copy(update={"nodes": self.nodes})


class FakeLeaf:
    """Stands in for `tinylora-coordinator leaf`."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.ending = Ended(0, "", "")

    def __call__(self, words: Sequence[str]) -> Ended:
        self.paths.append(words[2])
        if self.ending.code == 0:
            Path(words[words.index("--out") + 1]).write_bytes(f"zip {len(self.paths)}".encode())
        return self.ending


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two leaves that is over."""
    root = tmp_path_factory.mktemp("runs") / "run"
    settings = SETTINGS.model_copy(update={"alpha": 4.0})
    write_run(RunFolder(root), settings, BASE, None, places=PLACES)
    with SqliteLedger(root) as ledger:
        workers = crowd(2)
        run_simulated(ledger, settings, workers, BASE, [worker.runner for worker in workers if worker.runner], None)
    return root


def node(path: str, version: int = 1, kind: str = "leaf") -> doc.Node:
    return doc.Node(path=path, kind=kind, state="done", version=version, n_steps=20 * version)  # type: ignore[arg-type]


Desk: TypeAlias = tuple[RunArtifacts, TreeViews, FakeLeaf, Press]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Artifacts of an empty folder, with a made-up tree and command."""
    store = OperatorStore(tmp_path)
    press = Press(tmp_path, store, run=lambda words: Ended(3, "", "error: no tree\n"))
    press.start()
    views, command = TreeViews(), FakeLeaf()
    yield RunArtifacts(tmp_path, views, press, run=command), views, command, press
    press.close()


def put(press: Press, data: bytes, n_events: int) -> BundlePublished:
    made = BundlePublished(
        sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), n_events=n_events, log_sha256="0" * 64,
        router_version=1, at_s=2.0,
    )  # fmt: skip
    file = press.shelf.new_file()
    file.write_bytes(data)
    press.shelf.take(file, made)
    return made


def test_an_empty_run_has_nothing(desk: Desk) -> None:
    artifacts, _, _, _ = desk
    assert artifacts.list(True) == doc.Artifacts(bundles=(), leaves=(), can_make=True)
    assert artifacts.bundle("a" * 64) is None and artifacts.bundle("../x") is None
    assert artifacts.leaf("01") is None and artifacts.leaf("../x") is None


def test_bundles_are_listed_the_newest_first_with_what_the_log_says(desk: Desk, tmp_path: Path) -> None:
    artifacts, _, _, press = desk
    old, new = put(press, b"old", 3), put(press, b"new", 9)
    published = b"published by an older program"
    RunFolder(tmp_path).bundle_file.write_bytes(published)
    gone = old.model_copy(update={"sha256": "e" * 64, "n_events": 1})
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED, old, gone], 0.0)
        rows = artifacts.list(False).bundles
    sha256 = hashlib.sha256(published).hexdigest()
    assert [(row.sha256, row.is_published, row.is_recorded, bool(row.url)) for row in rows] == [
        (sha256, True, False, True),
        (new.sha256, False, False, True),
        (old.sha256, False, True, True),
        (gone.sha256, False, True, False),
    ]
    assert artifacts.bundle(sha256) == RunFolder(tmp_path).bundle_file
    file = artifacts.bundle(new.sha256)
    assert file is not None and file.read_bytes() == b"new"
    assert artifacts.bundle(gone.sha256) is None


def test_what_was_made_before_an_erasure_goes(desk: Desk, tmp_path: Path) -> None:
    artifacts, views, _, press = desk
    views.nodes = (node(""),)
    with SqliteLedger(tmp_path) as ledger:
        ledger.append([STARTED, JOINED], 0.0)
        before, after = put(press, b"with it", 2), put(press, b"without it", 4)
        leaf = artifacts.leaf("")
        gone = JOINED.worker
        ledger.append([WorkerRevoked(worker=gone), WorkerErased(worker=gone)], 0.0)
        press.look()
    assert press.shelf.file(before.sha256) is None and press.shelf.file(after.sha256) is not None
    assert leaf is not None and not leaf.exists()


def test_a_leaf_is_made_once_for_each_version(desk: Desk) -> None:
    artifacts, views, command, _ = desk
    views.nodes = (node("", 0, "inner"), node("0"), node("1", 0))
    assert [(row.path, row.version, row.url) for row in artifacts.list(False).leaves] == [("0", 1, "/api/v1/leaves/0")]
    first = artifacts.leaf("0")
    assert first is not None and artifacts.leaf("0") == first and command.paths == ["0"]
    assert artifacts.leaf("1") is None and artifacts.leaf("") is None  # nobody trained it; no leaf
    views.nodes = (node("", 1, "inner"), node("0", 2), node("1", 0))
    second = artifacts.leaf("0")
    assert second not in (None, first) and command.paths == ["0", "0"]
    assert [row.path for row in artifacts.list(False).leaves] == ["0", "1"]  # what is above leaf 1 was trained


def test_only_so_many_leaves_stay(desk: Desk) -> None:
    artifacts, views, _, press = desk
    paths = [f"{number:05b}" for number in range(KEEP_LEAVES + 3)]
    views.nodes = tuple(node(path) for path in paths)
    for path in paths:
        assert artifacts.leaf(path)
    assert len(list(press.shelf.leaves.iterdir())) == KEEP_LEAVES


@pytest.mark.parametrize(
    ("code", "error"), [(2, SettingError), (4, SettingError), (8, StorageError), (-9, StorageError)]
)
def test_a_leaf_that_cannot_be_made_is_one_sentence(desk: Desk, code: int, error: type[Exception]) -> None:
    artifacts, views, command, press = desk
    views.nodes = (node(""),)
    command.ending = Ended(code, "", "error: so it is\n" if code > 0 else "")
    with pytest.raises(error, match="so it is" if code > 0 else "killed by signal 9"):
        artifacts.leaf("")
    assert not list(press.shelf.leaves.iterdir())


# --- of a real ledger ------------------------------------------------------------------------------------------------


def test_a_leaf_of_a_run_is_a_peft_adapter_of_the_latest_versions(finished: Path, tmp_path: Path) -> None:
    told = leaf_file(finished, "1", tmp_path / "leaf.zip")
    assert (told["n_steps"], told["rank"], told["nodes"]) == (SETTINGS.leaf_steps, SETTINGS.rank, ["1"])
    leaf_file(finished, "1", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "leaf.zip").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.zip", "leaf.zip"]
    with zipfile.ZipFile(tmp_path / "leaf.zip") as packed:
        names = packed.namelist()
        config = json.loads(packed.read("test-leaf-1/adapter_config.json"))
        card = packed.read("test-leaf-1/README.md").decode()
    assert names == [
        f"test-leaf-1/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "README.md")
    ]
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (SETTINGS.rank, 4, ["proj"])
    assert f"| steps | {SETTINGS.leaf_steps} |" in card and "2 workers" in card


def test_a_leaf_that_is_not_there_and_a_base_that_nobody_knows(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such leaf; it has 0, 1"):
        leaf_file(finished, "00", tmp_path / "leaf.zip")
    RunFolder(finished).places_file.rename(tmp_path / "places.json")
    try:
        with pytest.raises(BaseModelError, match="--base PATH"):
            leaf_file(finished, "0", tmp_path / "leaf.zip")
    finally:
        (tmp_path / "places.json").rename(RunFolder(finished).places_file)
    assert not (tmp_path / "leaf.zip").exists()


def test_the_end_names_its_bundle_once_and_the_command_says_of_which_log(finished: Path, tmp_path: Path) -> None:
    folder = RunFolder(finished)
    with SqliteLedger(finished) as ledger:
        for _ in range(2):
            campaign = fold(ledger.events())
            assert campaign is not None
            publish(folder, ledger, campaign)
        (named,) = [event for event in ledger.events() if isinstance(event, BundlePublished)]
        assert named.log_sha256 == ledger.chain_at(named.n_events)
    assert named.sha256 == hashlib.sha256(folder.bundle_file.read_bytes()).hexdigest()
    assert inspect(folder.bundle_file)["signed_by"] == run_public(folder.keys)
    assert verify(folder.bundle_file, key=run_public(folder.keys))
    told = bundle(finished, tmp_path / "b.safetensors")
    assert told.sha256 == named.sha256 and told.n_events == named.n_events + 1


def test_a_bundle_may_tell_less_of_the_texts(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.safetensors"
    for kind in ("leaf", "pooled", "none"):
        bundle(finished, file, statistics=kind)
        assert inspect(file)["statistics"] == kind
        told = read_bundle(file).statistics
        assert (told is None) == (kind == "none")
