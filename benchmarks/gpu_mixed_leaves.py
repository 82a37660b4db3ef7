"""The ratios of `mixed_leaves` where a GPU is at hand: bases of 1 B and 7 B numbers with random weights, in bf16.

    python -m benchmarks.gpu_mixed_leaves                            needs CUDA; writes the result
    python -m benchmarks.gpu_mixed_leaves --device cpu --shape tiny  tries the program, writes nothing

Batches of 1, 8 and 64 leaves, prefill, decoding and training, the same sides as in `mixed_leaves`; CUDA events around
rounds that take turns. PEFT's mixed batch runs where all its leaves fit beside ours. Beside each ratio stand the tokens
per second.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from benchmarks.leaf_batches import PER_SEQUENCE, PER_TOKEN, Batch, Shape, Sides, decoder, prefill, training
from benchmarks.measure import interleave, write_result

RANK = 16
N_ROUNDS = {"cuda": 15, "cpu": 2}
LEAVES = (1, 8, 64)
ROWS = {"cuda": 64, "cpu": 4}
PREFILL_TOKENS, TRAINED_TOKENS, PROMPT_TOKENS = 128, 32, 64
SHAPES = {
    "1b": ("llama", 2048, 20, 32000),
    "7b": ("llama", 4096, 32, 32000),
    "tiny": ("llama", 128, 2, 1024),
}
GOALS = {"prefill": 1.10, "decode": 1.10, "train": 1.10}
Row = dict[str, Any]


def measure(shapes: tuple[str, ...], device: str, say: Callable[[str], None] = print) -> Row:
    """Ratios to PEFT with one adapter, and tokens per second.

    Args:
        shapes: Names in `SHAPES`.
        device: "cuda", or "cpu" to try the program.
        say: Told each line as soon as it is known.
    """
    rows: list[Row] = []
    for name in shapes:
        family, hidden, layers, vocabulary = SHAPES[name]
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        shape = Shape(family, hidden, layers, vocabulary, dtype, device)
        for leaves in LEAVES:
            for row in _rows(name, shape, leaves):
                rows.append(row)
                say(f"{name} {leaves:>2} leaves {row['part']:<8} {row['what']:<12} {row['tokens_per_s']:>9.0f} tokens/s"
                    f"  ratio min {row['ratio']['min']:.3f}  median {row['ratio']['median']:.3f}")  # fmt: skip
    judged = [row for row in rows if row["what"] in ("sequence", "token")]
    return {
        "compares": "a batch of many leaves with one plain LoRA of PEFT on a GPU",
        "goal": GOALS,
        "is_met": all(row["ratio"]["median"] <= GOALS[row["part"]] for row in judged),
        "figure": {part: max(row["ratio"]["median"] for row in judged if row["part"] == part) for part in GOALS},
        "details": {"rank": RANK, "rows": ROWS[device], "device": _name_of(device), "measured": rows},
    }


def _rows(name: str, shape: Shape, leaves: int) -> Iterator[Row]:
    clock = _cuda_seconds if shape.device == "cuda" else _wall_seconds
    for part, tokens in (("prefill", PREFILL_TOKENS), ("train", TRAINED_TOKENS), ("decode", PROMPT_TOKENS + 1)):
        sides = Sides(shape, Batch(ROWS[shape.device], tokens, leaves), RANK)
        calls = _calls(part, sides)
        times = interleave(calls, n_rounds=N_ROUNDS[shape.device], seconds_of=clock)
        n_tokens = ROWS[shape.device] * (1 if part == "decode" else tokens)
        for what, seconds in times.items():
            median = statistics.median(seconds)
            ratio = {
                "min": round(min(seconds) / min(times["plain"]), 4),
                "median": round(median / statistics.median(times["plain"]), 4),
            }
            yield {"shape": name, "leaves": leaves, "part": part, "what": what, "ratio": ratio,
                   "tokens_per_s": n_tokens / median}  # fmt: skip
        del sides, calls
        if shape.device == "cuda":
            torch.cuda.empty_cache()


def _calls(part: str, sides: Sides) -> Mapping[str, Callable[[], object]]:
    """What takes turns in one part; the plain adapter first."""
    ids, names = sides.ids, {"adapter_names": sides.names}
    policies = {"sequence": PER_SEQUENCE, "token": PER_TOKEN}
    if part == "train":
        ours = training(sides.tree, ids)
        return {"plain": training(sides.plain, ids)} | {
            what: (lambda policy=policy: (sides.routed(policy), ours())) for what, policy in policies.items()
        }
    if part == "prefill":
        return {
            "plain": lambda: prefill(sides.plain, ids),
            **{what: (lambda p=policy: prefill(sides.routed(p), ids)) for what, policy in policies.items()},
            "PEFT mixed": lambda: prefill(sides.named, ids, **names),
        }
    steps = {what: (policy, decoder(sides.routed(policy), ids)) for what, policy in policies.items()}
    return {
        "plain": decoder(sides.plain, ids),
        **{what: (lambda p=policy, step=step: (sides.routed(p), step())) for what, (policy, step) in steps.items()},
        "PEFT mixed": decoder(sides.named, ids, **names),
    }


def _cuda_seconds(call: Callable[[], object], repeat: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeat):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeat


def _wall_seconds(call: Callable[[], object], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def _name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def main() -> int:
    """Exit code 0 when every goal was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_mixed_leaves")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", action="append", choices=tuple(SHAPES), help="default: 1b and 7b")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_mixed_leaves: no CUDA device here; --device cpu --shape tiny tries the program", file=sys.stderr)
        return 2
    result = measure(tuple(options.shape or ("1b", "7b")), options.device)
    if options.device == "cuda":
        write_result("gpu_mixed_leaves", result | {"command": "python -m benchmarks.gpu_mixed_leaves"})
    return 0 if result["is_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
