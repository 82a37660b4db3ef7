"""The loop that drives a run: ask what to do (`decisions`), do it, write it down; take in what arrives; wait.

All that happens becomes an event in the ledger before anything else relies on it, and the state is only ever the fold
of these events. So the process may die anywhere: `run_campaign` on the same ledger takes the run up where it was, and
sends every open lease again.

`record` writes events down · `intake` judges replies · `making` makes versions, gates and trees · `leasing` hands out
units · `orders` are the operator's.
"""

from collections.abc import Callable, Sequence

from tinylora.config import BaseFacts, RunSettings
from tinylora.errors import DiskFull
from tinylora.federation.decisions import (
    PATIENCE_S,
    Adopt,
    Assign,
    Average,
    Command,
    Expire,
    Finish,
    Give,
    Lose,
    Quarantine,
    Return,
    SetTopology,
    Solve,
    Welcome,
    decide,
    wakes_at,
)
from tinylora.federation.events import (
    Event,
    LeaseExpired,
    RunFinished,
    RunStarted,
    SplitKept,
    UpdateProbed,
    WorkerJoined,
    WorkerLost,
    WorkerQuarantined,
    WorkerReturned,
)
from tinylora.federation.growing import Divide, FoldBack, Keep, Merge, Split
from tinylora.federation.intake import Intake
from tinylora.federation.leasing import Leasing, NonceSource
from tinylora.federation.making import Making
from tinylora.federation.orders import carry_out
from tinylora.federation.ports import Clock, Desk, Ledger, Numerics, Reply, Transport, WorkerInfo
from tinylora.federation.probing import Ask, Settle, verdict
from tinylora.federation.record import Record
from tinylora.federation.routers import Blobs
from tinylora.federation.state import Campaign
from tinylora.federation.units import simple_nonce

POLL_S = 0.25
FULL_S = 5.0
"""Between two looks whether there is room on the disk again."""
REJOIN_S = 60.0
"""After a run was taken up, those who had a unit get so long to find the coordinator again."""


def run_campaign(
    ledger: Ledger,
    transport: Transport,
    clock: Clock,
    *,
    run: str,
    settings: RunSettings,
    base: BaseFacts,
    numerics: Numerics,
    desk: Desk | None = None,
    on_event: Callable[[Event], None] | None = None,
    warn: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
    finish: Callable[[], bool] = lambda: False,
    nonce_source: NonceSource = simple_nonce,
    patience_s: float = PATIENCE_S,
    poll_s: float = POLL_S,
    rejoin_s: float = REJOIN_S,
) -> Campaign:
    """Start a run, or take it up from its ledger, and drive it to its end.

    While the disk is full, or the run's cap reached, no unit is given out and nothing is lost: replies wait, and all
    goes on by itself when there is room.

    Args:
        ledger: Where the run is remembered.
        transport: How workers are reached.
        clock: Time.
        run: Name of the run.
        settings: What the operator decided.
        base: Facts about the base model.
        numerics: Opens payloads.
        desk: The operator's orders.
        on_event: Told each event after it was written; also those of the past when a run is taken up.
        warn: Told in a sentence what keeps the run from going on, once, and once when it goes on.
        stop: Asked between steps; true leaves the run as it is, to be taken up later.
        finish: Asked between steps; true ends the run with what it has.
        nonce_source: Makes the nonces of leases.
        patience_s: A run in which nothing went forward for so long, and nobody is at work, is finished.
        poll_s: Longest wait between two looks at the transport.
        rejoin_s: For so long after a run was taken up, nobody who has a unit is taken for lost.

    Returns:
        The state when the run was finished or stopped.

    Raises:
        SettingError: The ledger is of another run, base or settings.
        StorageError: The ledger cannot be read or written; nothing is lost that was acknowledged.
    """
    rounds = Rounds(ledger, transport, clock, numerics, desk=desk, on_event=on_event, nonce_source=nonce_source)
    is_past = rounds.open(RunStarted(run=run, settings=settings, base=base))
    times = {"since_s": clock.now(), "patience_s": patience_s, "rejoin_s": rejoin_s if is_past else 0.0}
    trouble = ""
    while not stop():
        try:
            is_idle = rounds.step(transport, times, finish)
        except DiskFull as error:
            if str(error) != trouble:
                trouble = str(error)
                warn(f"no unit is given out until there is room: {trouble}")
            clock.wait(FULL_S)
            times["since_s"] = clock.now()  # time without room is nobody's fault
            continue
        if trouble:
            trouble = ""
            warn("there is room again, the run goes on")
        if rounds.state.finished:
            break
        if is_idle:
            clock.wait(min(wakes_at(rounds.state, clock.now(), **times) - clock.now(), poll_s))
    return rounds.state


class Rounds:
    """Executes the commands of `decide` and takes in replies; the state is that of its record."""

    def __init__(
        self,
        ledger: Ledger,
        transport: Transport,
        clock: Clock,
        numerics: Numerics,
        *,
        desk: Desk | None = None,
        on_event: Callable[[Event], None] | None = None,
        nonce_source: NonceSource = simple_nonce,
    ) -> None:
        self._clock = clock
        self._desk = desk
        self._record = Record(ledger, clock, on_event)
        blobs = Blobs(ledger, numerics)
        self._intake = Intake(self._record, numerics)
        self._making = Making(self._record, numerics, blobs)
        self._leasing = Leasing(self._record, transport, numerics, blobs, nonce_source)

    @property
    def state(self) -> Campaign:
        """The fold of all that was written down."""
        return self._record.state

    def open(self, start: RunStarted) -> bool:
        """Begin the run, or take up its past: all its open leases are sent again. Returns whether there was a past.

        Raises:
            SettingError: The ledger holds another run than `start` says.
        """
        is_past = self._record.open(start)
        self._leasing.take_up()
        return is_past

    def step(self, transport: Transport, times: dict[str, float], finish: Callable[[], bool]) -> bool:
        """Once around: orders, replies, then what is to be done; returns whether there was nothing to do.

        What was left over for want of room comes before anything new is fetched.

        Raises:
            DiskFull: There is no room; whatever was under way is done by the next step.
        """
        if self._desk is not None:
            carry_out(self._desk, self._record, self._making)
        if self.state.finished:
            return True
        if finish():
            self.execute(Finish("the operator asked for the end"))
            return True
        online = transport.workers()
        self._leasing.resend({info.worker for info in online})
        self.take_in(())
        self.take_in(transport.poll())
        commands = decide(self.state, self._clock.now(), online, **times)
        for command in commands:
            self.execute(command)
        return not commands

    def take_in(self, replies: Sequence[Reply]) -> None:
        """Accept or reject replies, in an order that does not depend on their arrival.

        Raises:
            DiskFull: There is no room; what was not written down waits for the next call.
        """
        self._intake.take_in(replies)

    def execute(self, command: Command) -> None:
        """Do one thing that was decided, and write it down.

        Raises:
            DiskFull: There is no room; nothing was written down, and it is decided anew.
        """
        now, emit = self._clock.now(), self._record.emit
        match command:
            case Welcome():
                emit(_joined(command.info, now))
            case Return():
                emit(WorkerReturned(worker=command.worker, at_s=now))
            case Lose():
                self._lose(command.worker, now)
            case Quarantine():
                reason = command.reason
                emit(WorkerQuarantined(worker=command.worker, code=command.code, reason=reason, at_s=now))
            case Expire():
                emit(LeaseExpired(unit_id=command.unit_id, reason=command.reason, at_s=now))
            case Settle():
                self._settle(command.unit_id, now)
            case Keep():
                emit(SplitKept(node=command.node, heldout_nll=command.heldout_nll))
            case Finish():
                emit(RunFinished(reason=command.reason, at_s=now))
            case Assign() | Average() | SetTopology() | Solve() | Split() | FoldBack() | Merge() | Divide():
                self._make(command)
            case Ask():
                self._leasing.ask(command)
            case Give():
                self._leasing.give(command)
            case Adopt():
                self._leasing.adopt(command)

    def _make(self, command: Assign | Average | SetTopology | Solve | Split | FoldBack | Merge | Divide) -> None:
        match command:
            case SetTopology():
                self._making.set_topology(command)
            case Assign():
                self._making.assign(command)
            case Average():
                self._making.average(command.top)
            case Solve():
                self._making.solve(command.reason)
            case Split():
                self._making.split(command.leaf)
            case FoldBack():
                self._making.fold_back(command)
            case Merge():
                self._making.merge(command)
            case Divide():
                self._making.divide(command.node)

    def _lose(self, worker: str, now: float) -> None:
        unit = self.state.workers[worker].unit_id
        expired = [LeaseExpired(unit_id=unit, reason="the worker went offline", at_s=now)] if unit else []
        self._record.emit(*expired, WorkerLost(worker=worker, at_s=now))

    def _settle(self, unit_id: str, now: float) -> None:
        pending = self.state.pending[unit_id]
        found = verdict(pending.votes, self.state.settings, self.state.changes)
        self._record.emit(
            UpdateProbed(
                unit_id=unit_id,
                worker=pending.update.worker,
                node=pending.update.node,
                is_kept=found.is_kept,
                n_votes=found.n_votes,
                change=found.change,
                reason=found.reason,
                at_s=now,
            )
        )


def _joined(info: WorkerInfo, now: float) -> WorkerJoined:
    return WorkerJoined(
        worker=info.worker,
        name=info.name,
        public_key=info.public_key.decode("ascii", "replace"),
        token=info.token,
        at_s=now,
    )
