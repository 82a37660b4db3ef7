"""The system's units: read by systemd itself, and their commands run under the sandbox that they describe.

No systemd is at work where tests run, so nothing is started by it. `sandbox` does to a process what the unit says.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tinylora_worker import service_unit

from tests.coordinator.running import free_port
from tests.deploy.sandbox import UID, read_unit, words_of
from tests.deploy.test_backup import SETTINGS, accepted, command, token
from tests.flower.helpers import until
from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tinylora.bundle import verify

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1200)]

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
PREFIX = "/opt/tinylora/bin"
MOST = {"tinylora-coordinator@.service": 3.0, "tinylora-worker@.service": 5.0, "tinylora-backup@.service": 3.0}
"""Exposure, from 0 to 10, as `systemd-analyze security` counts it."""


def unit(name: str) -> dict[str, list[str]]:
    return read_unit((UNITS / name).read_text())


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60)


# --- as systemd reads them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MOST, "tinylora-backup@.timer"])
def test_systemd_has_nothing_to_say(tmp_path: Path, name: str) -> None:
    """Its verifier ends with 0 even where it has found something; only silence counts. It looks for programs, too."""
    here = str(Path(sys.executable).parent)
    for file in UNITS.glob("tinylora-*"):
        (tmp_path / file.name).write_text(file.read_text().replace(PREFIX, here))
    done = analyze("verify", "--man=no", tmp_path / name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n[Unit]\nNoSuchThing=yes\n")
    assert "NoSuchThing" in analyze("verify", "--man=no", tmp_path / name).stderr


@pytest.mark.parametrize("name", MOST)
def test_exposure_is_within_bounds(name: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={MOST[name] * 10:.0f}", UNITS / name)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert done.returncode == 0 and found is not None, done.stdout + done.stderr
    print(f"{name}: {found[1]}, at most {MOST[name]}")
    assert float(found[1]) <= MOST[name]


def test_users_and_folders_are_as_the_units_need_them(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for program, file in (("systemd-sysusers", "sysusers.conf"), ("systemd-tmpfiles", "tmpfiles.conf")):
        create = ["--create"] if program == "systemd-tmpfiles" else []
        line = [program, *create, f"--root={tmp_path}", "-"]
        done = subprocess.run(line, input=(UNITS / file).read_text(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    names = {line.split(":")[0] for line in (tmp_path / "etc" / "passwd").read_text().splitlines()}
    assert {unit(name)["User"][0] for name in MOST} == names == {"tinylora", "tinylora-worker"}
    assert (tmp_path / "var/backups/tinylora").stat().st_mode & 0o777 == 0o700


def test_both_kinds_of_worker_units_stop_and_start_alike() -> None:
    """The one for the system, and the one that `service install` writes for its user."""
    place = service_unit.Place("linux", Path("/u"), sys.executable, {}, lambda name: None, lambda words: False)
    users, ours = read_unit(service_unit.systemd_unit(Path("/u/home"), place)), unit("tinylora-worker@.service")
    for key in set(users) - {"Description", "ExecStart", "WantedBy"}:
        assert ours[key] == users[key], key
    assert unit("tinylora-coordinator@.service")["RestartPreventExitStatus"] == ["2 8"]


def test_commands_are_ones_that_the_programs_know() -> None:
    """Each word that begins with dashes is an option of that verb."""
    environment = {"TINYLORA_SERVE": "--host 0.0.0.0 --port 8443", "TINYLORA_JOIN": "--data /srv/texts"}
    for name in ("tinylora-coordinator@.service", "tinylora-worker@.service"):
        program, verb, *rest = words_of(unit(name), environment, "colours")
        module = Path(program).name.replace("-", "_")
        line = [sys.executable, "-m", module, verb, "--help"]
        shown = subprocess.run(line, capture_output=True, text=True, timeout=100, env=os.environ | {"COLUMNS": "200"})
        assert all(word in shown.stdout for word in rest if word.startswith("--")), rest


# --- in their sandboxes -----------------------------------------------------------------------------------------------


class Host:
    """A machine as the units see it, made of folders of the test."""

    def __init__(self, root: Path) -> None:
        self.root, self.processes = root, list[subprocess.Popen[bytes]]()
        self.binds = {"/opt/tinylora": sys.prefix}
        for name, path in (
            ("state", "/var/lib/tinylora"),
            ("workers", "/var/lib/tinylora-worker"),
            ("cache", "/var/cache/tinylora-worker"),
            ("backups", "/var/backups/tinylora"),
            ("srv", "/srv/tinylora"),
        ):
            (root / name).mkdir()
            self.binds[path] = str(root / name)

    def start(self, name: str, instance: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """The unit's command, or another one, in the unit's sandbox; what it says goes to a file."""
        for folder in ("state", "workers", "cache", "backups"):
            give(self.root / folder)
        line = [
            sys.executable,
            "-m",
            "tests.deploy.sandbox",
            str(UNITS / name),
            instance,
            json.dumps(self.binds),
            *words,
        ]
        with open(self.said_file(instance), "ab") as said:
            process = subprocess.Popen(line, stdout=said, stderr=said, env=os.environ | environment)
        self.processes.append(process)
        return process

    def said_file(self, instance: str) -> Path:
        return self.root / f"{instance}.said"

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                for child in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            process.wait()


def give(folder: Path) -> None:
    """To the user of the units."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    try:
        yield made
    finally:
        made.close()


PROBE = """
import ctypes, errno, os, socket, sys
def tried(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def unshare():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")
def write(path):
    with open(path, "w"):
        pass
state = sys.argv[1]
import json
print(json.dumps({
    "state": tried(lambda: write(state + "/probe")), "tmp": tried(lambda: write("/tmp/probe")),
    "etc": tried(lambda: write("/etc/probe")), "program": tried(lambda: write("/opt/tinylora/probe")),
    "packet": tried(lambda: socket.socket(17, socket.SOCK_RAW)), "namespace": tried(unshare),
    "chown": tried(lambda: os.chown(state, os.getuid(), os.getgid())), "others": os.path.exists("/proc/1/cmdline"),
    "disk": os.path.exists("/dev/kmsg"), "tmp is its own": os.listdir("/tmp") == ["probe"],
    "user": os.getuid(),
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")],
}))
"""


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("tinylora-coordinator@.service", "/var/lib/tinylora/colours"),
        ("tinylora-worker@.service", "/var/lib/tinylora-worker/colours"),
        ("tinylora-backup@.service", "/var/lib/tinylora/colours"),
    ],
)
def test_the_sandbox_is_one(host: Host, name: str, state: str) -> None:
    for folder in ("state", "workers"):
        (host.root / folder / "colours").mkdir()
    process = host.start(name, "colours", f"{PREFIX}/python", "-c", PROBE, state)
    assert process.wait(60) == 0, host.said_file("colours").read_text()
    found = json.loads(host.said_file("colours").read_text())
    is_worker = "worker" in name
    expected = {
        "state": "done", "tmp": "done", "etc": "EROFS", "program": "EROFS", "packet": "EPERM", "namespace": "EPERM",
        "chown": "EPERM", "others": is_worker, "disk": is_worker, "tmp is its own": True, "user": UID,
        "capabilities": ["0" * 16] * 5,
    }  # fmt: skip
    assert found == expected


def test_a_run_begins_and_ends_in_the_sandboxes_and_is_backed_up_in_one(host: Host) -> None:
    """All three units' own commands, with the paths that stand in them: a real worker trains a real, tiny base."""
    run, port = host.root / "state" / "colours", free_port()
    settings = SETTINGS | {"name": "colours", "min_workers": 1, "depth": 0, "leaf_steps": 24}
    words = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command("init", run, "--base", tiny_base_dir(), "--host", "127.0.0.1", *words)
    credentials = host.root / "srv" / "credentials"
    credentials.mkdir()
    (credentials / "token").write_text(token(run))
    (host.root / "srv" / "texts").mkdir()
    for number in range(12):
        (host.root / "srv" / "texts" / f"{number}.txt").write_text(f"text {number} " + f"word{number} " * 60)
    shutil.copytree(tiny_base_dir(), host.root / "srv" / "base")
    give(host.root / "srv" / "base")
    (host.root / "workers" / "one").mkdir()
    for path in (credentials / "token", credentials):
        os.chown(path, UID, UID)

    serve = host.start("tinylora-coordinator@.service", "colours", TINYLORA_SERVE=f"--port {port} --no-dashboard")
    said = host.said_file("colours")
    until(lambda: "serving" in said.read_text() or serve.poll() is not None, timeout_s=200.0, what="the coordinator")
    worker = host.start(
        "tinylora-worker@.service",
        "one",
        TINYLORA_URL=f"https://127.0.0.1:{port}",
        TINYLORA_JOIN="--data /srv/tinylora/texts --base /srv/tinylora/base --threads 1",
        CREDENTIALS_DIRECTORY="/srv/tinylora/credentials",
    )
    until(lambda: len(accepted(run)) >= 2 or worker.poll() is not None, timeout_s=400.0, what="an update")
    assert worker.poll() is None, host.said_file("one").read_text()
    backup = host.start("tinylora-backup@.service", "colours")
    assert backup.wait(200) == 0, said.read_text()
    (file,) = (host.root / "backups").iterdir()
    assert re.fullmatch(r"colours-[1-7]\.tar", file.name) and file.stat().st_mode & 0o777 == 0o600
    until(lambda: serve.poll() is not None, timeout_s=400.0, what="the end of the run")
    assert (serve.returncode, worker.wait(60)) == (0, 0), host.said_file("one").read_text()
    assert verify(run / "bundle.safetensors")
    found = json.loads(command("restore", file, host.root / "elsewhere", "--json"))
    assert found["run"] == "colours" and found["n_events"] >= 2


def test_a_stop_is_a_clean_end(host: Host) -> None:
    """The signal of the unit, to the main process alone, within the time that the unit gives."""
    run, found = host.root / "state" / "colours", unit("tinylora-coordinator@.service")
    command("init", run, "--base", tiny_base_dir(), "--host", "127.0.0.1", "--set", f"window_tokens={WINDOW_TOKENS}")
    serve = host.start("tinylora-coordinator@.service", "colours", TINYLORA_SERVE="--port 0 --no-dashboard")
    said = host.said_file("colours")
    until(lambda: "serving" in said.read_text() or serve.poll() is not None, timeout_s=200.0, what="the coordinator")
    family = psutil.Process(serve.pid).children(recursive=True)
    serve.send_signal(signal.Signals[found["KillSignal"][0]])
    assert serve.wait(float(found["TimeoutStopSec"][0])) == 0 and "takes the run up again" in said.read_text()
    assert not psutil.wait_procs(family, timeout=10.0)[1]
