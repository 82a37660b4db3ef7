"""`service install`: the worker starts with its owner's session, by systemd (Linux) or launchd (macOS).

    describe(home)      the file, for `--print`
    install(home)       written, switched on
    uninstall(home)     switched off, and the same file removed; never one that somebody else wrote

It is the user's own service, not the system's: it needs no root, and sees his folders and his devices. Each home has
one of its own.

Sources: systemd.exec(5), systemd.service(5), systemd.syntax(7); launchd.plist(5); the unit of Folding@home.
"""

import hashlib
import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tinylora.errors import BaseModelError, DataError, RefusedError, SettingError, StorageError

STOP_S = 90
"""Given to the agent after a stop: twice what the slowest checkpoint and the last words to the coordinator take."""
RESTART_S = 60
NO_CURE = tuple(error.exit_code for error in (SettingError, DataError, BaseModelError, RefusedError))
"""Exit codes that come again however often one restarts."""
MARK = "Written by `tinylora-worker service install`"
KEPT_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "TZ",
)
"""A service does not see what a shell has set; these decide whether it finds its base, its device and its network.
Secrets, such as HF_TOKEN, are never among them: the file can be read by others."""

Run = Callable[[Sequence[str]], bool]
"""Runs a command, and tells whether it succeeded."""


@dataclass(frozen=True)
class Place:
    """Whose service it is, and on what system; everything that a test would put elsewhere.

    Args:
        system: As `sys.platform` names it.
        user_home: Of the user.
        executable: The Python that runs the worker.
        environment: Of this process.
        find: Where a program is, None if nowhere.
        run: Runs a command.
    """

    system: str
    user_home: Path
    executable: str
    environment: Mapping[str, str]
    find: Callable[[str], str | None]
    run: Run

    @classmethod
    def here(cls) -> "Place":
        """This user, on this machine."""
        return cls(sys.platform, Path.home(), sys.executable, os.environ, shutil.which, _run)


@dataclass(frozen=True)
class Service:
    """One home's service on one kind of system."""

    name: str
    """As the system's own tools call it."""
    file: Path
    content: bytes
    start: tuple[tuple[str, ...], ...]
    """Commands that switch it on, in order."""
    stop: tuple[tuple[str, ...], ...]
    """Commands that switch it off, before the file goes."""
    is_stopped_first: bool = False
    """Whether an older one has to be switched off before this one can be switched on."""
    after: tuple[tuple[str, ...], ...] = ()
    """Commands after the file is gone."""


def describe(home: Path, place: Place | None = None) -> Service:
    """What would be installed; nothing is written.

    Raises:
        SettingError: This system has no service manager that we know, or a path cannot be written into its file.
    """
    place = place or Place.here()
    if place.system.startswith("linux"):
        return _systemd(home.absolute(), place)
    if place.system == "darwin":
        return _launchd(home.absolute(), place)
    raise SettingError(
        f"services on {place.system}: not known to us; have the system start `{' '.join(command(home, place))}`"
    )


def install(home: Path, place: Place | None = None) -> list[str]:
    """The worker runs now, and whenever its owner is logged in; again is an update.

    Returns:
        Lines for people: what was written, and what is left to type.

    Raises:
        SettingError: This home has joined no run, or see `describe`.
        StorageError: The file cannot be written, or is somebody else's.
    """
    place = place or Place.here()
    service = describe(home, place)
    if not (home / "membership.json").exists():
        raise SettingError(f"{home}: has joined no run yet; join first, a service goes on where you left it")
    _check_ours(service.file)
    if service.is_stopped_first and service.file.exists():
        _carry_out(service.stop, place)
    try:
        service.file.parent.mkdir(parents=True, exist_ok=True)
        service.file.write_bytes(service.content)
    except OSError as error:
        raise StorageError(f"{service.file}: {error.strerror or error}") from None
    lines = [f"{service.file}: written"]
    lines += _carry_out(service.start, place, done=f"{service.name}: runs, and starts by itself from now on")
    return lines + _linger(place)


def uninstall(home: Path, place: Place | None = None) -> list[str]:
    """The service is switched off, and its file is gone; the home stays as it is.

    Returns:
        Lines for people.

    Raises:
        StorageError: The file cannot be removed, or is somebody else's.
        SettingError: See `describe`.
    """
    place = place or Place.here()
    service = describe(home, place)
    if not service.file.exists():
        return [f"{service.file}: is not there; nothing to do"]
    _check_ours(service.file)
    lines = _carry_out(service.stop, place, done=f"{service.name}: stopped")
    wanted = service.file.parent / "default.target.wants" / service.file.name
    try:
        service.file.unlink()
        if wanted.is_symlink():  # where nobody could be asked to switch it off
            wanted.unlink()
    except OSError as error:
        raise StorageError(f"{service.file}: {error.strerror or error}") from None
    return [*lines, f"{service.file}: removed", *_carry_out(service.after, place)]


def command(home: Path, place: Place) -> list[str]:
    """What the service runs. -P: a file of the folder it starts in must not pass for one of its modules."""
    return [place.executable, "-P", "-m", "tinylora_worker", "run", "--home", str(home.absolute())]


def _systemd(home: Path, place: Place) -> Service:
    name = f"tinylora-worker{_suffix(home)}.service"
    configuration = place.environment.get("XDG_CONFIG_HOME") or str(place.user_home / ".config")
    user = ("systemctl", "--user")
    return Service(
        name=name,
        file=Path(configuration, "systemd", "user", name),
        content=_encoded(systemd_unit(home, place)),
        start=((*user, "daemon-reload"), (*user, "enable", name), (*user, "restart", name)),
        stop=((*user, "disable", "--now", name),),
        after=((*user, "daemon-reload"),),
    )


def systemd_unit(home: Path, place: Place) -> str:
    """The unit's text.

    What user services can have of a sandbox without namespaces of their own: those are off on some systems, and hide
    devices on others. OOMPolicy: the kernel may kill the trainer for memory, and the agent starts another.
    """
    exec_start = " ".join(_exec_words(command(home, place)))
    kept = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in _kept(place.environment).items())
    return f"""\
# {MARK}
[Unit]
Description={_escaped(f"TinyLoRA worker of {home}")}
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={exec_start}
{kept}KillSignal=SIGINT
KillMode=mixed
TimeoutStopSec={STOP_S}
SuccessExitStatus=130
Restart=on-failure
RestartSec={RESTART_S}
RestartPreventExitStatus={" ".join(map(str, NO_CURE))}
Nice=10
IOSchedulingClass=idle
OOMScoreAdjust=500
OOMPolicy=continue
UMask=0077
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


def _launchd(home: Path, place: Place) -> Service:
    label = f"org.tinylora.worker{_suffix(home)}"
    file = place.user_home / "Library" / "LaunchAgents" / f"{label}.plist"
    domain = f"gui/{_user_number()}"
    return Service(
        name=label,
        file=file,
        content=launchd_plist(home, place, label),
        start=(("launchctl", "bootstrap", domain, str(file)),),
        stop=(("launchctl", "bootout", f"{domain}/{label}"),),
        is_stopped_first=True,
    )


def launchd_plist(home: Path, place: Place, label: str) -> bytes:
    """The agent's property list. launchd knows no exit codes: after any failure it starts again, but not at once."""
    log = str(home / "logs" / "service.log")
    content = {
        "Label": label,
        "ProgramArguments": command(home, place),
        "EnvironmentVariables": _kept(place.environment),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S,
        "ExitTimeOut": STOP_S,
        "ProcessType": "Background",
        "LowPriorityIO": True,
        "Nice": 10,
        "Umask": 0o077,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    try:
        written = plistlib.dumps(content)
    except (ValueError, UnicodeEncodeError):
        raise SettingError(f"{home!r}: control characters in a path have no place in a service; move it") from None
    head, rest = written.split(b"\n", 1)
    return head + f"\n<!-- {MARK} -->\n".encode() + rest


def _suffix(home: Path) -> str:
    """Nothing for the usual home; a name of their own for others."""
    if home == Path(platformdirs.user_data_dir("tinylora"), "worker"):
        return ""
    return f"-{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}"


def _kept(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in KEPT_VARIABLES if environment.get(name)}


def _exec_words(words: Sequence[str]) -> list[str]:
    """Words of ExecStart=. In the first a dollar stands for itself, and quotes are forbidden: env(1) takes those."""
    program, *rest = words
    if set(program) & set("\"'\\$"):
        return ["/usr/bin/env", *(_quoted(word, is_command=True) for word in words)]
    return [_quoted(program), *(_quoted(word, is_command=True) for word in rest)]


def _quoted(word: str, *, is_command: bool = False) -> str:
    """One word as systemd reads it back; in a command line a dollar would begin a variable."""
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped.replace("$", "$$") if is_command else escaped}"'


def _escaped(text: str) -> str:
    """With percent signs that stand for themselves.

    Raises:
        SettingError: It has a control character, such as the end of a line.
    """
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise SettingError(f"{text!r}: control characters in a path have no place in a service; move it")
    return text.replace("%", "%%")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise SettingError("a path of this service is not UTF-8, as systemd wants it; use another --home") from None


def _check_ours(file: Path) -> None:
    try:
        head = file.read_bytes()[:400]
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}") from None
    if MARK.encode() not in head:
        raise StorageError(f"{file}: is not ours; move it away, or install it by yourself with --print")


def _carry_out(commands: Sequence[tuple[str, ...]], place: Place, *, done: str = "") -> list[str]:
    """Run them, or tell them: all of them from the first that does not work."""
    for number, words in enumerate(commands):
        if place.find(words[0]) is None or not place.run(words):
            return [f"to type: {' '.join(left)}" for left in commands[number:]]
    return [done] if done else []


def _linger(place: Place) -> list[str]:
    """A user's services end with his last session, unless he lingers."""
    if not place.system.startswith("linux"):
        return []
    user = place.environment.get("USER", "")
    if user and Path("/var/lib/systemd/linger", user).exists():
        return []
    return ["it stops when you log out; to have it run from boot on: loginctl enable-linger"]


def _user_number() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _run(words: Sequence[str]) -> bool:
    try:
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
