"""`tinylora-coordinator`: make a run, let workers in, serve it, look at it, take its bundle.

Verbs import what they need. What changes a run that is being served is left as an order in the operator's file, which
the rounds look at every second; a run that is not served carries it out when it is served next.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import typer
from typer.core import TyperGroup

from tinylora.command_line import Version, run

if TYPE_CHECKING:
    from tinylora_coordinator.backup.contents import Manifest
    from tinylora_coordinator.keys import OwnCertificate
    from tinylora_coordinator.public_address import PublicAddress

CODES = "Exit codes: 0 done; 2 an option is wrong, or there is no run in DIR; 8 a file cannot be read or written."


class _ListByDefault(TyperGroup):
    """`workers DIR` means `workers list DIR`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Coordinate a TinyLoRA run: one folder, one port.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
token = typer.Typer(help="Let workers in, or people: make, list and revoke tokens.", no_args_is_help=True)
workers = typer.Typer(
    help="Who takes part (`workers DIR`); approve, release, reassign, revoke or erase somebody.",
    no_args_is_help=True,
    cls=_ListByDefault,
)
app.add_typer(token, name="token")
app.add_typer(workers, name="workers")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Certificate = Annotated[
    Path | None, typer.Option("--certificate", help="Your own certificate, the full chain as PEM, instead of ours.")
]
PrivateKey = Annotated[Path | None, typer.Option("--private-key", help="Its private key, PEM without a password.")]
Ca = Annotated[
    Path | None, typer.Option("--ca", help="The CA at its chain's end, where the workers' systems do not know it.")
]
IfMissing = Annotated[
    bool, typer.Option("--if-missing", help="Where it is there already, leave it as it is: exit code 0.")
]
PublicUrl = Annotated[
    str | None,
    typer.Option(
        "--public-url",
        metavar="https://HOST[:PORT]",
        help="Where workers and readers reach the run, if a proxy or a forwarded port stands in between. It is kept; "
        "'' forgets it.",
    ),
]
PublicCa = Annotated[
    str,
    typer.Option(
        "--public-ca",
        metavar="system|FILE",
        help="A proxy ends TLS at --public-url: who vouches for its certificate, the systems' trust stores or this CA.",
    ),
]
Worker = Annotated[str, typer.Argument(metavar="WORKER", help="As `workers` shows it, such as w-0123456789abcdef.")]
Reason = Annotated[str, typer.Option("--reason", help="Stands in the run's log.")]


@app.callback()
def coordinator(version: Version = False) -> None:
    """Coordinate a TinyLoRA run: one folder, one port."""


# --- making and serving ---------------------------------------------------------------------------------------------


@app.command(
    epilog=f"{CODES} 4 the base cannot be loaded. Example: tinylora-coordinator init DIR --base BASE --host NAME"
)
def init(
    folder: Folder,
    base: Annotated[str, typer.Option("--base", help="Base model: a local folder or a hub id.")],
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="Name or address that workers will use; give it several times."),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; give it several times.")
    ] = None,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    ca: Ca = None,
    if_missing: IfMissing = False,
    public_url: PublicUrl = None,
    public_ca: PublicCa = "",
) -> None:
    """Write a run's folder: settings with comments, facts about the base, its own CA, certificate and keys.

    `--base demo` is the small base that comes with TinyLoRA.
    """
    from tinylora_coordinator.folder import (
        RunFolder,
        changed,
        check_is_new,
        check_settings,
        parse_changes,
        read_run,
        write_run,
    )
    from tinylora_coordinator.keys import check_host, check_own, write_public

    place = RunFolder(folder)
    if if_missing and place.settings_file.exists():
        _say(f"{folder}: run {read_run(place).settings.name} is there already; it stays as it is")
        return
    check_is_new(place)
    settings = changed(parse_changes(changes or []))
    names = [check_host(host) for host in hosts or []]
    own = _own_certificate(certificate, private_key, ca)
    if own is not None:
        check_own(own)
    public = _public_address(public_url, public_ca)
    from tinylora.base_model import has_transposed_linears, load_base  # after the cheap checks: it takes seconds
    from tinylora.demo.experiment import place_of_base
    from tinylora.export import Places
    from tinylora_coordinator.lookup_tables import lookup_tables
    from tinylora_coordinator.service import projection_bytes

    loaded = load_base(place_of_base(base)).for_run(settings)
    check_settings(settings, loaded.facts)
    projection = projection_bytes(loaded.routing_feature.projection)
    tables = lookup_tables(loaded)
    places = Places(modules=loaded.linears, is_transposed=has_transposed_linears(loaded.model)).to_json()
    write_run(place, settings, loaded.facts, projection, hosts=names, own=own, tables=tables, places=places)
    if public is not None:
        write_public(place.keys, public)
    _say(f"{folder}: a run of depth {settings.depth} on {loaded.facts.base_id}; look at {place.settings_file}, then")
    _say(f"  tinylora-coordinator serve {folder}")
    _say(f"  tinylora-coordinator token create {folder}")


@app.command(
    epilog="Exit codes: 0 finished, or stopped by a signal; 2 an option is wrong, or there is no run in DIR; 6 the "
    "address cannot be opened; 8 the folder cannot be written, or is being served already. "
    "Example: tinylora-coordinator serve DIR --host 0.0.0.0"
)
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 or :: for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8443,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Plain HTTP: for this machine alone, and for proxies in private networks."),
    ] = False,
    dashboard_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of your own dashboard, on 127.0.0.1 only; 0 or a taken 8444: a free one."
        ),
    ] = 8444,
    no_dashboard: Annotated[
        bool, typer.Option("--no-dashboard", help="No dashboard of your own on this machine.")
    ] = False,
    viewers: Annotated[
        Literal["anybody", "token"],
        typer.Option(help="Who may look at the dashboard at the public address; token: `token create --role viewer`."),
    ] = "anybody",
    bundle_every: Annotated[
        int, typer.Option("--bundle-every", min=0, help="Write a bundle after so many rounds; 0: only when asked to.")
    ] = 0,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    ca: Ca = None,
    public_url: PublicUrl = None,
    public_ca: PublicCa = "",
    proxies: Annotated[
        list[str] | None,
        typer.Option(
            "--proxy",
            metavar="ADDRESS|NETWORK",
            help="A reverse proxy in front, which may say for whom it asks (X-Forwarded-For); give it several times.",
        ),
    ] = None,
    proxy_protocol: Annotated[
        bool, typer.Option("--proxy-protocol", help="The proxy passes TLS through, and says it by the PROXY protocol.")
    ] = False,
) -> None:
    """Serve a run until it is finished; called again, it goes on where it was stopped."""
    from tinylora_coordinator.folder import RunFolder, read_run
    from tinylora_coordinator.keys import read_public, write_own, write_public
    from tinylora_coordinator.proxies import check_plain, check_way, read_networks

    networks = read_networks(proxies or [])
    if insecure:
        check_plain(host, networks)
    own = _own_certificate(certificate, private_key, ca)
    place = RunFolder(folder)
    read_run(place)
    public = _public_address(public_url, public_ca, is_plain=insecure)
    reached = read_public(place.keys) if public_url is None else public
    check_way(networks, speak_first=proxy_protocol, public=reached, is_plain=insecure)
    if own is not None:
        write_own(place.keys, own)
    if public_url is not None:
        write_public(place.keys, public)
    from tinylora_coordinator.supervisor import serve as serve_run

    own_port = None if no_dashboard else dashboard_port
    serve_run(
        folder,
        host=host,
        port=port,
        insecure=insecure,
        dashboard_port=own_port,
        viewers=viewers,
        bundle_every=bundle_every,
        proxies=[str(network) for network in networks],
        proxy_protocol=proxy_protocol,
    )


def _public_address(url: str | None, ca: str, *, is_plain: bool = False) -> "PublicAddress | None":
    from tinylora_coordinator.public_address import make_public

    if ca and not url:
        raise click.UsageError("--public-ca: give --public-url, too")
    return make_public(url, ca=ca, is_plain=is_plain) if url else None


def _own_certificate(certificate: Path | None, private_key: Path | None, ca: Path | None) -> "OwnCertificate | None":
    from tinylora.errors import SettingError
    from tinylora_coordinator.keys import OwnCertificate

    if certificate is None and private_key is None and ca is None:
        return None
    if certificate is None or private_key is None:
        raise SettingError("--certificate and --private-key: give both, or neither")
    return OwnCertificate(certificate, private_key, ca)


# --- letting workers in ---------------------------------------------------------------------------------------------


@token.command("create", epilog=f"{CODES} Example: tinylora-coordinator token create DIR --uses 4 --expires 7d")
def token_create(
    folder: Folder,
    role: Annotated[
        Literal["worker", "viewer", "admin"],
        typer.Option("--role", help="worker: joins the run. viewer: looks at the dashboard. admin: steers it there."),
    ] = "worker",
    uses: Annotated[int, typer.Option("--uses", min=1, help="How many workers it lets in.")] = 1,
    expires: Annotated[str, typer.Option("--expires", help="How long it lets anybody in: 30m, 12h, 7d ...")] = "24h",
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="Shown beside its workers; give it several times.")
    ] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Its workers wait for `workers approve`.")] = False,
    url: Annotated[str, typer.Option("--url", help="The coordinator's address, for the join command printed.")] = "",
    note: Annotated[
        str, typer.Option("--note", help="Of a viewer or admin: for whom it is; `token list` shows it.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the token into this file, for its owner alone; print it not.")
    ] = None,
    if_missing: IfMissing = False,
    as_json: Json = False,
) -> None:
    """Make a token, and print it: this once, for only its hash is kept.

    A worker joins with its token. A viewer or an admin types it into the dashboard's sign-in; scripts send it as
    `Authorization: Bearer TOKEN`.
    """
    if if_missing and out is None:
        raise click.UsageError("--if-missing: only with --out")
    if out is not None and _has_token(folder, out, role, if_missing=if_missing):
        return
    from tinylora_coordinator import desk

    if role != "worker":
        _check_for_people({"--uses": uses != 1, "--tag": bool(tags), "--approve": approve, "--url": bool(url)})
        person = desk.create_access(folder, role, now_s=time.time(), expires=expires, note=note)
        if out is not None:
            _write_token(out, person, as_json=as_json)
            return
        if as_json:
            _print_json(person)
            return
        typer.echo(person["token"])
        _say(f"lets {'an admin' if role == 'admin' else 'a viewer'} in until {person['expires']}, at the dashboard")
        return
    if note:
        raise click.UsageError("--note: only a viewer's or an admin's token has one; a worker's has --tag")
    made = desk.create_token(
        folder, now_s=time.time(), uses=uses, expires=expires, tags=tags or [], needs_approval=approve, url=url
    )
    if out is not None:
        _write_token(out, made, as_json=as_json)
        return
    if as_json:
        _print_json(made)
        return
    typer.echo(made["token"])
    _say(f"lets {uses} worker{'s' if uses > 1 else ''} in until {made['expires']}; a worker joins with")
    _say(f"  TINYLORA_TOKEN={made['token']} \\\n  {made['command']}")


def _has_token(folder: Path, out: Path, role: str, *, if_missing: bool) -> bool:
    """Whether the file holds a token of this run already, which then stays; where it may not, refuse."""
    from tinylora_coordinator.token_file import check_token_file, state_of_token_in

    state = state_of_token_in(folder, out, role=role, now_s=time.time()) if if_missing else None
    if state is None:
        check_token_file(out)
        return False
    _say(f"{out}: holds a token of this run already ({state.replace('_', ' ')}); it stays as it is")
    return True


def _write_token(out: Path, made: dict[str, Any], *, as_json: bool) -> None:
    from tinylora_coordinator.token_file import write_token_file

    write_token_file(out, made["token"])
    if as_json:
        _print_json({"file": str(out), **{key: value for key, value in made.items() if key != "token"}})
    _say(f"{out}: token {made['token_id']}, good until {made['expires']}")


def _check_for_people(given: dict[str, bool]) -> None:
    """Refuse what only a worker's token can have."""
    odd = [name for name, is_given in given.items() if is_given]
    if odd:
        raise click.UsageError(f"{', '.join(odd)}: only a worker's token can have that")


@token.command("list", epilog=f"{CODES} Example: tinylora-coordinator token list DIR")
def token_list(folder: Folder, as_json: Json = False) -> None:
    """List the tokens; their secrets are known to nobody here."""
    from tinylora_coordinator import desk

    rows = desk.tokens(folder, now_s=time.time())
    if as_json:
        _print_json(rows)
    for row in [] if as_json else rows:
        if row["role"] != "worker":
            note = f", {row['note']}" if row["note"] else ""
            typer.echo(f"{row['token_id']} {row['state']}: {row['role']}, until {row['expires']}{note}")
            continue
        tags = f", {' '.join(row['tags'])}" if row["tags"] else ""
        approval = ", with approval" if row["needs_approval"] else ""
        used = f"{row['n_workers']} of {row['max_workers']} workers"
        typer.echo(f"{row['token_id']} {row['state']}: {used}, until {row['expires']}{approval}{tags}")


@token.command("revoke", epilog=f"{CODES} Example: tinylora-coordinator token revoke DIR 3f9a0c12de")
def token_revoke(
    folder: Folder,
    token_id: Annotated[str, typer.Argument(metavar="TOKEN_ID", help="As `token list` shows it.")],
    with_workers: Annotated[
        bool, typer.Option("--with-workers", help="Revoke the workers that came with it, too.")
    ] = False,
) -> None:
    """Let nobody in by this token any more. Workers that came with it stay, unless told otherwise."""
    from tinylora_coordinator import desk

    revoked = desk.revoke_token(folder, token_id, with_workers=with_workers, now_s=time.time())
    _say(f"token {token_id} lets nobody in any more")
    if with_workers:
        _say(f"{len(revoked)} workers are out: {_when(folder)}")


@workers.command("list", epilog=f"{CODES} Example: tinylora-coordinator workers list DIR")
def workers_list(folder: Folder, as_json: Json = False) -> None:
    """List the workers: who was let in, and what each has done."""
    from tinylora_coordinator import desk

    rows = desk.workers(folder)
    if as_json:
        _print_json(rows)
    for row in [] if as_json else rows:
        tags = f" [{' '.join(row['tags'])}]" if row["tags"] else ""
        name = f" ({row['name']})" if row["name"] else ""
        typer.echo(f"{row['worker']}{name} {row['state']}: {row['units']} units, {row['tokens']} tokens{tags}")


@workers.command("approve", epilog=f"{CODES} Example: tinylora-coordinator workers approve DIR w-0123456789abcdef")
def workers_approve(folder: Folder, worker: Worker) -> None:
    """Let a waiting worker in; it asks again within seconds."""
    from tinylora_coordinator import desk

    desk.approve(folder, worker)
    _say(f"{worker} may take part")


@workers.command(
    "revoke", epilog=f"{CODES} Example: tinylora-coordinator workers revoke DIR w-0123456789abcdef --reason spam"
)
def workers_revoke(folder: Folder, worker: Worker, reason: Reason = "") -> None:
    """Shut the door on a worker at once, and take its share out of the run."""
    from tinylora_coordinator import desk

    desk.remove(folder, worker, kind="revoke", reason=reason, now_s=time.time())
    _say(f"{worker} is out; its share is taken out {_when(folder)}")


@workers.command("erase", epilog=f"{CODES} Example: tinylora-coordinator workers erase DIR w-0123456789abcdef")
def workers_erase(folder: Folder, worker: Worker, reason: Reason = "") -> None:
    """As revoke, and delete every blob that the worker has sent."""
    from tinylora_coordinator import desk

    desk.remove(folder, worker, kind="erase", reason=reason, now_s=time.time())
    _say(f"{worker} is out; its share and its blobs go {_when(folder)}")


@workers.command("release", epilog=f"{CODES} Example: tinylora-coordinator workers release DIR w-0123456789abcdef")
def workers_release(folder: Folder, worker: Worker, reason: Reason = "") -> None:
    """Take a worker's unit from it, so that somebody else may have it; nothing is held against the worker."""
    from tinylora_coordinator import desk

    given = desk.steer(folder, worker, kind="release", reason=reason, now_s=time.time())
    _say(f"order {given.order_id}: the unit of {worker} is free {_when(folder)}")


@workers.command("reassign", epilog=f"{CODES} Example: tinylora-coordinator workers reassign DIR w-0123456789abcdef 01")
def workers_reassign(
    folder: Folder,
    worker: Worker,
    node: Annotated[str, typer.Argument(metavar="NODE", help="The leaf that it is to hold: its path, such as 01.")],
    reason: Reason = "",
) -> None:
    """Give a worker another leaf; the unit that it is at goes back, what was accepted of it stays."""
    from tinylora_coordinator import desk

    given = desk.steer(folder, worker, kind="reassign", node=node, reason=reason, now_s=time.time())
    _say(f"order {given.order_id}: {worker} gets leaf {node} {_when(folder)}")


# --- steering and looking -------------------------------------------------------------------------------------------


@app.command(epilog=f"{CODES} Example: tinylora-coordinator pause DIR")
def pause(folder: Folder, reason: Reason = "") -> None:
    """Give no more units out; those under way may come back."""
    _order(folder, "pause", reason)


@app.command(epilog=f"{CODES} Example: tinylora-coordinator resume DIR")
def resume(folder: Folder, reason: Reason = "") -> None:
    """Give units out again."""
    _order(folder, "resume", reason)


@app.command(epilog=f"{CODES} Example: tinylora-coordinator finish DIR")
def finish(folder: Folder, reason: Reason = "") -> None:
    """End the run with what there is, and release its bundle."""
    _order(folder, "finish", reason)


def _order(folder: Path, kind: Any, reason: str) -> None:
    from tinylora_coordinator import desk

    given = desk.order(folder, kind, reason=reason, now_s=time.time())
    _say(f"order {given.order_id}: {kind}, {_when(folder)}")


def _when(folder: Path) -> str:
    """When an order is carried out."""
    from tinylora_coordinator.desk import is_served

    return "within seconds" if is_served(folder) else "when the run is served next"


@app.command(epilog=f"{CODES} Example: tinylora-coordinator status DIR --follow")
def status(
    folder: Folder,
    as_json: Json = False,
    follow: Annotated[bool, typer.Option("--follow", help="Print again at each change, until it is finished.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="With --follow: seconds between looks.")] = 2.0,
) -> None:
    """Tell how far a run is, from its ledger; works while it is being served. With --follow, JSON is one line each."""
    from tinylora_coordinator.overview import overview

    before = None
    while True:
        found = overview(folder)
        if found != before:
            indent = None if follow else 1
            typer.echo(json.dumps(found, indent=indent, sort_keys=True) if as_json else _as_text(found))
        before = found
        if not follow or found["phase"].startswith("finished"):
            return
        time.sleep(every)


@app.command(
    epilog=f"{CODES} 3 the run has no tree yet, or does not know the worker. Example: tinylora-coordinator bundle DIR"
)
def bundle(
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File to write, *.safetensors. By default the one that the coordinator hands out."),
    ] = None,
    without: Annotated[
        str, typer.Option("--without", metavar="WORKER", help="Leave this worker's share out; the run stays as it is.")
    ] = "",
    statistics: Annotated[
        Literal["leaf", "pooled", "none"],
        typer.Option(
            "--statistics",
            help="What it tells of the leaves' texts; with `leaf`, leaves are dropped and bundles merged exactly.",
        ),
    ] = "leaf",
    no_statistics: Annotated[bool, typer.Option("--no-statistics", help="The same as --statistics none.")] = False,
    as_json: Json = False,
) -> None:
    """Write the run's tree as it stands as one bundle, signed by the run's key: at any time, served or not.

    Without --out it is published: GET /api/v1/bundle answers with it from then on. So does the end of the run. --json
    says of which log it is: its length, its hash, the version of the routers.
    """
    from tinylora_coordinator.desk import check_output
    from tinylora_coordinator.folder import RunFolder
    from tinylora_coordinator.keys import run_public

    kind = "none" if no_statistics else statistics
    out = out or RunFolder(folder).bundle_file
    check_output(out)
    from tinylora_coordinator.service import bundle as write

    made = write(folder, out, without=without, statistics=kind)
    key = run_public(RunFolder(folder).keys)
    if as_json:
        told = made.model_dump(mode="json", exclude={"type"})
        _print_json({"file": str(out), "without": without, "statistics": kind, **told, "signed_by": key})
    _say(f"{out}: sha256 {made.sha256}, of the first {made.n_events} events, signed by key {key}")


@app.command(
    epilog=f"{CODES} 3 the run has no tree yet; 4 the base is not here. "
    "Example: tinylora-coordinator leaf DIR 01 --out 01.zip"
)
def leaf(
    folder: Folder,
    path: Annotated[str, typer.Argument(metavar="LEAF", help="Its path, such as 0110; `root` for the root.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, *.zip: an ordinary PEFT adapter's folder.")],
    base: Annotated[
        str,
        typer.Option("--base", help="The run's base, folder or hub id; only for runs whose folder has no places.json."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Write one leaf with all above it as a PEFT adapter: at any time, served or not. Exact for hard routing."""
    from tinylora_coordinator.desk import check_output

    check_output(out)
    from tinylora_coordinator.leaf_file import leaf_file

    made = leaf_file(folder, "" if path == "root" else path, out, base=base)
    if as_json:
        _print_json(made)
    _say(f"{out}: leaf {path}, {made['n_steps']} steps, rank {made['rank']}")


@app.command(epilog=f"{CODES} Example: tinylora-coordinator backup DIR --out run.tar")
def backup(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="File to write, *.tar, outside of DIR; an older one is replaced.")],
    bundles: Annotated[
        bool, typer.Option("--bundles", help="Bundles too; those of the run as it stands can be made again without.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the run into one file, served or not, from which `restore` makes a folder that goes on. Repeatable.

    The run's keys are in it: whoever has the file can pass for this coordinator. It is written for its owner alone. A
    backup that was there before stays until the new one is whole.
    """
    from tinylora_coordinator.backup.taking import take_backup

    taken = take_backup(folder, out, now_s=time.time(), with_bundles=bundles)
    found = taken.manifest
    if as_json:
        _print_json(
            {
                "file": str(out),
                "bytes": taken.bytes,
                "sha256": taken.sha256,
                "run": found.run,
                "n_events": found.n_events,
                "chain": found.chain,
                "n_blobs": len(found.blobs),
                "n_files": len(found.files),
                "taken": found.taken_s,
            }
        )
    _say(
        f"{out}: {taken.bytes} bytes, run {found.run} after {_so_far(found)}, "
        f"{len(found.blobs)} blobs, and the run's keys: keep it as you keep a private key"
    )


def _so_far(found: "Manifest") -> str:
    return f"{found.n_events} events, chain {found.chain[:16]}" if found.n_events else "0 events"


@app.command(epilog=f"{CODES} Example: tinylora-coordinator restore run.tar DIR")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run; new, or empty.")],
    as_json: Json = False,
) -> None:
    """Make a run's folder from a backup, after each file of it, its ledger and its chain were checked.

    What was accepted after the backup is done again by the workers, which come back by themselves. See that nobody
    serves the original any more. Of a FILE that is no sound backup nothing is left in DIR.
    """
    from tinylora_coordinator.backup.restoring import restore_backup

    restored = restore_backup(file, folder, now_s=time.time())
    found = restored.manifest
    missing = [str(each) for each in restored.missing]
    if as_json:
        told = {"run": found.run, "n_events": found.n_events, "chain": found.chain, "taken": found.taken_s}
        _print_json({"folder": str(folder), "n_files": len(found.files), "missing": missing, **told})
    _say(f"{folder}: run {found.run} after {_so_far(found)}; see that the original in")
    _say(f"  {found.host}:{found.folder} is served no more, then")
    _say(f"  tinylora-coordinator serve {folder}")
    for each in missing:
        _say(f"{each}: is not here; the run was served with a certificate of your own, which no backup holds")


@app.command(epilog=f"{CODES} Example: tinylora-coordinator record DIR --out events.jsonl.gz")
def record(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="File to write: events.jsonl, or events.jsonl.gz, packed.")],
) -> None:
    """Record a run as far as it is, served or not, for `replay`.

    Keys, names of tokens and everything that was trained stay here.
    """
    from tinylora_coordinator.dashboard.recording import record as write

    _say(f"{out}: {write(folder, out)} lines; look at it with `tinylora-coordinator replay {out}`")


@app.command(
    epilog="Exit codes: 0 ended by Ctrl-C; 2 an option is wrong; 3 FILE is no recording; 6 the port is taken; 8 FILE "
    "cannot be read. Example: tinylora-coordinator replay --example"
)
def replay(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A recording: events.jsonl, or events.jsonl.gz.")
    ] = None,
    speed: Annotated[float, typer.Option("--speed", min=0, max=1e6, help="So many times as fast; 0 holds still.")] = 10,
    begin: Annotated[str, typer.Option("--from", help="Moment of the run to begin at: 90s, 1h30m.")] = "0s",
    hold_at: Annotated[str, typer.Option("--at", help="Jump to this moment and hold still there: 1h30m, or end.")] = "",
    loop: Annotated[bool, typer.Option("--loop/--no-loop", help="Begin anew when it is through.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 8444,
    example: Annotated[bool, typer.Option("--example", help="Play the recording that comes with TinyLoRA.")] = False,
) -> None:
    """Show a recorded run as it was, at any speed, on a page of this machine. Nothing can be changed there."""
    from tinylora.errors import SettingError

    if (file is None) != example:
        raise SettingError("replay: give a FILE, or --example")
    from tinylora_coordinator.dashboard.replay import EXAMPLE
    from tinylora_coordinator.dashboard.showing import show

    where = EXAMPLE if file is None else file
    show(where, speed=speed, begin=begin, hold_at=hold_at, is_loop=loop, port=port, say=_say)


@app.command(epilog=f"{CODES} 4 it is not the run's base. Example: tinylora-coordinator lookup DIR --base BASE")
def lookup(
    folder: Folder, base: Annotated[str, typer.Option("--base", help="The run's base: a local folder or a hub id.")]
) -> None:
    """Make the tables by which the dashboard routes a pasted text; `init` makes them for new runs."""
    from tinylora_coordinator.folder import RunFolder, read_run

    read_run(RunFolder(folder))
    from tinylora.base_model import load_base  # after the cheap check
    from tinylora_coordinator.lookup_tables import make_lookup

    make_lookup(folder, load_base(base))
    _say(f"{folder}: the dashboard can route texts now")


@app.command(
    "verify-log",
    epilog="Exit codes: 0 all is as it was written; 2 no run in DIR; 8 something is not. "
    "Example: tinylora-coordinator verify-log DIR",
)
def verify_log(folder: Folder, as_json: Json = False) -> None:
    """Walk over the whole ledger: the chain of events, the tables made from them, every blob. May take minutes."""
    from tinylora.errors import StorageError
    from tinylora_coordinator import desk

    found = desk.verify_log(folder)
    if as_json:
        _print_json(found)
    for fault in [] if as_json else found["faults"]:
        typer.echo(fault)
    _say(f"{found['n_events']} events, chain {found['chain'][:16]}, {len(found['faults'])} faults")
    if found["faults"]:
        raise StorageError(f"{folder}: {len(found['faults'])} faults, the first one: {found['faults'][0]}")


@app.command(
    epilog="Exit codes: 0 it may face the internet; 1 a check failed; 2 no run in DIR, or a bad URL. "
    "Example: tinylora-coordinator selfcheck DIR --url https://run.example.org:8443"
)
def selfcheck(
    folder: Folder,
    url: Annotated[
        str, typer.Option("--url", help="Its public address; by default the one given to `serve`, or port 8443 here.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check a served run from outside and inside: no route of Flower's open, certificate, permissions, disk, clock."""
    from tinylora_coordinator.folder import RunFolder, read_run

    read_run(RunFolder(folder))
    from tinylora.errors import TinyLoraError
    from tinylora.flower import use_home
    from tinylora_coordinator.desk import DEFAULT_PORT
    from tinylora_coordinator.keys import read_public
    from tinylora_coordinator.selfcheck import may_serve
    from tinylora_coordinator.selfcheck import selfcheck as run_checks

    use_home(RunFolder(folder).flower_home)
    if not url:
        reached = read_public(RunFolder(folder).keys)
        url = f"https://127.0.0.1:{DEFAULT_PORT}" if reached is None else reached.url
    checks = run_checks(folder, url)
    if as_json:
        _print_json([asdict(check) for check in checks])
    for check in [] if as_json else checks:
        cure = "" if check.status == "ok" else f"; needed: {check.needed}; {check.cure}"
        typer.echo(f"{check.status:4} {check.name}: {check.found}{cure}")
    if not may_serve(checks):
        raise TinyLoraError(f"{url}: {sum(check.status == 'fail' for check in checks)} checks failed")


@app.command(
    epilog="Exit codes: 0 healthy; 2 no run in DIR, or a bad URL; 6 nobody answers, or who is no coordinator. "
    "Example: tinylora-coordinator health DIR"
)
def health(
    where: Annotated[
        str, typer.Argument(metavar="[DIR|URL]", help="The run's folder on this machine, or a coordinator's address.")
    ] = "https://127.0.0.1:8443",
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Whether a coordinator answers: one quick question, for the health checks of containers and services."""
    from tinylora.errors import NetworkError
    from tinylora_coordinator.health import check_health

    found = check_health(where, timeout_s=timeout)
    if as_json:
        _print_json(asdict(found))
    if not found.is_healthy:
        raise NetworkError(found.sentence)
    _say(found.sentence)


def _as_text(found: dict[str, Any]) -> str:
    lines = [f"run {found['run']}: {found['phase']}"]
    lines += [f"  {node or 'root'}: {steps} of {found['leaf_steps']} steps" for node, steps in found["steps"].items()]
    lines += [
        f"  {row['name'] or row['worker']}: {row['units']} units, {row['tokens']} tokens, holds {_place(row['node'])}"
        for row in found["workers"]
    ]
    refused, expired = found["rejected"]["n"], found["expired"]["n"]
    lines.append(f"  {len(found['rounds'])} router versions, {refused} updates refused, {expired} leases expired")
    lines += [f"  waiting: order {order['order_id']}, {order['kind']} {order['worker']}" for order in found["orders"]]
    return "\n".join(lines)


def _place(node: str | None) -> str:
    return "nothing yet" if node is None else node or "root"


def _print_json(found: object) -> None:
    typer.echo(json.dumps(found, indent=1, sort_keys=True))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> None:
    """Entry point of the `tinylora-coordinator` command."""
    run(app)


if __name__ == "__main__":
    main()
