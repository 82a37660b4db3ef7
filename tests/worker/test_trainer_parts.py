"""Parts of the trainer that need no child: jobs, checkpoints, failures as they travel, downloads, sizes once found."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tinylora_worker.trainer import downloads, measured
from tinylora_worker.trainer.checkpoint import Checkpoint
from tinylora_worker.trainer.failures import DEVICE_LOST, Unexpected, error_of, failure_of
from tinylora_worker.trainer.jobs import Bench, Busy
from tinylora_worker.trainer.made import is_made, read_made, write_made
from tinylora_worker.trainer.measured import Conditions
from tinylora_worker.trainer.reporting import Reporter
from tinylora_worker.trainer.sizes import highest_power
from tinylora_worker.wire.worker_pb2 import Failure, Fit

from tests.flower.helpers import make_unit, make_update, until
from tinylora import durable, errors
from tinylora.errors import DataError, ProtocolError, StorageError, TinyLoraError
from tinylora.failpoints import armed
from tinylora.flower.outbox import CHECKPOINT
from tinylora.training import Fit as TrainingFit
from tinylora.training.devices import Chosen

# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    threading.Thread(target=made.work, daemon=True).start()
    yield made


def asked(bench: Bench, *events: str, fails: str = "") -> Iterator[str]:
    def do(tell: Callable[[str], None]) -> str:
        for event in events:
            tell(event)
        if fails:
            raise ValueError(fails)
        return "done"

    return bench.ask(do, lambda error: f"failed: {type(error).__name__}: {error}")


def test_jobs_tell_what_happens_and_how_they_end(bench: Bench) -> None:
    assert list(asked(bench, "a", "b")) == ["a", "b", "done"]
    assert list(asked(bench, "a", fails="no")) == ["a", "failed: ValueError: no"]


@pytest.mark.parametrize("fails", ["", "no"])
def test_who_hears_the_end_may_ask_for_the_next(bench: Bench, fails: str) -> None:
    ends = {next(asked(bench, fails=fails)) for _ in range(200)}
    assert ends == {"failed: ValueError: no" if fails else "done"}


def test_a_job_that_nobody_listens_to_is_done_all_the_same(bench: Bench) -> None:
    going, over = threading.Event(), threading.Event()

    def slow(tell: Callable[[str], None]) -> str:
        tell("begun")
        going.wait(10)
        over.set()
        return "done"

    listening = bench.ask(slow, str)
    assert next(listening) == "begun"
    assert list(bench.ask(slow, lambda error: type(error).__name__)) == [Busy.__name__]
    del listening
    going.set()
    assert over.wait(10)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    n_steps: int

    def to_bytes(self) -> bytes:
        return str(self.n_steps).encode()


def test_each_finished_step_is_written_once_and_its_age_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, n_writes = [0.0], []
    latest: list[Step | None] = [None]
    whole = durable.replace_file
    monkeypatch.setattr(durable, "replace_file", lambda *args, **kwargs: (n_writes.append(1), whole(*args, **kwargs)))
    checkpoint = Checkpoint(tmp_path, lambda: latest[0], clock=lambda: times[0])
    assert not checkpoint.write()
    for n_steps, now in ((3, 10.0), (3, 20.0), (5, 30.0)):
        latest[0], times[0] = Step(n_steps), now
        assert checkpoint.write()
        assert (tmp_path / CHECKPOINT).read_bytes() == str(n_steps).encode()
    times[0] = 42.0
    assert checkpoint.age_s == 12.0 and len(n_writes) == 2


def test_a_full_disk_costs_the_checkpoint_and_not_the_unit(tmp_path: Path) -> None:
    latest: list[Step | None] = [Step(1)]
    checkpoint = Checkpoint(tmp_path, lambda: latest[0])
    assert checkpoint.write()
    latest[0] = Step(2)
    with armed("worker.checkpoint.write.before:enospc"):
        assert checkpoint.write()
    assert (tmp_path / CHECKPOINT).read_bytes() == b"1"
    assert checkpoint.write() and (tmp_path / CHECKPOINT).read_bytes() == b"2"


# --- progress ---------------------------------------------------------------------------------------------------------


def test_steps_are_told_five_times_a_second_and_the_last_one_always(tmp_path: Path) -> None:
    unit, times, told = make_unit("u1", b"x", n_steps=12, first_step=100), [0.0], []
    reporter = Reporter(unit, Checkpoint(tmp_path, lambda: None), told.append, lambda: times[0])
    for step in range(12):
        times[0] = step / 16
        reporter.on_step("", 100 + step, 1.0, 2.0)
    assert [event.progress.step for event in told] == [1, 5, 9, 12]
    reporter.on_step_down(TrainingFit(2), "less")
    assert (told[-1].step_down.reason, told[-1].step_down.fit.micro_windows) == ("less", 2)


# --- what a finished unit leaves --------------------------------------------------------------------------------------


def test_what_was_made_is_whole_and_of_this_very_unit(tmp_path: Path) -> None:
    unit = make_unit("u1", b"x")
    assert not is_made(tmp_path, unit)
    with pytest.raises(StorageError, match="has to be done again"):
        read_made(tmp_path)
    with armed("worker.made.made.json.write.before:enospc"), pytest.raises(StorageError, match="free some space"):
        write_made(tmp_path, make_update(unit, "w", b"y"), b"y")
    assert not is_made(tmp_path, unit)
    write_made(tmp_path, make_update(unit, "w", b"y"), b"y")
    assert is_made(tmp_path, unit) and read_made(tmp_path)[1].read_bytes() == b"y"
    assert not is_made(tmp_path, unit.model_copy(update={"nonce": "another"}))
    (tmp_path / "made.json").write_text("{}")
    assert not is_made(tmp_path, unit)
    with pytest.raises(ProtocolError):
        read_made(tmp_path)


# --- failures ---------------------------------------------------------------------------------------------------------


def travelled(error: BaseException) -> tuple[Failure, TinyLoraError]:
    failure = failure_of(error, is_out_of_memory=lambda error: isinstance(error, torch.OutOfMemoryError))
    return failure, error_of(Failure.FromString(failure.SerializeToString()))


@pytest.mark.parametrize("error", [DataError("no text"), StorageError("full", rule="TL-DISK-001")], ids=repr)
def test_foreseen_errors_arrive_as_they_were(error: TinyLoraError) -> None:
    _, arrived = travelled(error)
    assert (type(arrived), str(arrived), arrived.rule) == (type(error), str(error), error.rule)


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (KeyError("x"), "Unexpected", "KeyError: 'x'"),
        (
            RuntimeError("CUDA error: an illegal memory access\nmore"),
            DEVICE_LOST,
            "RuntimeError: CUDA error: an illegal",
        ),
        (torch.AcceleratorError("CUDA error: unspecified"), DEVICE_LOST, "AcceleratorError: CUDA error"),
        (
            torch.OutOfMemoryError("tried to allocate 2 GiB"),
            "OutOfMemory",
            "memory does not suffice: tried to allocate",
        ),
    ],
    ids=repr,
)
def test_unforeseen_errors_become_a_sentence(error: BaseException, kind: str, sentence: str) -> None:
    failure, arrived = travelled(error)
    assert failure.kind == kind and sentence in failure.message and "\n" not in failure.message
    assert isinstance(arrived, TinyLoraError)


@pytest.mark.parametrize("kind", ["os", "TinyLoraError.__init__", "", "SystemExit"])
def test_a_kind_that_is_no_error_of_ours(kind: str) -> None:
    assert type(error_of(Failure(kind=kind, message="m"))) is Unexpected
    assert not hasattr(errors, "Unexpected")


# --- downloads --------------------------------------------------------------------------------------------------------


def test_what_has_come_from_the_hub_is_told_while_it_comes(tmp_path: Path) -> None:
    folder = downloads.cache_of("org/name", tmp_path)
    assert folder is not None and folder == tmp_path / "models--org--name" / "blobs"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"12345")
    told: list[int] = []
    with downloads.watched(folder, told.append, every_s=0.001):
        (folder / "new.incomplete").write_bytes(b"123")
        until(lambda: told == [3], what="the first bytes")
        (folder / "new.incomplete").write_bytes(b"1234567")
        until(lambda: told == [3, 7], what="more bytes")


def test_a_base_in_a_folder_is_not_downloaded(tmp_path: Path) -> None:
    assert downloads.cache_of(str(tmp_path)) is None and downloads.bytes_in(None) == 0


# --- sizes ------------------------------------------------------------------------------------------------------------

CONDITIONS = Conditions(
    device="CPU",
    dtype="fp32",
    quantise="",
    memory_limit_bytes=0,
    n_threads=1,
    max_rank=0,
    max_leaves=0,
    base_fingerprint="a" * 64,
    settings="{}",
    versions="1 2 3",
)


def test_a_size_is_remembered_for_its_own_conditions(tmp_path: Path) -> None:
    fit = Fit(micro_windows=4, gradient_checkpointing=True, max_rank=8, peak_bytes=2**33, tokens_per_s=1.5)
    assert measured.recall(tmp_path, CONDITIONS) is None
    measured.remember(tmp_path, CONDITIONS, fit)
    assert measured.recall(tmp_path, CONDITIONS) == fit
    for change in ({"settings": "{1}"}, {"device": "RTX"}, {"versions": "1 2 4"}, {"memory_limit_bytes": 1}):
        assert measured.recall(tmp_path, CONDITIONS.model_copy(update=change)) is None
    measured.remember(tmp_path, CONDITIONS, Fit(micro_windows=2))
    assert measured.recall(tmp_path, CONDITIONS) == Fit(micro_windows=2)


def test_only_the_latest_sizes_are_kept(tmp_path: Path) -> None:
    many = [CONDITIONS.model_copy(update={"n_threads": number}) for number in range(measured.MOST + 1)]
    for conditions in many:
        measured.remember(tmp_path, conditions, Fit(micro_windows=1))
    assert measured.recall(tmp_path, many[0]) is None and measured.recall(tmp_path, many[1]) is not None


@pytest.mark.parametrize("content", [b"", b"[{}]", b'{"a": 1}', b"\xff"], ids=repr)
def test_a_damaged_memory_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / measured.FILE).write_bytes(content)
    assert measured.recall(tmp_path, CONDITIONS) is None
    measured.remember(tmp_path, CONDITIONS, Fit(micro_windows=1))
    assert measured.recall(tmp_path, CONDITIONS) == Fit(micro_windows=1)


def test_a_memory_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    with armed("worker.measured.write.before:enospc"):
        measured.remember(tmp_path, CONDITIONS, Fit(micro_windows=1))
    assert measured.recall(tmp_path, CONDITIONS) is None


# --- power ------------------------------------------------------------------------------------------------------------


def test_power_is_read_while_something_goes_on() -> None:
    readings = iter([100.0, 300.0, 200.0])
    with highest_power(Chosen("cpu", "CPU", None, "fp32", ""), lambda: next(readings), every_s=0.001) as watts:
        until(lambda: len(watts) == 3, what="three readings")
    assert max(watts) == 300.0  # the fourth failed, which ends the readings and nothing else


def test_where_nobody_tells_of_power() -> None:
    with highest_power(Chosen("cpu", "CPU", None, "fp32", "")) as watts:
        pass
    assert watts == []
