"""Memory that one more leaf costs when a bundle is used.

Fresh processes open bundles of 1, 8 and 16 leaves on the same base, run a forward pass that routes every token
softly, and tell how many bytes are theirs alone (USS). The slope over the number of leaves is what a leaf costs; it is
compared with the leaf's bytes in the dtype that the model holds it in. The bundle's file has it in bf16, half of that.
What loading the base freed is given back to the system first: leaves that fall into it would look cheaper.

The base is random and of a width at which a leaf has several MB, so that what the allocator rounds up is small.
"""

import ctypes
import gc
import json
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

DEPTHS = (0, 3, 4)
N_ROUNDS = 3
MIB = 2**20
RANK = 16
GOAL = 0.10  # of the leaf's bytes, either way
CONFIG = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def measure() -> dict[str, Any]:
    """Slope of the medians over rounds, sizes in turns."""
    with TemporaryDirectory(prefix="tinylora-bench-") as folder:
        files = _make_files(Path(folder))
        rounds = [{depth: _ask(Path(folder), file) for depth, file in files.items()} for _ in range(N_ROUNDS)]
        in_file = (files[DEPTHS[-1]].stat().st_size - files[0].stat().st_size) / (2 ** DEPTHS[-1] - 1)
    of_leaves = {2**depth: [one[depth] for one in rounds] for depth in DEPTHS}
    held = of_leaves[1][0]["leaf_bytes"]
    growth = _slope(of_leaves, "uss")
    return {
        "compares": "growth of a process's own memory per added leaf with the bytes of the leaf as the model holds it",
        "goal": f"within {GOAL:.0%}",
        "is_met": abs(growth / held - 1) <= GOAL,
        "figure": {"ratio": round(growth / held, 4), "ratio_to_file": round(growth / in_file, 4)},
        "details": {
            "held_as": of_leaves[1][0]["held_as"],
            "leaf_mib_held": round(held / MIB, 3),
            "leaf_mib_in_file": round(in_file / MIB, 3),
            "growth_mib": round(growth / MIB, 3),
            "peak_growth_mib": round(_slope(of_leaves, "peak") / MIB, 3),
            "rank": RANK,
            "base": CONFIG,
            "uss_mib": {n: sorted(round(one["uss"] / MIB, 2) for one in found) for n, found in of_leaves.items()},
            "peak_mib": {n: sorted(round(one["peak"] / MIB, 2) for one in found) for n, found in of_leaves.items()},
        },
    }


def _slope(of_leaves: dict[int, list[dict[str, Any]]], what: str) -> float:
    """Bytes per leaf: least squares through the medians."""
    medians = [statistics.median(one[what] for one in found) for found in of_leaves.values()]
    return float(np.polyfit(list(of_leaves), medians, 1)[0])


def _ask(folder: Path, bundle: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.leaf_memory", str(folder), str(bundle)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _make_files(folder: Path) -> dict[int, Path]:
    """A base in `folder`, and bundles for it by depth."""
    import torch

    from tinylora import base_model
    from tinylora.adapters.lora import init_adapter
    from tinylora.adapters.spec import AdapterSpec
    from tinylora.bundle import Bundle, write_bundle
    from tinylora.demo.experiment import BASE_DIR
    from tinylora.routing.gates import Gate, Gates
    from tinylora.tree import Topology

    tokenizer = base_model.load_base(BASE_DIR).tokenizer
    torch.manual_seed(0)
    model = base_model.new_causal_lm("llama", CONFIG | {"vocab_size": len(tokenizer)})
    base_model.save_base(model, tokenizer, folder, dtype=torch.bfloat16)
    base, spec, files = base_model.load_base(folder), AdapterSpec("lora", RANK), {}
    leaf, dim = init_adapter(base.facts, spec, seed=0, path=""), base.facts.feature_dim
    for depth in DEPTHS:
        tree = Topology.perfect(depth)
        gates = Gates({node: Gate(np.zeros(dim), 0.0, 1.0) for node in tree.inner}, dim)
        bundle = Bundle(
            "benchmark", tree, base.facts, spec, 1.0, dict.fromkeys(tree.leaves, leaf), gates,
            projection=base.routing_feature.projection,
        )  # fmt: skip
        files[depth] = folder / f"{depth}.bundle"
        write_bundle(bundle, files[depth])
    return files


def use(base_where: str, bundle: str) -> dict[str, Any]:
    """Open a bundle, read some tokens, and tell what memory this process has."""
    import psutil
    import torch

    from tinylora.model import TreeModel

    model = TreeModel.from_pretrained(base_where, bundle, policy="soft")
    with torch.no_grad():
        model(torch.arange(128).view(1, -1) + 3)
    peak = _peak()
    _give_back()
    parameters = model.adapter_parameters()
    return {
        "uss": psutil.Process().memory_full_info().uss,
        "peak": peak,
        "leaf_bytes": sum(parameter.nbytes for parameter in parameters) // len(model.nodes),
        "held_as": str(parameters[0].dtype).removeprefix("torch."),
    }


def _peak() -> int:
    """Largest resident size so far; on Linux not by `getrusage`, where a process begins with its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _give_back() -> None:
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


if __name__ == "__main__":
    print(json.dumps(use(*sys.argv[1:])))
