"""A text's way, found by a table in the run's folder: the same as the torch router finds it."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylora_coordinator.dashboard import lookup
from tinylora_coordinator.dashboard.lookup import Ends, MappedTable, TextRouter, table_bytes
from tinylora_coordinator.folder import RunFolder, write_run
from tinylora_coordinator.lookup_tables import lookup_tables, make_lookup

from tests.federation.facts import SETTINGS
from tests.helpers import tiny_base_model
from tinylora.base_model import LoadedBase, encode, load_base
from tinylora.demo.experiment import BASE_DIR
from tinylora.errors import BaseModelError, DataError
from tinylora.federation.events import GatesSolved, RunStarted
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.routing import ways
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Policy, Router, reference_posterior
from tinylora.routing.ways import posterior_of, way_of
from tinylora.tree import Topology

TREE = Topology(("000", "001", "01", "10", "110", "111"))
TEXT = "Once upon a time, <s>in a far land</s>, there was été \N{GRINNING FACE} 42 " * 3
texts = st.text(max_size=200) | st.just("") | st.just("<s></s><pad><|endoftext|>")


def gates_of(dim: int, seed: int = 0) -> Gates:
    draw = np.random.default_rng(seed)
    nodes = {node: Gate(draw.standard_normal(dim), 0.1 * draw.standard_normal(), 0.35) for node in TREE.inner}
    return Gates(nodes, dim)


def solved(root: Path, gates: Gates, version: int, base: LoadedBase) -> None:
    with SqliteLedger(root) as ledger:
        blob = ledger.put_blob(safetensors.numpy.save(gates.to_arrays()))
        event = GatesSolved(version=version, contributors=("w",), drift=1.0, blob=blob)
        start = [RunStarted(run="test", settings=SETTINGS, base=base.facts)] if version == 1 else []
        ledger.append([*start, event], float(version))


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    """The demo's base, with a projected feature."""
    return load_base(BASE_DIR, feature_dim=48)


@pytest.fixture(scope="module")
def folder(base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    made = RunFolder(tmp_path_factory.mktemp("run"))
    tables = lookup_tables(base)
    assert tables is not None
    made.lookup_file.write_bytes(tables.table)
    made.tokenizer_file.write_bytes(tables.tokenizer)
    solved(made.root, gates_of(48), 1, base)
    return made


@pytest.fixture(scope="module")
def router(folder: RunFolder, base: LoadedBase) -> TextRouter:
    notes = {"01": ("poems",)}
    return TextRouter(folder, feature_hash=base.facts.feature_hash, router_version=lambda: 1, notes=lambda: notes)


def by_torch(base: LoadedBase, gates: Gates, text: str) -> tuple[np.ndarray, str, int]:
    """Posterior of the leaves, the leaf of hard decisions, and the number of tokens."""
    torch_router = Router(base.routing_feature, gates, TREE, TREE.leaves)
    ids = encode(base.tokenizer, text)
    means, _, _ = base.routing_feature(torch.tensor([ids]))
    scores = torch_router.scores(means)[:, -1:]
    hard = torch_router.decide(scores, Policy("hard"))[0, 0]
    return torch_router.log_posterior(scores).exp()[0, 0].numpy(), TREE.leaves[int(hard.argmax())], len(ids)


@settings(max_examples=40, deadline=None)
@given(texts)
def test_the_way_is_what_torch_finds(router: TextRouter, base: LoadedBase, text: str) -> None:
    expected, leaf, n_tokens = by_torch(base, gates_of(48), text)
    found = router(text)
    assert (found.path, found.n_tokens, found.router_version) == (leaf, n_tokens, 1)
    posterior = {row.path: row.posterior for row in found.leaves}
    np.testing.assert_allclose([posterior[path] for path in TREE.leaves], expected, atol=1e-6)
    assert [row.posterior for row in found.leaves] == sorted(posterior.values(), reverse=True)
    assert [step.path for step in found.gates] == [found.path[:level] for level in range(len(found.path))]
    assert "".join(step.went for step in found.gates) == found.path
    assert all((step.right >= 0.5) == (step.went == "1") for step in found.gates)


def test_leaves_carry_what_their_holders_say(router: TextRouter) -> None:
    notes = {row.path: row.data_notes for row in router(TEXT).leaves}
    assert notes.pop("01") == ("poems",) and not any(notes.values())


def test_half_floats_are_near_enough(base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MOST_FLOAT32_BYTES", 1000)
    file = tmp_path / "table"
    table = base.routing_feature.table.numpy()
    file.write_bytes(table_bytes(table, Ends(1, 2), feature_hash="h"))
    assert file.stat().st_size < 0.6 * table.nbytes
    mapped, gates = MappedTable.open(file, feature_hash="h"), gates_of(48)
    expected, _, _ = by_torch(base, gates, TEXT)
    found = posterior_of(gates, mapped.mean(encode(base.tokenizer, TEXT)))
    np.testing.assert_allclose([found[path] for path in TREE.leaves], expected, atol=1e-3)


@given(st.integers(0, 100), st.floats(-1e3, 1e3))
def test_the_posterior_is_the_product_of_the_gates(seed: int, size: float) -> None:
    gates, feature = gates_of(4, seed), size * np.arange(4.0)
    expected = reference_posterior(gates, feature, TREE)
    assert posterior_of(gates, feature) == pytest.approx(expected, abs=1e-12)
    assert sum(expected.values()) == pytest.approx(1.0)


def test_a_tree_of_one_leaf_has_no_way() -> None:
    none = Gates({}, 0)
    assert way_of(none, np.zeros(4)) == () and posterior_of(none, np.zeros(4)) == {"": 1.0}


def test_a_mean_over_many_tokens_counts_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "_ROWS_AT_ONCE", 3)
    table = np.arange(40, dtype=np.float32).reshape(20, 2)
    (tmp_path / "table").write_bytes(table_bytes(table, Ends(), feature_hash="h"))
    mapped = MappedTable.open(tmp_path / "table", feature_hash="h")
    ids = [3, 3, 7, 19, 0, 1, 3]
    np.testing.assert_allclose(mapped.mean(ids), table[ids].mean(axis=0))
    np.testing.assert_array_equal(mapped.mean([]), [0, 0])
    with pytest.raises(DataError, match="token 20"):
        mapped.mean([20])


def test_new_gates_are_seen(folder: RunFolder, base: LoadedBase) -> None:
    version = 1
    router = TextRouter(folder, feature_hash=base.facts.feature_hash, router_version=lambda: version)
    before = router(TEXT)
    solved(folder.root, gates_of(48, seed=5), 2, base)
    assert router(TEXT) == before
    version = 2
    assert router(TEXT).router_version == 2 and router(TEXT).leaves != before.leaves
    version = 3
    with pytest.raises(DataError, match="gates of version 3"):
        router(TEXT)


# --- where it cannot --------------------------------------------------------------------------------------------------


def test_a_run_without_tables_or_gates_says_what_to_do(folder: RunFolder, tmp_path: Path) -> None:
    old = TextRouter(RunFolder(tmp_path), feature_hash="h", router_version=lambda: 1)
    assert "tinylora-coordinator lookup" in old.why_not()
    with pytest.raises(DataError, match="no table"):
        old(TEXT)
    assert "no gates yet" in TextRouter(folder, feature_hash="h", router_version=lambda: 0).why_not()


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_table_is_one_sentence(damage: bytes, folder: RunFolder, tmp_path: Path) -> None:
    broken = RunFolder(tmp_path)
    broken.lookup_file.write_bytes(damage)
    broken.tokenizer_file.write_bytes(folder.tokenizer_file.read_bytes())
    solved(tmp_path, gates_of(48), 1, tiny_base_model())
    router = TextRouter(broken, feature_hash="h", router_version=lambda: 1)
    with pytest.raises(DataError, match="tinylora-coordinator lookup"):
        router(TEXT)


def test_tables_of_another_feature_and_long_texts_are_refused(folder: RunFolder, base: LoadedBase) -> None:
    with pytest.raises(DataError, match="another routing feature"):
        TextRouter(folder, feature_hash="0" * 64, router_version=lambda: 1)(TEXT)
    with pytest.raises(DataError, match="at most 20000 characters"):
        TextRouter(folder, feature_hash=base.facts.feature_hash, router_version=lambda: 1)("a" * 20_001)


def test_a_run_made_before_gets_its_tables(base: LoadedBase, tmp_path: Path) -> None:
    root = tmp_path / "run"
    write_run(RunFolder(root), SETTINGS, base.facts, None)
    with pytest.raises(BaseModelError, match="not the base of this run"):
        make_lookup(root, tiny_base_model())
    make_lookup(root, load_base(BASE_DIR))
    assert MappedTable.open(RunFolder(root).lookup_file, feature_hash=base.facts.feature_hash).rows.shape[1] == 48
