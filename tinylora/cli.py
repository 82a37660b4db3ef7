"""`tinylora`: simulate and demo runs, look at bundles, use them. Every verb imports what it needs when it is called."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tinylora.command_line import run

app = typer.Typer(
    help="Grow one language model together: a tree of LoRA adapters on a frozen base.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle file, *.safetensors.")]
BaseWhere = Annotated[
    str, typer.Option("--base", help="Base model: a local folder or a hub id; default: the demo base.")
]
DEMO_BASE = str(Path(__file__).parent / "demo" / "base")
DataDirs = Annotated[list[Path] | None, typer.Option("--data", help="Folder or file with text; give it several times.")]
PolicyText = Annotated[
    str, typer.Option("--policy", help="soft, top2, hard, elastic; also hard@window:64, hard@sequence:32.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; talk goes to stderr.")]
TextColumn = Annotated[
    str, typer.Option("--text-column", help="Column of JSONL and Parquet files that holds the text.")
]
WindowTokens = Annotated[
    int | None, typer.Option("--window-tokens", min=8, help="Tokens per window; default: the base's.")
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")]
Quantise = Annotated[
    str | None, typer.Option("--quantise", help="int8 or nf4: hold the base in 8 or 4 bits; needs tinylora[quant].")
]


@app.command()
def demo(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 4,
    depth: Annotated[
        int, typer.Option(min=0, max=3, help="Depth of the tree: 2**depth leaves, one kind of text each.")
    ] = 2,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    router_sync: Annotated[str, typer.Option(help="statistics, weights, or both.")] = "both",
    leaf_steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of each leaf.")] = None,
    open_browser: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Open a browser on the live page; default: on a desktop.")
    ] = None,
) -> None:
    """Run a real federation on this machine: coordinator, workers, live page, one bundle, a report with pictures."""
    from tinylora.demo.run import run_demo

    run_demo(
        n_workers=workers,
        depth=depth,
        out=out,
        seed=seed,
        router_sync=router_sync,
        leaf_steps=leaf_steps,
        open_browser=open_browser,
    )


@app.command()
def simulate(
    workers: Annotated[int, typer.Option(min=1, max=256, help="Simulated workers; with --data, one per folder.")] = 4,
    depth: Annotated[int, typer.Option(min=0, help="Depth of the tree: 2**depth leaves.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for bundle, report and pictures.")] = Path("simulate-out"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    base: BaseWhere = DEMO_BASE,
    data: DataDirs = None,
    rank: Annotated[int | None, typer.Option(help="Rank of every adapter.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Kind of every adapter, such as nested or tied:A,B,uv.")] = None,
    leaf_steps: Annotated[int | None, typer.Option(help="Optimiser steps of each leaf.")] = None,
    router_sync: Annotated[str, typer.Option(help="statistics, weights, or both.")] = "both",
    text_column: TextColumn = "text",
    kill: Annotated[list[str] | None, typer.Option(metavar="W@U", help="Worker W dies in its unit U.")] = None,
    silent: Annotated[list[str] | None, typer.Option(metavar="W@U", help="Worker W never answers unit U.")] = None,
    delay: Annotated[
        list[str] | None, typer.Option(metavar="W@U:S", help="Worker W answers unit U S seconds late.")
    ] = None,
    drop: Annotated[float, typer.Option(metavar="SHARE", help="Share of updates that are lost by chance.")] = 0.0,
    threads: Threads = 2,
    quantise: Quantise = None,
    as_json: AsJson = False,
) -> None:
    """Run a whole federation in this process: the same rules and unit code, a virtual clock, planned faults."""
    from tinylora.demo.simulated import run_simulated

    report = run_simulated(
        n_workers=workers, depth=depth, out=out, seed=seed, base_where=base, data=data or [], rank=rank,
        adapter=adapter, leaf_steps=leaf_steps, router_sync=router_sync, text_column=text_column,
        kill=kill or [], silent=silent or [], delay=delay or [], drop=drop, threads=threads, quantise=quantise,
        is_quiet=as_json,
    )  # fmt: skip
    if as_json:
        _print_json(report)


@app.command()
def report(
    config: Annotated[Path, typer.Option(help="What to train and score.")] = Path("benchmarks/quality.toml"),
    out: Annotated[Path, typer.Option(help="Folder for outcomes, tables and pictures.")] = Path("report-out"),
    preset: Annotated[str, typer.Option(help="ci, cpu or full; a section of the configuration.")] = "cpu",
    rows: Annotated[str, typer.Option(help="Rows, such as 1,2,9; default: those of the configuration.")] = "",
    processes: Annotated[int, typer.Option(min=1, help="Jobs at a time, one thread each.")] = 2,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find the learning rates instead; they go to rates.toml.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train every system at equal tokens, score them on the same text, and write what came out; goes on if stopped."""
    from tinylora.quality.command import find_rates, parse_rows
    from tinylora.quality.command import report as make_report

    options = {"preset": preset, "rows": parse_rows(rows), "n_processes": processes}

    def say(text: str) -> None:
        typer.echo(text, err=as_json)

    if tune:
        found = find_rates(config, out, say=say, **options)
        say(f"{len(found)} rates are in {out / 'rates.toml'}; put them into {config}")
        return
    document = make_report(config, out, say=say, **options)
    if as_json:
        _print_json(document)


@app.command()
def verify(bundle: BundleFile) -> None:
    """Check a bundle: structure, names, shapes, hashes, finite values."""
    from tinylora.bundle import verify as verify_bundle

    for line in verify_bundle(bundle):
        typer.echo(line)


@app.command()
def inspect(bundle: BundleFile, as_json: AsJson = False) -> None:
    """Tell what is in a bundle."""
    from tinylora.bundle import inspect as inspect_bundle

    found = inspect_bundle(bundle)
    if as_json:
        _print_json(found)
        return
    for key, value in found.items():
        typer.echo(f"{key}: {value if isinstance(value, str | int | float) else json.dumps(value, default=str)}")


@app.command()
def cut(
    bundle: BundleFile,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rows of every adapter that are kept.")],
    out: Annotated[Path, typer.Option("--out", help="Bundle to write.")],
    ranks: Annotated[str, typer.Option("--ranks", help="Other ranks, such as mlp.up_proj=4,mlp.down_proj=2.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Cut plain LoRAs too: expect them to be bad.")] = False,
) -> None:
    """Cut the nested adapters of a bundle to a lower rank; no training, no base."""
    from tinylora.adapters.spec import parse_ranks
    from tinylora.derive import cut_file

    typer.echo(cut_file(bundle, out, rank=rank, ranks=parse_ranks(ranks), is_forced=force))


@app.command()
def mush(
    bundle: BundleFile,
    out: Annotated[Path, typer.Option("--out", help="Bundle to write.")],
    how: Annotated[str, typer.Option("--how", help="uniform: the mean of the leaves; concat: their sum.")] = "uniform",
    rank: Annotated[int | None, typer.Option("--rank", help="Compress to it; default: all ranks, exact.")] = None,
    leaves: Annotated[str | None, typer.Option("--leaves", help="Such as 00,01; default: all trained ones.")] = None,
) -> None:
    """Mix several leaves of a bundle into a bundle of one adapter without routing."""
    from tinylora.derive import mush_file

    chosen = None if leaves is None else [leaf.strip() for leaf in leaves.split(",")]
    typer.echo(mush_file(bundle, out, how=how, rank=rank, leaves=chosen))


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
        _print_json(result)
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


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=1, sort_keys=True, default=str))


def main() -> None:
    """Entry point of the `tinylora` command."""
    run(app)


if __name__ == "__main__":
    main()
