"""From what was found to a check's outcome. Pure. Every sentence about a machine is made here."""

from collections.abc import Sequence

from tinylora_worker.preflight.amounts import amount, rate, span
from tinylora_worker.preflight.check import Check, CheckName
from tinylora_worker.preflight.facts import (
    BasePlace,
    Devices,
    Disk,
    Fitting,
    Gpu,
    HomeState,
    Line,
    Memory,
    Power,
    Text,
    TextPlace,
)

GIB = 2**30
NEEDED_PYTHON = (3, 11)
SPARE_DISK_BYTES = GIB
"""Is left to the rest of the machine."""
SLOW_BITS_PER_S = 1e6
SLOW_ROUND_TRIP_S = 1.0
CLOCK_WARN_S = 30.0
CLOCK_FAIL_S = 86_400.0
"""Certificates and signatures bear a clock that is off for hours, since we learn the coordinator's; not for days."""
LITTLE_MEMORY_BYTES = GIB
BF16_CAPABILITY = (8, 0)


def judge_python(version: Sequence[int]) -> Check:
    """Whether this Python will do."""
    found, needed = ".".join(map(str, version[:3])), ".".join(map(str, NEEDED_PYTHON))
    if tuple(version[:2]) >= NEEDED_PYTHON:
        return Check("python", "ok", found)
    cure = f"install Python {needed} or newer, and tinylora with it: uv tool install --python {needed} tinylora"
    return Check("python", "fail", found, f"{needed} or newer", cure, "TL-PY-001")


def judge_packages(version: str, missing: Sequence[str]) -> Check:
    """Whether what training needs is installed; `version` is tinylora's."""
    if not missing:
        return Check("packages", "ok", f"tinylora {version}")
    is_extra = set(missing) <= {"datasets", "zstandard"}
    what = "'tinylora[data]'" if is_extra else "tinylora"
    again = f"install it {'with what reads such text' if is_extra else 'again'}"
    cure = f"{again}: uv tool install --reinstall --torch-backend auto {what}"
    return Check("packages", "fail", f"not installed: {', '.join(missing)}", "all of them", cure, "TL-PKG-001")


def judge_home(home: HomeState) -> Check:
    """Whether we may keep our files there, alone."""
    if home.trouble:
        cure = "name a folder that you may write to with --home, or set TINYLORA_HOME"
        return Check("home", "fail", f"{home.folder}: {home.trouble}", "a folder to write to", cure, "TL-HOM-001")
    if home.running:
        cure = "end that one with `tinylora-worker stop`, or give this one a home of its own with --home"
        found = f"{home.folder}: in use by {home.running}"
        return Check("home", "fail", found, "one worker per home", cure, "TL-HOM-002")
    return Check("home", "ok", str(home.folder))


# --- what it computes with --------------------------------------------------------------------------------------------


def judge_device(devices: Devices, wanted: str = "auto") -> Check:
    """What will do the work; `wanted` as in the limit `gpu`: "auto", "cpu", "mps", a number or a UUID."""
    wanted = wanted.lower()
    usable = devices.gpus if devices.torch_cuda else ()
    if wanted == "cpu":
        return Check("device", "ok", f"{devices.n_cpus} CPU cores, as you asked for")
    if wanted not in ("auto", "") and not (wanted == "mps" and devices.is_apple):
        usable = [gpu for gpu in usable if str(gpu.index) == wanted or gpu.uuid.lower().startswith(wanted)]
        if not usable:
            return _not_here(devices, wanted)
    if usable:
        return _judge_gpu(max(usable, key=lambda gpu: (gpu.free_bytes, -gpu.index)), devices.driver)
    return _judge_without_gpu(devices)


def _judge_without_gpu(devices: Devices) -> Check:
    if devices.gpus:
        found = f"{devices.gpus[0].name}, but torch {devices.torch} was built without CUDA"
        cure = "install it with the right torch: uv tool install --reinstall --torch-backend auto tinylora"
        return Check("device", "warn", found, "torch built with CUDA", cure, "TL-DEV-002")
    if devices.trouble:
        cure = "look at `nvidia-smi`; after an update of the driver the machine wants a restart"
        return Check("device", "warn", f"NVIDIA driver: {devices.trouble}", "a driver that answers", cure, "TL-DEV-005")
    if devices.is_apple:
        return Check("device", "ok", "Apple GPU (MPS)")
    found = f"{devices.n_cpus} CPU cores, no accelerator"
    cure = "nothing need be done; a small GPU is tens of times faster, a CPU suits small bases and trials"
    return Check("device", "warn", found, "a GPU, for speed", cure, "TL-DEV-001")


def _not_here(devices: Devices, wanted: str) -> Check:
    there = [str(gpu.index) for gpu in devices.gpus if devices.torch_cuda] + (["mps"] if devices.is_apple else [])
    needed = f"one of {', '.join(['auto', 'cpu', *there])}"
    cure = "choose another with `tinylora-worker limits set gpu=...`"
    return Check("device", "fail", f"{wanted} is not here", needed, cure, "TL-DEV-003")


def _judge_gpu(gpu: Gpu, driver: str) -> Check:
    has_bf16 = gpu.capability >= BF16_CAPABILITY
    dtype = "bf16" if has_bf16 else "fp16" if gpu.capability > (0, 0) else "data type not known"
    found = f"{gpu.name}, driver {driver}, {dtype}, {amount(gpu.free_bytes)} of {amount(gpu.total_bytes)} free"
    if not gpu.users:
        return Check("device", "ok", found)
    cure = "nothing need be done: by default the worker pauses while others use the GPU (limit when_gpu_busy)"
    busy = f"{found}; in use by {', '.join(gpu.users[:3])}"
    return Check("device", "warn", busy, "a GPU to itself", cure, "TL-DEV-004")


def judge_free_memory(memory: Memory) -> Check:
    """Before there is a base to try: main memory alone."""
    found = f"{amount(memory.free_bytes)} of {amount(memory.total_bytes)} free; a real step tells more later"
    if memory.free_bytes >= LITTLE_MEMORY_BYTES:
        return Check("memory", "ok", found)
    cure = "close what you do not need; the real step will tell whether it is enough"
    return Check("memory", "warn", found, f"{amount(LITTLE_MEMORY_BYTES)} or more", cure, "TL-MEM-003")


def judge_fitting(fitting: Fitting) -> Check:
    """After the real step at the longest sequence."""
    if fitting.trouble:
        cure = "close other programs, raise the limit vram, allow --quantise nf4, or help a run with a smaller base"
        return Check("memory", "fail", fitting.trouble, "one real step", cure, "TL-MEM-001")
    step = f"probed with a real step, {fitting.micro_windows} × {fitting.window_tokens} tokens"
    free = f", {amount(fitting.free_bytes)} free" if fitting.free_bytes else ""
    found = f"needs {amount(fitting.peak_bytes)} at most ({step}){free}" if fitting.peak_bytes else step
    if not fitting.restrictions:
        return Check("memory", "ok", found)
    cure = "nothing need be done: the coordinator is told, and gives fitting work"
    return Check("memory", "warn", f"{found}; {', '.join(fitting.restrictions)}", "no restriction", cure, "TL-MEM-002")


def judge_disk(disk: Disk, needed_bytes: int) -> Check:
    """Whether the download and the units have room, with some to spare."""
    found = f"{amount(disk.free_bytes)} free at {disk.folder}"
    needs = f"needs about {amount(needed_bytes)}, {found}" if needed_bytes else found
    wanted = f"{amount(needed_bytes + SPARE_DISK_BYTES)} free, {amount(SPARE_DISK_BYTES)} of them to spare"
    if disk.free_bytes < needed_bytes:
        cure = "free some space (`tinylora-worker clean` removes what is ours), or set HF_HOME to a larger disk"
        return Check("disk", "fail", needs, wanted, cure, "TL-DSK-001")
    if disk.free_bytes < needed_bytes + SPARE_DISK_BYTES:
        cure = "free some space soon; the worker pauses when it runs out"
        return Check("disk", "warn", needs, wanted, cure, "TL-DSK-002")
    return Check("disk", "ok", needs)


def judge_power(power: Power) -> Check:
    """Where the current comes from."""
    if power.is_on_battery is None:
        return Check("power", "ok", "mains, as far as the system tells")
    if not power.is_on_battery:
        return Check("power", "ok", "on mains now; will pause on battery")
    cure = "plug it in; or `tinylora-worker limits set on_battery=true`, if you mean it"
    return Check("power", "warn", f"on battery, {power.percent:.0f} %", "mains", cure, "TL-PWR-001")


# --- the coordinator --------------------------------------------------------------------------------------------------


def judge_line(line: Line) -> Check:
    """Whether the line is quick enough to be of use."""
    found = (
        f"{line.round_trip_s * 1e3:.0f} ms, about {rate(line.down_bits_per_s)} / {rate(line.up_bits_per_s)} Mbit/s "
        "down/up to the coordinator"
    )
    is_slow = min(line.down_bits_per_s, line.up_bits_per_s) < SLOW_BITS_PER_S or line.round_trip_s > SLOW_ROUND_TRIP_S
    if not is_slow:
        return Check("network", "ok", found)
    cure = "it will work, with longer pauses between units; a cable or another time of day may help"
    needed = f"{rate(SLOW_BITS_PER_S)} Mbit/s, answers within {span(SLOW_ROUND_TRIP_S)}"
    return Check("network", "warn", found, needed, cure, "TL-NET-004")


_REFUSALS: dict[str, tuple[CheckName, str, str, str]] = {
    # rule of the error: check, what is needed, cure, code
    "address": (
        "network",
        "an address such as https://tree.example.org:8443",
        "copy the whole line that the operator gave you",
        "TL-NET-003",
    ),
    "unreachable": (
        "network",
        "an answer",
        "check the address and this machine's connection; if both are right, the coordinator is down: try again later",
        "TL-NET-001",
    ),
    "stranger": ("network", "a TinyLoRA coordinator", "check the address and the port", "TL-NET-002"),
    "full": ("network", "a coordinator that takes workers", "try again later", "TL-NET-005"),
    "ca": (
        "tls",
        "the CA that the token names",
        "check the address; if it is right, ask the operator for a new token. Nothing secret was sent",
        "TL-TLS-001",
    ),
    "certificate": (
        "tls",
        "a certificate for this very address, valid now",
        "use the address that the operator named; check this machine's clock; else tell the operator",
        "TL-TLS-002",
    ),
    "no_tls": ("tls", "TLS", "check the address and the port", "TL-TLS-003"),
    "protocol": (
        "protocol",
        "the run's version",
        "install the run's version: uv tool upgrade tinylora",
        "TL-PRO-001",
    ),
    "garbled": (
        "token",
        "a token, tl1. and three parts",
        "copy the whole token that the operator gave you",
        "TL-TOK-001",
    ),
    "token": ("token", "a token of this run", "copy the whole token, or ask the operator for a new one", "TL-TOK-002"),
    "expired": ("token", "a token that is valid now", "ask the operator for a new one", "TL-TOK-003"),
    "used_up": (
        "token",
        "a token with a place left",
        "join with the --home that used it, or ask the operator for a new one",
        "TL-TOK-004",
    ),
    "token_revoked": ("token", "a token that is valid now", "ask the operator for a new one", "TL-TOK-005"),
    "banned": ("token", "a worker that may take part", "ask the operator why", "TL-TOK-006"),
    "none": (
        "token",
        "a join token",
        "ask the operator for one, and give it when asked",
        "TL-TOK-008",
    ),
    "rate": ("token", "fewer tries", "wait a minute, and join again", "TL-TOK-009"),
    "clock": (
        "clock",
        f"within {span(CLOCK_FAIL_S)} of the coordinator's",
        "set this machine's clock, best by NTP: timedatectl set-ntp true",
        "TL-CLK-002",
    ),
    "base": ("base", "the run's base", "leave --base out, or give the run's base with it", "TL-BAS-002"),
}
_UNKNOWN_REFUSAL: tuple[CheckName, str, str, str] = (
    "token",
    "a request that the coordinator takes",
    "install the run's version of tinylora, and tell the operator if that does not help",
    "TL-TOK-010",
)
REFUSAL_RULES = tuple(_REFUSALS)


def judge_refusal(rule: str, sentence: str) -> Check:
    """What it means that the coordinator, or our look at it, said no: `rule` is the word of the error."""
    if rule == "pending":
        cure = "nothing need be done: the worker waits, and begins when the operator agrees"
        return Check("token", "warn", sentence, "the operator's word", cure, "TL-TOK-007")
    name, needed, cure, code = _REFUSALS.get(rule, _UNKNOWN_REFUSAL)
    return Check(name, "fail", sentence, needed, cure, code)


def judge_clock(offset_s: float) -> Check:
    """How far the coordinator's clock is ahead of ours."""
    found = f"{abs(offset_s):.1f} s off" if abs(offset_s) < 1e3 else f"{span(abs(offset_s))} off"
    if abs(offset_s) <= CLOCK_WARN_S:
        return Check("clock", "ok", found)
    needed = f"within {span(CLOCK_WARN_S)} of the coordinator's"
    if abs(offset_s) > CLOCK_FAIL_S:
        return judge_refusal("clock", found)
    cure = "set this machine's clock, best by NTP: timedatectl set-ntp true; until then the worker makes up for it"
    return Check("clock", "warn", found, needed, cure, "TL-CLK-001")


# --- base and text ----------------------------------------------------------------------------------------------------


def judge_base(place: BasePlace) -> Check:
    """Whether the base is here, or can come here."""
    if place.is_cache_closed:
        cure = "set HF_HOME to a folder that you may write to, or give a folder that holds the base with --base"
        return Check("base", "fail", place.trouble, "a folder to write to", cure, "TL-BAS-003")
    if place.trouble:
        cure = "give the folder that holds it with --base"
        return Check("base", "fail", place.trouble, "the run's base", cure, "TL-BAS-001")
    if place.folder is not None:
        return Check("base", "ok", f"{place.base}, on this machine")
    return Check("base", "ok", f"{place.base}, to be downloaded once: about {amount(place.download_bytes)}")


def judge_text_place(place: TextPlace) -> Check:
    """Before anything was read."""
    if place.missing or not place.n_files:
        found = f"{place.missing}: no such file or folder" if place.missing else "no text was named"
        cure = "name files, folders or patterns with --data: text, .jsonl, .json, .csv, .parquet, also .gz or .zst"
        return Check("data", "fail", found, "your own text", cure, "TL-DAT-001")
    files = f"{place.n_files} file{'s' if place.n_files > 1 else ''}"
    return Check("data", "ok", f"{files}, {amount(place.n_bytes)}; `tinylora-worker data check` reads it")


def judge_text(text: Text) -> Check:
    """After the trainer has read it."""
    if text.trouble:
        if text.is_found:
            cure = "look at it with `tinylora-worker data check`; take it out, or say --allow if you mean it"
            return Check("data", "fail", text.trouble, "nothing that is secret or personal", cure, "TL-DAT-004")
        cure = "look at it with `tinylora-worker data check`, which says what is wrong with which line"
        return Check("data", "fail", text.trouble, "text to train on", cure, "TL-DAT-002")
    layout = f' ("{text.layout}")' if text.layout else ""
    found = (
        f"{text.n_train + text.n_heldout:,} examples{layout}, {text.n_tokens:,} tokens, {text.n_rejected:,} rejected"
    )
    if not text.n_rejected:
        return Check("data", "ok", found)
    cure = "nothing need be done; `tinylora-worker data check` says which and why"
    return Check("data", "warn", found, "no rejected rows", cure, "TL-DAT-003")
