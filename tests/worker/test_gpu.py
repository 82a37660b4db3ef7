"""What the GPU's driver says, and what it means when it says nothing; no GPU is needed."""

import pynvml
import pytest
from tinylora_worker.gpu import RETRY_S, Gpu, GpuProcess, GpuSensor, cuda_devices

from tests.worker.fake_nvml import FakeGpu, FakeNvml

TRAINER, CHILD, GAME, DESKTOP, YOUNGER, HIDDEN = 100, 101, 200, 201, 300, 999
NAMES = {TRAINER: "python", CHILD: "python", GAME: "game.exe", DESKTOP: "Xorg", YOUNGER: "python"}
NOW_S = 1_800_000_000.0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def sensor(nvml: FakeNvml, clock: Clock | None = None, environment: dict[str, str] | None = None) -> GpuSensor:
    return GpuSensor(
        nvml,
        clock=clock or Clock(),
        wall=lambda: NOW_S,
        environment=environment or {},
        name_of_pid=NAMES.get,
        is_ours=lambda pid, ours: pid in ours or (pid == CHILD and TRAINER in ours),
        stands_back=lambda pid, _ours: pid == YOUNGER,
    )


def look(gpu: FakeGpu, *, is_ours_on: bool = False) -> Gpu:
    found = sensor(FakeNvml(gpu)).read("", frozenset({TRAINER}), is_ours_on=is_ours_on)
    assert found is not None
    return found


def test_a_resting_device() -> None:
    assert look(FakeGpu()) == Gpu(
        uuid="GPU-00000000-aaaa",
        index=0,
        name="NVIDIA GeForce RTX 3060",
        memory_total_bytes=12 * 2**30,
        memory_free_bytes=11 * 2**30,
        utilisation_percent=0.0,
        temperature_c=45,
        watts=30.0,
    )


def test_ours_and_our_childs_processes_are_no_others() -> None:
    found = look(FakeGpu(computing={TRAINER: 5, CHILD: 7, GAME: 11}, load=99), is_ours_on=True)
    assert found.ours_bytes == 12 and [other.pid for other in found.others] == [GAME]


def test_load_by_process_is_the_mean_of_the_last_seconds() -> None:
    gpu = FakeGpu(
        computing={GAME: 1000},
        drawing={DESKTOP: 300, GAME: 900},
        loads=[(GAME, 80, NOW_S - 1), (GAME, 40, NOW_S - 2), (GAME, 100, NOW_S - 60), (DESKTOP, 3, NOW_S - 1)],
    )
    assert look(gpu).others == (
        GpuProcess(GAME, "game.exe", 1000, 60.0),
        GpuProcess(DESKTOP, "Xorg", 300, 3.0, is_graphics=True),
    )


@pytest.mark.parametrize(
    ("error", "load"),
    [
        (pynvml.NVML_ERROR_NOT_SUPPORTED, None),
        (pynvml.NVML_ERROR_NO_PERMISSION, None),
        (pynvml.NVML_ERROR_NOT_FOUND, 0.0),
        (pynvml.NVML_SUCCESS, 0.0),  # what pynvml raises where there is no sample
    ],
)
def test_where_no_load_is_told_by_process(error: int, load: float | None) -> None:
    found = look(FakeGpu(computing={GAME: 1000}, errors={"loads": error}))
    assert found.others == (GpuProcess(GAME, "game.exe", 1000, load),)


def test_a_process_that_cannot_be_seen_may_be_our_own_trainer_in_a_container() -> None:
    gpu = FakeGpu(computing={HIDDEN: 1000})
    assert look(gpu, is_ours_on=True).others == ()
    assert look(gpu).others == (GpuProcess(HIDDEN, "", 1000, 0.0),)


def test_of_two_workers_on_one_device_the_older_goes_on() -> None:
    gpu = FakeGpu(computing={YOUNGER: 1000})
    assert look(gpu, is_ours_on=True).others == ()  # we are older: he makes room
    assert [other.pid for other in look(gpu).others] == [YOUNGER]  # our trainer has not begun: it would be younger


@pytest.mark.parametrize("question", ["load", "temperature", "power", "computing", "drawing", "loads"])
def test_an_answer_that_a_device_does_not_have_is_none_and_the_others_stay(question: str) -> None:
    found = look(FakeGpu(errors={question: pynvml.NVML_ERROR_NOT_SUPPORTED}))
    told = {"load": found.utilisation_percent, "temperature": found.temperature_c, "power": found.watts}
    assert [name for name, value in told.items() if value is None] == [question] * (question in told)
    assert found.memory_free_bytes is not None and found.others == ()


@pytest.mark.parametrize("question", ["all", "handle", "memory", "temperature", "computing", "loads"])
def test_a_lost_device_is_silence_and_a_sentence_and_is_asked_again(question: str) -> None:
    gpu, clock = FakeGpu(), Clock()
    nvml = FakeNvml(gpu)
    asked = sensor(nvml, clock)
    assert asked.read("", frozenset(), is_ours_on=False) is not None
    gpu.errors[question] = pynvml.NVML_ERROR_GPU_IS_LOST
    assert asked.read("", frozenset(), is_ours_on=False) is None
    assert "GPU is lost" in asked.problem and asked.has_seen("") and not nvml.is_open
    gpu.errors.clear()
    assert asked.read("", frozenset(), is_ours_on=False) is None and nvml.n_inits == 1  # not before a minute
    clock.now_s = RETRY_S
    assert asked.read("", frozenset(), is_ours_on=False) is not None
    assert asked.problem == "" and nvml.n_inits == 2
    asked.close()
    asked.close()
    assert nvml.n_shutdowns == 2


@pytest.mark.parametrize(
    ("error", "wanted", "problem"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "", ""),  # most machines have no such GPU: no fault
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "", ""),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "0", "tells nothing of GPU 0"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "", "mismatch"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "", "Permissions"),
    ],
)
def test_without_a_driver_there_is_no_gpu(error: int, wanted: str, problem: str) -> None:
    asked = sensor(FakeNvml(init_error=error))
    assert asked.read(wanted, frozenset(), is_ours_on=False) is None
    assert not asked.has_seen(wanted)
    assert problem in asked.problem if problem else asked.problem == ""


def test_a_library_that_breaks_in_its_own_way_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(FakeGpu())
    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", lambda gpu: 1 / 0)
    asked = sensor(nvml)
    assert asked.read("", frozenset(), is_ours_on=False) is None
    assert "division by zero" in asked.problem and not nvml.is_open


@pytest.mark.parametrize(
    ("wanted", "visible", "index"),
    [
        ("", None, 3),  # of the two with most memory the first
        ("", "1,0", 0),  # both are alike
        ("", "GPU-0002,4", 4),
        ("", "2,-1,3", 2),  # what comes after -1 is hidden
        ("", "", None),
        ("", "-1", None),
        ("1", "2", 1),  # the owner's word comes before the environment's
        ("GPU-0002", None, 2),
        ("gpu-0001-BBBB", None, 1),
        ("9", None, None),
        ("GPU-7777", None, None),
        ("MIG-7777", None, None),
    ],
)
def test_the_device_that_is_watched(wanted: str, visible: str | None, index: int | None) -> None:
    nvml = FakeNvml(*(FakeGpu(uuid=f"GPU-000{n}-bbbb", total=(8 + 16 * (n > 2)) * 2**30) for n in range(5)))
    asked = sensor(nvml, environment={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    found = asked.read(wanted, frozenset(), is_ours_on=False)
    assert (found.index if found else None) == index
    assert bool(asked.problem) == (index is None and bool(wanted))


def test_all_devices_are_listed_and_a_broken_one_is_left_out() -> None:
    nvml = FakeNvml(FakeGpu(errors={"handle": pynvml.NVML_ERROR_UNKNOWN}), FakeGpu(uuid="GPU-2"))
    assert list(cuda_devices(nvml)) == [(1, "GPU-2", "NVIDIA GeForce RTX 3060")]
    assert list(cuda_devices(FakeNvml(init_error=pynvml.NVML_ERROR_UNKNOWN))) == []
    assert not nvml.is_open
