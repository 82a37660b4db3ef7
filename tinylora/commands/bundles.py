"""Bundle in, facts or another bundle out; no base is loaded.

`verify`, `inspect` and `diff` tell; `cut`, `merge`, `drop` and `mush` write.
"""

from pathlib import Path
from typing import Annotated

import typer

from tinylora.command_line import ending
from tinylora.commands.options import AsJson, BundleFile, place_of, print_json

app = typer.Typer()
OutFile = Annotated[Path, typer.Option("--out", help="Bundle to write; one that stands there is replaced.")]


@app.command(epilog=ending("tinylora verify bundle.safetensors --key KEY --base BASE", 2, 4, 5))
def verify(
    bundle: BundleFile,
    key: Annotated[
        str | None, typer.Option("--key", help="Public key of the run that must have signed it, 64 hex digits.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", callback=place_of, help="Base that it must have been made for: a local folder or a hub id."
        ),
    ] = None,
) -> None:
    """Check a bundle: structure, names, shapes, hashes, finite values, signature; with --base, that it fits."""
    from tinylora.bundle import check_fingerprint
    from tinylora.bundle import verify as verify_bundle

    for line in verify_bundle(bundle, key=key):
        typer.echo(line)
    if base is not None:
        from tinylora.base_model import fingerprint_of

        check_fingerprint(bundle, fingerprint_of(base), of=base)
        typer.echo(f"{base}: the base that it was made for")


@app.command(epilog=ending("tinylora inspect bundle.safetensors", 5))
def inspect(bundle: BundleFile, as_json: AsJson = False) -> None:
    """Tell what is in a bundle and draw its tree; the header alone is read."""
    from tinylora.derive.drawing import describe_file, in_words

    found = describe_file(bundle)
    if as_json:
        print_json(found)
        return
    for line in in_words(found):
        typer.echo(line)


@app.command(
    epilog=ending(
        "tinylora diff a.safetensors b.safetensors --exit-code", 1, 5, other={1: "they differ, with --exit-code"}
    )
)
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="Bundle file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Bundle file to compare with it.")],
    as_json: AsJson = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 1 where they differ, as git does.")] = False,
) -> None:
    """Tell what differs between two bundles: tree, updates, gates, statistics; ends with 0 but for --exit-code."""
    from tinylora.derive.comparing import diff_files, differs, in_words

    found = diff_files(first, second)
    if as_json:
        print_json(found)
    else:
        for line in in_words(found):
            typer.echo(line)
    if exit_code and differs(found):
        raise typer.Exit(1)


@app.command(epilog=ending("tinylora cut bundle.safetensors --subtree 01 --out small.safetensors", 2, 5, 8))
def cut(
    bundle: BundleFile,
    out: OutFile,
    subtree: Annotated[
        str | None, typer.Option("--subtree", metavar="PATH", help="Node that becomes the new root, such as 01.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Rows of every adapter that are kept.")] = None,
    ranks: Annotated[str, typer.Option("--ranks", help="Other ranks, such as mlp.up_proj=4,mlp.down_proj=2.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Cut plain LoRAs too: expect them to be bad.")] = False,
) -> None:
    """Cut a bundle to one of its subtrees, or its nested adapters to a lower rank, or both; no training, no base."""
    from tinylora.adapters.spec import parse_ranks
    from tinylora.derive import cut_file

    typer.echo(cut_file(bundle, out, rank=rank, ranks=parse_ranks(ranks), subtree=subtree, is_forced=force))


@app.command(
    epilog=ending(
        "tinylora merge a.safetensors b.safetensors --out both.safetensors",
        2,
        4,
        5,
        8,
        other={4: "they are on two bases"},
    )
)
def merge(
    first: Annotated[Path, typer.Argument(metavar="A", help="Bundle file; its tree comes left of the new root.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Bundle file; its tree comes right of the new root.")],
    out: OutFile,
    name: Annotated[str, typer.Option("--name", help="Name of the new bundle's run; default: both names.")] = "",
) -> None:
    """Put two runs on one base under a new root; its gate is solved from the leaf statistics in both bundles."""
    from tinylora.derive import merge_files

    typer.echo(merge_files(first, second, out, name=name))


@app.command(epilog=ending("tinylora drop bundle.safetensors --leaf 01 --out without.safetensors", 2, 5, 8))
def drop(
    bundle: BundleFile,
    leaf: Annotated[str, typer.Option("--leaf", metavar="PATH", help="Leaf to take out, such as 01.")],
    out: OutFile,
    keep_gates: Annotated[
        bool, typer.Option("--keep-gates", help="Leave the gates as they are, for bundles without statistics.")
    ] = False,
) -> None:
    """Take a leaf's adapter, statistics and notes out of a bundle; the gates are solved from what is left."""
    from tinylora.derive import drop_file

    for line in drop_file(bundle, out, leaf=leaf, keeps_gates=keep_gates):
        typer.echo(line)


@app.command(epilog=ending("tinylora mush bundle.safetensors --out one.safetensors", 2, 5, 8))
def mush(
    bundle: BundleFile,
    out: OutFile,
    how: Annotated[str, typer.Option("--how", help="uniform: the mean of the leaves; concat: their sum.")] = "uniform",
    rank: Annotated[int | None, typer.Option("--rank", help="Rank to compress to; default: all ranks, exact.")] = None,
    leaves: Annotated[
        str | None, typer.Option("--leaves", help="Leaves to mix, such as 00,01; default: all trained ones.")
    ] = None,
) -> None:
    """Mix several leaves of a bundle into a bundle of one adapter without routing."""
    from tinylora.derive import mush_file

    chosen = None if leaves is None else [leaf.strip() for leaf in leaves.split(",")]
    typer.echo(mush_file(bundle, out, how=how, rank=rank, leaves=chosen))
