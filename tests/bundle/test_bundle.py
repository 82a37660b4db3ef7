"""The released file: what goes in comes out, equal bundles are equal bytes, and no byte changes unnoticed."""

import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinylora import bundle as bundles
from tinylora import tensors
from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle import Bundle, LeafStatistics, check_base, pack, read_bundle, write_bundle
from tinylora.bundle.metadata import canonical, metadata_sum
from tinylora.config import BaseFacts, ProjectionShape
from tinylora.errors import BaseModelError, BundleError, ProtocolError, SettingError, StorageError
from tinylora.routing.features import feature_hash
from tinylora.routing.gates import Gate, Gates
from tinylora.tree import Topology

FEATURES, EMBEDDING, RANK = 3, 5, 2
PROJECTION = torch.arange(FEATURES * EMBEDDING, dtype=torch.float32).reshape(FEATURES, EMBEDDING) / 7
DEPTH_1 = Topology.perfect(1)
NOBODY = BaseFacts(
    base_id="tiny",
    fingerprint="a1" * 32,
    tokenizer_fingerprint="b2" * 32,
    feature_dim=FEATURES,
    feature_hash=feature_hash(None, FEATURES, FEATURES),
    max_window_tokens=32,
    projections={
        "self_attn.q_proj": ProjectionShape(n_layers=2, in_features=3, out_features=4),
        "mlp.down_proj": ProjectionShape(n_layers=1, in_features=5, out_features=3),
    },
)
PROJECTED = NOBODY.model_copy(update={"feature_hash": feature_hash(PROJECTION, EMBEDDING, FEATURES)})


def adapter(seed: int) -> tensors.Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        name: (shape.n_layers, shape.in_features, shape.out_features) for name, shape in NOBODY.projections.items()
    }
    state: tensors.Tensors = {}
    for name, (n_layers, n_in, n_out) in shapes.items():
        state[f"{name}.lora_A"] = torch.randn(n_layers, RANK, n_in, generator=generator)
        state[f"{name}.lora_B"] = torch.randn(n_layers, n_out, RANK, generator=generator)
    return state


def gates_of(topology: Topology) -> Gates:
    generator = np.random.default_rng(0)
    nodes = {node: Gate(generator.normal(size=FEATURES), generator.normal(), 0.35) for node in topology.inner}
    return Gates(nodes=nodes, dim=FEATURES)


def make(topology: Topology = DEPTH_1, **changes) -> Bundle:
    whole = Bundle(
        run="first",
        topology=topology,
        base=PROJECTED,
        spec=AdapterSpec("lora", RANK),
        scale=2.0,
        nodes={leaf: adapter(index) for index, leaf in enumerate(topology.leaves)},
        gates=gates_of(topology),
        policy="soft",
        projection=PROJECTION,
        statistics=LeafStatistics(
            counts={leaf: 10.0 + index for index, leaf in enumerate(topology.leaves)},
            means={leaf: np.full(FEATURES, index / 3) for index, leaf in enumerate(topology.leaves)},
            covariances={leaf: pack(np.eye(FEATURES) / (3 + index)) for index, leaf in enumerate(topology.leaves)},
        ),
        contributors=("zoë", "ann"),
        versions={"router": 3, "topology": 1, "node.0": 2},
        report={"nll": {"mean": 2.125}, "rows": [1, "two", None]},
    )
    return replace(whole, **changes)


def flip(data: bytes, position: int, mask: int) -> bytes:
    flipped = bytearray(data)
    flipped[position] ^= mask
    return bytes(flipped)


def written(tmp_path: Path, whole: Bundle | None = None, **options) -> Path:
    file = tmp_path / "bundle.safetensors"
    write_bundle(whole or make(), file, **options)
    return file


def rewrite(file: Path, change: Callable[[dict], None], named: tensors.Tensors | None = None) -> None:
    """Write a bundle whose metadata were changed by somebody who corrected all sums afterwards."""
    with safetensors.safe_open(file, "pt") as stored:
        fields = json.loads(stored.metadata()["tinylora"])
        named = named or {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118  # no mapping
    change(fields)
    fields["metadata_sha256"] = metadata_sum(fields)
    file.write_bytes(tensors.to_bytes(named, {"tinylora": canonical(fields)}))


def assert_same(left: Bundle, right: Bundle) -> None:
    assert bundles.to_bytes(left) == bundles.to_bytes(right)


# --- what goes in comes out ------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    whole = make()
    read = read_bundle(written(tmp_path, whole))
    for name in ("run", "topology", "base", "spec", "scale", "policy", "versions", "report"):
        assert getattr(read, name) == getattr(whole, name)
    assert read.contributors == ("ann", "zoë")
    assert read.nodes.keys() == whole.nodes.keys()
    for path, state in whole.nodes.items():
        assert {name: tensor.shape for name, tensor in read.nodes[path].items()} == {
            name: tensor.shape for name, tensor in state.items()
        }
        for name, tensor in state.items():
            assert torch.equal(read.nodes[path][name], tensor.bfloat16())
    assert read.gates.dim == FEATURES
    for node, gate in whole.gates.nodes.items():
        assert np.array_equal(read.gates.nodes[node].w, gate.w)
        assert (read.gates.nodes[node].b, read.gates.nodes[node].tau) == (gate.b, gate.tau)
    assert read.projection is not None and read.statistics is not None and whole.statistics is not None
    assert torch.equal(read.projection, PROJECTION)
    assert read.statistics.counts == whole.statistics.counts
    assert np.array_equal(read.statistics.means["1"], whole.statistics.means["1"])
    assert read.statistics.covariances.keys() == whole.statistics.covariances.keys()
    assert np.array_equal(read.statistics.covariance_of("1"), whole.statistics.covariance_of("1"))
    assert np.array_equal(read.statistics.covariance, whole.statistics.covariance)


def join(sides: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[str, ...]:
    left, right = sides
    return (*("0" + leaf for leaf in left), *("1" + leaf for leaf in right))


trees = st.recursive(st.just(("",)), lambda below: st.tuples(below, below).map(join), max_leaves=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees, st.data())
def test_any_tree_with_any_leaves_untrained(tmp_path, leaves, data):
    topology = Topology(leaves)
    trained = data.draw(st.sets(st.sampled_from(topology.leaves)))
    whole = make(topology, nodes={leaf: adapter(1) for leaf in trained}, statistics=None)
    read = read_bundle(written(tmp_path, whole))
    assert_same(read, whole)
    assert set(read.nodes) == trained
    assert read.gates.nodes.keys() == set(topology.inner)


def test_a_tree_of_one_leaf_has_no_gates(tmp_path):
    read = read_bundle(written(tmp_path, make(Topology.perfect(0))))
    assert (read.gates.nodes, read.gates.dim) == ({}, FEATURES)


def test_without_projection_and_statistics(tmp_path):
    read = read_bundle(written(tmp_path, make(base=NOBODY, projection=None, statistics=None)))
    assert read.projection is None
    assert read.statistics is None


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("F32", torch.float32), ("F16", torch.float16)])
def test_other_dtypes_on_request(tmp_path, dtype, torch_dtype):
    read = read_bundle(written(tmp_path, dtype=dtype))
    expected = make().nodes["0"]["mlp.down_proj.lora_A"].to(torch_dtype)
    assert torch.equal(read.nodes["0"]["mlp.down_proj.lora_A"], expected)


def test_an_inner_node_may_carry_an_adapter(tmp_path):
    whole = make(nodes={"": adapter(5), "0": adapter(6)})
    assert set(read_bundle(written(tmp_path, whole)).nodes) == {"", "0"}


# --- the bytes -------------------------------------------------------------------------------------------------------


def test_equal_bundles_are_equal_bytes(tmp_path):
    whole = make()
    shuffled = replace(
        whole,
        nodes={leaf: dict(reversed(state.items())) for leaf, state in reversed(whole.nodes.items())},
        contributors=tuple(reversed(whole.contributors)),
        versions=dict(reversed(whole.versions.items())),
        report=dict(reversed(whole.report.items())),
    )
    first, second = tmp_path / "a" / "x.safetensors", tmp_path / "b.safetensors"
    first.parent.mkdir()
    assert write_bundle(whole, first) == write_bundle(shuffled, second)
    assert first.read_bytes() == second.read_bytes() == bundles.to_bytes(whole)


def test_the_returned_sum_is_the_files(tmp_path):
    file = tmp_path / "bundle.safetensors"
    assert write_bundle(make(), file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_reading_and_writing_again_changes_nothing(tmp_path):
    file = written(tmp_path)
    assert bundles.to_bytes(read_bundle(file)) == file.read_bytes()


def test_the_library_reads_it(tmp_path):
    with safetensors.safe_open(written(tmp_path), "pt") as stored:
        assert list(stored.metadata()) == ["tinylora"]
        fields = json.loads(stored.metadata()["tinylora"])
        assert fields["format"] == 2
        assert fields["leaves"] == ["0", "1"]
        names = set(stored.keys())
        assert {"node.0.self_attn.q_proj.lora_A", "router..w", "router..b", "router..tau", "router.projection"} <= names
        assert {"leaf.0.count", "leaf.1.mean", "leaf.1.covariance"} <= names
        assert names == set(fields["tensors"])
        assert stored.get_tensor("node.1.mlp.down_proj.lora_B").dtype == torch.bfloat16
        assert stored.get_tensor("router..w").dtype == torch.float64


def test_nothing_of_the_moment_or_the_machine_is_inside(tmp_path):
    text = written(tmp_path).read_bytes()
    assert os.uname().nodename.encode() not in text
    assert str(tmp_path).encode() not in text


def test_inspect_reads_the_header_only(tmp_path):
    file = written(tmp_path)
    data = file.read_bytes()
    file.write_bytes(flip(data, len(data) - 1, 1))
    told = bundles.inspect(file)
    assert (told["run"], told["rank"], told["format"], told["n_bytes"]) == ("first", RANK, 2, len(data))
    assert told["base"]["base_id"] == "tiny"
    assert "tensors" not in told
    json.dumps(told)


def test_verify_says_what_it_found(tmp_path):
    whole = make(nodes={"0": adapter(0)})
    findings = bundles.verify(written(tmp_path, whole))
    assert findings[1] == "2 leaves, 1 nodes with an adapter of rank 2"
    assert findings[-1].startswith("leaf 1 has no adapter")


# --- damage ----------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_is_noticed(tmp_path):
    file = written(tmp_path)
    data = file.read_bytes()
    n_header = 8 + int.from_bytes(data[:8], "little")
    generator = np.random.default_rng(0)
    everywhere = {*range(0, len(data), 19), *range(16), *range(n_header - 16, n_header + 16), len(data) - 1}
    spaces = {index for index in range(n_header) if data[index : index + 1] == b" "}
    for position in sorted(everywhere | spaces):
        masks = {0x01, 0x20, 0x80, int(generator.integers(1, 256))} | ({0x20 ^ 0x09} if position in spaces else set())
        for mask in masks if position in spaces or position % 5 == 0 else (min(masks),):
            file.write_bytes(flip(data, position, mask))
            with pytest.raises(BundleError, match=r"bundle\.safetensors: "):
                read_bundle(file)


def test_truncated_anywhere(tmp_path):
    file = written(tmp_path)
    data = file.read_bytes()
    n_header = 8 + int.from_bytes(data[:8], "little")
    for length in sorted({*range(0, len(data), 41), *range(12), n_header - 1, n_header, n_header + 1, len(data) - 1}):
        file.write_bytes(data[:length])
        with pytest.raises(BundleError, match=r"fetch it again"):
            read_bundle(file)


def test_a_flipped_byte_names_its_tensor(tmp_path):
    file = written(tmp_path)
    data = file.read_bytes()
    file.write_bytes(flip(data, len(data) - 1, 1))
    with pytest.raises(BundleError, match=r"altered since it was written: tensor node\.1\.\S+ does not fit its sha256"):
        read_bundle(file)


def test_flipped_metadata_say_so(tmp_path):
    file = written(tmp_path)
    file.write_bytes(file.read_bytes().replace(b'"first\\"'.replace(b'"', b'\\"', 1)[:7], b'\\"furst', 1))
    with pytest.raises(BundleError, match="the metadata do not fit their sha256"):
        read_bundle(file)


def test_bytes_after_the_end(tmp_path):
    file = written(tmp_path)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="1 too many at the end"):
        read_bundle(file)


def test_unknown_format(tmp_path):
    file = written(tmp_path)
    rewrite(file, lambda fields: fields.update(format=3, kind="unheard of"))
    with pytest.raises(
        BundleError, match=r"a bundle of format .3., this version of TinyLoRA reads formats 1 and 2; install"
    ):
        read_bundle(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "tied"}, r"adapter 'tied': expected one of lora, nested"),
        ({"surprise": 1}, r"metadata field surprise: Extra inputs are not permitted"),
        ({"policy": "sideways"}, r"sideways"),
        ({"rank": 0}, r"metadata field rank: Input should be greater than or equal to 1"),
        ({"leaves": ["0"]}, r"leaves 0: an inner node lacks a child"),
        ({"leaves": ["0", "2"]}, r"metadata field leaves.1"),
        ({"leaves": ["0", "10", "11"]}, r"statistics of node '1': no such node; the tree has '0', '10', '11'"),
        ({"leaves": [""]}, r"adapter of node '0': no such node; the tree has ''"),
        ({"rank": 3}, r"tensor node.0.mlp.down_proj.lora_A: expected BF16 \(1, 3, 5\), got BF16 \(1, 2, 5\)"),
        ({"dtype": "F32"}, r"tensor node.0.mlp.down_proj.lora_A: expected F32"),
        ({"nodes": ["0"]}, r"unexpected tensor node.1.mlp.down_proj.lora_A"),
        ({"statistics": "none", "sketched": []}, r"unexpected tensor leaf.0.count"),
        ({"statistics": None}, r"metadata field statistics: Input should be"),
        ({"statistics": "pooled"}, r"unexpected tensor leaf.0.covariance"),
        ({"sketched": ["0", "01"]}, r"statistics of node '01': no such node"),
        ({"embed_dim": None}, r"unexpected tensor router.projection"),
        ({"tensors": {}}, r"a sha256 for other tensors than the file has, first leaf.0.count"),
        ({"base": NOBODY.model_dump(mode="json")}, r"tensor router.projection is not the one that the base tiny needs"),
    ],
)
def test_metadata_that_contradict_the_tensors(tmp_path, change, message):
    file = written(tmp_path)
    rewrite(file, lambda fields: fields.update(change))
    with pytest.raises(BundleError, match=message):
        read_bundle(file)


@pytest.mark.parametrize("name", ["node.0.mlp.down_proj.lora_B", "router..w", "router.projection", "leaf.1.mean"])
def test_numbers_that_are_not_finite(tmp_path, name):
    file = written(tmp_path)
    with safetensors.safe_open(file, "pt") as stored:
        named = {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118  # safe_open is no mapping
    named[name].view(-1)[0] = torch.nan
    rewrite(file, lambda fields: fields["tensors"].update({name: tensors.tensor_sha256(named[name])}), named)
    with pytest.raises(BundleError, match=f"tensor {name}: expected finite numbers"):
        read_bundle(file)


def test_a_header_laid_out_by_somebody_else(tmp_path):
    file = written(tmp_path)
    data = file.read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    file.write_bytes((n_header + 8).to_bytes(8, "little") + data[8 : 8 + n_header] + b" " * 8 + data[8 + n_header :])
    with pytest.raises(BundleError, match="the header is not laid out as TinyLoRA writes it"):
        read_bundle(file)


def test_files_that_are_no_bundles(tmp_path):
    with pytest.raises(BundleError, match="nowhere: no such file; expected a bundle"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="a folder; expected a bundle"):
        read_bundle(tmp_path)
    (tmp_path / "a.txt").write_text("Dear reader, this is a letter.")
    with pytest.raises(BundleError, match=r"a.txt: header length: expected at most .*; it is no whole bundle"):
        read_bundle(tmp_path / "a.txt")
    (tmp_path / "b.safetensors").write_bytes(tensors.to_bytes({"a": torch.zeros(1)}, {"format": "pt"}))
    with pytest.raises(BundleError, match="a safetensors file, but no bundle: it has no metadata key 'tinylora'"):
        read_bundle(tmp_path / "b.safetensors")
    assert BundleError.exit_code == 5


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    file = written(tmp_path)

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BundleError, match=r"bundle.safetensors: cannot be read: Permission denied"):
        read_bundle(file)


# --- the base --------------------------------------------------------------------------------------------------------


def test_the_base_it_was_made_for():
    check_base(make(), PROJECTED)
    check_base(make(), PROJECTED.model_copy(update={"base_id": "the same under another name"}))


def test_another_base_names_both():
    other = PROJECTED.model_copy(update={"base_id": "other", "fingerprint": "c3" * 32})
    with pytest.raises(BaseModelError, match=r"needs the base tiny \(fingerprint a1a1a1a1a1a1\), got other \(c3c3"):
        check_base(make(), other)


def test_other_routing_features():
    with pytest.raises(BaseModelError, match=r"features of 3 numbers .* load the base tiny with feature_dim 3"):
        check_base(make(), NOBODY)


# --- writing that fails ----------------------------------------------------------------------------------------------


class FullDisk:
    """A stand-in for `os.fsync` on a disk that was found to be full."""

    def __call__(self, handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    file = written(tmp_path)
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", FullDisk())
    with pytest.raises(StorageError, match=r"bundle.safetensors: cannot be written: the disk is full; free some space"):
        write_bundle(make(run="second"), file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_limit_of_the_system_in_the_middle_of_the_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(StorageError, match="cannot be written: File too large"):
            write_bundle(make(), tmp_path / "bundle.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(StorageError, match=r"there is no folder .*/nowhere; make it"):
        write_bundle(make(), tmp_path / "nowhere" / "bundle.safetensors")
    with pytest.raises(StorageError, match="not a file; expected a file name"):
        write_bundle(make(), tmp_path)
    with pytest.raises(StorageError, match="/dev/full: not a file"):
        write_bundle(make(), Path("/dev/full"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        write_bundle(make(), tmp_path / "file" / "bundle.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": {"0": adapter(0) | {"more": torch.zeros(1)}}}, "unexpected tensor node.0.more"),
        ({"nodes": {"01": adapter(0)}}, "adapter of node '01': no such node"),
        ({"spec": AdapterSpec("lora", 5)}, r"expected BF16 \(1, 5, 5\), got BF16 \(1, 2, 5\)"),
        ({"gates": gates_of(Topology.perfect(2))}, "unexpected tensor router.0.b"),
        ({"projection": None}, "tensor router.projection is missing that the base"),
        ({"gates": Gates({"": Gate(np.zeros(FEATURES), 0.0, -1.0)}, FEATURES)}, "tau"),
        ({"policy": "sideways"}, "sideways"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_not_written(tmp_path, changes, message):
    with pytest.raises((ProtocolError, SettingError), match=message):
        write_bundle(make(**changes), tmp_path / "bundle.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_diverged_is_not_written(tmp_path):
    diverged = adapter(0)
    diverged["mlp.down_proj.lora_A"][0, 0, 0] = torch.inf
    with pytest.raises(
        ProtocolError, match=r"bundle of run first, tensor node\.0\.mlp\.down_proj\.lora_A: expected finite"
    ):
        write_bundle(make(nodes={"0": diverged}), tmp_path / "bundle.safetensors")


# --- format 2: what is told of the text, and format 1 ----------------------------------------------------------------


def test_notes_licences_and_origins_come_back(tmp_path):
    told = {
        "data_notes": {"0": ("recipes, 1950 to 1980", "letters")},
        "licences": ("mit", "apache-2.0"),
        "derived_from": ("ab" * 32,),
    }
    file = written(tmp_path, make(**told))
    read = read_bundle(file)
    assert read.data_notes == told["data_notes"]
    assert (read.licences, read.derived_from) == (("apache-2.0", "mit"), told["derived_from"])
    assert bundles.to_bytes(read) == file.read_bytes()


def test_texts_are_made_plain_when_they_are_written(tmp_path):
    loud = make(run="a\x1b[31mred\nrun", data_notes={"0": ("one\ttwo\u202e", "x" * 1000), "1": ()})
    read = read_bundle(written(tmp_path, loud))
    assert read.run == "a [31mred run"
    assert read.data_notes == {"0": ("one two", "x" * 500)}


def test_pooled_statistics(tmp_path):
    leaf = make().statistics
    assert leaf is not None
    pooled = LeafStatistics(leaf.counts, leaf.means, pooled=leaf.covariance)
    file = written(tmp_path, make(statistics=pooled))
    read = read_bundle(file).statistics
    assert read is not None and read.kind == "pooled" and not read.covariances
    assert np.array_equal(read.covariance, leaf.covariance)
    assert np.array_equal(read.covariance_of("0"), leaf.covariance)
    assert bundles.inspect(file)["statistics"] == "pooled"


def test_a_file_of_format_1_is_read():
    file = Path(__file__).with_name("format-1.safetensors")
    read, now = read_bundle(file), make()
    assert bundles.inspect(file)["format"] == 1
    assert read.statistics is not None and read.statistics.kind == "pooled"
    assert np.array_equal(read.statistics.covariance, np.eye(FEATURES) / 3)
    assert (read.data_notes, read.licences, read.derived_from) == ({}, (), ())
    assert_same(replace(read, statistics=now.statistics), now)
    assert "not signed" in bundles.verify(file)[3]


@pytest.mark.parametrize(
    ("field", "value"), [("data_notes", {}), ("licences", []), ("signed_by", ""), ("signature", ""), ("sketched", [])]
)
def test_a_file_of_format_1_has_no_field_of_format_2(tmp_path, field, value):
    file = tmp_path / "bundle.safetensors"
    file.write_bytes(Path(__file__).with_name("format-1.safetensors").read_bytes())
    rewrite(file, lambda fields: fields.update({field: value}))
    with pytest.raises(BundleError, match="of a later format"):
        read_bundle(file)
