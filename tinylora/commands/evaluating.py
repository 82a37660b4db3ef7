"""How good a bundle is: `eval` on your own files, `lm-eval` on the tasks of lm-evaluation-harness."""

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tinylora.command_line import ending
from tinylora.commands.options import (
    AsJson,
    BundleBase,
    BundleFile,
    DataDirs,
    Quantise,
    TextColumn,
    Threads,
    WindowTokens,
    base_for,
    print_json,
)
from tinylora.errors import SettingError, StorageError

app = typer.Typer()

Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", help="soft, top2, hard, elastic, hard@window:64 ..., or all; give it several times."),
]


@app.command(
    "eval", epilog=ending("tinylora eval bundle.safetensors --data a.jsonl --data b.jsonl --policy all", 2, 3, 4, 5)
)
def evaluate(
    bundle: BundleFile,
    base: BundleBase = None,
    data: DataDirs = None,
    policy: Policies = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Also each domain's best leaf, and the regret against it; tries them all.")
    ] = False,
    text_column: TextColumn = "text",
    window_tokens: WindowTokens = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Score only the beginning of longer documents.")] = None,
    threads: Threads = 2,
    quantise: Quantise = None,
    as_json: AsJson = False,
) -> None:
    """Held-out loss of a bundle on your own files, beside the base's; each --data is a domain of its own."""
    from tinylora.eval_files import evaluate_bundle

    result = evaluate_bundle(
        bundle, base_for(bundle, base), data or [], policies=policy or ["soft"], with_oracle=oracle,
        text_column=text_column, window_tokens=window_tokens, max_tokens_per_document=max_tokens, threads=threads,
        quantise=quantise,
    )  # fmt: skip
    if as_json:
        print_json(result)
        return
    for line in (*aligned(_systems(result)), "", *aligned(_domains(result))):
        typer.echo(line)


def _systems(result: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["system", "nll", "±", "perplexity", "regret", "active rank", "MFLOP/token", "tokens/s"]
    for name, row in result["systems"].items():
        regret = result["regret"].get(name.removeprefix("routed:"))
        yield [
            name,
            f"{row['nll_mean']:.4f}",
            "-" if row["stderr"] is None else f"{row['stderr']:.4f}",
            f"{row['ppl_mean']:.2f}",
            "-" if regret is None else f"{regret:.1%}",
            str(row["active_rank"]),
            f"{row['flops_per_token'] / 1e6:,.2f}",
            "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}",
        ]


def _domains(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Nats per token of each domain, and the leaf that suits it best where that is known."""
    systems, leaf_of = result["systems"], result["oracle_leaf"]
    yield ["domain", *systems, *(["best leaf"] if leaf_of else [])]
    for domain in systems["base"]["nll"]:
        best = [leaf_of[domain] or "root"] if leaf_of else []
        yield [domain, *(f"{row['nll'][domain]:.4f}" for row in systems.values()), *best]


@app.command(
    "lm-eval", epilog=ending("tinylora lm-eval bundle.safetensors --tasks arc_easy,piqa --policy hard", 2, 4, 5, 8)
)
def lm_eval(
    bundle: BundleFile,
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks, groups or tags of lm-eval, such as arc_easy,piqa.")],
    base: BundleBase = None,
    policy: Policies = None,
    leaf: Annotated[
        list[str] | None, typer.Option(help="All text to this leaf, such as 01; give it several times.")
    ] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="Also the base alone.")] = False,
    include_path: Annotated[Path | None, typer.Option(help="Folder with further tasks, in YAML.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task; default: all.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in the prompt; default: the task's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a pass.")] = 8,
    add_bos: Annotated[
        bool | None, typer.Option("--add-bos/--no-bos", help="Begin token before each text; default: the tokenizer's.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON here.")] = None,
    threads: Threads = 2,
    quantise: Quantise = None,
    as_json: AsJson = False,
) -> None:
    """A bundle on tasks of lm-evaluation-harness, under each policy or through single leaves; needs the extra eval."""
    _check_harness()
    _check_out(out)
    from tinylora.eval_harness import evaluate_on_tasks

    result = evaluate_on_tasks(
        bundle, base_for(bundle, base), [task.strip() for task in tasks.split(",") if task.strip()],
        policies=policy or ([] if leaf else ["soft"]), leaves=["" if path == "root" else path for path in leaf or []],
        with_base=with_base, include_path=include_path, limit=limit, num_fewshot=num_fewshot, batch_size=batch_size,
        add_bos_token=add_bos, threads=threads, quantise=quantise,
    )  # fmt: skip
    if out is not None:
        _write(out, result)
    if as_json:
        print_json(result)
        return
    for line in aligned(_task_rows(result)):
        typer.echo(line)


def _check_harness() -> None:
    for package in ("lm_eval", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(f"lm-eval: the package {package} is not installed; pip install 'tinylora[eval]'")


def _check_out(out: Path | None) -> None:
    """Before an hour of work, not after it."""
    if out is not None and (out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK)):
        raise StorageError(f"{out}: cannot be written; choose a file in a folder that is there")


def _write(out: Path, result: Mapping[str, Any]) -> None:
    try:
        out.write_text(json.dumps(result, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}; choose another place") from None


def _task_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """One line for each metric of each task, and what each system costs."""
    systems = result["systems"]
    (name_of_first, first), *_ = systems.items()
    yield ["task", "metric", *systems, f"± of {name_of_first}"]
    for task, metrics in first["results"].items():
        for metric, value in metrics.items():
            name, _, kind = metric.partition(",")
            if isinstance(value, int | float) and "," in metric and not name.endswith("_stderr"):
                stderr = metrics.get(f"{name}_stderr,{kind}")
                told = f"{stderr:.4f}" if isinstance(stderr, float) else "-"
                told_kind = "" if kind == "none" else f" ({kind})"
                values = (f"{system['results'][task][metric]:.4f}" for system in systems.values())
                yield [task, f"{name}{told_kind}", *values, told]
    yield ["", "active rank", *(str(system["active_rank"]) for system in systems.values()), ""]
    yield ["", "MFLOP/token", *(f"{system['flops_per_token'] / 1e6:,.2f}" for system in systems.values()), ""]
    yield ["", "tokens/s", *(f"{system['tokens_per_s'] or 0:,.0f}" for system in systems.values()), ""]


def aligned(rows: Iterator[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column on the left, the others on the right of their place."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(_padded, row, widths, range(len(row)))) for row in cells]


def _padded(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)
