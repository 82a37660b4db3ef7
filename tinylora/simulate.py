"""A whole federation in one process: the loop and the unit code of a real run, under a virtual clock.

Workers work when a unit is sent to them, and their reply is due when their virtual time for it is over. Nothing
sleeps, and nothing depends on how fast this machine is: two simulations with one seed end with the same bytes.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from tinylora.adapters.shapes import check_projections
from tinylora.base_model import LoadedBase
from tinylora.bundle import Bundle
from tinylora.config import BaseFacts, RunSettings
from tinylora.errors import DataError, SettingError, TinyLoraError
from tinylora.federation.campaign import Campaign, fold
from tinylora.federation.decisions import PATIENCE_S
from tinylora.federation.events import Event
from tinylora.federation.ledger_memory import MemoryLedger
from tinylora.federation.loop import run_campaign
from tinylora.federation.ports import Ledger, Reply, WorkerInfo
from tinylora.numerics import TorchNumerics
from tinylora.protocol.documents import Update, WorkUnit
from tinylora.release import make_bundle
from tinylora.shards import Shard
from tinylora.training import Fit, UnitRunner

SECONDS_PER_STEP = 1.0
SKETCH_S = 2.0
PROBE_S = 1.0
PATIENCE_WITH_LOSSES_S = 1e9
"""Where updates are lost by chance, a worker may be unlucky many times in a row, and virtual seconds cost nothing."""


@runtime_checkable
class Runner(Protocol):
    """Does units; `training.UnitRunner` is the real one."""

    def run(self, unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        """The update of a unit, with its payload.

        Raises:
            TinyLoraError: The unit cannot be done; the message goes back in place of an update.
        """
        ...


@dataclass(frozen=True)
class SimulatedWorker:
    """Somebody with a shard, or with a runner of its own."""

    name: str
    shard: Shard | None = None
    runner: Runner | None = None
    joins_at_s: float = 0.0
    """When it appears, in virtual seconds."""
    leaves_at_s: float = math.inf
    """When it is gone for good, with whatever it was at."""
    seconds_per_step: float = 0.0
    """Its speed; 0 draws one from the run's seed, between one half and twice the usual."""
    max_rank: int = 0
    """Highest rank that its machine can train; 0 is any. Used for `shard`: a runner knows its own."""
    max_leaves: int = 0
    """Most leaves that its machine can train at once; 0 is any. Used for `shard`, too."""
    token: str = ""
    """Name of the join token that it comes with."""


# --- faults ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one unit of one worker."""

    kind: str
    """`kill`: the worker dies half-way. `silent`: no answer ever comes. `delay`: the answer comes late."""
    seconds: float = math.inf
    """`delay`: how late. `kill`: after how long the worker is back."""


@dataclass(frozen=True)
class FaultPlan:
    """Faults by (worker's name or number from 0, number of the unit among those it was sent; its sketch is unit 0).

    Besides those that were planned one by one, each train update may be lost by chance: `drop` is the share of them.

    Raises:
        SettingError: `drop` is none of [0, 1).
    """

    faults: Mapping[tuple[str, int], Fault] = field(default_factory=dict)
    drop: float = 0.0

    def __post_init__(self) -> None:
        """Check that some updates come through."""
        if not 0.0 <= self.drop < 1.0:
            raise SettingError(f"--drop {self.drop}: expected a share of updates from 0 to less than 1")

    @classmethod
    def parse(
        cls,
        *,
        kill: Sequence[str] = (),
        silent: Sequence[str] = (),
        delay: Sequence[str] = (),
        drop: float = 0.0,
    ) -> "FaultPlan":
        """Read `W@U` for `kill` and `silent` (`kill` also `W@U:S`, back after S seconds), and `W@U:S` for `delay`.

        Raises:
            SettingError: A text is not of this form, two faults hit one unit, or `drop` is no share.
        """
        faults: dict[tuple[str, int], Fault] = {}
        for kind, texts in (("kill", kill), ("silent", silent), ("delay", delay)):
            for text in texts:
                place, fault = _parse_fault(kind, text)
                if place in faults:
                    raise SettingError(f"--{kind} {text}: unit {place[1]} of worker {place[0]} has a fault already")
                faults[place] = fault
        return cls(faults, drop)

    def of(self, worker: str, number: int, unit: int) -> Fault | None:
        """The fault of a worker's `unit`-th unit, if there is one."""
        return self.faults.get((worker, unit)) or self.faults.get((str(number), unit))

    def loses(self, seed: int, worker: str, unit: int) -> bool:
        """Whether the update of a worker's `unit`-th unit is lost by chance, the same way for the same seed."""
        return _drawn(f"drop/{seed}/{worker}/{unit}") < self.drop

    def check(self, workers: Sequence[SimulatedWorker]) -> None:
        """Check that every fault is of a worker that takes part.

        Raises:
            SettingError: One is not.
        """
        known = {worker.name for worker in workers} | {str(number) for number in range(len(workers))}
        stranger = next((worker for worker, _ in sorted(self.faults) if worker not in known), None)
        if stranger is not None:
            expected = f"0 to {len(workers) - 1}" if workers else "none, there are no workers"
            raise SettingError(f"fault of worker {stranger!r}: no such worker; expected a name or a number, {expected}")


_FAULT = re.compile(r"(?P<worker>[A-Za-z0-9._-]+)@(?P<unit>\d{1,9})(?::(?P<seconds>\d{1,9}(?:\.\d{1,9})?))?")


def _parse_fault(kind: str, text: str) -> tuple[tuple[str, int], Fault]:
    match = _FAULT.fullmatch(text)
    seconds = match["seconds"] if match else None
    if match is None or (kind == "delay" and seconds is None) or (kind == "silent" and seconds is not None):
        form = {"kill": "W@U or W@U:S", "silent": "W@U", "delay": "W@U:S"}[kind]
        raise SettingError(f"--{kind} {text}: expected {form}, worker, unit and seconds, such as 1@2{_example(kind)}")
    return (match["worker"], int(match["unit"])), Fault(kind, float(seconds) if seconds else math.inf)


def _example(kind: str) -> str:
    return ":30" if kind == "delay" else ""


# --- the virtual world -----------------------------------------------------------------------------------------------


class VirtualClock:
    """Time that passes only when the loop waits, and then jumps to the next thing that happens."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s
        self.upcoming: Callable[[float], float] = lambda now: math.inf
        """When something next happens after a moment; the transport says."""

    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self._now

    def wait(self, seconds: float) -> None:
        """Jump ahead, at most so far.

        Raises:
            SettingError: Nothing will ever happen again.
        """
        until = min(self._now + max(seconds, 0.0), self.upcoming(self._now))
        if math.isinf(until):
            raise SettingError("simulation: nobody is left to wait for; give it at least one worker")
        self._now = max(until, self._now)


@dataclass
class _Seat:
    """One worker in the simulated world."""

    number: int
    worker: SimulatedWorker
    runner: Runner
    seconds_per_step: float
    n_units: int = 0
    away_from_s: float = math.inf
    away_until_s: float = math.inf

    def is_online(self, now: float) -> bool:
        is_here = self.worker.joins_at_s <= now < self.worker.leaves_at_s
        return is_here and not self.away_from_s <= now < self.away_until_s

    def changes(self) -> tuple[float, ...]:
        return self.worker.joins_at_s, self.worker.leaves_at_s, self.away_from_s, self.away_until_s


class SimulatedTransport:
    """Workers in this process; a unit is worked on when it is sent, and its reply is due in virtual time."""

    def __init__(
        self,
        workers: Sequence[SimulatedWorker],
        runners: Sequence[Runner],
        clock: VirtualClock,
        *,
        faults: FaultPlan | None = None,
        seed: int = 0,
    ) -> None:
        self._faults = faults or FaultPlan()
        self._faults.check(workers)
        self._clock, self._seed = clock, seed
        self._seats = {
            worker.name: _Seat(number, worker, runner, worker.seconds_per_step or _drawn_speed(seed, worker.name))
            for number, (worker, runner) in enumerate(zip(workers, runners, strict=True))
        }
        self._due: list[tuple[float, Reply]] = []
        clock.upcoming = self.upcoming

    def workers(self) -> Sequence[WorkerInfo]:
        """Workers that are online now, by name."""
        now = self._clock.now()
        return [
            WorkerInfo(name, name, token=seat.worker.token)
            for name, seat in sorted(self._seats.items())
            if seat.is_online(now)
        ]

    def send(self, worker: str, unit: WorkUnit, payload: bytes) -> None:
        """Let the worker do the unit; its reply is due when its virtual time is over."""
        seat, now = self._seats[worker], self._clock.now()
        if not seat.is_online(now):
            return
        fault = self._fault_of(seat, unit)
        seat.n_units += 1
        seconds = _seconds_of(unit, seat.seconds_per_step)
        if fault and fault.kind == "kill":
            seat.away_from_s = now + seconds / 2
            seat.away_until_s = seat.away_from_s + fault.seconds
        elif fault is None or fault.kind == "delay":
            due_s = now + seconds + (fault.seconds if fault else 0.0)
            if due_s < seat.worker.leaves_at_s:
                self._due.append((due_s, _work(seat, unit, payload, seconds)))

    def _fault_of(self, seat: _Seat, unit: WorkUnit) -> Fault | None:
        """What was planned for the unit, or else its loss by chance: the worker falls silent for its deadline."""
        name = seat.worker.name
        planned = self._faults.of(name, seat.number, seat.n_units)
        if planned or unit.kind != "train" or not self._faults.loses(self._seed, name, seat.n_units):
            return planned
        return Fault("silent")

    def poll(self) -> Sequence[Reply]:
        """Replies that are due, by time and worker."""
        now = self._clock.now()
        ready = sorted((item for item in self._due if item[0] <= now), key=lambda item: (item[0], item[1].worker))
        self._due = [item for item in self._due if item[0] > now]
        return [reply for _, reply in ready]

    def upcoming(self, now: float) -> float:
        """When the next reply is due or a worker comes or goes."""
        times = [due for due, _ in self._due]
        times += [time for seat in self._seats.values() for time in seat.changes()]
        return min((time for time in times if time > now), default=math.inf)


def _work(seat: _Seat, unit: WorkUnit, payload: bytes, seconds: float) -> Reply:
    """What comes back; its busy time is the virtual one, so that events do not depend on this machine."""
    name = seat.worker.name
    try:
        update, result = seat.runner.run(unit, payload)
    except TinyLoraError as error:
        return Reply(name, unit.unit_id, error=str(error), is_final=isinstance(error, DataError))
    return Reply(name, unit.unit_id, update.model_copy(update={"seconds": seconds}).to_json(), result)


def _seconds_of(unit: WorkUnit, seconds_per_step: float) -> float:
    if unit.kind == "train":
        return unit.n_steps * seconds_per_step
    return (SKETCH_S if unit.kind == "sketch" else PROBE_S) * seconds_per_step


def _drawn_speed(seed: int, worker: str) -> float:
    """Seconds per step between one half and twice the usual, evenly on the scale of ratios."""
    return SECONDS_PER_STEP * 4.0 ** (_drawn(f"speed/{seed}/{worker}") - 0.5)


def _drawn(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


# --- the simulation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimulationResult:
    """How it went: the state at the end, all that happened, and the tree."""

    campaign: Campaign
    ledger: Ledger
    bundle: Bundle


def simulate(
    settings: RunSettings,
    workers: Sequence[SimulatedWorker],
    base: LoadedBase,
    faults: FaultPlan | None = None,
    on_event: Callable[[Event], None] | None = None,
    *,
    finish: Callable[[], bool] = lambda: False,
    patience_s: float = PATIENCE_S,
) -> SimulationResult:
    """Run a federation to its end in this process.

    Args:
        settings: As of a real run; times are virtual seconds.
        workers: Who takes part; names must differ.
        base: Shared by all workers that bring a shard.
        faults: What goes wrong.
        on_event: Told each event.
        finish: Asked between steps; true ends the run with what it has.
        patience_s: Virtual seconds without progress after which the run ends with what it has.

    Raises:
        SettingError: No workers, two of one name, a worker with neither shard nor runner, or a fault of a stranger; or
            the adapters do not fit the base.
        TinyLoraError: The run ended before the tree was set, so that there is nothing to release.
    """
    check_projections(base.facts, settings.spec)
    ledger, base = MemoryLedger(), base.for_run(settings)
    campaign = run_simulated(
        ledger,
        settings,
        workers,
        base.facts,
        runners(workers, base),
        faults,
        on_event,
        finish=finish,
        patience_s=patience_s,
    )
    bundle = make_bundle(campaign, ledger, projection=base.routing_feature.projection)
    return SimulationResult(campaign, ledger, bundle)


def runners(workers: Sequence[SimulatedWorker], base: LoadedBase) -> list[Runner]:
    """Each worker's own runner, or one for its shard on the shared base.

    Raises:
        SettingError: A worker has neither.
    """
    found: list[Runner] = []
    for worker in workers:
        if worker.runner is not None:
            found.append(worker.runner)
        elif worker.shard is not None:
            fit = Fit(max_rank=worker.max_rank, max_leaves=worker.max_leaves)
            found.append(UnitRunner(base, worker.shard, worker=worker.name, fit=fit))
        else:
            raise SettingError(f"simulated worker {worker.name}: expected a shard or a runner, got neither")
    return found


def run_simulated(
    ledger: Ledger,
    settings: RunSettings,
    workers: Sequence[SimulatedWorker],
    facts: BaseFacts,
    runners: Sequence[Runner],
    faults: FaultPlan | None = None,
    on_event: Callable[[Event], None] | None = None,
    *,
    finish: Callable[[], bool] = lambda: False,
    patience_s: float = PATIENCE_S,
) -> Campaign:
    """The loop on a virtual clock, without a base model of its own; see `simulate`.

    Raises:
        SettingError: No workers, or two of one name.
    """
    names = [worker.name for worker in workers]
    if not names or len(set(names)) != len(names):
        raise SettingError(f"simulation: expected workers of different names, got {', '.join(names) or 'none'}")
    if faults and faults.drop:
        patience_s = max(patience_s, PATIENCE_WITH_LOSSES_S)
    past = fold(ledger.events())
    clock = VirtualClock(past.latest_at_s if past else 0.0)
    transport = SimulatedTransport(workers, runners, clock, faults=faults, seed=settings.seed)
    return run_campaign(
        ledger,
        transport,
        clock,
        run=settings.name,
        settings=settings,
        base=facts,
        numerics=TorchNumerics(),
        on_event=on_event,
        finish=finish,
        patience_s=patience_s,
        poll_s=math.inf,
    )
