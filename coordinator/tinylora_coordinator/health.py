"""Whether a coordinator answers: one question, for the checks of containers and services, which ask every few seconds.

Nothing secret is sent and nothing is learned but that somebody answers as a run does, so on a loopback address the
certificate's name is not looked at. `selfcheck` looks closely.
"""

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tinylora.errors import SettingError
from tinylora_coordinator.served import served_at

DEFAULT_URL = "https://127.0.0.1:8443"
STATE_PATH = "/tinylora/state"
PATIENCE_S = 5.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class Health:
    """What came of asking."""

    is_healthy: bool
    url: str
    """Whom was asked; empty where nobody serves the run."""
    phase: str
    """What the run is doing, by its own word; empty where nobody answers."""
    sentence: str


def check_health(where: str, *, timeout_s: float = PATIENCE_S) -> Health:
    """Ask the coordinator at an address, or the one that serves the run of a folder.

    Args:
        where: A URL, or a run's folder.
        timeout_s: For the answer.

    Raises:
        SettingError: `where` is neither, or the folder holds no run.
    """
    if "://" in where:
        return _ask(where, ca=None, timeout_s=timeout_s)
    root = Path(where)
    if not (root / "run.toml").is_file():
        raise SettingError(f"{where}: expected a run's folder, or an address such as {DEFAULT_URL}")
    url = served_at(root)
    if not url:
        return Health(False, "", "", f"{where}: nobody serves this run; `tinylora-coordinator serve {where}` does")
    from tinylora_coordinator.folder import RunFolder
    from tinylora_coordinator.keys import served_ca

    return _ask(url, ca=served_ca(RunFolder(root).keys), timeout_s=timeout_s)


def _ask(url: str, *, ca: Path | None, timeout_s: float) -> Health:
    scheme, host, port = _read(url)
    try:
        if scheme == "https":
            context = _context(host, ca)
            connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            connection.request("GET", STATE_PATH)
            answer = connection.getresponse()
            return _judge(url, answer.status, answer.read(_MOST_BYTES))
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Health(False, url, "", f"{url}: no coordinator answers ({error or type(error).__name__})")


def _read(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port."""
    try:
        parts = urlsplit(url)
        scheme, host, port, path = parts.scheme, parts.hostname or "", parts.port, parts.path
    except ValueError:
        scheme, host, port, path = "", "", None, ""
    if scheme not in ("http", "https") or not host or port == 0 or path not in ("", "/"):
        raise SettingError(f"{url!r}: expected the coordinator's address, such as {DEFAULT_URL}")
    return scheme, host, port


def _context(host: str, ca: Path | None) -> ssl.SSLContext:
    """By what the answer is believed: the run's own CA where it is known, and on this machine nothing else."""
    context = ssl.create_default_context(cafile=ca)
    if host in _LOOPBACK:
        context.check_hostname = False
        if ca is None:
            context.verify_mode = ssl.CERT_NONE
    return context


def _judge(url: str, status: int, body: bytes) -> Health:
    """Whether this is a coordinator's answer."""
    try:
        told = json.loads(body) if status == http.client.OK else None
        # None has no parts either: that is a TypeError, which is caught.
        run, phase = str(told["run"]), str(told["phase"])  # pyright: ignore[reportOptionalSubscript]
    except (ValueError, KeyError, TypeError):
        return Health(False, url, "", f"{url}: whoever answers (HTTP {status}) is no coordinator, or is in trouble")
    return Health(True, url, phase, f"{url}: run {run} is {phase}")
