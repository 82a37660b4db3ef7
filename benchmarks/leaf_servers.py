"""Tokens per second of one mixed batch: one process with all leaves, and two processes with half of them each.

On a CPU the two only share its cores, so what shows is what the split itself costs: wall seconds beside other work, and
CPU seconds of the busiest process, which is what the batch would take if each had a device for itself.

    python -m benchmarks.leaf_servers [--rounds 5] [--hidden 512] [--out FILE]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.measure import RESULTS_DIR, machine
from tests.helpers import byte_tokenizer
from tinylora import base_model
from tinylora.adapters.lora import init_adapter
from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle import Bundle, write_bundle
from tinylora.routing.gates import Gate, Gates
from tinylora.serving import LeafServers
from tinylora.tree import Topology

N_ROWS, N_PROMPT, N_NEW, RANK, PREFIX = 32, 64, 64, 8, 32
POLICY = f"hard@sequence:{PREFIX}"


def make_base(folder: Path, hidden: int) -> str:
    """A Llama of four layers with random weights."""
    tokenizer = byte_tokenizer()
    sizes = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": hidden, "num_hidden_layers": 4,
        "intermediate_size": hidden * 8 // 3 // 32 * 32, "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64, "max_position_embeddings": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    model = base_model.new_causal_lm("llama", sizes)
    wrapped = base_model.wrap_tokenizer(tokenizer, bos="<s>", eos="</s>", pad="<pad>", max_tokens=256)
    base_model.save_base(model, wrapped, folder, dtype=torch.float32)
    return str(folder)


def make_bundle(base_where: str, file: Path) -> Path:
    """Eight leaves that do something, and gates that nobody has solved."""
    base, tree, spec = base_model.load_base(base_where), Topology.perfect(3), AdapterSpec("lora", RANK)
    draw, dim = np.random.default_rng(0), base.facts.feature_dim
    gates = Gates({node: Gate(draw.normal(size=dim), 0.0, 1.0) for node in tree.inner}, dim)
    nodes = {leaf: init_adapter(base.facts, spec, seed=1, path=leaf) for leaf in tree.leaves}
    for state in nodes.values():
        for name, tensor in state.items():
            state[name] = tensor + 0.02 * torch.randn(tensor.shape)
    bundle = Bundle(
        run="benchmark", topology=tree, base=base.facts, spec=spec, scale=1.0, nodes=nodes, gates=gates, policy=POLICY,
        projection=base.routing_feature.projection,
    )  # fmt: skip
    write_bundle(bundle, file)
    return file


def even_prompts(servers: LeafServers) -> list[list[int]]:
    """As many prompts for each leaf."""
    draw, leaves = np.random.default_rng(1), servers.devices.of_leaf
    found: dict[str, list[list[int]]] = {leaf: [] for leaf in leaves}
    while min(map(len, found.values())) < N_ROWS // len(leaves):
        # A few tokens that occur often, others in each: texts whose means lie apart.
        some = [draw.choice(draw.integers(3, 250, size=4), size=N_PROMPT).tolist() for _ in range(64)]
        for prompt, row in zip(some, servers.generate(some, max_new_tokens=1), strict=True):
            found[row.path or ""].append(prompt)
    return [prompt for group in found.values() for prompt in group[: N_ROWS // len(leaves)]]


def timed(servers: LeafServers, prompts: list[list[int]]) -> dict[str, Any]:
    """Seconds of one batch: by the clock, and of the CPU in the busiest process and in all of them."""
    processes = [psutil.Process(pid) for pid in servers.pids.values()]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    begun = time.perf_counter()
    rows = servers.generate(prompts, max_new_tokens=N_NEW, eos_token_id=())
    wall = time.perf_counter() - begun
    cpu = [sum(process.cpu_times()[:2]) - start for process, start in zip(processes, before, strict=True)]
    return {"wall_s": wall, "busiest_cpu_s": max(cpu), "cpu_s": sum(cpu), "tokens": [row.tokens for row in rows]}


def measure(n_rounds: int, hidden: int) -> dict[str, Any]:
    """Take turns, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder, "base"), hidden)
        file = make_bundle(base, Path(folder, "bundle.safetensors"))
        options: dict[str, Any] = {"policy": POLICY, "batch_size": N_ROWS}
        with (
            LeafServers(file, base, "auto:1", threads=1, **options) as one,
            LeafServers(file, base, "auto:2", threads=2, **options) as two,
        ):
            prompts = even_prompts(two)
            sides = {"one process": one, "two processes": two}
            turns = [{name: timed(servers, prompts) for name, servers in sides.items()} for _ in range(n_rounds + 1)]
    rounds = {name: [turn[name] for turn in turns[1:]] for name in sides}  # the first one warms up
    told = {name: summary(found) for name, found in rounds.items()}
    is_same = len({str(found["tokens"]) for side in rounds.values() for found in side}) == 1
    return {
        "base": f"llama {hidden} x 4, fp32, random weights", "rows": N_ROWS, "prompt_tokens": N_PROMPT,
        "new_tokens": N_NEW, "leaves": 8, "rank": RANK, "policy": POLICY, "threads_per_process": 1, **told,
        "same_tokens": is_same, "machine": machine(),
    }  # fmt: skip


def summary(found: list[dict[str, Any]]) -> dict[str, float]:
    """Medians, and the best of the clock."""
    median = {key: statistics.median(row[key] for row in found) for key in ("wall_s", "busiest_cpu_s", "cpu_s")}
    n_tokens = N_ROWS * N_NEW
    return {key: round(value, 3) for key, value in median.items()} | {
        "tokens_per_s": round(n_tokens / median["wall_s"]),
        "tokens_per_s_best": round(n_tokens / min(row["wall_s"] for row in found)),
        "tokens_per_busiest_cpu_s": round(n_tokens / median["busiest_cpu_s"]),
    }


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaf_servers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "leaf_servers.json")
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.hidden)
    text = json.dumps({"command": "python -m benchmarks.leaf_servers", **result}, indent=2)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
