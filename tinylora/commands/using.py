"""A bundle on its base: `eval`, `generate`."""

from typing import Annotated

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


@app.command()
def generate(
    bundle: BundleFile,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    base: BaseWhere = DEMO_BASE,
    policy: PolicyText = "soft",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Threads = 2,
    quantise: Quantise = None,
) -> None:
    """Continue a text, routing every token."""
    from tinylora.use import generate_text

    text = generate_text(
        bundle, base, prompt, policy=policy, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        seed=seed, threads=threads, quantise=quantise,
    )  # fmt: skip
    typer.echo(text)
