"""Whether a served run may face the internet: seen from outside at its public address, and from inside in its folder.

The first check is the one that matters most: with a single route of Flower's Control or Runtime API open to strangers,
anybody may run programs here. Whoever serves asks for it at each start, and does not serve on when it fails.
"""

import fcntl
import http.client
import json
import os
import shutil
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from tinylora.errors import SettingError, TinyLoraError
from tinylora.flower.enrolment import STATE_PATH
from tinylora_coordinator.folder import RunFolder
from tinylora_coordinator.front_door.app import SIGN_IN_PATH
from tinylora_coordinator.front_door.pages import CA_PATH, HEALTH_PATH
from tinylora_coordinator.keys import served_ca

Status = Literal["ok", "warn", "fail"]
Route = tuple[str, str]

ALWAYS_TRIED: tuple[Route, ...] = (
    ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/redoc"),
    ("POST", "/v1/control/start-run"), ("POST", "/v1/control/list-runs"), ("POST", "/v1/control/register-node"),
    ("POST", "/v1/runtime/acquire-task"), ("POST", "/v1/fleet/register-node"), ("POST", "/v1/fleet/get-fab"),
    ("POST", "//v1/control/list-runs"), ("POST", "/V1/control/list-runs"), ("POST", "/v1/control/list-runs/"),
    ("POST", "/v1/fleet/../control/list-runs"), ("POST", "/v1/fleet/%2e%2e/control/list-runs"),
    ("POST", "/v1%2fcontrol%2flist-runs"), ("POST", "/v1/control/list-runs?x"),
)  # fmt: skip
"""Tried whatever Flower is installed; with spellings that a careless proxy in front would tidy."""
CLOSED = (403, 404, 405)
PATIENCE_S = 10.0

_EXPIRES_SOON_DAYS = 21
_LITTLE_BYTES, _TOO_LITTLE_BYTES = 2 * 2**30, 2**28
_CLOCK_WARN_S, _CLOCK_FAIL_S = 5.0, 120.0


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: What was asked, in a word.
        status: `fail` means: do not serve like this.
        found: What is.
        needed: What should be.
        cure: What to do; empty where all is well.
        code: For programs; it does not change.
    """

    name: str
    status: Status
    found: str
    needed: str
    cure: str
    code: str


def may_serve(checks: Iterable[Check]) -> bool:
    """Whether nothing failed."""
    return all(check.status != "fail" for check in checks)


def selfcheck(
    root: Path, url: str, *, routes: Iterable[Route] | None = None, now: Callable[[], datetime] | None = None
) -> list[Check]:
    """Check the run in `root`, which is served at `url`.

    Args:
        root: The run's folder.
        url: Its public address, as workers are told.
        routes: Every route of the installed Flower, see `Link.routes`; found out by default, which takes seconds.
        now: This machine's clock.

    Returns:
        All checks, the most important first.

    Raises:
        SettingError: `url` is none.
    """
    address = _read_url(url)
    folder, clock = RunFolder(root), now or (lambda: datetime.now(UTC))
    tls = _tls(folder) if address.scheme == "https" else None
    return [
        check_surface(url, installed_routes() if routes is None else routes, tls=tls),
        _check_answers(address, tls),
        _check_dashboard(address, tls),
        _check_certificate(address, tls, clock()),
        _check_ca(address, tls, folder),
        _check_clock(address, tls, clock),
        _check_permissions(folder),
        _check_disk(root),
        _check_lock(folder),
    ]


def installed_routes() -> list[Route]:
    """Every route of the installed Flower."""
    from tinylora.flower.link import create_link  # flwr takes seconds to import

    with tempfile.TemporaryDirectory() as folder:
        return create_link(Path(folder, "link.db")).routes()


# --- from outside -------------------------------------------------------------------------------------------------


def check_surface(url: str, routes: Iterable[Route], *, tls: ssl.SSLContext | None) -> Check:
    """Whether Flower's own API, but for the fleet's part and what is our own, is closed at `url`.

    Args:
        url: The public address.
        routes: Every route of the installed Flower.
        tls: What is needed to believe the address; None for plain HTTP.
    """
    from tinylora.flower.link import FLEET_PATHS
    from tinylora_coordinator.dashboard.addresses import is_ours

    public = {("GET", HEALTH_PATH), *(("POST", path) for path in FLEET_PATHS)}
    tried = sorted(route for route in {*ALWAYS_TRIED, *routes} - public if not is_ours(route[0], route[1].encode()))
    needed = "403, 404 or 405 for each"
    try:
        answers = [(*route, _ask(_read_url(url), tls, *route)[0]) for route in tried]
    except OSError as error:
        return Check("surface", "fail", f"no answer: {error}", needed, _UNREACHABLE, "surface-unreachable")
    if open_ones := [answer for answer in answers if answer[2] not in CLOSED]:
        method, path, status = open_ones[0]
        found = f"{len(open_ones)} of {len(tried)} routes of Flower answer, such as {method} {path}: {status}"
        cure = "stop serving at this address: let only the coordinator's own public port be reached from outside"
        return Check("surface", "fail", found, needed, cure, "surface-open")
    return Check("surface", "ok", f"{len(tried)} routes of Flower tried, all closed", needed, "", "surface")


_UNREACHABLE = "is it served, and is this its address? A firewall or a proxy in between may not let requests pass"


def _check_answers(address: SplitResult, tls: ssl.SSLContext | None) -> Check:
    needed = f"200 for {HEALTH_PATH} and {STATE_PATH}"
    try:
        found = {path: _ask(address, tls, "GET", path)[0] for path in (HEALTH_PATH, STATE_PATH)}
    except OSError as error:
        return Check("answers", "fail", f"no answer: {error}", needed, _UNREACHABLE, "answers-unreachable")
    told = ", ".join(f"{path}: {status}" for path, status in found.items())
    if set(found.values()) == {200}:
        return Check("answers", "ok", told, needed, "", "answers")
    return Check(
        "answers", "fail", told, needed, "something else answers here; check address and proxy", "answers-other"
    )


def _check_dashboard(address: SplitResult, tls: ssl.SSLContext | None) -> Check:
    """Who a stranger is taken for: a proxy in front of the wrong port would make him the operator."""
    needed = "a stranger may look at most"
    try:
        status, body, _ = _ask(address, tls, "GET", SIGN_IN_PATH)
        role = str(json.loads(body)["role"]) if status == 200 else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        return Check("dashboard", "warn", f"no answer: {error}", needed, _UNREACHABLE, "dashboard-unknown")
    found = {
        None: f"none is shown here (HTTP {status})",
        "viewer": "anybody may look; `serve --viewers token` lets in only who has a token",
        "nobody": "only who has a token may look",
    }
    if role in found:
        return Check("dashboard", "ok", found[role], needed, "", "dashboard")
    cure = "point the proxy at the public port: the other one is the operator's own, for this machine alone"
    return Check("dashboard", "fail", f"strangers are taken for {role}", needed, cure, "dashboard-open")


def _check_certificate(address: SplitResult, tls: ssl.SSLContext | None, now: datetime) -> Check:
    needed = f"a certificate for {address.hostname} that workers can verify, good for {_EXPIRES_SOON_DAYS} days more"
    if tls is None:
        status = "warn" if _is_loopback(address.hostname or "") else "fail"
        cure = "serve without --insecure; plain HTTP is for one machine alone"
        return Check("certificate", status, "plain HTTP", needed, cure, "certificate-none")
    try:
        connection = _connect(address, tls)
        connection.connect()
        ends = _end_of(connection.sock)
        connection.close()
    except OSError as error:
        cure = "restart `serve` with the --host that workers use: it makes a certificate that names it"
        return Check("certificate", "fail", str(error), needed, cure, "certificate-bad")
    days = (ends - now).days
    found = f"verified; it ends on {ends:%Y-%m-%d}"
    if days < _EXPIRES_SOON_DAYS:
        status = "fail" if days < 0 else "warn"
        return Check("certificate", status, found, needed, "restart `serve`, which makes a new one", "certificate-old")
    return Check("certificate", "ok", found, needed, "", "certificate")


def _check_ca(address: SplitResult, tls: ssl.SSLContext | None, folder: RunFolder) -> Check:
    needed = f"the same at {CA_PATH} as in the run's folder: tokens carry its hash"
    try:
        file = served_ca(folder.keys)
        own = file.read_bytes() if file else None
        status, body, _ = _ask(address, tls, "GET", CA_PATH)
    except (OSError, TinyLoraError) as error:
        return Check("ca", "fail", str(error), needed, _UNREACHABLE, "ca-unreachable")
    if body == own if own else status == 404:
        return Check("ca", "ok", "the same" if own else "none: a public CA vouches", needed, "", "ca")
    cure = "the address belongs to another run, or somebody sits in between; check both"
    return Check("ca", "fail", f"another one (HTTP {status})", needed, cure, "ca-other")


def _check_clock(address: SplitResult, tls: ssl.SSLContext | None, clock: Callable[[], datetime]) -> Check:
    needed = f"less than {_CLOCK_WARN_S:.0f} s between the served Date and this machine's clock"
    try:
        date = _ask(address, tls, "GET", HEALTH_PATH)[2]
        off_s = abs((parsedate_to_datetime(date) - clock()).total_seconds())
    except (OSError, ValueError, TypeError) as error:
        return Check("clock", "warn", f"no date: {error}", needed, _UNREACHABLE, "clock-unknown")
    found, cure = f"{off_s:.0f} s", "set the clock, and keep it by NTP: workers' signatures carry the time"
    if off_s > _CLOCK_WARN_S:
        return Check("clock", "fail" if off_s > _CLOCK_FAIL_S else "warn", found, needed, cure, "clock-off")
    return Check("clock", "ok", found, needed, "", "clock")


# --- from inside --------------------------------------------------------------------------------------------------


def _check_permissions(folder: RunFolder) -> Check:
    needed = "0700 for the run's folder and its keys, 0600 for what is in them that nobody else may read"
    if os.name == "nt":
        return Check("permissions", "ok", "not told by Windows", needed, "", "permissions")
    loose = [f"{path} is {mode:04o}" for path, mode in _modes(folder) if mode & 0o077]
    if loose:
        cure = "chmod 700 the folders and 600 the files; if others had access, make a new run"
        return Check("permissions", "fail", "; ".join(loose), needed, cure, "permissions-loose")
    return Check("permissions", "ok", "as needed", needed, "", "permissions")


def _modes(folder: RunFolder) -> Iterator[tuple[Path, int]]:
    """Of what must be private by itself; all else is behind the folder's mode."""
    keys = folder.keys
    private: Sequence[Path] = (folder.root, keys.root, keys.ca_key, keys.server_key, keys.run_key, keys.admin)
    for path in private:
        if path.exists():
            yield path, stat.S_IMODE(path.stat().st_mode)


def _check_disk(root: Path) -> Check:
    needed = f"{_LITTLE_BYTES / 2**30:.0f} GiB free"
    try:
        free = shutil.disk_usage(root).free
    except OSError as error:
        return Check("disk", "fail", str(error), needed, "is the folder there?", "disk-unknown")
    found = f"{free / 2**30:.1f} GiB free"
    if free < _LITTLE_BYTES:
        cure = "free some space, or set disk_cap_mib in run.toml"
        return Check("disk", "fail" if free < _TOO_LITTLE_BYTES else "warn", found, needed, cure, "disk-little")
    return Check("disk", "ok", found, needed, "", "disk")


def _check_lock(folder: RunFolder) -> Check:
    needed = "held by the coordinator that serves this folder"
    try:
        is_held = _is_locked(folder.lock_file)
    except OSError as error:
        return Check("lock", "warn", str(error), needed, "let the owner of the folder run this", "lock-unknown")
    if is_held:
        return Check("lock", "ok", "held", needed, "", "lock")
    cure = f"what answers is not served from {folder.root}; check the address"
    return Check("lock", "warn", "free", needed, cure, "lock-free")


def _is_locked(file: Path) -> bool:
    if not file.exists():
        return False
    with open(file, "rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# --- asking -------------------------------------------------------------------------------------------------------


def _ask(address: SplitResult, tls: ssl.SSLContext | None, method: str, path: str) -> tuple[int, bytes, str]:
    """Status, body and date of an answer; the path goes out as it is. An answer that is no HTTP counts as none."""
    connection = _connect(address, tls)
    try:
        connection.request(method, path, body=b"" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read(2**20), answer.getheader("date", "")
    except http.client.HTTPException as error:
        raise ConnectionError(f"{method} {path}: {type(error).__name__} {error}") from None
    finally:
        connection.close()


def _connect(address: SplitResult, tls: ssl.SSLContext | None) -> http.client.HTTPConnection:
    host = address.hostname or ""
    if tls is None:
        return http.client.HTTPConnection(host, address.port or 80, timeout=PATIENCE_S)
    return http.client.HTTPSConnection(host, address.port or 443, timeout=PATIENCE_S, context=tls)


def _tls(folder: RunFolder) -> ssl.SSLContext:
    """What a worker with a token of this run would believe."""
    return ssl.create_default_context(cafile=served_ca(folder.keys))


def _end_of(connection: object) -> datetime:
    assert isinstance(connection, ssl.SSLSocket)
    seconds = ssl.cert_time_to_seconds(str((connection.getpeercert() or {})["notAfter"]))
    return datetime.fromtimestamp(seconds, UTC)


def _read_url(url: str) -> SplitResult:
    parts = urlsplit(url)
    try:
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.path not in ("", "/") or parts.query:
        raise SettingError(f"{url!r}: expected the run's public address, such as https://example.org:8443")
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
