"""A bundle on its base: `eval`."""

import typer

from tinylora.commands.options import (
    DEMO_BASE,
    AsJson,
    BaseWhere,
    BundleFile,
    DataDirs,
    PolicyText,
    Quantise,
    TextColumn,
    Threads,
    WindowTokens,
    print_json,
)

app = typer.Typer()


@app.command("eval")
def evaluate(
    bundle: BundleFile,
    base: BaseWhere = DEMO_BASE,
    data: DataDirs = None,
    policy: PolicyText = "soft",
    text_column: TextColumn = "text",
    window_tokens: WindowTokens = None,
    threads: Threads = 2,
    quantise: Quantise = None,
    as_json: AsJson = False,
) -> None:
    """Held-out loss of a bundle on your own files, beside the base's."""
    from tinylora.use import evaluate_bundle

    result = evaluate_bundle(
        bundle, base, data or [], policy=policy, text_column=text_column, window_tokens=window_tokens, threads=threads,
        quantise=quantise,
    )  # fmt: skip
    if as_json:
        print_json(result)
        return
    for name, row in result["systems"].items():
        typer.echo(f"{name:<16} nll {row['nll_mean']:.4f}  ppl {row['ppl_mean']:.2f}  active rank {row['active_rank']}")
