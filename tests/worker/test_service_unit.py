"""What `service install` writes, read back by the programs that it is written for."""

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest
from tinylora_worker.service_unit import MARK, Place, Service, command, describe, install, uninstall

from tinylora.errors import SettingError, StorageError

ODD = "Ä b/50% \"q\" 'p' $HOME ${X} ü\\n #"


class Commands:
    """Answers commands as a service manager would, and remembers them."""

    def __init__(self, *, works: bool = True) -> None:
        self.works, self.said = works, []

    def __call__(self, words: Sequence[str]) -> bool:
        self.said.append(" ".join(words))
        return self.works


def place(tmp_path: Path, system: str = "linux", run: Commands | None = None, **environment: str) -> Place:
    return Place(
        system, tmp_path / "user", sys.executable, environment, lambda name: f"/usr/bin/{name}", run or Commands()
    )


def joined(home: Path) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / "membership.json").write_text("{}")
    return home


def fields(unit: bytes) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.decode().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def words(exec_start: str) -> list[str]:
    """As systemd reads them; double quotes and backslashes are those of a shell."""
    return [word.replace("$$", "$").replace("%%", "%") for word in shlex.split(exec_start)]


def verify(service: Service, tmp_path: Path) -> None:
    """By systemd itself, where there is one."""
    if (program := shutil.which("systemd-analyze")) is None:
        return
    file = tmp_path / service.name
    file.write_bytes(service.content)
    runtime = tmp_path / "runtime"
    runtime.mkdir(exist_ok=True)
    environment = os.environ | {"XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(
        [program, "verify", "--user", str(file)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_says_how_to_stop_when_to_restart_and_how_low_it_ranks(tmp_path: Path) -> None:
    found = fields(describe(tmp_path, place(tmp_path)).content)
    expected = {
        "Type": "exec",
        "KillSignal": "SIGINT",
        "KillMode": "mixed",
        "Restart": "on-failure",
        "RestartPreventExitStatus": "2 3 4 7",
        "OOMPolicy": "continue",
        "IOSchedulingClass": "idle",
        "Nice": "10",
        "NoNewPrivileges": "yes",
        "WantedBy": "default.target",
    }
    assert {key: found[key] for key in expected} == {key: [value] for key, value in expected.items()}
    assert int(found["TimeoutStopSec"][0]) > 30
    assert words(found["ExecStart"][0]) == command(tmp_path, place(tmp_path))


def test_systemd_takes_it_with_an_odd_home_and_an_odd_environment(tmp_path: Path) -> None:
    home = tmp_path / ODD
    where = place(tmp_path, HF_HOME=f"/models/{ODD}", HF_TOKEN="secret", HTTPS_PROXY="http://proxy:8080")
    service = describe(home, where)
    found = fields(service.content)
    assert words(found["ExecStart"][0])[-1] == str(home)
    kept = [shlex.split(value.replace("%%", "%"))[0] for value in found["Environment"]]
    assert kept == [f"HF_HOME=/models/{ODD}", "HTTPS_PROXY=http://proxy:8080"]
    assert b"secret" not in service.content
    verify(service, tmp_path)


@pytest.mark.parametrize("folder", ["py ü 50% #", 'py "q"', "py'p", "py$HOME", "py\\b"])
def test_systemd_takes_an_odd_interpreter(tmp_path: Path, folder: str) -> None:
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    where = replace(place(tmp_path), executable=str(python))
    service = describe(tmp_path / "home", where)
    found = words(fields(service.content)["ExecStart"][0])
    assert found[-7:] == command(tmp_path / "home", where) and found[:-7] in ([], ["/usr/bin/env"])
    if folder in ("py ü 50% #", 'py "q"'):  # one of either kind: systemd takes its time
        verify(service, tmp_path)


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("linux", "a\nb"),
        ("linux", "a\x7fb"),
        ("linux", os.fsdecode(b"\xff")),
        ("darwin", "a\x01b"),
        ("darwin", os.fsdecode(b"\xff")),
    ],
)
def test_a_path_that_no_service_can_name_is_refused(tmp_path: Path, system: str, name: str) -> None:
    with pytest.raises(SettingError):
        describe(tmp_path / name, place(tmp_path, system))


def test_the_property_list_is_read_back(tmp_path: Path) -> None:
    home = tmp_path / ODD
    where = place(tmp_path, "darwin", HF_HOME="/models & more", HF_TOKEN="secret")
    service = describe(home, where)
    found = plistlib.loads(service.content)
    assert found["ProgramArguments"] == command(home, where)
    assert found["Label"] == service.name and service.file.name == f"{service.name}.plist"
    assert found["EnvironmentVariables"] == {"HF_HOME": "/models & more"}
    assert found["KeepAlive"] == {"SuccessfulExit": False} and found["ExitTimeOut"] > 30
    assert MARK in service.content.decode()[:300] and service.content.startswith(b"<?xml")


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_uninstall_removes_exactly_what_install_wrote(tmp_path: Path, system: str) -> None:
    home, run = joined(tmp_path / "ä b"), Commands()
    where = place(tmp_path, system, run)
    file = describe(home, where).file
    file.parent.mkdir(parents=True)
    (file.parent / "other.service").write_text("not ours")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lines = install(home, where)
    assert lines[0] == f"{file}: written" and "starts by itself" in lines[1]
    assert file.read_bytes() == describe(home, where).content
    assert install(home, where)[0] == lines[0]  # again is an update
    run.said.clear()
    assert f"{file}: removed" in uninstall(home, where)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    stop = "systemctl --user disable --now" if system == "linux" else "launchctl bootout"
    assert run.said[0].startswith(stop)
    assert uninstall(home, where) == [f"{file}: is not there; nothing to do"]


def test_without_a_service_manager_it_is_told_what_to_type(tmp_path: Path) -> None:
    home = joined(tmp_path / "home")
    where = place(tmp_path, run=Commands(works=False))
    name = describe(home, where).name
    typed = [f"to type: systemctl --user {verb}" for verb in ("daemon-reload", f"enable {name}", f"restart {name}")]
    assert install(home, where)[1:4] == typed
    assert install(home, replace(where, find=lambda _: None))[1:4] == typed
    wanted = describe(home, where).file.parent / "default.target.wants" / name
    wanted.parent.mkdir()
    wanted.symlink_to(describe(home, where).file)  # as he would have typed it
    lines = uninstall(home, where)
    assert lines[0] == f"to type: systemctl --user disable --now {name}" and not wanted.is_symlink()


def test_lingering_is_proposed_where_it_is_off(tmp_path: Path) -> None:
    assert "enable-linger" in install(joined(tmp_path / "home"), place(tmp_path, USER="nobody-of-this-name"))[-1]


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    home, where = joined(tmp_path / "home"), place(tmp_path)
    file = describe(home, where).file
    file.parent.mkdir(parents=True)
    file.write_text("[Service]\nExecStart=/bin/mine\n")
    for do in (install, uninstall):
        with pytest.raises(StorageError, match="is not ours"):
            do(home, where)
    assert "mine" in file.read_text()


def test_a_home_that_has_joined_nothing_gets_no_service(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has joined no run yet"):
        install(tmp_path / "home", place(tmp_path))
    assert not (tmp_path / "user").exists()


def test_each_home_has_a_service_of_its_own_and_the_usual_one_the_plain_name(tmp_path: Path) -> None:
    usual = Path(platformdirs.user_data_dir("tinylora"), "worker")
    names = [describe(home, place(tmp_path)).name for home in (usual, tmp_path / "a", tmp_path / "b")]
    assert names[0] == "tinylora-worker.service" and len(set(names)) == 3


def test_a_system_that_we_do_not_know_gets_the_command(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="-m tinylora_worker run --home"):
        describe(tmp_path, place(tmp_path, "win32"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("a file in its place")
    with pytest.raises(StorageError, match=r"\.config"):
        install(joined(tmp_path / "home"), place(tmp_path))
