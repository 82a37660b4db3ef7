"""The work of `tests.flower.counting.CountingTrainer` without torch, for trainers that are started over and over."""

import numpy as np
import safetensors.numpy

from tests.federation.facts import DIM, FACTS, RANK
from tests.worker.fake_trainer import made_of
from tinylora.adapters.shapes import adapter_manifest
from tinylora.adapters.spec import AdapterSpec
from tinylora.protocol.documents import Update, WorkUnit, sha256
from tinylora.routing.gates import N_BINS
from tinylora.routing.statistics import PREFIXES, statistics_of

STEP = 2.0**-12
Arrays = dict[str, np.ndarray]


def work(worker: str, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
    """An honest update: every step adds `STEP` to each number of B."""
    centre = int(worker[2:6], 16) / 2**14
    made = _sums("", centre) if unit.kind == "sketch" else _count(unit, safetensors.numpy.load(payload))
    result = safetensors.numpy.save(made)
    update = made_of(worker, unit, result)
    manifest = {name: (_DTYPES[array.dtype.name], array.shape) for name, array in sorted(made.items())}
    changes = {
        "topology_version": unit.topology_version,
        "router_version": unit.router_version,
        "node_version": unit.node_version,
        "shard_version": sha256(worker.encode()),
        "shard_tokens": 10_000,
        "tokens": unit.n_steps * unit.batch_windows * unit.window_tokens,
        "losses": (3.0, 2.0) if unit.kind == "train" else (),
        "manifest": manifest,
    }
    return update.model_copy(update=changes), result


_DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64"}


def _sums(path: str, centre: float) -> Arrays:
    rows = np.asarray([centre, 0.0, 0.0, 0.0]) + np.random.default_rng(0).standard_normal((60, DIM))
    arrays = statistics_of(rows, np.resize(np.array(PREFIXES), 60)).to_arrays()
    return {f"statistics.{path}.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}


def _count(unit: WorkUnit, given: Arrays) -> Arrays:
    made: Arrays = {}
    for leaf in unit.leaves:
        for name, (_, shape) in adapter_manifest(FACTS, AdapterSpec("lora", RANK), path=leaf).items():
            start = given.get(name, np.zeros(shape, np.float32))
            made[name] = start + np.float32(unit.n_steps * STEP) if name.endswith("B") else start
        if len(unit.leaves) > 1:
            made |= _sums(leaf, float(int(leaf or "0", 2)))
    gates = [name.split(".")[1] for name in given if name.startswith("router.") and name.endswith(".w")]
    return made | {f"histogram.{gate}": np.ones((2, N_BINS)) for gate in gates}
