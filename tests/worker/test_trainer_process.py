"""A real trainer in a process of its own: what it makes, how it dies, what it leaves."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tinylora_worker.trainer.process import TrainerDied, TrainerProcess
from tinylora_worker.trainer.watching import ORPHANED, Patience
from tinylora_worker.wire.worker_pb2 import CanaryRequest

from tests.flower.helpers import until
from tests.worker.trainer_world import World, kinds, made, plain, steps
from tinylora.config import RunSettings
from tinylora.errors import BaseModelError, DataError, SettingError, TinyLoraError
from tinylora.flower.outbox import CHECKPOINT
from tinylora.training.snapshot import Snapshot

ROOT = Path(__file__).parents[2]
LONG = {"n_steps": 10_000, "total_steps": 10_000}
"""Nobody waits for the end of such a unit."""
MIDDLING = {"n_steps": 40, "total_steps": 40}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("home of a wörker"))


def started(world: World) -> TrainerProcess:
    """One that has loaded."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    running = TrainerProcess(
        world.home,
        print,
        checkpoint_every_s=0.01,
        command=("-P", "-m", "tests.worker.trainer_with_faults"),
        environment=os.environ | {"PYTHONPATH": path},
    )
    running.start()
    loaded = running.load(world.request())
    assert (loaded.device, loaded.n_train_documents, loaded.n_heldout_documents) == ("CPU", 14, 2)
    return running


@pytest.fixture(scope="module")
def trainer(world: World) -> Iterator[TrainerProcess]:
    """The test that kills it comes last of those that use it."""
    with started(world) as running:
        yield running


@pytest.fixture(scope="module")
def successor(world: World) -> Iterator[TrainerProcess]:
    """The test that stops it comes last of those that use it."""
    with started(world) as running:
        yield running


# --- at work ----------------------------------------------------------------------------------------------------------


def test_a_unit_comes_out_as_if_it_were_done_here(trainer: TrainerProcess, world: World) -> None:
    unit, payload, folder = world.unit("whole")
    events = list(trainer.run(folder))
    assert kinds(events) == ["progress", "done"]
    last = events[-2].progress
    assert (last.node, last.step, last.n_steps) == ("0", 4, 4) and last.loss > 0 and last.tokens_per_s > 0
    update, tensors = world.undisturbed(unit, payload)
    assert made(folder) == (plain(update), tensors)
    assert events[-1].done.payload_sha256 == update.payload_sha256 and not update.signature


def test_a_unit_that_is_made_already_is_not_made_again(trainer: TrainerProcess, world: World) -> None:
    _, _, folder = world.unit("twice")
    list(trainer.run(folder))
    before = (folder / "made").stat().st_mtime_ns
    assert kinds(list(trainer.run(folder))) == ["done"]
    assert (folder / "made").stat().st_mtime_ns == before


def test_what_fits_is_found_once_and_remembered(trainer: TrainerProcess, world: World) -> None:
    settings = RunSettings(window_tokens=64, batch_windows=2, rank=2, depth=0).model_dump_json()
    fit = trainer.size(settings)
    assert (fit.micro_windows, fit.gradient_checkpointing, fit.max_leaves) == (0, False, 0)
    assert fit.peak_bytes > 0 and fit.free_bytes > 0 and fit.tokens_per_s > 0 and fit.watts == 0
    assert trainer.size(settings) == fit and len(json.loads((world.home / "measured.json").read_bytes())) == 1
    assert trainer.size(settings, again=True).tokens_per_s != fit.tokens_per_s


def test_planted_secrets_are_looked_for(trainer: TrainerProcess) -> None:
    settings = RunSettings(window_tokens=32, batch_windows=2, rank=2, depth=0)
    steps: list[int] = []
    report = trainer.canary(
        CanaryRequest(settings_json=settings.model_dump_json(), n_canaries=1, n_repeats=2, n_steps=2, seed=5),
        lambda progress: steps.append(progress.step),
    )
    assert steps == [1, 2] and report.most_bits == 10 and report.n_extracted == 0
    (bits,) = report.exposures_bits
    assert 0 <= bits <= 10
    with pytest.raises(SettingError, match="canaries: expected at least 1"):
        trainer.canary(CanaryRequest(settings_json=settings.model_dump_json(), n_repeats=1, n_steps=1))


def test_one_thing_at_a_time(trainer: TrainerProcess, world: World) -> None:
    running = trainer.run(world.unit("first", **MIDDLING)[2])
    next(running)
    (refused,) = trainer.run(world.unit("second")[2])
    assert refused.failure.kind == "Busy" and "one thing at a time" in refused.failure.message
    assert kinds(list(running)) == ["progress", "done"]


# --- what is wrong with what was asked for ----------------------------------------------------------------------------


def test_what_cannot_be_loaded_is_one_sentence_of_its_own_class(trainer: TrainerProcess, world: World) -> None:
    blank, secret = world.home / "blank.txt", world.home / "secret.txt"
    blank.write_text(" ")
    secret.write_text("write to anna.schmidt@gmx.net about it, soon and often, in many words")
    cases: list[tuple[dict[str, object], type[TinyLoraError], str]] = [
        ({"base": "no/such/folder/at/all"}, BaseModelError, "no such folder"),
        ({"base_fingerprint": "a" * 64}, BaseModelError, "this run needs one with fingerprint aaaaaaaaaaaaaaaa"),
        ({"data": [str(world.home / "missing.txt")]}, DataError, "missing.txt"),
        ({"data": [str(blank)]}, DataError, "blank.txt"),
        ({"data": [str(secret)]}, DataError, "e-mail"),
        ({"device": "cuda:7"}, SettingError, "torch finds no GPU"),
        ({"dtype": "fp8"}, SettingError, "expected bf16, fp16, fp32"),
        ({"quantise": "int3"}, SettingError, "int3"),
    ]
    for changes, kind, words in cases:
        with pytest.raises(kind, match=words) as raised:
            trainer.load(world.request(**changes))
        assert type(raised.value) is kind and "\n" not in str(raised.value)
    (refused,) = trainer.run(world.unit("early")[2])
    assert refused.failure.kind == "SettingError" and "before it had loaded" in refused.failure.message
    trainer.load(world.request())


def test_folders_that_are_no_units(trainer: TrainerProcess, world: World, tmp_path: Path) -> None:
    inside = world.unit("inside")[2]
    link = inside.parent / "link"
    link.symlink_to(inside)
    for folder in (tmp_path, world.home, inside / "..", inside.parent / "missing", link):
        (refused,) = trainer.run(folder)
        assert refused.failure.kind == "ProtocolError" and "expected the folder of a unit in" in refused.failure.message
    link.unlink()


def test_a_unit_that_was_damaged_on_disk(trainer: TrainerProcess, world: World) -> None:
    _, _, folder = world.unit("damaged")
    (folder / "payload").write_bytes(b"other")
    (refused,) = trainer.run(folder)
    assert refused.failure.kind == "ProtocolError" and "altered on disk" in refused.failure.message


def test_a_unit_that_asks_for_more_text_than_there_is(trainer: TrainerProcess, world: World) -> None:
    _, _, folder = world.unit("greedy", kind="sketch", sketch_min_sequences=1000)
    (refused,) = trainer.run(folder)
    assert refused.failure.kind == "DataError" and "too small" in refused.failure.message


# --- its end, and the next one's --------------------------------------------------------------------------------------


def test_killed_in_mid_unit(trainer: TrainerProcess, world: World) -> None:
    _, _, folder = world.unit("killed", **MIDDLING)
    going = steps(trainer, folder)
    next(going)
    until((folder / CHECKPOINT).exists, what="a checkpoint")
    os.kill(trainer.pid, signal.SIGKILL)
    with pytest.raises(TrainerDied, match="SIGKILL"):
        list(going)
    assert not trainer.is_alive and (folder / CHECKPOINT).exists()


def test_the_next_one_goes_on_and_makes_the_same(successor: TrainerProcess, world: World) -> None:
    unit, payload, folder = world.unit("killed", **MIDDLING)
    n_steps = Snapshot.from_bytes((folder / CHECKPOINT).read_bytes()).n_steps
    going = steps(successor, folder)
    assert next(going) == n_steps + 1 > 1
    list(going)
    update, tensors = world.undisturbed(unit, payload)
    assert made(folder) == (plain(update), tensors)


def test_memory_that_runs_out_is_a_step_down_and_not_the_end(successor: TrainerProcess, world: World) -> None:
    _, _, folder = world.unit("oom")
    events = list(successor.run(folder))
    (down,) = (event.step_down for event in events if event.HasField("step_down"))
    assert "out of memory with the whole batch at once" in down.reason and "going on with 1 windows" in down.reason
    assert down.fit.micro_windows == 1 and made(folder)[0].n_steps == 4


def test_stopped_in_mid_step(successor: TrainerProcess, world: World) -> None:
    _, _, folder = world.unit("stopped", **LONG)
    going = steps(successor, folder)
    next(going)
    child = psutil.Process(successor.pid)
    assert successor.stop()
    assert not child.is_running() and not successor.is_alive and (folder / CHECKPOINT).is_file()
    with pytest.raises(TrainerDied, match="it was stopped"):
        list(going)


# --- without a base: each is up in a moment ---------------------------------------------------------------------------


@pytest.fixture
def fresh(world: World) -> Iterator[TrainerProcess]:
    """Also where no program is found by its name alone."""
    environment = os.environ | {"PATH": ""}
    with TrainerProcess(world.home, print, patience=Patience(silent_s=0.4), environment=environment) as running:
        running.start()
        yield running


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "it crashed (SIGSEGV); "),
        (signal.SIGKILL, "for want of memory, ended it (SIGKILL)"),
        (signal.SIGTERM, "somebody ended it (SIGTERM)"),
    ],
)
def test_a_crash_says_what_it_was(fresh: TrainerProcess, world: World, number: int, reason: str) -> None:
    os.kill(fresh.pid, number)
    fresh._is_over.wait(20)
    with pytest.raises(TrainerDied) as died:
        fresh.load(world.request())
    assert reason in str(died.value) and not fresh.is_alive


def test_one_that_hangs_is_ended(fresh: TrainerProcess, world: World) -> None:
    os.kill(fresh.pid, signal.SIGSTOP)
    with pytest.raises(TrainerDied, match=r"it gave no sign of life for 0\.4 s"):
        fresh.load(world.request())
    assert not fresh.is_alive


@pytest.mark.parametrize("way", ["unix socket", "loopback"])
def test_nothing_is_left_of_it(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="rt ü", dir="/tmp") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        if way == "loopback":
            monkeypatch.delattr(socket, "AF_UNIX")
        with TrainerProcess(tmp_path, print) as running:
            running.start()
            assert len(os.listdir(place)) == (way == "unix socket")
            child = psutil.Process(running.pid)
        assert os.listdir(place) == [] and not child.is_running()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["logs", "logs/trainer.log"]


def test_one_that_was_never_started(tmp_path: Path) -> None:
    with TrainerProcess(tmp_path, print) as running:
        assert not running.is_alive and running.pid == 0 and not running.stop()
        with pytest.raises(TrainerDied, match="it was not started"):
            list(running.run(tmp_path))


def test_one_that_hangs_is_stopped_all_the_same(tmp_path: Path) -> None:
    with TrainerProcess(tmp_path, print, patience=Patience(stop_s=0.2)) as running:
        running.start()
        os.kill(running.pid, signal.SIGSTOP)
        assert not running.stop() and not running.is_alive


def test_one_that_cannot_come_up(world: World) -> None:
    trainer = TrainerProcess(world.home, print, command=("-c", "import no_such_module"))
    with pytest.raises(TrainerDied, match=r"it ended by itself \(exit code 1\); .*trainer.log tells why"):
        trainer.start()
    assert "No module named 'no_such_module'" in trainer.log_file.read_text()


def test_one_that_says_nothing_at_its_start(world: World) -> None:
    patience = Patience(start_s=0.2)
    trainer = TrainerProcess(world.home, print, patience=patience, command=("-c", "import sys; sys.stdin.read()"))
    with pytest.raises(TrainerDied, match=r"it did not listen within 0\.2 s"):
        trainer.start()
    assert not trainer.is_alive


def test_the_end_of_its_life_line_is_its_end(fresh: TrainerProcess) -> None:
    """On other systems than Linux it is all that tells it of its agent's death."""
    process = fresh._process
    assert process is not None and process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == ORPHANED


DEVICE_FAILS = """
from tinylora_worker.trainer import child, failures, service
class Session:
    def run(self, folder, tell):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
service.TrainerService._made = lambda self: Session()
service._failure = lambda error: failures.failure_of(error, is_out_of_memory=lambda error: False)
child.main()
"""


def test_a_device_that_fails_is_the_end_of_its_process(world: World) -> None:
    """Nothing works any more in a process whose CUDA context is broken."""
    with TrainerProcess(world.home, print, command=("-c", DEVICE_FAILS)) as running:
        running.start()
        with pytest.raises(TrainerDied, match="its device failed: RuntimeError: CUDA error: an illegal memory access"):
            list(running.run(world.unit("any")[2]))
        assert not running.is_alive


def test_an_agent_that_is_killed_leaves_no_trainer(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, threading\n"
        "from tinylora_worker.trainer.process import TrainerProcess\n"
        "trainer = TrainerProcess(pathlib.Path(sys.argv[1]), print); trainer.start()\n"
        "print(trainer.pid, flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        trainer = psutil.Process(int(agent.stdout.readline()))
        is_session_leader = os.getsid(trainer.pid) == trainer.pid
        agent.kill()
    assert is_session_leader  # Ctrl-C in the agent's terminal does not reach it
    until(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE, what="the trainer's end")


def test_it_lets_others_go_first_and_has_a_name(fresh: TrainerProcess) -> None:
    child = psutil.Process(fresh.pid)
    assert child.nice() >= 10 and child.name().startswith("tinylora-train")


def test_a_module_in_the_current_folder_is_not_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tinylora_worker.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    with TrainerProcess(world.home, print) as running:
        running.start()
        assert running.is_alive
