"""How good a bundle is: `eval` on your own files, `lm-eval` on the tasks of lm-evaluation-harness."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from tinylora.commands.options import (
    DEMO_BASE,
    AsJson,
    BaseWhere,
    BundleFile,
    DataDirs,
    Quantise,
    TextColumn,
    Threads,
    WindowTokens,
    print_json,
)

app = typer.Typer()

Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", help="soft, top2, hard, elastic, hard@window:64 ..., or all; give it several times."),
]


@app.command("eval")
def evaluate(
    bundle: BundleFile,
    base: BaseWhere = DEMO_BASE,
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
        bundle, base, data or [], policies=policy or ["soft"], with_oracle=oracle, text_column=text_column,
        window_tokens=window_tokens, max_tokens_per_document=max_tokens, threads=threads, quantise=quantise,
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


def aligned(rows: Iterator[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column on the left, the others on the right of their place."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(_padded, row, widths, range(len(row)))) for row in cells]


def _padded(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)
