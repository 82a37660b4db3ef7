"""`tinylora-worker`: help a run with your own text and your own machine.

Thin: verbs import what they need when they are called, so that `status` and its like answer in a moment. What is data
goes to stdout, talk to stderr.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinylora.command_line import Version
from tinylora.command_line import run as run_app

if TYPE_CHECKING:
    from tinylora_worker.volunteer import Manner

app = typer.Typer(
    help="Train leaves of a TinyLoRA run on your own text. The text stays on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Example: tinylora-worker join https://tree.example.org:8443 --token-file T --data notes.jsonl",
)
limits_app = typer.Typer(help="What this worker may use: show it, or change it while it works.", no_args_is_help=False)
data_app = typer.Typer(help="Your own text.", no_args_is_help=True)
service_app = typer.Typer(help="Start the worker with your session.", no_args_is_help=True)

TAKE_PART, STEER, LOOK, CARE = "Take part", "While it works", "Look", "Care"
COMMON, MACHINE, TEXT, SCRIPTS = "Common", "This machine", "Your text", "For scripts, and the careful"
SEEN = "What others see"
ENDINGS = (
    "Exit codes: 0 the run is finished or you left; 2 an option or the token makes no sense; 3 no usable text; "
    "4 another base, or too little memory; 6 the coordinator is unreachable; 7 it refused, or is not the one that the "
    "token names; 8 a file cannot be written; 9 somebody broke the protocol; 130 a second Ctrl-C."
)
TOLD = "Exit codes: 0 done; 2 an option makes no sense; 6 no worker runs in this home."
app.add_typer(limits_app, name="limits", rich_help_panel=STEER)
app.add_typer(data_app, name="data", rich_help_panel=LOOK)
app.add_typer(service_app, name="service", rich_help_panel=CARE)

Home = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="TINYLORA_HOME", help="Where this worker's identity is kept. One running worker per home.",
        rich_help_panel=MACHINE,
    ),
]  # fmt: skip
Base = Annotated[
    str, typer.Option("--base", help="The run's base, a folder or hub id; found by itself.", rich_help_panel=COMMON)
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="File, folder or pattern with text; give it several times.", rich_help_panel=COMMON),
]
Token = Annotated[
    str,
    typer.Option(
        "--token", envvar="TINYLORA_TOKEN", rich_help_panel=COMMON,
        help="The join token that the operator gave you; - reads it from stdin. Asked for if it is needed.",
    ),
]  # fmt: skip
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the token, so that no process list shows it.", rich_help_panel=COMMON),
]
Name = Annotated[
    str, typer.Option("--name", help="What the operator sees; nothing by default.", rich_help_panel=COMMON)
]
Note = Annotated[
    str,
    typer.Option(
        "--note",
        help="What others may know of your text: shown publicly, published with the bundle, and kept.",
        rich_help_panel=SEEN,
    ),
]
DataLicence = Annotated[
    str,
    typer.Option(
        "--data-licence", help="Licence of your text, such as CC-BY-4.0: published as the note.", rich_help_panel=SEEN
    ),
]
ShareLog = Annotated[
    bool, typer.Option("--share-log", help="Show this worker's log on the run's pages.", rich_help_panel=SEEN)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.", rich_help_panel=COMMON)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Checks and estimate; joins nothing.", rich_help_panel=COMMON)]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or mps; chosen by itself.", rich_help_panel=MACHINE)]
Dtype = Annotated[str, typer.Option("--dtype", help="bf16, fp16 or fp32; chosen by itself.", rich_help_panel=MACHINE)]
VramLimit = Annotated[
    str, typer.Option("--vram-limit", metavar="SIZE", help="Most device memory, such as 8GB.", rich_help_panel=MACHINE)
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads; chosen by itself.", rich_help_panel=MACHINE),
]
Quantise = Annotated[
    str | None,
    typer.Option(
        "--quantise", help="int8 or nf4: hold the base in 8 or 4 bits; needs the extra quant.", rich_help_panel=MACHINE
    ),
]
MaxRank = Annotated[
    int, typer.Option("--max-rank", min=0, help="Highest rank to train; 0: any.", rich_help_panel=MACHINE)
]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="ROLE=COLUMN", help="Which column is what, such as text=body.", rich_help_panel=TEXT),
]
TextColumn = Annotated[
    str, typer.Option("--text-column", help="Column that holds the text; as --map text=NAME.", rich_help_panel=TEXT)
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="KIND", help="secrets, emails, phones: train on them.", rich_help_panel=TEXT),
]
SelfAudit = Annotated[
    bool,
    typer.Option("--self-audit", help="Plant strings, and tell how exposed they are, first.", rich_help_panel=TEXT),
]
SkipCheck = Annotated[
    list[str] | None, typer.Option("--skip-check", metavar="NAME", help="Leave a check out.", rich_help_panel=SCRIPTS)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel=SCRIPTS)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what goes wrong.", rich_help_panel=SCRIPTS)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=SCRIPTS)]


@app.callback()
def worker(version: Version = False) -> None:
    """Train leaves of a TinyLoRA run on your own text. The text stays on this machine."""


# --- take part --------------------------------------------------------------------------------------------------------


@app.command(
    rich_help_panel=TAKE_PART,
    epilog=f"{ENDINGS} Example: tinylora-worker join https://tree.example.org:8443 --token-file T --data notes.jsonl",
)
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="The coordinator, such as https://tree.example.org:8443.")],
    token: Token = "",
    token_file: TokenFile = None,
    data: Data = None,
    base: Base = "",
    name: Name = "",
    note: Note = "",
    data_licence: DataLicence = "",
    share_log: ShareLog = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    home: Home = None,
    device: Device = "",
    dtype: Dtype = "",
    vram_limit: VramLimit = "",
    threads: Threads = None,
    quantise: Quantise = None,
    max_rank: MaxRank = 0,
    columns: Map = None,
    text_column: TextColumn = "",
    allow: Allow = None,
    self_audit: SelfAudit = False,
    skip_check: SkipCheck = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Join a run: checks, what it will cost, your consent, then work. Ctrl-C leaves; the unit goes to somebody else.

    The coordinator's certificate is compared with the token before the token is sent. The token is used once:
    afterwards this home's own key is enough, see `run`.
    """
    from tinylora_worker.preflight.check import parse_skips
    from tinylora_worker.volunteer import Manner

    place = _home(home)
    manner = Manner(yes, dry_run, self_audit, parse_skips(skip_check or ()), as_json, quiet)
    secret = _given_token(token, _token_file_if_needed(token_file, place)) or _asked_token(place)
    said = _said(data, base, name, device, dtype, vram_limit, threads, quantise, max_rank, columns, text_column, allow)
    told = {"note": note, "data_licence": data_licence, "share_log": share_log}
    announced = {key: value for key, value in told.items() if value}
    _begin_log(verbose)
    raise typer.Exit(_join(url, secret, place, said, manner, announced))


@app.command(rich_help_panel=TAKE_PART, epilog=f"{ENDINGS} Example: tinylora-worker run")
def run(
    data: Data = None,
    base: Base = "",
    name: Name = "",
    home: Home = None,
    device: Device = "",
    dtype: Dtype = "",
    vram_limit: VramLimit = "",
    threads: Threads = None,
    quantise: Quantise = None,
    max_rank: MaxRank = 0,
    columns: Map = None,
    text_column: TextColumn = "",
    allow: Allow = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Go on working for the run that this home has joined; what was said then still holds."""
    from tinylora_worker.volunteer import Manner

    said = _said(data, base, name, device, dtype, vram_limit, threads, quantise, max_rank, columns, text_column, allow)
    _begin_log(verbose)
    raise typer.Exit(_go_on(_home(home), said, Manner(is_json=as_json, is_quiet=quiet)))


# --- while it works ---------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=LOOK, epilog="Exit codes: 0 done; 6 no worker runs here. Example: tinylora-worker status")
def status(
    home: Home = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on telling until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """What it does, and why it does not."""
    from tinylora_worker.watching import print_status, watch

    if follow:
        watch(_home(home), as_json=as_json)
    else:
        print_status(_home(home), as_json=as_json)


@app.command(
    rich_help_panel=LOOK,
    epilog="Exit codes: 0 working, waiting or paused; 6 none runs here, or it cannot go on. "
    "Example: tinylora-worker health",
)
def health(home: Home = None, as_json: Json = False) -> None:
    """Whether it is well: one quick question, for the health checks of containers and services."""
    from dataclasses import asdict

    from tinylora.errors import NetworkError
    from tinylora_worker.health import check_health

    found = check_health(_home(home))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1, sort_keys=True))
    if not found.is_healthy:
        raise NetworkError(found.sentence)
    _say(found.sentence)


@app.command(rich_help_panel=STEER, epilog=f"{TOLD} Example: tinylora-worker pause --for 2h")
def pause(
    home: Home = None,
    lasts: Annotated[str, typer.Option("--for", metavar="SPAN", help="So long, such as 30m or 2h.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Until this time of day, such as 18:00.")] = "",
) -> None:
    """Hold still: the device is free within two seconds, at most the step in progress is lost."""
    import time

    from tinylora_worker.agent import client

    until_s = _end_of_pause(lasts, until, time.time())
    _say(client.pause(_home(home), until_s))


@app.command(rich_help_panel=STEER, epilog=f"{TOLD} Example: tinylora-worker resume")
def resume(home: Home = None) -> None:
    """End a pause."""
    from tinylora_worker.agent import client

    _say(client.resume(_home(home)))


@app.command(rich_help_panel=STEER, epilog=f"{TOLD} Example: tinylora-worker finish")
def finish(home: Home = None) -> None:
    """Leave after the unit under way; remembered over a restart."""
    from tinylora_worker.agent import client

    _say(client.finish(_home(home)))


@app.command(rich_help_panel=STEER, epilog=f"{TOLD} Example: tinylora-worker stop")
def stop(home: Home = None) -> None:
    """Leave now: checkpoint, the unit goes back to the coordinator."""
    from tinylora_worker.agent import client

    _say(client.leave(_home(home)))


OF_LIMITS = (
    "Exit codes: 0 done; 2 there is no such limit, or the value makes no sense; 8 the file cannot be read or written."
)


@limits_app.callback(invoke_without_command=True, epilog=f"{OF_LIMITS} Example: tinylora-worker limits")
def limits(context: typer.Context, home: Home = None, as_json: Json = False) -> None:
    """What this worker may use. Your word is final over anything that a coordinator asks."""
    from tinylora_worker.limits import show

    if context.invoked_subcommand is None:
        typer.echo(show(_home(home), as_json=as_json))


@limits_app.command("get", epilog=f"{OF_LIMITS} Example: tinylora-worker limits get vram")
def get_limit(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="One of them; all by default.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print one limit, or all."""
    from tinylora_worker.limits import get, show

    place = _home(home)
    typer.echo(show(place, as_json=as_json) if key is None else get(place, key, as_json=as_json))


@limits_app.command(
    "set", epilog=f"{OF_LIMITS} Example: tinylora-worker limits set vram=8GB 'schedule=Mon-Fri 22:00-07:00'"
)
def set_limit(
    assignments: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Nothing after = lifts a limit.")],
    home: Home = None,
) -> None:
    """Change limits; a running worker follows at once."""
    from tinylora.errors import NetworkError
    from tinylora_worker.agent import client
    from tinylora_worker.limits import set_from_text

    place = _home(home)
    for assignment in assignments:
        _say(set_from_text(place, assignment))
    with suppress(NetworkError):  # nobody works here now: they hold when somebody does
        _say(client.reload_limits(place))


# --- look -------------------------------------------------------------------------------------------------------------


@app.command(
    rich_help_panel=LOOK,
    epilog="Exit codes: 0 every check passes or warns; else that of the first that fails: 2 this machine or an option "
    "does not fit; 3 no usable text; 4 another base, or too little memory; 6 the coordinator is unreachable; 7 it "
    "refused; 8 a file cannot be written. Example: tinylora-worker doctor https://tree.example.org:8443 --token-file T",
)
def doctor(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="A coordinator to look at, too.")] = "",
    token: Token = "",
    token_file: TokenFile = None,
    data: Data = None,
    base: Base = "",
    home: Home = None,
    device: Device = "",
    skip_check: SkipCheck = None,
    explain: Annotated[
        str,
        typer.Option(
            "--explain", metavar="CODE", help="Only say what a code such as TL-TOK-002 means, and what helps."
        ),
    ] = "",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at this machine, and at a coordinator; changes nothing, uses no token up, downloads nothing."""
    if explain:
        _explain(explain, as_json=as_json)
        return
    from tinylora_worker.limits import load
    from tinylora_worker.preflight.check import as_document, exit_code_of_checks, parse_skips
    from tinylora_worker.preflight.doctor import Asked, examine
    from tinylora_worker.preflight.telling import summary
    from tinylora_worker.talk import Talk

    place, talk = _home(home), Talk.of_process(is_quiet=quiet or as_json)
    wanted = device or load(place).gpu
    asked = Asked(
        place, url, _given_token(token, token_file), base, tuple(data or ()), wanted, parse_skips(skip_check or ())
    )
    found = examine(asked, told=talk.tell)
    if as_json:
        typer.echo(json.dumps(as_document(found.checks), indent=1))
    talk.say(f"  {summary(found.checks)}")
    raise typer.Exit(exit_code_of_checks(found.checks))


def _explain(code: str, *, as_json: bool) -> None:
    from tinylora_worker.preflight.telling import explanation, explanation_lines

    typer.echo(json.dumps(explanation(code), indent=1) if as_json else "\n".join(explanation_lines(code)))


@app.command(rich_help_panel=LOOK, epilog="Exit codes: 0 done; 8 not readable. Example: tinylora-worker receipts")
def receipts(home: Home = None, as_json: Json = False) -> None:
    """List the receipts of this home: the run's signed word for each update that it accepted."""
    from tinylora.flower.receipts import read_receipts

    found = read_receipts(_home(home))
    if as_json:
        typer.echo(json.dumps([receipt.model_dump(mode="json") for receipt in found], indent=1, sort_keys=True))
        return
    for receipt in found:
        where = f"node {receipt.node or 'root'}"
        typer.echo(f"{receipt.run} {receipt.unit_id} {receipt.kind} {where}: {receipt.tokens} tokens")
    _say(f"{len(found)} receipts, {sum(receipt.tokens for receipt in found)} tokens")


@data_app.callback()
def own_text() -> None:
    """Your own text."""


@data_app.command(
    "check", epilog="Exit codes: 0 it can be used; 3 it cannot. Example: tinylora-worker data check notes.jsonl"
)
def check_data(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Files, folders, patterns.")],
    base: Annotated[str, typer.Option("--base", help="Count by this base's tokens; a folder, or in the cache.")] = "",
    window_tokens: Annotated[int, typer.Option("--window-tokens", min=0, help="The run's window; 0: unknown.")] = 0,
    columns: Map = None,
    text_column: TextColumn = "",
    allow: Allow = None,
    as_json: Json = False,
) -> None:
    """What a run would make of your text: counts, lengths, duplicates, what looks secret, samples. Sends nothing."""
    from tinylora_worker.data_check import run_data_check

    places = [Path(path).expanduser() for path in paths]
    roles = parse_columns(columns or (), text_column)
    run_data_check(places, base or None, roles, allow or (), as_json, window_tokens=window_tokens)


@app.command(
    rich_help_panel=LOOK, epilog="Exit codes: 0 measured; 3 no usable text; 4 no base. Example: tinylora-worker audit"
)
def audit(
    data: Data = None,
    base: Base = "",
    home: Home = None,
    device: Device = "",
    columns: Map = None,
    text_column: TextColumn = "",
    allow: Allow = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How exposed your text would become: plants made-up strings in a copy, trains, measures. Sends nothing."""
    said = _said(data, base, "", device, "", "", None, None, 0, columns, text_column, allow)
    place = _home(home)
    from tinylora_worker.agent.options import Options
    from tinylora_worker.agent.store import read
    from tinylora_worker.auditing import audit_alone
    from tinylora_worker.talk import Talk

    options = Options.remembered(place, read(place).job, **said)
    audit_alone(options, Talk.of_process(is_quiet=quiet), as_json=as_json)


# --- care -------------------------------------------------------------------------------------------------------------


@app.command(
    rich_help_panel=CARE, epilog="Exit codes: 0 done; 7 a worker runs. Example: tinylora-worker clean --dry-run"
)
def clean(
    home: Home = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what is of value, such as the key.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what this worker has put on the disk and can make again. The base stays: it is the hub's cache."""
    from tinylora_worker.cleaning import SENTENCE, report
    from tinylora_worker.cleaning import clean as clean_home

    place, typed = _home(home), ""
    if everything and not dry_run:
        _say(report(clean_home(place, everything=True, is_dry_run=True)))
        typed = typer.prompt(f"Type {SENTENCE!r} to remove all of it", default="", show_default=False, err=True)
    typer.echo(report(clean_home(place, everything=everything, is_dry_run=dry_run, typed=typed), as_json=as_json))


OF_SERVICES = (
    "Exit codes: 0 done; 2 this system has no services of a user, or this home has joined no run; 8 the file cannot be "
    "written."
)


@service_app.command("install", epilog=f"{OF_SERVICES} Example: tinylora-worker service install")
def install_service(
    home: Home = None,
    show: Annotated[bool, typer.Option("--print", help="Print the file; install nothing.")] = False,
) -> None:
    """Start it with your session, and again when it fails: a systemd user unit, or a launchd agent. No root needed."""
    from tinylora_worker.service_unit import describe, install

    place = _home(home)
    if show:
        typer.echo(describe(place).content.decode())
    else:
        _say("\n".join(install(place)))


@service_app.command("uninstall", epilog=f"{OF_SERVICES} Example: tinylora-worker service uninstall")
def uninstall_service(home: Home = None) -> None:
    """Stop it, and remove the unit; the home stays."""
    from tinylora_worker.service_unit import uninstall

    _say("\n".join(uninstall(_home(home))))


# --- what options say -------------------------------------------------------------------------------------------------


def _home(home: Path | None) -> Path:
    import platformdirs

    return home or Path(platformdirs.user_data_dir("tinylora"), "worker")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _given_token(token: str, file: Path | None) -> str:
    """The token from wherever it was given, unread; no message of ours repeats it."""
    from tinylora.errors import SettingError

    if token and file is not None:
        raise SettingError("--token and --token-file: give one of them")
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--token-file {file}: not readable: {error}") from None
    return sys.stdin.readline(1024).strip() if token == "-" else token.strip()


def _token_file_if_needed(file: Path | None, home: Path) -> Path | None:
    """The file, unless it is gone and this home has joined before: then its own key is enough."""
    from tinylora.flower.membership import load_membership

    if file is None or file.exists() or not home.is_dir() or load_membership(home) is None:
        return file
    _say(f"--token-file {file}: is gone, and not needed: {home} has joined before, its own key is enough")
    return None


def _asked_token(home: Path) -> str:
    """What somebody types, unseen, where one is needed and there is somebody; else empty."""
    from tinylora.flower.membership import load_membership

    if load_membership(home) is not None or sys.stdin is None or not sys.stdin.isatty():
        return ""
    return typer.prompt("Join token", default="", hide_input=True, show_default=False, err=True).strip()


def _said(
    data: list[str] | None,
    base: str,
    name: str,
    device: str,
    dtype: str,
    vram_limit: str,
    threads: int | None,
    quantise: str | None,
    max_rank: int,
    columns: list[str] | None,
    text_column: str,
    allow: list[str] | None,
) -> dict[str, Any]:
    """Options by name, as a home remembers them.

    Raises:
        SettingError: One of them makes no sense.
    """
    from tinylora.errors import SettingError
    from tinylora_worker.limits import bytes_of

    try:
        vram_bytes = bytes_of(vram_limit) if vram_limit else 0
    except ValueError as error:
        raise SettingError(f"--vram-limit: {error}") from None
    return {
        "data": tuple(str(Path(path).expanduser()) for path in data or ()),
        "base": base,
        "name": name,
        "device": device,
        "dtype": dtype,
        "vram_limit_bytes": vram_bytes,
        "threads": threads or 0,
        "quantise": quantise or "",
        "max_rank": max_rank,
        "columns": parse_columns(columns or (), text_column),
        "allow": tuple(allow or ()),
    }


def parse_columns(assignments: "list[str] | tuple[str, ...]", text_column: str = "") -> dict[str, str]:
    """Role to column, from `--map ROLE=COLUMN` and `--text-column`.

    Raises:
        SettingError: One of them is no assignment.
    """
    from tinylora.errors import SettingError

    found = {"text": text_column} if text_column else {}
    for assignment in assignments:
        role, equals, column = (part.strip() for part in assignment.partition("="))
        if not (role and equals and column):
            raise SettingError(f"--map {assignment}: expected ROLE=COLUMN, such as text=body")
        found[role] = column
    return found


def _end_of_pause(lasts: str, until: str, now_s: float) -> float:
    """When a pause ends, seconds since 1970; 0: when resumed."""
    from datetime import datetime

    from tinylora.errors import SettingError
    from tinylora_worker.schedule import local_now
    from tinylora_worker.times import next_at, parse_clock, parse_span

    if lasts and until:
        raise SettingError("--for and --until: give one of them")
    if lasts:
        return now_s + parse_span(lasts)
    if until:
        here = datetime.fromtimestamp(now_s, local_now().tzinfo)
        return next_at(*parse_clock(until), here).timestamp()
    return 0.0


def _begin_log(verbose: bool) -> None:
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")


def _join(
    url: str, token: str, home: Path, said: dict[str, Any], manner: "Manner", announced: Mapping[str, object]
) -> int:
    from tinylora.flower import use_home

    use_home(home / "flower")
    from tinylora_worker.agent.options import Options
    from tinylora_worker.limits import check, load
    from tinylora_worker.talk import Talk
    from tinylora_worker.volunteer import Way

    options = Options(url=url, token=token, home=home, **said)
    limits = check({**load(home).model_dump(), **announced}, "--note, --data-licence, --share-log: ")
    kept = {key: getattr(limits, key) for key in announced}
    return Way(options, manner, Talk.of_process(is_quiet=manner.is_quiet), limits, kept).go()


def _go_on(home: Path, said: dict[str, Any], manner: "Manner") -> int:
    from tinylora.flower import use_home

    use_home(home / "flower")
    from tinylora_worker.agent.options import Options
    from tinylora_worker.agent.store import read
    from tinylora_worker.talk import Talk
    from tinylora_worker.volunteer import work

    options = Options.remembered(home, read(home).job, **said)
    return work(options, manner, Talk.of_process(is_quiet=manner.is_quiet))


def main() -> None:
    """Entry point of the `tinylora-worker` command."""
    run_app(app)


if __name__ == "__main__":
    main()
