"""Runs services of a compose file without an engine: the same commands, as their user, in name spaces of their own.

What the file says of a service holds for its process: command, entry point, environment, user, volumes and secrets at
their places, a root that cannot be written, no capabilities, no new privileges, its network's names, its health check,
its signal and its grace. What is not tried: the image's own files (test_image.py does), limits, and logging.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.deploy.compose_files import DEPLOY, Image, Mount, image_of, load, mounts_of, seconds, tmpfs_of

ROOT = DEPLOY.parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BIN = "/opt/tinylora/bin"
_OF_ETC = ("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf", "passwd", "ssl")
_PROGRAMS = {
    "tinylora": "tinylora.cli",
    "tinylora-coordinator": "tinylora_coordinator",
    "tinylora-worker": "tinylora_worker",
}


@dataclass
class Service:
    """One service, and its process while it has one."""

    name: str
    told: Mapping[str, Any]
    image: Image
    mounts: Sequence[Mount]
    process: subprocess.Popen[bytes] | None = None
    said: list[Path] = field(default_factory=list)
    """What it printed, a file for each life."""

    @property
    def env(self) -> dict[str, str]:
        """The image's, and the file's."""
        return {**self.image.env, **{name: str(value) for name, value in self.told.get("environment", {}).items()}}

    @property
    def command(self) -> list[str]:
        """What is executed."""
        return [*self.told.get("entrypoint", self.image.entrypoint), *self.told["command"]]

    @property
    def ids(self) -> tuple[str, str]:
        """User and group."""
        user, _, group = str(self.told.get("user", self.image.user)).partition(":")
        return user, group or user

    @property
    def last_words(self) -> str:
        """The end of what it printed in this life."""
        return self.said[-1].read_text(errors="replace")[-3000:] if self.said else ""


class Project:
    """The services of these files, on volumes below a folder. Leaving the context leaves nothing behind.

    Args:
        folder: For volumes and output.
        names: Files of deploy/, as after `docker compose -f`.
        env: What .env would say.
        images: For services whose image is not ours: name to what stands in for it.
        extra: Environment for all of them, beside the file's.
    """

    def __init__(
        self,
        folder: Path,
        *names: str,
        env: Mapping[str, str],
        images: Mapping[str, Image] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self._extra, self._images = folder, dict(extra or {}), dict(images or {})
        self._told = load(*names, env=env)
        self._network = f"tl-compose-{os.getpid()}"
        self.services = {name: self._service(name) for name in self._told["services"]}

    def _service(self, name: str) -> Service:
        told = self._told["services"][name]
        targets = {
            each["image"]: each["build"]["target"] for each in self._told["services"].values() if "build" in each
        }
        image = self._images.get(name) or image_of(targets[told["image"]], PATH)
        return Service(name, told, image, mounts_of(told, self._told.get("secrets", {})))

    def __enter__(self) -> Self:
        subprocess.run(["ip", "netns", "add", self._network], check=True)
        subprocess.run(self._in_network("ip", "link", "set", "lo", "up"), check=True)
        self._make_programs()
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services.values():
            if service.process is not None and service.process.poll() is None:
                service.process.kill()
                service.process.wait()
        left = subprocess.run(["ip", "netns", "pids", self._network], capture_output=True, text=True, check=True)
        for pid in left.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", self._network], check=True)

    def volume(self, name: str) -> Path:
        """Where a named volume lies."""
        return self.folder / "volumes" / name

    # --- up and down --------------------------------------------------------------------------------------------------

    def up(self, *names: str) -> None:
        """Start these services, and first what they depend on, each when its condition is met."""
        for name in names:
            service = self.services[name]
            for other, how in service.told.get("depends_on", {}).items():
                if not self._is_started(other):
                    self.up(other)
                if how["condition"] == "service_healthy":
                    self.wait_until_healthy(other)
                else:
                    assert how["condition"] == "service_completed_successfully"
                    assert self.wait(other) == 0, f"{other}: {self.services[other].last_words}"
            if not self._is_started(name):
                self._start(service)

    def _is_started(self, name: str) -> bool:
        return self.services[name].process is not None

    def wait(self, name: str, *, timeout_s: float = 300.0) -> int:
        """Wait for the end of a service; returns its exit code."""
        process = self.services[name].process
        assert process is not None
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name}: not ended after {timeout_s} s: {self.services[name].last_words}") from None

    def wait_until_healthy(self, name: str) -> float:
        """Ask its health check until it passes, as long as the file allows; returns after how many seconds it did."""
        service, begun = self.services[name], time.monotonic()
        check = service.told["healthcheck"]
        patience_s = seconds(check["start_period"]) + check["retries"] * seconds(check["interval"])
        while not self.is_healthy(name):
            assert service.process is not None and service.process.poll() is None, f"{name}: {service.last_words}"
            assert time.monotonic() < begun + patience_s, f"{name}: not healthy: {service.last_words}"
            time.sleep(0.5)
        return time.monotonic() - begun

    def is_healthy(self, name: str) -> bool:
        """What the file's own health check says now, within the file's own time."""
        check = self.services[name].told["healthcheck"]
        kind, *command = check["test"]
        assert kind == "CMD"
        try:
            return self.run_in(name, *command, timeout_s=seconds(check["timeout"])).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def run_in(self, name: str, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec`: beside a service's process, in its name spaces and as its user.

        The service must have begun: before that its process still makes the root that it will see.
        """
        service = self.services[name]
        assert service.process is not None
        inside = ["nsenter", "-t", str(service.process.pid), "-m", "-n", "-r", "-w"]
        words = [*inside, *_as_user(service), *self._env_words(service), *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)

    def down(self, *names: str) -> dict[str, int]:
        """Send each its signal, all at once, and wait as long as its grace; returns the exit codes."""
        running = [self.services[name] for name in names]
        for service in running:
            assert service.process is not None
            service.process.send_signal(signal.Signals[service.told.get("stop_signal", "SIGTERM")])
        codes = {each.name: self.wait(each.name, timeout_s=seconds(each.told["stop_grace_period"])) for each in running}
        for service in self.services.values():
            service.process = None
        return codes

    def ask(self, *words: str) -> str:
        """What curl prints, in the project's network, where every name is this machine's."""
        command = self._in_network("curl", "--silent", "--show-error", "--fail", "--connect-to", "::127.0.0.1:", *words)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # --- one process --------------------------------------------------------------------------------------------------

    def _start(self, service: Service) -> None:
        place = self.folder / "services" / service.name
        (place / "root").mkdir(parents=True, exist_ok=True)
        script = place / "start.sh"
        script.write_text("\n".join(self._script(service, place)) + "\n")
        service.said.append(place / f"said-{len(service.said)}")
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-eu", str(script)]
        if service.told.get("network_mode") == "none":
            command = ["unshare", "--net", *command]
        with service.said[-1].open("wb") as said:
            service.process = subprocess.Popen(
                self._in_network(*command), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
            )

    def _script(self, service: Service, place: Path) -> list[str]:
        """Makes the root that the service sees, and becomes the service."""
        root, hosts = place / "root", place / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {' '.join(self._names())}\n")
        lines = [
            f"mount -t tmpfs -o mode=755 root {root}",
            f"cd {root}",
            "mkdir etc proc sys dev usr tmp run",
            "chmod 1777 tmp",
        ]
        lines += [f"ln -s usr/{name} {name}" for name in ("bin", "sbin", "lib", "lib64")]
        lines += [_bind(Path(name), root, "rbind") for name in ("/proc", "/sys", "/dev")]
        lines += [f"test ! -e /etc/{name} || cp -a /etc/{name} etc/" for name in _OF_ETC]
        read_only = ["/usr", sys.base_prefix, sys.prefix, str(ROOT)]
        lines += [line for name in dict.fromkeys(read_only) for line in _bind_read_only(Path(name), root, name)]
        lines += [f"cp {hosts} etc/hosts"]
        lines += _bind_read_only(self.folder / "bin", root, _BIN)
        for mount in service.mounts:
            source = self._source(mount, service)
            bound = _bind_read_only(source, root, mount.target)
            lines += bound if mount.is_read_only else bound[:1]
        lines += [f"mkdir -p ./{at} && mount -t tmpfs -o {how} tmpfs ./{at}" for at, how in tmpfs_of(service.told)]
        if service.told.get("read_only"):
            lines.append(f"mount -o remount,ro {root}")
        words = ["chroot", ".", *_as_user(service), *self._env_words(service), *service.command]
        return [*lines, "exec " + " ".join(map(_quoted, words))]

    def _source(self, mount: Mount, service: Service) -> Path:
        if not mount.is_volume:
            source = (DEPLOY / mount.source).resolve()
            assert source.exists(), f"{service.name}: {source}: not there, and compose would not make it"
            return source
        place = self.volume(mount.source)
        if not place.exists():  # an engine fills a new volume from the image, its owner and mode included
            place.mkdir(parents=True)
            if mount.target in service.image.folders:
                user, group = str(service.image.user).split(":")
                os.chown(place, int(user), int(group))
                place.chmod(0o700)
        return place

    def _names(self) -> list[str]:
        aliases = [
            alias
            for each in self.services.values()
            for network in each.told.get("networks", {}).values()
            for alias in network.get("aliases", ())
        ]
        return [*self.services, *aliases]

    def _env_words(self, service: Service) -> list[str]:
        code = [str(ROOT / part) for part in ("", "coordinator", "worker")]
        env = {**service.env, "PYTHONPATH": ":".join(code), **self._extra}
        return ["env", "-i", *(f"{name}={value}" for name, value in env.items())]

    def _in_network(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._network}", *words]

    def _make_programs(self) -> None:
        """What pip would have put into the images."""
        place = self.folder / "bin"
        place.mkdir(parents=True)
        for name, module in _PROGRAMS.items():
            (place / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            (place / name).chmod(0o755)


def _as_user(service: Service) -> list[str]:
    user, group = service.ids
    words = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    if "ALL" in service.told.get("cap_drop", ()):
        words += ["--bounding-set=-all", "--inh-caps=-all"]
    return [*words, *(["--no-new-privs"] if "no-new-privileges:true" in service.told.get("security_opt", ()) else [])]


def _bind(source: Path, root: Path, how: str, target: str | None = None) -> str:
    place = f".{target or source}"
    make = f"mkdir -p {place}" if source.is_dir() else f"mkdir -p {Path(place).parent} && touch {place}"
    return f"{make} && mount --{how} {source} {place}"


def _bind_read_only(source: Path, root: Path, target: str) -> list[str]:
    return [_bind(source, root, "bind", target), f"mount -o remount,bind,ro .{target}"]


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
