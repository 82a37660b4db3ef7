"""What was found, before anybody judges it. Bytes, seconds, bits per second."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, by NVML."""

    name: str
    index: int
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int] = (0, 0)
    """Compute capability; (0, 0) where it is not known."""
    users: tuple[str, ...] = ()
    """Other programs that compute on it."""
    uuid: str = ""


@dataclass(frozen=True)
class Devices:
    """What this machine computes with, and what the installed torch can use of it."""

    gpus: tuple[Gpu, ...]
    driver: str
    """Version of the NVIDIA driver; empty where there is none."""
    trouble: str
    """Why NVML does not answer although there is a driver; else empty."""
    torch: str
    """Version of the installed torch; empty where there is none."""
    torch_cuda: str
    """Version of CUDA that it was built with; empty for a CPU build."""
    is_apple: bool
    n_cpus: int


@dataclass(frozen=True)
class Memory:
    """Main memory."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Disk:
    """Where the base and the units will lie."""

    folder: Path
    free_bytes: int


@dataclass(frozen=True)
class Power:
    """Where the current comes from; None: there is no battery, or nobody tells."""

    is_on_battery: bool | None
    percent: float = 0.0


@dataclass(frozen=True)
class HomeState:
    """The worker's home folder."""

    folder: Path
    trouble: str = ""
    """Why it cannot be written."""
    running: str = ""
    """Who works in it: "process 4711"; empty: nobody."""


@dataclass(frozen=True)
class Line:
    """The line to the coordinator; a rate is what small requests showed, so it is rough."""

    round_trip_s: float
    down_bits_per_s: float
    up_bits_per_s: float


@dataclass(frozen=True)
class BasePlace:
    """Where the run's base is."""

    base: str
    """As the trainer takes it: a folder or a hub id."""
    folder: Path | None
    """On this machine; None: it has to be downloaded, or cannot be found."""
    download_bytes: int = 0
    """About so much has to be downloaded; 0 where it is here."""
    trouble: str = ""
    """Why it can neither be found nor downloaded."""
    is_cache_closed: bool = False
    """Whether the trouble is that the download would have no place to go."""


@dataclass(frozen=True)
class TextPlace:
    """The text as it lies there; nothing was read."""

    n_files: int
    n_bytes: int
    missing: str = ""
    """What was named and is not there."""


@dataclass(frozen=True)
class Fitting:
    """What the real step showed (`Fit` of worker.proto), or why nothing fits."""

    peak_bytes: int = 0
    free_bytes: int = 0
    micro_windows: int = 0
    window_tokens: int = 0
    restrictions: tuple[str, ...] = ()
    """Such as "rank 4 of 8", "no subtrees"."""
    trouble: str = ""


@dataclass(frozen=True)
class Text:
    """What the trainer read (`Loaded` of worker.proto), or why it could not."""

    n_train: int = 0
    n_heldout: int = 0
    n_tokens: int = 0
    n_rejected: int = 0
    layout: str = ""
    trouble: str = ""
    is_found: bool = False
    """Whether the trouble is that the scan found something."""
