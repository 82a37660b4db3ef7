"""How much of a bundle is read for one of its leaves, and how long that takes beside a plain copy of the same bytes.

A bundle of 64 leaves of rank 8 on a base with the shapes of Llama-3.2-1B, in bfloat16, lies on the disk. Bytes: the
file is put out of the system's cache, one leaf is loaded and every page of it touched, and `mincore` says which pages
of the file are in memory now: header, gates and whatever was read ahead count. Time: with the file in the cache,
loading and touching every page of what was loaded takes turns with a copy of as many bytes into fresh pages. Each round
maps the file anew, so that no page is in place before.

Loading is `read_open(..., verify=False)` of a bundle that was opened before, as whoever loads leaves on demand does it.
Opening checks the header to the byte and depends on the number of tensors, not on their size: it is told beside it.
So is loading with all sums checked, which is bound by sha256.
"""

import ctypes
import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Rounds, take_turns
from tinylora.adapters.shapes import adapter_shapes
from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle import Bundle, LeafStatistics, OpenBundle, open_bundle, pack, read_bundle, read_open, write_bundle
from tinylora.config import BaseFacts, ProjectionShape
from tinylora.routing.features import feature_hash
from tinylora.routing.gates import Gate, Gates
from tinylora.tree import Topology

DEPTH, RANK, N_LAYERS, FEATURES, HIDDEN = 6, 8, 16, 256, 2048
WIDTHS = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (2048, 512),
    "self_attn.v_proj": (2048, 512),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (2048, 8192),
    "mlp.up_proj": (2048, 8192),
    "mlp.down_proj": (8192, 2048),
}
LEAF = "010101"
MAX_BYTES, MAX_LEAF, MAX_WHOLE = 1.10, 1.15, 1.20
N_ROUNDS, N_ROUNDS_WHOLE = 41, 9


def measure() -> dict[str, Any]:
    """Bytes and times of one leaf of 64, and of all."""
    with TemporaryDirectory(prefix="tinylora-bench-") as folder:
        file = Path(folder) / "bundle.safetensors"
        write_bundle(_bundle(), file)
        counted = _bytes_read(file)
        opened = open_bundle(file)
        leaf, placed, whole = _time_leaf(opened), _time_placing(opened), _time_whole(file)
        opening_s = _median_s(lambda: open_bundle(file).gates)
        verified_s = {"leaf": _median_s(lambda: read_bundle(file, leaves=[LEAF])), "whole": _once_s(file)}
    figure = {
        "leaf_bytes": round(counted["resident_bytes"] / counted["leaf_bytes"], 4),
        "leaf_time": leaf.ratio()["min"],
        "whole_time": whole.ratio()["min"],
    }
    with_opening = (opening_s + min(leaf.ours_s)) / min(leaf.other_s)
    return {
        "compares": "one leaf of 64 of an opened bundle: bytes read with its own, time with a copy of them into fresh "
        "pages; and the whole bundle, opened and read, with a copy of it",
        "goal": {"leaf_bytes": MAX_BYTES, "leaf_time": MAX_LEAF, "whole_time": MAX_WHOLE},
        "is_met": figure["leaf_bytes"] <= MAX_BYTES
        and figure["leaf_time"] <= MAX_LEAF
        and figure["whole_time"] <= MAX_WHOLE,
        "figure": figure,
        "details": {
            "counted": counted,
            "leaf": {"ratio": leaf.ratio(), **leaf.seconds()},
            "whole": {"ratio": whole.ratio(), **whole.seconds()},
            "leaf_copied_into_a_stack": {"ratio": placed.ratio(), **placed.seconds()},
            "opening_s": opening_s,
            "leaf_time_with_opening": round(with_opening, 2),
            "verified_s": verified_s,
        },
    }


def _bundle() -> Bundle:
    shapes = {
        name: ProjectionShape(n_layers=N_LAYERS, in_features=n_in, out_features=n_out)
        for name, (n_in, n_out) in WIDTHS.items()
    }
    chance, generator = torch.Generator().manual_seed(0), np.random.default_rng(0)
    projection = torch.randn(FEATURES, HIDDEN, generator=chance)
    base = BaseFacts(
        base_id="shapes of Llama-3.2-1B",
        fingerprint="0" * 64,
        tokenizer_fingerprint="0" * 64,
        feature_dim=FEATURES,
        feature_hash=feature_hash(projection, HIDDEN, FEATURES),
        max_window_tokens=2048,
        projections=shapes,
    )
    topology, spec = Topology.perfect(DEPTH), AdapterSpec("lora", RANK)
    state = {name: torch.randn(size, generator=chance).bfloat16() for name, size in adapter_shapes(base, spec).items()}
    told = LeafStatistics(
        dict.fromkeys(topology.leaves, 1000.0),
        {leaf: generator.normal(size=FEATURES) for leaf in topology.leaves},
        dict.fromkeys(topology.leaves, pack(np.eye(FEATURES))),
    )
    gates = {node: Gate(generator.normal(size=FEATURES), 0.1, 0.35) for node in topology.inner}
    nodes = dict.fromkeys(topology.leaves, state)
    return Bundle(
        "bench", topology, base, spec, 2.0, nodes, Gates(gates, FEATURES), projection=projection, statistics=told
    )


# --- bytes -----------------------------------------------------------------------------------------------------------


def _bytes_read(file: Path) -> dict[str, int]:
    """What of the file is in memory once one leaf was loaded, that was not before; and what the disk was asked for."""
    _put_out(file)
    before, asked = _resident(file), _asked_of_disk()
    state = read_bundle(file, leaves=[LEAF], verify=False).nodes[LEAF]
    _touch(state.values())
    return {
        "leaf_bytes": _n_bytes(state.values()),
        "file_bytes": file.stat().st_size,
        "resident_before_bytes": before,
        "resident_bytes": _resident(file),
        "asked_of_disk_bytes": _asked_of_disk() - asked,
    }


def _put_out(file: Path) -> None:
    """The file's pages leave the system's cache; they are on the disk already."""
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _resident(file: Path) -> int:
    """Bytes of the file's pages that are in memory."""
    n_bytes = file.stat().st_size
    n_pages = -(-n_bytes // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * n_pages)()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), n_bytes, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        wrong = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(n_bytes), found)
        del first
    if wrong:
        raise OSError(ctypes.get_errno(), "mincore")
    return mmap.PAGESIZE * int((np.frombuffer(bytearray(found), dtype=np.uint8) & 1).sum())


def _asked_of_disk() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("read_bytes"))


# --- time ------------------------------------------------------------------------------------------------------------


def _touch(tensors: Iterable[torch.Tensor]) -> None:
    """Read a byte of every page."""
    for tensor in tensors:
        tensor.reshape(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()


def _n_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _copied(source: np.ndarray) -> Callable[[], None]:
    """A copy into pages that the process never had before."""

    def copy() -> None:
        with mmap.mmap(-1, len(source), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
            target = np.frombuffer(fresh, dtype=np.uint8)
            target[:] = source
            del target

    return copy


def _mapped_anew(opened: OpenBundle) -> OpenBundle:
    """The same opened bundle, none of whose pages the process has; what was opened besides numbers stays."""
    with opened.file.open("rb") as stream:
        fresh = replace(opened, mapped=mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
    fresh.__dict__["gates"] = opened.gates
    return fresh


def _leaf(opened: OpenBundle) -> dict[str, torch.Tensor]:
    return read_open(_mapped_anew(opened), leaves=[LEAF], verify=False).nodes[LEAF]


def _time_leaf(opened: OpenBundle) -> Rounds:
    source = np.ones(_n_bytes(_leaf(opened).values()), dtype=np.uint8)
    return take_turns(lambda: _touch(_leaf(opened).values()), _copied(source), n_rounds=N_ROUNDS)


def _time_placing(opened: OpenBundle) -> Rounds:
    """Copied to where a model holds all its leaves, beside the same copy out of memory: no fresh page in either."""
    state = _leaf(opened)
    places = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    in_memory = {name: tensor.clone() for name, tensor in state.items()}

    def place(source: dict[str, torch.Tensor]) -> None:
        for name, tensor in source.items():
            places[name].copy_(tensor)

    return take_turns(
        lambda: place(_leaf(opened)),
        lambda: place(in_memory),
        n_rounds=N_ROUNDS,
    )


def _time_whole(file: Path) -> Rounds:
    def load() -> None:
        bundle = read_bundle(file, verify=False)
        for state in bundle.nodes.values():
            _touch(state.values())

    return take_turns(load, _copied(np.ones(file.stat().st_size, dtype=np.uint8)), n_rounds=N_ROUNDS_WHOLE)


def _median_s(call: Callable[[], object]) -> float:
    times = []
    for _ in range(9):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return round(statistics.median(times), 5)


def _once_s(file: Path) -> float:
    begun = time.process_time()
    read_bundle(file)
    return round(time.process_time() - begun, 3)
