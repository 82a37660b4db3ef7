"""Out of our formats and into them: `export`, `import`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tinylora.command_line import ending
from tinylora.commands.options import DEMO_BASE, AsJson, BundleFile, place_of, print_json

app = typer.Typer()

Forced = Annotated[bool, typer.Option("--force", help="Replace what an earlier export wrote there.")]


@app.command(
    epilog=ending("tinylora export bundle.safetensors --leaf 01 --base org/base --out leaf-01", 2, 4, 5, 8),
)
def export(
    bundle: BundleFile,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; whole or not at all.")],
    leaf: Annotated[
        str | None, typer.Option("--leaf", help="Leaf to write, such as 01; root: the root's adapter.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="peft: an adapter; vllm: all leaves; merged: the base with the leaf in it.")
    ] = "peft",
    base: Annotated[
        str,
        typer.Option(
            "--base", callback=place_of, help="Base model: a folder or a hub id; default: what the bundle names."
        ),
    ] = "",
    base_id: Annotated[str, typer.Option("--base-id", help="What the base is called in what is written.")] = "",
    nested_rank: Annotated[
        int | None, typer.Option("--nested-rank", min=1, help="Cut nested adapters to this rank first.")
    ] = None,
    force: Forced = False,
    as_json: AsJson = False,
) -> None:
    """Write a leaf as a PEFT adapter, all leaves for vLLM, or a leaf merged into the base."""
    from tinylora.export.files import export_file

    made = export_file(
        bundle, out, form=form, leaf=leaf, base=base, base_id=base_id, default_base=DEMO_BASE, nested_rank=nested_rank,
        is_forced=force,
    )  # fmt: skip
    if as_json:
        print_json(dict(made.facts))
        return
    for sentence in made.sentences:
        typer.echo(sentence, err=bool(made.command))
    if made.command:
        typer.echo(made.command)


@app.command(
    "import",
    epilog=ending(
        "tinylora import my-lora --base org/base --into bundle.safetensors --leaf 01 --out new.safetensors",
        2,
        4,
        5,
        8,
        9,
    ),
)
def import_adapter(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder that PEFT's save_pretrained wrote.")],
    base: Annotated[
        str, typer.Option("--base", callback=place_of, help="The adapter's base model: a folder or a hub id.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Bundle to write.")],
    into: Annotated[Path | None, typer.Option("--into", help="Bundle whose leaf is filled or replaced.")] = None,
    leaf: Annotated[str | None, typer.Option("--leaf", help="Leaf of that bundle, such as 01.")] = None,
    force: Forced = False,
    as_json: AsJson = False,
) -> None:
    """Make a bundle of a PEFT adapter, or a leaf of a bundle that is there."""
    from tinylora.export.importing import import_peft

    path = "" if leaf == "root" else leaf
    made = import_peft(adapter, out, base=base, into=into, leaf=path, is_forced=force)
    if as_json:
        print_json(asdict(made))
        return
    typer.echo(
        f"{out}: leaf {made.leaf or 'root'} of rank {made.rank}, on {made.n_modules} linears of the base, zeros on "
        f"{made.n_without}"
    )
    for note in made.notes:
        typer.echo(note)
