"""Options and outputs that several verbs have in common."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def place_of(base: str | None) -> str | None:
    """Where a base is that was named on the command line: `demo` is the one that ships with the project."""
    from tinylora.demo.experiment import place_of_base

    return base if base is None else place_of_base(base)


BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle file, *.safetensors.")]
BaseWhere = Annotated[
    str,
    typer.Option("--base", callback=place_of, help="Base model: a local folder or a hub id; default: the demo base."),
]
BundleBase = Annotated[
    str | None,
    typer.Option(
        "--base", callback=place_of, help="Folder or hub id; default: the one the bundle names, or the demo's."
    ),
]
DEMO_BASE = str(Path(__file__).parents[1] / "demo" / "base")
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
    str | None, typer.Option("--quantise", help="int8 or nf4: hold the base in 8 or 4 bits; needs tinylora\\[quant].")
]


def base_for(bundle: Path, base: str | None) -> str:
    """The base that was named, else the one that the bundle names where that is on the hub, else the demo's."""
    if base is not None:
        return base
    from tinylora.hub import base_named_in

    return base_named_in(bundle, DEMO_BASE)


def print_json(document: dict[str, Any]) -> None:
    """One document on stdout, its keys sorted."""
    typer.echo(json.dumps(document, indent=1, sort_keys=True, default=str))
