"""Whole federations on this machine: `demo`, `simulate`, `report`."""

from pathlib import Path
from typing import Annotated

import typer

from tinylora.command_line import ending
from tinylora.commands.options import DEMO_BASE, AsJson, BaseWhere, DataDirs, Quantise, TextColumn, Threads, print_json

app = typer.Typer()
Seed = Annotated[int, typer.Option("--seed", min=0, help="Decides first values and the order of batches.")]
RouterSync = Annotated[
    str, typer.Option("--router-sync", help="How routers are kept in step: statistics, weights, or both.")
]


@app.command(epilog=ending("tinylora demo --workers 4 --depth 2", 2, 6, 8, 130))
def demo(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 4,
    depth: Annotated[
        int, typer.Option(min=0, max=3, help="Depth of the tree: 2**depth leaves, one kind of text each.")
    ] = 2,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo-out"),
    seed: Seed = 0,
    router_sync: RouterSync = "both",
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


@app.command(epilog=ending("tinylora simulate --workers 8 --depth 3 --kill 2@1 --drop 0.1 --out OUT", 2, 3, 4, 8, 130))
def simulate(
    workers: Annotated[int, typer.Option(min=1, max=256, help="Simulated workers; with --data, one per folder.")] = 4,
    depth: Annotated[int, typer.Option(min=0, help="Depth of the tree: 2**depth leaves.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for bundle, report and pictures.")] = Path("simulate-out"),
    seed: Seed = 0,
    base: BaseWhere = DEMO_BASE,
    data: DataDirs = None,
    rank: Annotated[int | None, typer.Option(help="Rank of every adapter.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Kind of every adapter, such as nested or tied:A,B,uv.")] = None,
    leaf_steps: Annotated[int | None, typer.Option(help="Optimiser steps of each leaf.")] = None,
    router_sync: RouterSync = "both",
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
        print_json(report)


@app.command(epilog=ending("tinylora report --preset ci --out OUT", 2, 3, 4, 8, 130))
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
        print_json(document)
