"""`tinylora-worker`: help a run with your own text and your own machine. Verbs import what they need when called."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tinylora.command_line import run as run_app

app = typer.Typer(
    help="Train leaves of a TinyLoRA run on your own text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def worker() -> None:
    """Train leaves of a TinyLoRA run on your own text. The text stays on this machine."""


Base = Annotated[str, typer.Option("--base", help="The run's base model: a local folder or a hub id.")]
Data = Annotated[list[Path], typer.Option("--data", help="Folder or file with text; give it several times.")]
Home = Annotated[
    Path | None, typer.Option("--home", help="Where this worker's identity is kept. One running worker per home.")
]
Name = Annotated[str, typer.Option("--name", help="What the operator sees; nothing by default.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; torch's choice by default.")]
TextColumn = Annotated[
    str, typer.Option("--text-column", help="Column of JSONL and Parquet files that holds the text.")
]
Allow = Annotated[
    list[str] | None, typer.Option("--allow", help="Train on what is refused otherwise: secrets, emails, phones.")
]
Quantise = Annotated[
    str | None, typer.Option("--quantise", help="int8 or nf4: hold the base in 8 or 4 bits; needs tinylora[quant].")
]
MaxRank = Annotated[
    int,
    typer.Option("--max-rank", min=0, help="Highest rank to train; a run of nested adapters asks no more. 0: any."),
]


@app.command()
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="The coordinator, such as https://tree.example.org:8443.")],
    base: Base,
    data: Data,
    token: Annotated[
        str,
        typer.Option(
            "--token",
            envvar="TINYLORA_TOKEN",
            show_envvar=True,
            help="The join token that the operator gave you; - reads it from stdin. Not needed by who joined before.",
        ),
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token, so that no process list shows it.")
    ] = None,
    home: Home = None,
    name: Name = "",
    threads: Threads = None,
    text_column: TextColumn = "text",
    quantise: Quantise = None,
    max_rank: MaxRank = 0,
    allow: Allow = None,
) -> None:
    """Join a run, and work until it is finished. Ctrl-C leaves it; the unit under way goes to somebody else.

    The coordinator's CA is compared with the token before the token is sent. The token is used once: afterwards this
    home's own key is enough, see `run`.

    Exit codes: 0 the run is finished or you left it; 2 the address or the token makes no sense; 3 no usable text;
    4 another base; 6 the coordinator is unreachable; 7 it refused (the token is wrong, expired, revoked or used up, or
    this identity is already running), or it is not the one that the token names.
    """
    secret = _read_token(token, token_file)
    _work(url, secret, base, data, home, name, threads, text_column, quantise, max_rank, allow)


@app.command()
def run(
    base: Base,
    data: Data,
    home: Home = None,
    name: Name = "",
    threads: Threads = None,
    text_column: TextColumn = "text",
    quantise: Quantise = None,
    max_rank: MaxRank = 0,
    allow: Allow = None,
) -> None:
    """Go on working for the run that this home has joined; no address and no token needed.

    Exit codes: as of `join`; 2 if this home has joined no run.
    """
    _work("", "", base, data, home, name, threads, text_column, quantise, max_rank, allow)


@app.command()
def receipts(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the receipts of this home: the run's signed word for each update that it accepted.

    Exit codes: 0 listed, none is fine too; 8 the file is not readable.
    """
    from tinylora.flower.receipts import read_receipts

    found = read_receipts(_home(home))
    if as_json:
        typer.echo(json.dumps([receipt.model_dump(mode="json") for receipt in found], indent=1, sort_keys=True))
        return
    for receipt in found:
        where = f"node {receipt.node or 'root'}"
        typer.echo(f"{receipt.run} {receipt.unit_id} {receipt.kind} {where}: {receipt.tokens} tokens")
    print(f"{len(found)} receipts, {sum(receipt.tokens for receipt in found)} tokens", file=sys.stderr)


def _read_token(token: str, file: Path | None) -> str:
    """The token from wherever it was given; no message of ours repeats it."""
    from tinylora.errors import SettingError
    from tinylora.flower.join_token import parse_token

    if token and file is not None:
        raise SettingError("--token and --token-file: give one of them")
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--token-file {file}: not readable: {error}") from None
    elif token == "-":
        token = sys.stdin.readline(1024)
    elif not token:
        return ""
    return parse_token(token).text


def _home(home: Path | None) -> Path:
    import platformdirs

    return home or Path(platformdirs.user_data_dir("tinylora"), "worker")


def _work(
    url: str,
    token: str,
    base: str,
    data: list[Path],
    home: Path | None,
    name: str,
    threads: int | None,
    text_column: str,
    quantise: str | None,
    max_rank: int,
    allow: list[str] | None,
) -> None:
    from tinylora.flower import use_home

    home = _home(home)
    use_home(home / "flower")
    from tinylora_worker.service import Options, work

    work(
        Options(url, token, base, tuple(data), home, name, threads, text_column, quantise, max_rank, tuple(allow or ()))
    )


def main() -> None:
    """Entry point of the `tinylora-worker` command."""
    run_app(app)


if __name__ == "__main__":
    main()
