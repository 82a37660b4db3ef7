"""What the machine says of itself: power, programs, disk, and the device that trains."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuProcess:
    """A program that is neither ours nor our child's, on the device that would train."""

    pid: int
    name: str = ""
    """Empty where the system does not tell."""
    memory_bytes: int | None = None
    utilisation_percent: float | None = None
    """Of the device's cores, over the last seconds; None where the driver does not tell it by process."""
    is_graphics: bool = False
    """It draws, and does not compute: a desktop, a game."""


@dataclass(frozen=True)
class Gpu:
    """The device that would train, as its driver sees it; None wherever it tells nothing."""

    uuid: str
    index: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int | None = None
    ours_bytes: int | None = None
    """Of its memory, held by us and our child."""
    is_ours_on: bool = False
    """Whether a process of ours is on it: then its load is not that of others alone."""
    utilisation_percent: float | None = None
    temperature_c: float | None = None
    watts: float | None = None
    others: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True)
class Machine:
    """One look at everything; None wherever there is no sensor."""

    at_s: float
    """When, on a clock that never goes back."""
    has_gpu: bool = False
    """Whether the device that trains is a GPU whose driver can be asked, be it that it tells nothing just now."""
    gpu: Gpu | None = None
    is_on_battery: bool | None = None
    battery_percent: float | None = None
    exclusive_apps: tuple[str, ...] | None = None
    """Those of the limits' programs that run."""
    temperature_c: float | None = None
    """Of the device that trains: the GPU, or else the CPU."""
    disk_used_bytes: int | None = None
    """By this worker's own files."""
    disk_free_bytes: int | None = None
    """Where they lie."""
    month_bytes: int = 0
    """Traffic of this calendar month, both ways."""
    problems: tuple[str, ...] = ()
    """What a sensor that should tell something says instead, one sentence each."""
