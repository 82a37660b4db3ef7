"""May this worker work now, and if not, why: one pure function of limits, wishes, machine and time.

In this order; the first that forbids it is the reason, the others are told beside it:

    1. USER_PAUSED    its owner said so, until he resumes or until a time
    2. SCHEDULE       outside the hours that he gave; ends when they begin
    3. BATTERY        on battery
    4. EXCLUSIVE_APP  a program runs beside which it shall not
    5. GPU_BUSY       another program uses the device that would train
    6. TOO_HOT        that device
    7. VRAM           too little memory of it is free for what the trainer needs
    8. DISK           its own files are more than allowed, or the disk is nearly full
    9. DATA_CAP       the month's traffic is used up; ends with the month

His word comes first, then what he planned, then what he does right now, then what the machine bears. What flickers is
held: it forbids after some seconds, and allows after some more (`Latch`). A sensor that tells nothing leaves what was
known as it was.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from tinylora.protocol.standstill import Reason
from tinylora_worker.gpu import Gpu, GpuProcess
from tinylora_worker.limits import Limits
from tinylora_worker.machine import Machine

BUSY_PERCENT = 20.0
"""Load of the device, by others, from which on it is busy; a desktop that draws its windows stays below."""
HOLDS_SHARE = 0.1
"""Of the device's memory: who computes and holds as much is at work on it, where nobody tells the load by process."""
COOLER_C = 5.0
DISK_RESERVE_BYTES = 1 << 30
"""Left to the system and its owner, limit or not."""
DISK_RELEASE_BYTES = 256 << 20
"""So much more must be free before it goes on."""

FORBID_AFTER_S: Mapping[Reason, float] = MappingProxyType({Reason.GPU_BUSY: 3.0})
"""How long a thing must be so before it forbids; at once, if not said otherwise."""
ALLOW_AFTER_S: Mapping[Reason, float] = MappingProxyType(
    {
        Reason.BATTERY: 10.0,
        Reason.EXCLUSIVE_APP: 10.0,
        Reason.GPU_BUSY: 60.0,
        Reason.VRAM: 10.0,
    }
)
"""How long it must be over before it allows; at once, if not said otherwise."""


@dataclass(frozen=True)
class Wishes:
    """What the owner asked for by the verbs pause, resume and finish; kept over restarts."""

    is_paused: bool = False
    paused_until: datetime | None = None
    """When the pause ends by itself; None: when he resumes."""
    is_finishing: bool = False
    """After the unit under way, leave."""

    def at(self, now: datetime) -> "Wishes":
        """The same without a pause that is over."""
        # Seconds since 1970: within one zone, an hour that comes twice would be compared by the wall's clock.
        is_over = self.paused_until is not None and now.timestamp() >= self.paused_until.timestamp()
        return replace(self, is_paused=False, paused_until=None) if is_over else self


@dataclass(frozen=True)
class Needs:
    """What the trainer needs besides permission; zeros where it is not known yet."""

    vram_bytes: int = 0
    """Peak of its real step, as sizing found it."""


@dataclass(frozen=True)
class Latch:
    """One reason's memory: whether it holds, and since when its sensor says the opposite."""

    is_on: bool = False
    other_since_s: float | None = None
    """On the machine's own clock."""


@dataclass(frozen=True)
class Held:
    """What has to be remembered from one decision to the next; nothing at the start."""

    latches: Mapping[Reason, Latch] = field(default_factory=lambda: MappingProxyType({}))
    resting: frozenset[int] = frozenset()
    """Processes of others that held the device while it rested, when the trainer was not on it."""


@dataclass(frozen=True)
class Verdict:
    """What the worker may do now."""

    may_work: bool
    """The trainer may run."""
    reason: Reason | None = None
    """Why not; of several, the first in the order above."""
    detail: str = ""
    """Of the reason, for people: a program's name, a temperature."""
    until: datetime | None = None
    """When the reason ends by itself, as far as can be told."""
    also: tuple[Reason, ...] = ()
    """Further reasons, in order: when the first ends, these remain."""
    may_take: bool = True
    """Another unit may be asked for: it may work, and is not about to leave."""
    may_talk: bool = True
    """The network may be used; only a used-up traffic cap says no."""
    held: Held = Held()
    """For the next decision."""


@dataclass(frozen=True)
class _Finding:
    reason: Reason
    is_so: bool | None
    """None: cannot be told."""
    detail: str = ""
    until: datetime | None = None
    is_moot: bool = False
    """Nobody asks: the owner set no such limit, or lifted it. Whatever held is over at once."""


def _moot(reason: Reason) -> _Finding:
    return _Finding(reason, False, is_moot=True)


def decide(
    limits: Limits,
    wishes: Wishes,
    machine: Machine,
    now: datetime,
    *,
    held: Held = Held(),
    needs: Needs = Needs(),
) -> Verdict:
    """Whether the worker may work, and the first reason if not; asks nobody, and changes nothing.

    Args:
        limits: Of this home.
        wishes: Of its owner.
        machine: What its sensors say; `machine.at_s` is the clock by which seconds are counted.
        now: In the local zone, for the schedule and the month.
        held: `held` of the verdict before.
        needs: Of the trainer.
    """
    wishes = wishes.at(now)
    latches: dict[Reason, Latch] = {}
    holding: list[_Finding] = []
    for finding in _findings(limits, wishes, machine, now, held, needs):
        latch = _moved(held.latches.get(finding.reason, Latch()), finding, machine.at_s)
        latches[finding.reason] = latch
        if latch.is_on:
            holding.append(finding if finding.is_so else _waiting(finding, latch, machine.at_s, now))
    kept = Held(MappingProxyType(latches), _resting(machine, held))
    if not holding:
        return Verdict(True, may_take=not wishes.is_finishing, held=kept)
    first, *rest = holding
    return Verdict(
        may_work=False,
        reason=first.reason,
        detail=first.detail,
        until=first.until,
        also=tuple(finding.reason for finding in rest),
        may_take=False,
        may_talk=all(finding.reason is not Reason.DATA_CAP for finding in holding),
        held=kept,
    )


def _moved(latch: Latch, finding: _Finding, at_s: float) -> Latch:
    """The latch after one more look."""
    if finding.is_moot:
        return Latch()
    if finding.is_so is None:
        return replace(latch, other_since_s=None)
    if finding.is_so == latch.is_on:
        return Latch(latch.is_on)
    since_s = latch.other_since_s if latch.other_since_s is not None else at_s
    patience_s = (ALLOW_AFTER_S if latch.is_on else FORBID_AFTER_S).get(finding.reason, 0.0)
    return Latch(not latch.is_on) if at_s - since_s >= patience_s else Latch(latch.is_on, since_s)


def _waiting(finding: _Finding, latch: Latch, at_s: float, now: datetime) -> _Finding:
    """The finding of a thing that is over or cannot be told, and still forbids."""
    if finding.is_so is None or latch.other_since_s is None:
        return finding
    rest_s = ALLOW_AFTER_S.get(finding.reason, 0.0) - (at_s - latch.other_since_s)
    until = (now.astimezone(UTC) + timedelta(seconds=rest_s)).astimezone(now.tzinfo)
    return replace(finding, detail="over, if it stays so", until=until)


def _findings(
    limits: Limits, wishes: Wishes, machine: Machine, now: datetime, held: Held, needs: Needs
) -> Iterator[_Finding]:
    """What each reason's own look says, in their order."""
    yield _Finding(Reason.USER_PAUSED, wishes.is_paused, "", wishes.paused_until)
    yield _schedule(limits, now)
    yield _battery(limits, machine)
    yield _exclusive_app(limits, machine)
    yield _gpu_busy(limits, machine, held)
    yield _too_hot(limits, machine, _is_on(held, Reason.TOO_HOT))
    yield _vram(machine, needs)
    yield _disk(limits, machine, _is_on(held, Reason.DISK))
    yield _data_cap(limits, machine, now)


def _is_on(held: Held, reason: Reason) -> bool:
    return held.latches.get(reason, Latch()).is_on


def _schedule(limits: Limits, now: datetime) -> _Finding:
    opening = limits.opening
    if opening.is_open(now):
        return _Finding(Reason.SCHEDULE, False)
    return _Finding(Reason.SCHEDULE, True, "; ".join(limits.schedule), opening.next_change(now))


def _battery(limits: Limits, machine: Machine) -> _Finding:
    if limits.on_battery:
        return _moot(Reason.BATTERY)
    percent = machine.battery_percent
    return _Finding(Reason.BATTERY, machine.is_on_battery, f"{percent:.0f} %" if percent is not None else "")


def _exclusive_app(limits: Limits, machine: Machine) -> _Finding:
    if not limits.exclusive_apps:
        return _moot(Reason.EXCLUSIVE_APP)
    running = machine.exclusive_apps
    is_so = None if running is None else any(app in limits.exclusive_apps for app in running)
    return _Finding(Reason.EXCLUSIVE_APP, is_so, ", ".join(running or ()))


def _gpu_busy(limits: Limits, machine: Machine, held: Held) -> _Finding:
    if limits.when_gpu_busy == "share" or not machine.has_gpu:
        return _moot(Reason.GPU_BUSY)
    gpu = machine.gpu
    if gpu is None:
        return _Finding(Reason.GPU_BUSY, None)
    users = [other for other in gpu.others if _is_at_work(other, gpu, held)]
    if users:
        return _Finding(Reason.GPU_BUSY, True, ", ".join(user.name or f"process {user.pid}" for user in users))
    load = gpu.utilisation_percent
    if not gpu.is_ours_on and load is not None and load >= BUSY_PERCENT:
        return _Finding(Reason.GPU_BUSY, True, f"{load:.0f} % load by others")
    return _Finding(Reason.GPU_BUSY, False)


def _is_at_work(other: GpuProcess, gpu: Gpu, held: Held) -> bool:
    """Whether it uses the device now.

    Where no load is told by process and our own hides the device's, what tells is memory: who came after us and
    computes in much of it is at work; who held it while the device rested, a forgotten notebook, is not.
    """
    if other.utilisation_percent is not None:
        return other.utilisation_percent >= BUSY_PERCENT
    if not gpu.is_ours_on or other.is_graphics or other.pid in held.resting:
        return False
    return (other.memory_bytes or 0) >= HOLDS_SHARE * gpu.memory_total_bytes


def _resting(machine: Machine, held: Held) -> frozenset[int]:
    """Who holds the device without using it, as far as it could be seen."""
    gpu = machine.gpu
    if gpu is None:
        return held.resting
    pids = frozenset(other.pid for other in gpu.others)
    is_seen = not gpu.is_ours_on and gpu.utilisation_percent is not None and gpu.utilisation_percent < BUSY_PERCENT
    return pids if is_seen else held.resting & pids


def _too_hot(limits: Limits, machine: Machine, is_on: bool) -> _Finding:
    most = limits.max_temp_c
    if most is None:
        return _moot(Reason.TOO_HOT)
    found = machine.temperature_c
    if found is None:
        return _Finding(Reason.TOO_HOT, None, "the sensor tells nothing")
    bound = most - COOLER_C if is_on else most
    is_so = found > bound if is_on else found >= bound
    return _Finding(Reason.TOO_HOT, is_so, f"{found:.0f} °C; goes on at {most - COOLER_C:g} °C")


def _vram(machine: Machine, needs: Needs) -> _Finding:
    if not needs.vram_bytes or not machine.has_gpu:
        return _moot(Reason.VRAM)
    gpu = machine.gpu
    if gpu is None or gpu.memory_free_bytes is None:
        return _Finding(Reason.VRAM, None)
    if gpu.is_ours_on:  # it has what it needs
        return _Finding(Reason.VRAM, False)
    detail = f"{_gb(gpu.memory_free_bytes)} free, {_gb(needs.vram_bytes)} needed"
    return _Finding(Reason.VRAM, gpu.memory_free_bytes < needs.vram_bytes, detail)


def _disk(limits: Limits, machine: Machine, is_on: bool) -> _Finding:
    used, free, most = machine.disk_used_bytes, machine.disk_free_bytes, limits.disk_bytes
    if most is not None and used is not None and used > most:
        return _Finding(Reason.DISK, True, f"{_gb(used)} used of {_gb(most)} allowed; see `tinylora-worker clean`")
    if free is None:
        return _Finding(Reason.DISK, None)
    reserve = DISK_RESERVE_BYTES + (DISK_RELEASE_BYTES if is_on else 0)
    return _Finding(Reason.DISK, free < reserve, f"{_gb(free)} free, {_gb(reserve)} are left to the system")


def _data_cap(limits: Limits, machine: Machine, now: datetime) -> _Finding:
    most = limits.cap_bytes
    if most is None or machine.month_bytes < most:
        return _Finding(Reason.DATA_CAP, False)
    detail = f"{_gb(machine.month_bytes)} of {_gb(most)} this month"
    return _Finding(Reason.DATA_CAP, True, detail, next_month(now))


def next_month(now: datetime) -> datetime:
    """The first of the next month, at midnight of the same zone."""
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return datetime(year, month, 1, tzinfo=now.tzinfo)


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
