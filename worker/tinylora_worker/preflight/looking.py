"""What is found on this machine, in a second and without torch: NVML, psutil, files. Nothing is judged here."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pynvml
from filelock import FileLock, Timeout

from tinylora.reading.sources import lacking
from tinylora_worker.preflight.facts import Devices, Disk, Gpu, HomeState, Memory, Power, TextPlace

NEEDED_PACKAGES = ("torch", "transformers", "flwr", "grpc", "safetensors", "tokenizers")
LOCK_FILE = "lock"
_ABSENT = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_NOT_FOUND)
"""What NVML says where there is no driver at all."""
MAX_FILES = 100_000
"""Files that are counted; a folder with more is as good as one with so many."""


def python_version() -> Sequence[int]:
    """Of this interpreter."""
    return sys.version_info[:3]


def missing_packages(paths: Sequence[str] = ()) -> list[str]:
    """What training needs, on the text at `paths`, and is not installed; nothing is imported."""
    missing = [name for name in NEEDED_PACKAGES if importlib.util.find_spec(name) is None]
    return missing + sorted({package for text in paths for file in _files_of(text) for package in lacking(file)})


def look_at_home(home: Path) -> HomeState:
    """Whether the home can be written, or made, and whether somebody works in it. Nothing of it stays behind."""
    if not home.exists():
        return HomeState(home, trouble="" if may_write(home) else "cannot be made")
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        return HomeState(home, trouble=error.strerror or str(error))
    if not (home / LOCK_FILE).exists():
        return HomeState(home)
    lock = FileLock(home / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return HomeState(home, running="a worker that runs now")
    except (OSError, NotImplementedError) as error:
        return HomeState(home, trouble=f"cannot be locked: {error}")
    lock.release()
    return HomeState(home)


def may_write(folder: Path) -> bool:
    """Whether a folder can be written, or made."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


# --- what it computes with --------------------------------------------------------------------------------------------


def look_at_devices(nvml: Any = pynvml) -> Devices:
    """GPUs by NVML, and what the installed torch is built for, by its version file: importing it takes seconds."""
    gpus, driver, trouble = _ask(nvml)
    version, cuda = _torch_build()
    is_apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return Devices(gpus, driver, trouble, version, cuda, is_apple, _n_cpus())


def _n_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _torch_build() -> tuple[str, str]:
    """Version of torch, and of the CUDA it was built with; empty where there is none."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return "", ""
    with suppress(OSError, importlib.metadata.PackageNotFoundError):
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
        cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
        return importlib.metadata.version("torch"), cuda[1] if cuda else ""
    return "", ""


def _ask(nvml: Any) -> tuple[tuple[Gpu, ...], str, str]:
    """GPUs, the driver's version, and why it does not answer although there is one."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return (), "", "" if error.value in _ABSENT else str(error)
    try:
        gpus = tuple(_look_at_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        return gpus, _text(nvml.nvmlSystemGetDriverVersion()), ""
    except nvml.NVMLError as error:
        return (), "", str(error)
    finally:
        nvml.nvmlShutdown()


def _look_at_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    capability, users = (0, 0), ()
    with suppress(nvml.NVMLError):
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    with suppress(nvml.NVMLError):
        users = tuple(_name_of(process.pid) for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    name, uuid = _text(nvml.nvmlDeviceGetName(handle)), _text(nvml.nvmlDeviceGetUUID(handle))
    return Gpu(name, index, int(memory.total), int(memory.free), capability, users, uuid)


def _name_of(pid: int) -> str:
    with suppress(psutil.Error):
        return psutil.Process(pid).name()
    return f"process {pid}"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


# --- memory, disk, current, text --------------------------------------------------------------------------------------


def look_at_memory() -> Memory:
    """Main memory now."""
    memory = psutil.virtual_memory()
    return Memory(memory.total, memory.available)


def look_at_disk(folder: Path) -> Disk:
    """Free space where `folder` is or will be."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return Disk(folder, shutil.disk_usage(place).free)


def look_at_power() -> Power:
    """Mains or battery."""
    try:
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    except OSError:  # a container may have no /sys/class/power_supply
        battery = None
    if battery is None or battery.power_plugged is None:
        return Power(None)
    return Power(not battery.power_plugged, battery.percent)


def look_at_text(paths: Sequence[str]) -> TextPlace:
    """Files that `paths` name: files, folders, patterns. Nothing is read."""
    n_files = n_bytes = 0
    for text in paths:
        files = _files_of(text)
        if not files:
            return TextPlace(n_files, n_bytes, missing=text)
        n_files += len(files)
        n_bytes += sum(_size_of(file) for file in files)
    return TextPlace(n_files, n_bytes)


def _files_of(text: str) -> list[Path]:
    import glob

    path = Path(text).expanduser()
    found = [path] if path.exists() else [Path(name) for name in glob.iglob(str(path), recursive=True)]
    files: list[Path] = []
    for place in found:
        inside = (file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
        files += [file for file, _ in zip(inside, range(MAX_FILES - len(files)), strict=False)]
    return files


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
