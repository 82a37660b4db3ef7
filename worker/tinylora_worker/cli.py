"""`tinylora-worker`: help a run with your own text and your own machine. Verbs import what they need when called."""

from pathlib import Path
from typing import Annotated

import typer

from tinylora.command_line import run

app = typer.Typer(
    help="Train leaves of a TinyLoRA run on your own text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def worker() -> None:
    """Train leaves of a TinyLoRA run on your own text. The text stays on this machine."""


@app.command()
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="The coordinator, such as http://127.0.0.1:8443.")],
    token: Annotated[
        str, typer.Option("--token", envvar="TINYLORA_TOKEN", help="The join token that the operator gave you.")
    ],
    base: Annotated[str, typer.Option("--base", help="The run's base model: a local folder or a hub id.")],
    data: Annotated[list[Path], typer.Option("--data", help="Folder or file with text; give it several times.")],
    home: Annotated[
        Path | None, typer.Option("--home", help="Where this worker's identity is kept. One running worker per home.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What the operator sees; nothing by default.")] = "",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; torch's choice by default.")
    ] = None,
    text_column: Annotated[
        str, typer.Option("--text-column", help="Column of JSONL and Parquet files that holds the text.")
    ] = "text",
    quantise: Annotated[
        str | None,
        typer.Option("--quantise", help="int8 or nf4: hold the base in 8 or 4 bits; needs tinylora[quant]."),
    ] = None,
    max_rank: Annotated[
        int,
        typer.Option("--max-rank", min=0, help="Highest rank to train; a run of nested adapters asks no more. 0: any."),
    ] = 0,
) -> None:
    """Join a run, and work until it is finished. Ctrl-C leaves it; the unit under way goes to somebody else.

    Exit codes: 0 the run is finished or you left it; 3 no usable text; 4 another base; 6 the coordinator is
    unreachable; 7 it refused: wrong token, or this identity is already running.
    """
    import platformdirs

    from tinylora.flower import use_home

    home = home or Path(platformdirs.user_data_dir("tinylora"), "worker")
    use_home(home / "flower")
    from tinylora_worker.service import Options, work

    work(Options(url, token, base, tuple(data), home, name, threads, text_column, quantise, max_rank))


def main() -> None:
    """Entry point of the `tinylora-worker` command."""
    run(app)


if __name__ == "__main__":
    main()
