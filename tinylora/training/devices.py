"""Which device a worker trains on, and in which dtype the base is held there, each choice with its reason.

Adapters and AdamW are in fp32 whatever the base is in: linears take the adapters' numbers in the dtype of their input.
bf16 has the range of fp32 and needs no care. fp16 has not: in it, gradients of a mean over thousands of tokens would
vanish, so `optimiser.take_step` goes back from the sum over tokens and divides afterwards.

Decisions are pure functions of what is `Present`; `look` alone asks the machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tinylora.base_model import LoadedBase
from tinylora.errors import SettingError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BF16_CAPABILITY = (8, 0)
FP16_CAPABILITY = (5, 3)
CONTEXT_BYTES = 512 << 20
"""What CUDA and its libraries take beside tensors, which torch's own limit does not see."""
_UUID_PREFIX = "gpu-"


@dataclass(frozen=True)
class Gpu:
    """A CUDA device as torch sees it; on AMD's it goes by the same names."""

    index: int
    name: str
    uuid: str = ""
    capability: tuple[int, int] = (8, 0)
    total_bytes: int = 0


@dataclass(frozen=True)
class Present:
    """What this machine and this build of torch have."""

    gpus: tuple[Gpu, ...] = ()
    lowest_capability: tuple[int, int] = (0, 0)
    """Below which this build of torch holds no code."""
    is_rocm: bool = False
    has_mps: bool = False
    has_mps_bf16: bool = False


@dataclass(frozen=True)
class Chosen:
    """A device, and the dtype of the base on it."""

    kind: str
    """"cuda", "mps" or "cpu"."""
    name: str
    index: int | None
    dtype: str
    """"bf16", "fp16" or "fp32"."""
    reason: str
    """Of the dtype, for people."""

    @property
    def device(self) -> torch.device:
        """As torch names it."""
        return torch.device(self.kind) if self.index is None else torch.device(self.kind, self.index)

    @property
    def torch_dtype(self) -> torch.dtype:
        """As `load_base` takes it."""
        return DTYPES[self.dtype]

    @property
    def max_leaves(self) -> int:
        """Leaves that can be trained together here: gates are trained in float64, which MPS has not."""
        return 1 if self.kind == "mps" else 0


# --- choosing --------------------------------------------------------------------------------------------------------


def choose_device(wanted: str = "", dtype: str = "", present: Present | None = None) -> Chosen:
    """The device to train on: a GPU where there is one, then Apple's, then the CPU.

    Args:
        wanted: "cpu", "mps", "cuda", "cuda:1", or a GPU's UUID; "" and "auto" choose.
        dtype: "bf16", "fp16" or "fp32"; "" and "auto" choose the first of these that the device computes in.
        present: What there is; None looks.

    Raises:
        SettingError: No such device or dtype, or the device cannot do what was asked for.
    """
    present = look() if present is None else present
    wanted = wanted.strip().lower()
    if dtype not in ("", "auto", *DTYPES):
        raise SettingError(f"dtype {dtype!r}: expected {', '.join(DTYPES)}")
    if wanted in ("", "auto"):
        usable = [gpu for gpu in present.gpus if gpu.capability >= present.lowest_capability]
        wanted = "cuda" if usable else "mps" if present.has_mps else "cpu"
    if wanted == "cpu":
        return _on_cpu(dtype)
    if wanted == "mps":
        return _on_mps(dtype, present)
    return _on_cuda(_gpu(wanted, present), dtype, present)


def _gpu(wanted: str, present: Present) -> Gpu:
    """The GPU that was named, or the one with the most memory."""
    if not present.gpus:
        raise SettingError(f"device {wanted!r}: torch finds no GPU on this machine; expected cpu, or another driver")
    if wanted == "cuda":
        usable = [gpu for gpu in present.gpus if gpu.capability >= present.lowest_capability]
        return max(usable or present.gpus, key=lambda gpu: (gpu.total_bytes, -gpu.index))
    name = wanted.removeprefix("cuda:").removeprefix(_UUID_PREFIX)
    for gpu in present.gpus:
        if name == str(gpu.index) or (gpu.uuid and name == gpu.uuid.lower().removeprefix(_UUID_PREFIX)):
            return gpu
    there = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in present.gpus)
    raise SettingError(f"device {wanted!r}: expected cpu, mps, or one of {there}")


def _on_cuda(gpu: Gpu, dtype: str, present: Present) -> Chosen:
    major, minor = gpu.capability
    where = f"compute capability {major}.{minor}"
    if gpu.capability < present.lowest_capability:
        lowest = "{}.{}".format(*present.lowest_capability)
        raise SettingError(
            f"device cuda:{gpu.index}: {gpu.name} has {where}, and this build of torch begins at {lowest}; use the "
            "CPU, or install a build of torch for this GPU"
        )
    has_bf16 = present.is_rocm or gpu.capability >= BF16_CAPABILITY
    has_fp16 = present.is_rocm or gpu.capability >= FP16_CAPABILITY
    reasons = {
        "bf16": f"bf16: {gpu.name} computes in it ({where})",
        "fp16": f"fp16: {where} has no bf16, which begins at 8.0",
        "fp32": f"fp32: {where} has neither bf16 nor fp16",
    }
    able = {"bf16": has_bf16, "fp16": has_fp16, "fp32": True}
    return Chosen("cuda", gpu.name, gpu.index, *_dtype(dtype, able, reasons, gpu.name))


def _on_mps(dtype: str, present: Present) -> Chosen:
    if not present.has_mps:
        raise SettingError("device 'mps': this machine, its system or this build of torch has no Metal; use cpu")
    reasons = {
        "bf16": "bf16: macOS 14 and later compute in it",
        "fp16": "fp16: before macOS 14 there is no bf16 on Metal",
        "fp32": "fp32",
    }
    able = {"bf16": present.has_mps_bf16, "fp16": True, "fp32": True}
    return Chosen("mps", "Apple GPU", None, *_dtype(dtype, able, reasons, "Metal"))


def _on_cpu(dtype: str) -> Chosen:
    if dtype in ("", "auto"):
        reason = "fp32: on a CPU 16 bits are seldom faster, and runs on CPUs keep their numbers"
        return Chosen("cpu", "CPU", None, "fp32", reason)
    return Chosen("cpu", "CPU", None, dtype, f"{dtype}: as asked for")


def _dtype(wanted: str, able: dict[str, bool], reasons: dict[str, str], name: str) -> tuple[str, str]:
    if wanted in ("", "auto"):
        chosen = next(dtype for dtype in DTYPES if able[dtype])
        return chosen, reasons[chosen]
    if not able[wanted]:
        best = next(dtype for dtype in DTYPES if able[dtype])
        raise SettingError(f"dtype {wanted!r}: {name} does not compute in it ({reasons[best]}); use {best}")
    return wanted, f"{wanted}: as asked for"


# --- the machine -----------------------------------------------------------------------------------------------------


def look() -> Present:
    """What torch finds here. It opens the driver, and no device."""
    gpus = tuple(map(_look_at, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ()
    mps = torch.backends.mps
    has_mps = mps.is_available()
    return Present(
        gpus=gpus,
        lowest_capability=lowest_capability(torch.cuda.get_arch_list()) if gpus else (0, 0),
        is_rocm=torch.version.hip is not None,
        has_mps=has_mps,
        has_mps_bf16=has_mps and mps.is_macos_or_newer(14, 0),
    )


def _look_at(index: int) -> Gpu:
    found = torch.cuda.get_device_properties(index)
    uuid = str(getattr(found, "uuid", ""))
    return Gpu(index, found.name, uuid, (found.major, found.minor), found.total_memory)


def lowest_capability(architectures: Sequence[str]) -> tuple[int, int]:
    """Of names such as "sm_75" the lowest; (0, 0) where there is none, as in AMD's builds."""
    numbers = [name.removeprefix("sm_").rstrip("af") for name in architectures if name.startswith("sm_")]
    found = [(int(number[:-1]), int(number[-1])) for number in numbers if number.isdigit() and len(number) > 1]
    return min(found, default=(0, 0))


def limit_memory(chosen: Chosen, limit_bytes: int) -> None:
    """From now on this process's tensors on the device stay below a limit; 0 is none. Main memory knows no such limit.

    Raises:
        SettingError: The limit leaves nothing for tensors.
    """
    if not limit_bytes or chosen.kind == "cpu":
        return
    if chosen.kind == "mps":
        share = limit_bytes / total_memory(chosen)
        torch.mps.set_per_process_memory_fraction(min(1.0, share))
        return
    for_tensors = limit_bytes - CONTEXT_BYTES
    if for_tensors <= 0:
        raise SettingError(
            f"memory limit of {limit_bytes >> 20} MiB: CUDA alone takes about {CONTEXT_BYTES >> 20} MiB; allow more"
        )
    torch.cuda.set_per_process_memory_fraction(min(1.0, for_tensors / total_memory(chosen)), chosen.index)


def total_memory(chosen: Chosen) -> int:
    """Bytes of the device's own memory; 0 where it computes in main memory alone."""
    if chosen.kind == "mps":
        return torch.mps.recommended_max_memory()
    return torch.cuda.get_device_properties(chosen.index).total_memory if chosen.kind == "cuda" else 0


@torch.no_grad()
def is_finite_in(base: LoadedBase) -> bool:
    """Whether a pass through the base as it is loaded gives numbers.

    Bases that were trained in bf16 may leave the range of fp16; then the next dtype is fp32.
    """
    n_tokens = min(64, base.facts.max_window_tokens)
    ids = torch.arange(n_tokens, device=base.model.device)[None] % len(base.model.get_input_embeddings().weight)
    return bool(torch.isfinite(base.model(input_ids=ids, use_cache=False).logits).all())
