"""What a worker's owner allows: HOME/limits.toml. His word is final; nothing that a coordinator says changes it.

    show(home, as_json=...)             what holds, for people or programs
    get(home, "vram")                   one of them
    set_from_text(home, "vram=8GB")     checked, written, live within a second
    LimitsFile(home).current()          for the agent: always what the file says now

The file is edited by the line, so that its owner's comments and order stay: the statement of one key is exchanged, and
the result is read back before it replaces the file. Rejected: writing it anew from values (tomli_w), which drops
comments. What the file does not name is not limited.
"""

import difflib
import functools
import json
import re
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import filelock
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tinylora import durable
from tinylora.errors import SettingError, StorageError
from tinylora.protocol.documents import MAX_LICENCE, MAX_NOTE
from tinylora.protocol.plain import plain
from tinylora_worker.schedule import EXPECTED as EXPECTED_SCHEDULE
from tinylora_worker.schedule import Schedule
from tinylora_worker.toml_lines import edit

FILE = "limits.toml"
LOCK_FILE = "limits.lock"
_STEP = "worker.limits"
durable.register_file(_STEP)

_UNITS = {unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb"))} | {
    unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_PER_MONTH = re.compile(r"(.*?)\s*(?:/|per\s+)\s*month", re.IGNORECASE)
_GPU = re.compile(r"auto|cpu|mps|cuda|(?:cuda:)?\d{1,3}|(?:GPU|MIG)-[0-9a-fA-F/-]{4,}", re.IGNORECASE)
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_SWITCHES = ("on_battery", "share_log")
_SAID = ("note", "data_licence")
NOTHING = ("", "none", "off", "unlimited")
"""What `set` takes for "no limit"."""


def bytes_of(text: str) -> int:
    """Bytes of a size such as "8GB" (8 · 1000³) or "8GiB" (8 · 1024³).

    Raises:
        ValueError: It is no size, or none above zero.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f'"{text}" is no size; expected a number and its unit, such as "8GB" or "500 MiB"')
    return max(1, int(float(match[1]) * _UNITS[match[2].lower()]))


def share_of(text: str) -> float | None:
    """The share that "80%" says, above 0 and at most 1; None if it says none."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        return None
    share = float(match[1]) / 100
    if not 0 < share <= 1:
        raise ValueError(f'"{text}" is no share; expected more than 0% and at most 100%')
    return share


def _size(text: str) -> str:
    if text:
        bytes_of(text)
    return text


def _size_or_share(text: str) -> str:
    if text and share_of(text) is None:
        bytes_of(text)
    return text


def _per_month(text: str) -> str:
    match = _PER_MONTH.fullmatch(text.strip())
    if text:
        bytes_of(match[1] if match else text)
    return text


def _gpu(value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and not _GPU.fullmatch(text):
        raise ValueError("not the name of a device")
    return text


def _windows(entries: tuple[str, ...]) -> tuple[str, ...]:
    Schedule.parse(entries)
    return entries


def _list(value: object) -> object:
    """A single string is a list of one."""
    return (value,) if isinstance(value, str) else value


def _note(text: str) -> str:
    if len(text) > MAX_NOTE:
        raise ValueError("too long")
    return plain(text, at_most=MAX_NOTE)


def _licence(text: str) -> str:
    if len(text) > MAX_LICENCE:
        raise ValueError("too long")
    return plain(text, at_most=MAX_LICENCE)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a truth value is no number")
    return value


Size = Annotated[str, AfterValidator(_size)]
SizeOrShare = Annotated[str, AfterValidator(_size_or_share)]
PerMonth = Annotated[str, AfterValidator(_per_month)]
AppName = Annotated[str, Field(min_length=1, max_length=200)]


class Limits(BaseModel):
    """What the owner allows; the text of each field is what `limits` shows, and its example what errors propose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: Annotated[str, BeforeValidator(_gpu)] = Field(
        default="auto",
        description="device to train on",
        examples=['auto, cpu, cuda, mps, a number from nvidia-smi such as "0", or a UUID such as "GPU-5a1f…"'],
    )
    vram: SizeOrShare = Field(
        default="",
        description="most of the device's memory to use",
        examples=['a size such as "8GB" or a share such as "80%"'],
    )
    cpu_threads: Annotated[int, Field(ge=1, le=4096), BeforeValidator(_no_bool)] | None = Field(
        default=None, description="most CPU threads to use", examples=["a whole number from 1"]
    )
    disk: Size = Field(
        default="",
        description="most disk space for this worker's own files",
        examples=['a size such as "20GB"'],
    )
    data_cap: PerMonth = Field(
        default="",
        description="most traffic in a calendar month, both ways together",
        examples=['an amount a month such as "50GB/month"'],
    )
    schedule: Annotated[tuple[str, ...], BeforeValidator(_list), AfterValidator(_windows)] = Field(
        default=(), description="when to work, in local time", examples=[f"a list of {EXPECTED_SCHEDULE}"]
    )
    on_battery: bool = Field(default=False, description="work on battery too", examples=["true or false"])
    when_gpu_busy: Literal["pause", "share"] = Field(
        default="pause",
        description="what to do while another program uses the GPU",
        examples=['"pause" or "share"'],
    )
    exclusive_apps: Annotated[tuple[AppName, ...], BeforeValidator(_list)] = Field(
        default=(),
        description="programs beside which not to work",
        examples=['a list of program names such as ["game.exe", "blender"]'],
    )
    max_temp_c: Annotated[float, Field(ge=30, le=110, allow_inf_nan=False), BeforeValidator(_no_bool)] | None = Field(
        default=None,
        description="hottest that the device may get, in °C; it goes on 5 °C below",
        examples=["a temperature from 30 to 110"],
    )
    note: Annotated[str, AfterValidator(_note)] = Field(
        default="",
        description="what others may know of your text; shown to all who may look, and published with the bundle",
        examples=[f"a line of at most {MAX_NOTE} characters"],
    )
    data_licence: Annotated[str, AfterValidator(_licence)] = Field(
        default="",
        description="licence of your text; published with the run's bundle",
        examples=[f'a name such as "CC-BY-4.0", of at most {MAX_LICENCE} characters'],
    )
    share_log: bool = Field(
        default=False,
        description="show the lines of this worker's log to all who may look at the run",
        examples=["true or false"],
    )

    def vram_bytes(self, total_bytes: int) -> int | None:
        """Most device memory to use, of `total_bytes`; None: no limit."""
        if not self.vram:
            return None
        share = share_of(self.vram)
        return int(total_bytes * share) if share is not None else bytes_of(self.vram)

    @property
    def vram_share(self) -> float | None:
        """The same as a share of the device's memory; None where it is no share."""
        return share_of(self.vram)

    @property
    def disk_bytes(self) -> int | None:
        """Most disk space for this worker's own files; None: no limit."""
        return bytes_of(self.disk) if self.disk else None

    @property
    def cap_bytes(self) -> int | None:
        """Most traffic in a calendar month; None: no limit."""
        if not self.data_cap:
            return None
        match = _PER_MONTH.fullmatch(self.data_cap.strip())
        return bytes_of(match[1] if match else self.data_cap)

    @property
    def opening(self) -> Schedule:
        """The schedule, parsed."""
        return _opening(self.schedule)

    @property
    def device(self) -> str:
        """What the trainer is asked for: "" (it chooses), "cpu", "mps", "cuda"."""
        gpu = self.gpu.lower()
        return {"auto": "", "cpu": "cpu", "mps": "mps"}.get(gpu, "cuda")

    @property
    def cuda_device(self) -> str:
        """The GPU that was named, a number in the order of the bus or a UUID; empty where none was."""
        name = re.sub("^cuda:?", "", self.gpu, flags=re.IGNORECASE)
        return "" if name.lower() in ("auto", "cpu", "mps") else name

    def with_device(self, device: str) -> "Limits":
        """These limits on the device that was said on the command line: it is watched, and no other is seen.

        Raises:
            SettingError: It is no device's name.
        """
        return check(self.model_dump() | {"gpu": device}, "--device: ") if device else self

    def trainer_environment(self) -> dict[str, str]:
        """Variables with which a trainer sees the owner's device alone, numbered as nvidia-smi and NVML do."""
        environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if self.cuda_device:
            environment["CUDA_VISIBLE_DEVICES"] = self.cuda_device
        elif self.device in ("cpu", "mps"):
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment

    def needs_another_trainer(self, new: "Limits") -> bool:
        """Whether a trainer that was started under these limits has to be started anew under the new ones."""
        return any(getattr(self, key) != getattr(new, key) for key in ("gpu", "vram", "cpu_threads"))


@functools.lru_cache(maxsize=16)
def _opening(entries: tuple[str, ...]) -> Schedule:
    return Schedule.parse(entries)


KEYS = tuple(Limits.model_fields)
EXAMPLES = {
    "gpu": '"0"',
    "vram": '"8GB"',
    "cpu_threads": "4",
    "disk": '"20GB"',
    "data_cap": '"50GB/month"',
    "schedule": '["Mon-Fri 22:00-07:00", "Sat-Sun"]',
    "on_battery": "false",
    "when_gpu_busy": '"pause"',
    "exclusive_apps": '["game.exe"]',
    "max_temp_c": "80",
    "note": '"medical questions, in English"',
    "data_licence": '"CC-BY-4.0"',
    "share_log": "false",
}
"""What the file proposes, commented out, where nothing is set."""


class LimitsFile:
    """The limits of one home, always as the file says now; safe to use from several threads.

    Raises:
        SettingError: The file is there and is not readable: a worker never starts with fewer limits than were set.
    """

    def __init__(self, home: Path) -> None:
        self.file = home / FILE
        self._lock = threading.Lock()
        self._seen = _read(self.file)
        self._limits = parse(self._seen, self.file) if self._seen is not None else Limits()
        self.problem = ""
        """Why the file does not hold as it is, in one sentence; empty while it does."""

    def current(self) -> Limits:
        """What holds now. While the file is broken or gone, what it said last, and `problem` tells why.

        The file is read each time: it is small, and two edits within one tick of its time stamp would look alike.
        """
        with self._lock:
            try:
                self._look()
            except (SettingError, StorageError) as error:
                self.problem = f"{error}; what was set before still holds"
            return self._limits

    def _look(self) -> None:
        found = _read(self.file)
        if found == self._seen and not self.problem:
            return
        if found is None:
            raise StorageError(f"{self.file}: is gone")
        self._limits = parse(found, self.file)
        self._seen, self.problem = found, ""


def load(home: Path) -> Limits:
    """The limits of a home; without a file, nothing is limited.

    Raises:
        SettingError: The file is not TOML, names an unknown key, or has a value that makes no sense.
        StorageError: It cannot be read.
    """
    found = _read(home / FILE)
    return parse(found, home / FILE) if found is not None else Limits()


def parse(data: bytes, file: Path) -> Limits:
    """Read what stands in the file.

    Raises:
        SettingError: It is not TOML, names an unknown key, or has a value that makes no sense.
    """
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{file}: not TOML: {error}") from None
    return check(table, f"{file}: ")


def check(table: Mapping[str, Any], where: str = "") -> Limits:
    """Limits from values; `where` begins each message.

    Raises:
        SettingError: The first thing that is wrong: the key, its value and what is expected.
    """
    for key in table:
        known(key, where)
    try:
        return Limits.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = str(first["loc"][0])
    value = json.dumps(table[key], ensure_ascii=False, default=str)
    about = str(first.get("ctx", {}).get("error", "")) if key == "schedule" else ""
    raise SettingError(f"{where}{key} = {value}: {about or f'expected {expected(key)}'}")


def known(key: str, where: str = "") -> str:
    """The key, if there is such a limit.

    Raises:
        SettingError: There is none; the nearest is proposed.
    """
    if key in KEYS:
        return key
    near = difflib.get_close_matches(key.lower().replace("-", "_"), KEYS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KEYS)}"
    raise SettingError(f"{where}{key}: no such limit; {hint}")


def expected(key: str) -> str:
    """What a limit can be set to, in a few words."""
    return str((Limits.model_fields[key].examples or [""])[0])


def show(home: Path, *, as_json: bool = False) -> str:
    """All limits, for people or as one JSON object.

    Raises:
        SettingError: The file is not readable.
    """
    limits = load(home)
    if as_json:
        return json.dumps(limits.model_dump(mode="json"), indent=1)
    values = [_told(key, getattr(limits, key)) for key in KEYS]
    wide_key, wide_value = max(map(len, KEYS)), max(map(len, values))
    return "\n".join(
        f"{key:{wide_key}}  {value:{wide_value}}  {meaning(key)}" for key, value in zip(KEYS, values, strict=True)
    )


def get(home: Path, key: str, *, as_json: bool = False) -> str:
    """One limit.

    Raises:
        SettingError: There is no such limit, or the file is not readable.
    """
    value = load(home).model_dump(mode="json")[known(key)]
    return json.dumps(value) if as_json else _told(key, value)


def meaning(key: str) -> str:
    """What a limit limits, in a few words."""
    return str(Limits.model_fields[key].description)


def set_from_text(home: Path, assignment: str) -> str:
    """Set one limit, as typed: `key=value`; an empty value or `none` lifts it. Other lines stay as they are.

    Lists are separated by commas or semicolons, or written as in TOML.

    Returns:
        One sentence about what holds now.

    Raises:
        SettingError: There is no such limit, the value makes no sense, or the file has another fault; nothing changed.
        StorageError: The file cannot be read or written; nothing changed.
    """
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals:
        raise SettingError(f"{assignment}: expected key=value, such as vram=8GB")
    known(key)
    value = _value(key, text)
    if value is not None:
        check({key: value})
    limits = change(home, key, value)
    return f"{key} is {_told(key, getattr(limits, key))}: {meaning(key)}"


def change(home: Path, key: str, value: object) -> Limits:
    """Exchange one key of the file, or take it out for None; see `set_from_text`."""
    file = (home / FILE).resolve()  # a link of a folder of settings stays a link
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with filelock.FileLock(home / LOCK_FILE):
            text = (_read(file) or _fresh_file()).decode()
            edited = edit(text, known(key), value)
            limits = parse(edited.encode(), file)
            durable.replace_file(file, edited.encode(), name=_STEP)
    except UnicodeDecodeError as error:
        raise SettingError(f"{file}: not TOML: {error}") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}") from None
    return limits


def _value(key: str, text: str) -> object:
    """What was typed, as TOML knows it; None lifts the limit."""
    if text.lower() in NOTHING and not (key in _SWITCHES and text):
        return None
    if key in ("schedule", "exclusive_apps"):
        return _typed_list(text)
    if key in _SAID:
        return plain(text, at_most=MAX_NOTE + 1)
    if key in _SWITCHES:
        return _WORDS.get(text.lower(), text)
    if key in ("cpu_threads", "max_temp_c"):
        return float(text) if re.fullmatch(r"\d+\.\d+", text) else int(text) if re.fullmatch(r"\d+", text) else text
    return text.strip("\"'")


def _typed_list(text: str) -> object:
    if text.startswith("["):
        try:
            return tomllib.loads(f"list = {text}")["list"]
        except tomllib.TOMLDecodeError:
            return text
    return [entry.strip().strip("\"'") for entry in re.split("[,;]", text) if entry.strip()]


def _told(key: str, value: object) -> str:
    if key in _SAID:
        return str(value or "none")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "; ".join(str(entry) for entry in value) or "no limit"
    return f"{value:g}" if isinstance(value, float) else str(value) if value not in (None, "") else "no limit"


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}") from None


def _fresh_file() -> bytes:
    """Every key, explained, none of them set."""
    lines = ["# What this worker may use and tell. Live: a running worker follows within a second.", ""]
    for key in KEYS:
        lines += [f"# {meaning(key)[:1].upper()}{meaning(key)[1:]}: {expected(key)}.", f"# {key} = {EXAMPLES[key]}", ""]
    return "\n".join(lines).encode()
