"""How a worker's processes find each other: who may call, what is left behind, what is said when nobody is there."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from tinylora_worker.wire import private_folder
from tinylora_worker.wire.endpoint import Address, Serving, connect, dial, serve
from tinylora_worker.wire.worker_pb2 import Status, StatusRequest
from tinylora_worker.wire.worker_pb2_grpc import AgentServicer, AgentStub, add_AgentServicer_to_server

from tinylora.errors import NetworkError


class Agent(AgentServicer):
    def GetStatus(self, request: StatusRequest, context: grpc.ServicerContext) -> Status:
        return Status(pid=os.getpid())

    def Follow(self, request: StatusRequest, context: grpc.ServicerContext) -> Iterator[Status]:
        yield from (Status(step=step) for step in range(3))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of our own, with a short name."""
    with tempfile.TemporaryDirectory(prefix="rt ü", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture(params=["unix socket", "loopback"])
def way(request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "loopback":
        monkeypatch.delattr(socket, "AF_UNIX")
    return request.param


def serving(home: Path) -> Serving:
    return serve([partial(add_AgentServicer_to_server, Agent())], home, "agent")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_calls_go_through_and_nothing_stays(way: str, place: Path, tmp_path: Path) -> None:
    home = tmp_path / ("a long home with spaces and ümlauts " * 4)
    home.mkdir()
    with serving(home) as served:
        assert served.address.target.startswith("unix:") == (way == "unix socket")
        assert mode(home / "agent.json") == 0o600
        with connect(home, "agent") as channel:
            assert AgentStub(channel).GetStatus(StatusRequest()).pid == os.getpid()
            assert [status.step for status in AgentStub(channel).Follow(StatusRequest())] == [0, 1, 2]
    assert [*home.iterdir(), *place.iterdir()] == []


def test_who_does_not_know_the_token_is_refused(way: str, tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        for token in ("", "0" * 64):
            with dial(Address(served.address.target, token)) as channel:
                with pytest.raises(grpc.RpcError) as one:
                    AgentStub(channel).GetStatus(StatusRequest())
                with pytest.raises(grpc.RpcError) as many:
                    list(AgentStub(channel).Follow(StatusRequest()))
            assert one.value.code() is many.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert served.address.token not in repr(served.address)


def test_other_users_cannot_reach_the_socket(place: Path, tmp_path: Path) -> None:
    with serving(tmp_path):
        (folder,) = place.iterdir()
        assert mode(folder) == 0o700 and (folder / "agent.sock").is_socket()


def test_a_folder_that_is_too_long_for_sockets_is_passed_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = place / ("x" * 80)
    far.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(far))
    assert private_folder.places() == (Path(tempfile.gettempdir()),)


# --- nobody there -----------------------------------------------------------------------------------------------------


def test_without_a_worker_one_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"no worker is at work for .*start one with `tinylora-worker run`"):
        connect(tmp_path, "agent")


def test_a_note_that_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text('{"pid": "me"}')
    with pytest.raises(NetworkError, match="not readable as the address of a worker"):
        connect(tmp_path, "agent")


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started_s": 1.0}], ids=["pid gone", "pid used again"])
def test_a_note_of_a_process_that_has_died(place: Path, tmp_path: Path, change: dict[str, object]) -> None:
    with serving(tmp_path):
        note = json.loads((tmp_path / "agent.json").read_text())
    (tmp_path / "agent.json").write_text(json.dumps(note | change))
    with pytest.raises(NetworkError, match=r"process \d+ has ended"):
        connect(tmp_path, "agent", deadline_s=0.1)


def test_a_clock_that_was_set_is_no_death(place: Path, tmp_path: Path) -> None:
    with serving(tmp_path):
        note = json.loads((tmp_path / "agent.json").read_text())
        (tmp_path / "agent.json").write_text(json.dumps(note | {"started_s": note["started_s"] - 3600}))
        with connect(tmp_path, "agent") as channel:
            assert AgentStub(channel).GetStatus(StatusRequest()).pid == os.getpid()


def test_a_worker_that_does_not_answer(place: Path, tmp_path: Path) -> None:
    with serving(tmp_path):
        note = (tmp_path / "agent.json").read_text()
    (tmp_path / "agent.json").write_text(note)
    with pytest.raises(NetworkError, match=r"does not answer within 0.1 s"):
        connect(tmp_path, "agent", deadline_s=0.1)


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(place: Path) -> None:
    alive = private_folder.PrivateFolder([place])
    program = (
        "import os, pathlib, sys; from tinylora_worker.wire.private_folder import PrivateFolder\n"
        "folder = PrivateFolder([pathlib.Path(sys.argv[1])]); (folder.path / 'agent.sock').touch(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(place)], check=False).returncode == 9
    (dead,) = set(place.iterdir()) - {alive.path}
    fresh = private_folder.PrivateFolder([place])
    assert not dead.exists() and alive.path.is_dir() and fresh.path.is_dir()
    for folder in (alive, fresh):
        folder.remove()
    assert list(place.iterdir()) == []


def test_a_folder_whose_maker_died_before_it_was_locked(place: Path) -> None:
    unnamed = Path(tempfile.mkdtemp(prefix=".tlw-", dir=place))
    made_s = unnamed.stat().st_mtime
    private_folder.remove_leftovers(place, now_s=made_s + 59)
    assert unnamed.is_dir()
    private_folder.remove_leftovers(place, now_s=made_s + 61)
    assert not unnamed.exists()
