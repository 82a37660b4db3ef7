"""One batch with many leaves against one plain LoRA of PEFT: whole small models, forward, training and decoding.

    python -m benchmarks mixed_leaves                                    all parts; writes the result
    python -m benchmarks.mixed_leaves --only decode --model llama-512    one part, on the screen alone

Every side has the same base, rank, tokens and leaves' numbers, see `leaf_batches`. What is compared:

* `prefill`: logits of all tokens. Ours by sequence (the first token decides), by token, soft, and all tokens at one
  leaf; PEFT with one adapter (`plain`, the 1.00 of every ratio) and with a name for each row (`adapter_names`).
* `train`: forward, the same cross entropy over the same logits, backward. Ours trains all leaves of the batch, hard by
  sequence and by token, or soft; PEFT trains one LoRA on the same tokens, for it cannot train a mixed batch. What AdamW
  adds is timed apart: it goes over all leaves here and over one there, whatever the batch.
* `decode`: one more token for every row behind 32 in the cache, eight steps in a row: the first gathers what they keep.
* `scaling`: by token, 64 leaves against 4, rows and tokens alike.

Ours by sequence must equal PEFT's mixed batch, and ours at one leaf PEFT's one adapter, before the clock starts. Soft
is measured where leaves times rank are a quarter of the hidden size. The gates are random, and so are the tokens:
the spread of tokens over leaves is in the result.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.leaf_batches import (
    PER_SEQUENCE,
    PER_TOKEN,
    SOFT,
    Batch,
    Shape,
    Sides,
    decoder,
    prefill,
    trained,
    training,
)
from benchmarks.measure import interleave

RANK = 8
N_ROUNDS = 9
PROMPT_TOKENS = 32
LLAMA_512, LLAMA_1024, BLOOM_512 = Shape("llama", 512), Shape("llama", 1024), Shape("bloom", 512)
PREFILLED = {
    LLAMA_512: (Batch(8, 64, 4), Batch(16, 64, 16), Batch(64, 16, 64)),
    LLAMA_1024: (Batch(16, 16, 4), Batch(32, 16, 32)),
    BLOOM_512: (Batch(16, 32, 16), Batch(64, 8, 64)),
}
TRAINED = {
    LLAMA_512: (Batch(8, 64, 4), Batch(16, 64, 16), Batch(64, 16, 64)),
    LLAMA_1024: (Batch(16, 16, 16),),
    BLOOM_512: (Batch(16, 32, 16),),
}
DECODED = {
    LLAMA_512: (Batch(16, 1, 4), Batch(16, 1, 16), Batch(64, 1, 64)),
    LLAMA_1024: (Batch(16, 1, 16),),
    BLOOM_512: (Batch(16, 1, 16), Batch(64, 1, 64)),
}
SCALED = {LLAMA_512: (Batch(16, 64, 4), Batch(16, 64, 64))}
PARTS = ("prefill", "train", "decode", "scaling")
GOALS = {
    ("prefill", "sequence"): 1.05,
    ("prefill", "token"): 1.07,
    ("prefill", "soft"): 1.25,
    ("train", "sequence"): 1.05,
    ("train", "token"): 1.07,
    ("train", "soft"): 1.25,
    ("decode", "sequence"): 1.20,
    ("decode", "token"): 1.20,
    ("decode", "single"): 1.05,
    ("prefill", "single"): 1.05,
    ("train", "single"): 1.05,
    ("scaling", "64 leaves / 4"): 1.05,
}
FASTER_THAN_NAMED = 2.0
Row = dict[str, Any]
Calls = dict[str, Callable[[], object]]


def measure(
    parts: tuple[str, ...] = PARTS,
    models: tuple[str, ...] = (),
    leaves: tuple[int, ...] = (),
    n_rounds: int = N_ROUNDS,
    say: Callable[[str], None] = lambda line: None,
) -> Row:
    """Ratios of CPU times, one thread.

    Args:
        parts: Some of `PARTS`.
        models: Such as "llama-512"; empty is all.
        leaves: Batches with so many leaves alone; empty is all.
        n_rounds: Rounds of every side.
        say: Told each line as soon as it is known.
    """
    torch.set_num_threads(1)
    rows: list[Row] = []
    for part in parts:
        for row in _PARTS[part](models, leaves, n_rounds):
            rows.append(row)
            say(line_of(row))
    judged = [row for row in rows if row["goal"] is not None]
    return {
        "compares": "a batch of many leaves with one plain LoRA of PEFT, whole models: prefill, training, decoding",
        "goal": {" ".join(key): f"<= {goal}" for key, goal in GOALS.items()}
        | {"decode PEFT mixed / ours": f">= {FASTER_THAN_NAMED}"},
        "is_met": all(row["is_met"] for row in judged),
        "figure": _worst(judged),
        "details": {"rank": RANK, "prompt_tokens": PROMPT_TOKENS, "rows": rows},
    }


def line_of(row: Row) -> str:
    """One ratio for the screen."""
    ratio, goal = row["ratio"], row["goal"]
    verdict = "" if goal is None else f"  goal {goal} {'met' if row['is_met'] else 'MISSED'}"
    what = f"{row['part']:<8} {row['model']:<15} {row['batch']:<22} {row['what']:<22}"
    return f"{what} min {ratio['min']:.3f}  median {ratio['median']:.3f}{verdict}"


# --- parts -----------------------------------------------------------------------------------------------------------


def _prefill(models: tuple[str, ...], leaves: tuple[int, ...], n_rounds: int) -> Iterator[Row]:
    for shape, batch in _chosen(PREFILLED, models, leaves):
        sides = Sides(shape, batch, RANK)
        _check(sides)
        calls: Calls = {
            "plain": lambda s=sides: prefill(s.plain, s.ids),
            "sequence": lambda s=sides: prefill(s.routed(PER_SEQUENCE), s.ids),
            "token": lambda s=sides: prefill(s.routed(PER_TOKEN), s.ids),
            "single": lambda s=sides: prefill(s.single(), s.ids),
            "PEFT mixed": lambda s=sides: prefill(s.named, s.ids, adapter_names=s.names),
        }
        if _is_quarter(sides):
            calls["soft"] = lambda s=sides: prefill(s.routed(SOFT), s.ids)
        yield from _rows("prefill", sides, interleave(calls, n_rounds=n_rounds, warm_up=1))


def _train(models: tuple[str, ...], leaves: tuple[int, ...], n_rounds: int) -> Iterator[Row]:
    for shape, batch in _chosen(TRAINED, models, leaves):
        sides = Sides(shape, batch, RANK)
        ours, plain = training(sides.tree, sides.ids), training(sides.plain, sides.ids)
        sides.single()
        torch.testing.assert_close(ours(), plain(), rtol=1e-4, atol=1e-4)
        calls: Calls = {
            "plain": plain,
            "sequence": _under(sides, PER_SEQUENCE, ours),
            "token": _under(sides, PER_TOKEN, ours),
            "single": lambda s=sides, step=ours: (s.single(), step()),
        }
        if _is_quarter(sides):
            calls["soft"] = _under(sides, SOFT, ours)
        times = interleave(calls, n_rounds=n_rounds, warm_up=1)
        yield from _rows("train", sides, times)
        calls["sequence"]()
        yield _row("AdamW", sides, "all leaves / one", interleave(_optimisers(sides), n_rounds=n_rounds, repeat=3))


def _decode(models: tuple[str, ...], leaves: tuple[int, ...], n_rounds: int) -> Iterator[Row]:
    for shape, batch in _chosen(DECODED, models, leaves):
        sides = Sides(shape, Batch(batch.rows, PROMPT_TOKENS + 1, batch.leaves), RANK)
        _check(sides)
        named = {"adapter_names": sides.names}
        calls: Calls = {"plain": decoder(sides.plain, sides.ids)}
        for name, policy in (("sequence", PER_SEQUENCE), ("token", PER_TOKEN)):
            calls[name] = _under(sides, policy, decoder(sides.routed(policy), sides.ids))
        single = decoder(sides.single(), sides.ids)
        calls["single"] = lambda s=sides, step=single: (s.single(), step())
        calls["PEFT mixed"] = decoder(sides.named, sides.ids, **named)
        times = interleave(calls, n_rounds=n_rounds, repeat=8)
        yield from _rows("decode", sides, times)
        for name in ("sequence", "token"):
            pair = {"ours": times["PEFT mixed"], "plain": times[name]}
            yield _row("decode", sides, f"PEFT mixed / {name}", pair, at_least=FASTER_THAN_NAMED)


def _scaling(models: tuple[str, ...], leaves: tuple[int, ...], n_rounds: int) -> Iterator[Row]:
    for shape, (few, many) in SCALED.items():
        if _is_chosen(shape, models) and not leaves:
            four, sixty_four = Sides(shape, few, RANK), Sides(shape, many, RANK)
            calls: Calls = {
                "plain": lambda s=four: prefill(s.routed(PER_TOKEN), s.ids),
                "ours": lambda s=sixty_four: prefill(s.routed(PER_TOKEN), s.ids),
            }
            yield _row("scaling", sixty_four, "64 leaves / 4", interleave(calls, n_rounds=n_rounds, warm_up=1))


_PARTS = {"prefill": _prefill, "train": _train, "decode": _decode, "scaling": _scaling}


def _chosen(
    plan: Mapping[Shape, tuple[Batch, ...]], models: tuple[str, ...], leaves: tuple[int, ...]
) -> Iterator[tuple[Shape, Batch]]:
    for shape, batches in plan.items():
        for batch in batches if _is_chosen(shape, models) else ():
            if not leaves or batch.leaves in leaves:
                yield shape, batch


def _is_chosen(shape: Shape, models: tuple[str, ...]) -> bool:
    return not models or f"{shape.family}-{shape.hidden}" in models


def _under(sides: Sides, policy: str, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        sides.routed(policy)
        return call()

    return run


def _optimisers(sides: Sides) -> Calls:
    """One AdamW step over what has a gradient: all leaves of the tree, the one of PEFT's model."""
    steps = {
        name: torch.optim.AdamW([p for p in trained(model) if p.grad is not None], lr=1e-6, fused=True).step
        for name, model in (("plain", sides.plain), ("ours", sides.tree))
    }
    return {name: (lambda step=step: step()) for name, step in steps.items()}


def _is_quarter(sides: Sides) -> bool:
    return 4 * sides.batch.leaves * RANK == sides.shape.hidden


def _check(sides: Sides) -> None:
    """Both ways of PEFT say what the tree says."""
    pairs = (
        (prefill(sides.single(), sides.ids), prefill(sides.plain, sides.ids)),
        (prefill(sides.routed(PER_SEQUENCE), sides.ids), prefill(sides.named, sides.ids, adapter_names=sides.names)),
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    _check_leaves_differ(*(theirs for _, theirs in pairs))


def _check_leaves_differ(one: Tensor, mixed: Tensor) -> None:
    if torch.allclose(one, mixed, atol=1e-3):
        raise RuntimeError("the leaves do not differ, so nothing was compared")


# --- rows of the result ----------------------------------------------------------------------------------------------


def _rows(part: str, sides: Sides, times: Mapping[str, tuple[float, ...]]) -> Iterator[Row]:
    for name in times:
        if name != "plain":
            yield _row(part, sides, name, {"ours": times[name], "plain": times["plain"]})


def _row(
    part: str, sides: Sides, what: str, times: Mapping[str, tuple[float, ...]], at_least: float | None = None
) -> Row:
    ours, plain = times["ours"], times["plain"]
    ratio = {
        "min": round(min(ours) / min(plain), 4),
        "median": round(statistics.median(ours) / statistics.median(plain), 4),
    }
    goal = GOALS.get((part, what)) if what != "soft" or _is_quarter(sides) else None
    is_met = ratio["median"] >= at_least if at_least else None if goal is None else ratio["median"] <= goal
    return {
        "part": part,
        "model": str(sides.shape),
        "batch": str(replace(sides.batch, tokens=1) if part == "decode" else sides.batch),
        "what": what,
        "ratio": ratio,
        "goal": at_least or goal,
        "is_met": is_met,
        "seconds": {"ours": statistics.median(ours), "plain": statistics.median(plain)},
        "spread": sides.spread() if what == "token" else None,
    }


def _worst(rows: list[Row]) -> dict[str, float]:
    """Of each goal the row that is furthest from it, by its median."""
    found: dict[str, float] = {}
    for row in rows:
        is_faster, median = "PEFT mixed /" in row["what"], row["ratio"]["median"]
        name = f"{row['part']} {row['what']}"
        found[name] = (min if is_faster else max)(found.get(name, median), median)
    return found


def main() -> int:
    """Some parts on the screen; nothing is written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed_leaves")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; several times for several")
    parser.add_argument("--model", action="append", default=[], help="llama-512, llama-1024 or bloom-512")
    parser.add_argument("--leaves", action="append", default=[], type=int, help="batches with so many leaves alone")
    parser.add_argument("--rounds", type=int, default=N_ROUNDS)
    options = parser.parse_args()
    result = measure(
        tuple(options.only or PARTS), tuple(options.model), tuple(options.leaves), options.rounds, say=print
    )
    print(json.dumps(result["figure"], indent=1))
    return 0 if result["is_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
