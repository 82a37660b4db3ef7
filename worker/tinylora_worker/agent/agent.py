"""The agent's threads, and who holds what.

    main       waits for the end, and for signals
    fleet      joins, takes units, sends what came of them (`FleetClient`); a unit is done in this thread (`Workbench`)
    keeper     starts trainers and has them load
    tick       looks at limits and sensors once a second, and decides
    lookout    asks the coordinator how it is
    receipts   asks for what is missing
    reporter   tells the coordinator what this worker does
    control    answers the command line

Whatever happened, one function decides what is to be done (`desk.decide`), and one place does it (`Agent.refresh`).
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tinylora.config import BaseFacts
from tinylora.errors import NetworkError, RefusedError, SettingError, StorageError, TinyLoraError
from tinylora.flower.enrolment import StateAnswer, Welcome
from tinylora.flower.fleet import Ending, FleetClient, Pace
from tinylora.flower.identity import load_or_create
from tinylora.flower.node_memory import FolderNodeMemory
from tinylora.flower.outbox import UNITS, UPDATE, FolderOutbox
from tinylora.flower.pulse import Pulse
from tinylora.flower.receipts import ReceiptBook, ReceiptCollector, ReceiptDesk
from tinylora.flower.reporting import ReportLine
from tinylora.protocol.documents import Update, WorkUnit
from tinylora.protocol.envelope import sign
from tinylora.protocol.report import WorkerReport
from tinylora.protocol.standstill import Reason, WorkerState
from tinylora_worker.agent.bench import Workbench, describe
from tinylora_worker.agent.board import Board
from tinylora_worker.agent.client import ENDPOINT
from tinylora_worker.agent.control import Control, statuses
from tinylora_worker.agent.desk import Orders, Outside, Situation, UnitOrder, decide
from tinylora_worker.agent.hold import held
from tinylora_worker.agent.joining import Door, whom
from tinylora_worker.agent.journal import Journal, Tell, to_stderr
from tinylora_worker.agent.keeper import BACKOFF_S, Keeper, Prepared
from tinylora_worker.agent.loading import Loader, MakeTrainer, facts_of, make_trainer
from tinylora_worker.agent.lookout import Lookout
from tinylora_worker.agent.options import Options
from tinylora_worker.agent.outward import Discretion, make_report, with_statement
from tinylora_worker.agent.report import Traffic, Who, make_status
from tinylora_worker.agent.reporter import Reporter, SharedLog, private_words
from tinylora_worker.agent.signals import two_stages
from tinylora_worker.agent.store import Store
from tinylora_worker.agent.totals import Credit
from tinylora_worker.limits import Limits, LimitsFile
from tinylora_worker.machine import Machine, Sensors
from tinylora_worker.policy import Held, Needs, Wishes
from tinylora_worker.policy import decide as decide_limits
from tinylora_worker.schedule import local_time
from tinylora_worker.traffic import TrafficMeter
from tinylora_worker.wire.endpoint import serve
from tinylora_worker.wire.worker_pb2 import Status

MIB = 2**20
APPROVAL_POLL_S, TICK_S = 10.0, 1.0
LEAVING_S, RECEIPTS_S = 5.0, 10.0
"""How long a coordinator that does not answer, or the last receipt, may hold up the end."""
_LOOK_S = 0.2


class Sensing(Protocol):
    """What the agent needs of the machine's sensors; `machine.Sensors`, and whatever tests put in its place."""

    def read(
        self, limits: Limits, *, trainer_pid: int | None = None, device_kind: str = "", month_bytes: int = 0
    ) -> Machine:
        """One look at everything."""
        ...

    def close(self) -> None:
        """Look no more."""
        ...


_LAST_WORDS: dict[Ending, str] = {
    "finished": "the run is finished",
    "stopped": "stopped; `tinylora-worker run` goes on, without a token",
}
_AT_FIRST = Orders(UnitOrder.NONE, False, False, False, WorkerState.STARTING)


class Agent:
    """A worker, from its first look at its home to its last word.

    Args:
        options: What the volunteer said.
        show: Takes one line for people.
        on_status: Called with a status after each change, at most twice a second.
        make_trainer: Makes a trainer that is not started yet.
        sensors: Tell of the machine; its own without.
        pace: How often to ask the coordinator, and how long to wait for it.
        wall: Seconds since 1970.
        tick_s: Between two looks at limits and sensors.
        approval_poll_s: Between two questions whether the operator has approved this worker, where he wants to.
        backoff_s: Seconds to wait after a trainer's first, second, … death.
        receipts_s: How long to wait for the last receipts.
    """

    def __init__(
        self,
        options: Options,
        *,
        show: Tell = to_stderr,
        on_status: Callable[[Status], None] | None = None,
        make_trainer: MakeTrainer = make_trainer,
        sensors: Sensing | None = None,
        pace: Pace | None = None,
        wall: Callable[[], float] = time.time,
        tick_s: float = TICK_S,
        approval_poll_s: float = APPROVAL_POLL_S,
        backoff_s: tuple[float, ...] = BACKOFF_S,
        receipts_s: float = RECEIPTS_S,
    ) -> None:
        self.options, self._show, self._on_status, self._make_trainer = options, show, on_status, make_trainer
        self._given_sensors, self._pace, self._wall = sensors, pace or Pace(), wall
        self._tick_s, self._approval_poll_s, self._backoff_s = tick_s, approval_poll_s, backoff_s
        self._receipts_s = receipts_s
        self._life: ExitStack | None = None

    def prepare(self) -> None:
        """The home is ours: lock, log, identity, state, limits, outbox. Again is harmless.

        Raises:
            RefusedError: Another agent holds this home.
            SettingError: A file of the home is not readable, or it has joined no run and there is no token.
            StorageError: The home cannot be written.
        """
        if self._life is not None:
            return
        home = self.options.home
        whom(self.options)
        with ExitStack() as life:
            life.enter_context(held(home))
            self._journal = Journal(home, show=self._show)
            life.callback(self._journal.close)
            self._store, self._limits = Store(home), LimitsFile(home)
            self._identity = load_or_create(home)
            self._store.change(job=self.options.job)
            self._meter = TrafficMeter(home)
            life.callback(self._meter.close)
            self._door = Door.find(self.options, self._identity, self._meter)
            self._sensors = self._given_sensors or Sensors(home)
            life.callback(self._sensors.close)
            self._begin()
            self._life = life.pop_all()

    def _begin(self) -> None:
        """What there is only in memory."""
        options = self.options
        self._who = Who(str(options.home), worker=self._identity.worker, name=options.name, started_s=self._wall())
        self._is_leaving = self._is_now = False
        self._stop, self._over, self._deciding = threading.Event(), threading.Event(), threading.RLock()
        self._ending: Ending = "stopped"
        self._error: BaseException | None = None
        self._run_id = ""
        """As in documents; empty before it has joined."""
        self._needs_update, self._said_problems, self._looking = "", frozenset[str](), threading.Lock()
        self._told_words: tuple[WorkerState, Reason | None] = (WorkerState.STARTING, None)
        self._held, self._machine, self._seen_limits = Held(), Machine(at_s=0.0), self._allowed()
        self._lookout: Lookout | None = None
        self._may_talk = True
        self._credit = Credit(options.home, self._identity.worker)
        self._loader = Loader(
            self._make_trainer,
            options,
            self._allowed,
            worker=self._identity.worker,
            memory_bytes=self._device_bytes,
            say=self._journal.say,
        )
        self._keeper = Keeper(
            self._loader.prepare,
            check=self._check_base,
            changed=self.refresh,
            say=self._journal.say,
            backoff_s=self._backoff_s,
        )
        self._board = Board(_AT_FIRST)
        self._bench = Workbench(
            self._keeper,
            self._board,
            refresh=self.refresh,
            sign=lambda update: sign(with_statement(update, self._limits.current()), self._identity.sign),
            say=self._journal.say,
            wall=self._wall,
            backoff_s=self._backoff_s,
        )

    # --- a life ------------------------------------------------------------------------------------------------------

    def work(self, prepared: Prepared | None = None) -> Ending:
        """Take part until the run is over, or somebody wants to leave; the coordinator is told at once.

        Args:
            prepared: A trainer that has loaded and sized already.

        Raises:
            BaseModelError: The base cannot be loaded, or the run needs another one.
            DataError: There is no usable text.
            KeyboardInterrupt: Somebody wanted to leave at once.
            NetworkError: The coordinator was unreachable for too long.
            RefusedError: It says no, or another agent holds this home.
            SettingError: The address or the token makes no sense, or neither is known.
            StorageError: The home cannot be written.
        """
        self.prepare()
        assert self._life is not None
        life, self._life = self._life, None
        with life, two_stages(self.leave, self._leave_now):
            self._live(prepared)
            return self._end()

    def _live(self, prepared: Prepared | None) -> None:
        fleet = threading.Thread(target=self._take_part, name="fleet", daemon=True)
        with ExitStack() as life:
            life.enter_context(serve([Control(self).add_to], self.options.home, ENDPOINT))
            life.callback(lambda: self._keeper.close(at_once=self._is_now))
            self._keeper.open(prepared)
            life.callback(self._loader.close)
            self._tick()
            life.enter_context(Pulse(self._tick, period_s=self._tick_s))
            life.callback(self._over.set)
            if self._on_status is not None:
                threading.Thread(target=self._show_status, name="screen", daemon=True).start()
            fleet.start()
            self._wait_for(fleet)

    def _wait_for(self, fleet: threading.Thread) -> None:
        """Until the fleet thread is through. Who wants to leave waits so long only for a coordinator that is silent."""
        left_s = LEAVING_S
        while fleet.is_alive() and left_s > 0 and not self._is_now:
            fleet.join(_LOOK_S)
            left_s -= _LOOK_S if self._is_leaving else 0.0

    def _end(self) -> Ending:
        """What `work` returns, or raises."""
        if self._is_now:
            raise KeyboardInterrupt
        if (error := self._keeper.error or self._error) is not None:
            raise error
        self._store.change(is_finishing=False)
        self._journal.say(
            f"run {self._who.run}: {self._credit.of(self._run_id).sentence()}"
            if self._who.run
            else "had not joined yet"
        )
        self._journal.say(_LAST_WORDS[self._ending])
        return self._ending

    def _take_part(self) -> None:
        """The fleet thread."""
        try:
            welcome = self._door.wait_in(self._stop.wait, say=self._journal.say, poll_s=self._approval_poll_s)
            if welcome is not None:
                self._enter(welcome)
                self._take_units(welcome)
        except BaseException as error:  # raised again where somebody waits for it
            self._error = error

    def _enter(self, welcome: Welcome) -> None:
        """We are let in."""
        answer, url = welcome.answer, self._door.address.url()
        self._who, self._run_id = replace(self._who, run=answer.run, coordinator=url), answer.settings.run_id
        self._journal.say(f"run {answer.run}: joined {url} as {self._identity.worker}")
        self._loader.welcome(welcome)
        self.refresh()

    def _take_units(self, welcome: Welcome) -> None:
        desk = ReceiptDesk(
            self._door.address,
            welcome.trust,
            self._identity,
            welcome.answer.run_key,
            welcome.clock_offset_s,
            meter=self._meter,
        )
        outbox = FolderOutbox(self.options.home, run=welcome.answer.settings.run_id)
        with (
            Lookout(self._ask_state, self.refresh, period_s=self._pace.phase_poll_s, wall=self._wall) as lookout,
            ReceiptCollector(desk, ReceiptBook(self.options.home), log=self._journal.say, outbox=outbox),
            self._reporter(welcome),
        ):
            self._lookout = lookout
            self._ending = self._client(welcome, lookout, outbox).work()
            if self._ending == "stopped":  # a run that is over has accepted what it will, and its coordinator goes soon
                self._await_receipts()

    def _reporter(self, welcome: Welcome) -> Reporter:
        line = ReportLine(
            self._door.address,
            welcome.trust,
            self._identity,
            clock_offset_s=welcome.clock_offset_s,
            meter=self._meter,
        )
        discretion = Discretion.about(private_words(self.options), {self._identity.worker, self._who.run})
        log = SharedLog(self._journal, discretion, lambda: self._limits.current().share_log)
        return Reporter(line, self._board, self._report, log, note=self._journal.note)

    def _report(self, log: tuple[str, ...]) -> WorkerReport | None:
        """What others are told now; at the traffic cap, nothing."""
        last = self._keeper.last
        if not self._may_talk:
            return None
        return make_report(
            self._board.orders,
            work=self._bench.under_way,
            device="" if last is None else last.loaded.device,
            memory_bytes=self._device_bytes(),
            limits=self._allowed(),
            log=log,
            now_s=self._wall(),
        )

    def _await_receipts(self) -> None:
        """For a short while: an update is accepted some time after it was sent. The next start asks again."""
        end_s = time.monotonic() + self._receipts_s
        while not self._is_leaving and time.monotonic() < end_s:
            if not self._n_waiting():
                return
            self._board.wait(lambda orders: orders.has_to_leave and self._is_leaving, timeout_s=_LOOK_S)

    def _client(self, welcome: Welcome, lookout: Lookout, outbox: FolderOutbox) -> FleetClient:
        def again() -> float:
            return self._rejoin().clock_offset_s

        def handle(unit: WorkUnit, folder: Path) -> tuple[Update, Path]:
            update, result = self._bench.do(unit, folder)
            self._journal.say(describe(unit, update))
            return update, result

        return FleetClient(
            self._door.address,
            self._identity,
            handle,
            outbox,
            ready=self._may_ask,
            node=FolderNodeMemory(self.options.home),
            phase=lookout.phase,
            limit_bytes=int(welcome.answer.settings.max_update_mib * MIB),
            clock_offset_s=welcome.clock_offset_s,
            root_certificates=welcome.trust.root_certificates,
            rejoin=again,
            pace=self._pace,
            stop=self._stop,
            log=self._journal.say,
            meter=self._meter,
            on_phase=lambda phase: lookout.note_reach(phase != "unreachable"),
        )

    # --- what is decided ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Decide what is to be done now, and do it."""
        with self._deciding:
            orders = decide(self._situation())
            is_new = self._board.post(orders)
            self._keeper.allow(orders.may_train)
        if is_new:
            self._tell(orders)

    def _situation(self) -> Situation:
        now_s = self._wall()
        verdict = decide_limits(
            self._allowed(),
            self._wishes(now_s),
            self._machine,
            local_time(now_s),
            held=self._held,
            needs=self._needs(),
        )
        self._held, self._may_talk = verdict.held, verdict.may_talk
        work = self._bench.under_way
        return Situation(
            now_s=now_s,
            verdict=verdict,
            outside=self._outside(),
            unit=None if work is None else work.facts,
            is_loaded=self._keeper.prepared is not None,
            is_finishing=self._store.kept.is_finishing,
            is_leaving=self._is_leaving or self._keeper.error is not None,
        )

    def _wishes(self, now_s: float) -> Wishes:
        kept = self._store.kept
        until = local_time(kept.paused_until_s) if kept.paused_until_s else None
        if kept.is_paused and until is not None and now_s >= kept.paused_until_s:
            with suppress(StorageError):  # it is over all the same
                self._store.change(is_paused=False, paused_until_s=0.0)
            return Wishes(is_finishing=kept.is_finishing)
        return Wishes(kept.is_paused, until if kept.is_paused else None, kept.is_finishing)

    def _outside(self) -> Outside:
        lookout, error = self._lookout, self._keeper.error
        answer = None if lookout is None else lookout.answer
        return Outside(
            has_joined=bool(self._who.run),
            phase=None if answer is None else answer.phase,
            unreachable_since_s=0.0 if lookout is None else lookout.unreachable_since_s,
            needs_update=self._needs_update,
            error="" if error is None else str(error),
        )

    def _needs(self) -> Needs:
        last = self._keeper.last
        return Needs(vram_bytes=0 if last is None else last.fit.peak_bytes)

    def _tell(self, orders: Orders) -> None:
        """A line when it stops working or begins again; numbers and details change too often for that."""
        words = (orders.state, orders.reason)
        if words == self._told_words or orders.state not in (WorkerState.PAUSED, WorkerState.WORKING):
            return
        was_paused, self._told_words = self._told_words[0] is WorkerState.PAUSED, words
        if orders.state is WorkerState.PAUSED:
            detail = f" ({orders.detail})" if orders.detail else ""
            until = f" until {datetime.fromtimestamp(orders.until_s):%H:%M:%S}" if orders.until_s else ""
            self._journal.say(f"paused: {orders.reason}{detail}{until}")
        elif was_paused:
            self._journal.say("goes on")

    def _may_ask(self) -> bool:
        """Asked by the fleet thread between two units: then whoever wants to leave leaves."""
        orders = self._board.orders
        if orders.has_to_leave:
            self._stop.set()
        return orders.may_ask

    def _tick(self) -> bool:
        """Look at limits and sensors, and decide anew, one thread at a time.

        Nothing may end the thread that this runs in, nor one step keep another from being done: the owner's limits
        would hold no longer.
        """
        with self._looking:
            problems = [self._try(step) for step in (self._look, self._follow_limits, self.refresh)]
            self._tell_problems([*problems, self._limits.problem, *self._machine.problems])
        self._board.touch()
        return True

    def _try(self, step: Callable[[], None]) -> str:
        """Do it; returns why not."""
        try:
            step()
        except TinyLoraError as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _look(self) -> None:
        last = self._keeper.last
        self._machine = self._sensors.read(
            self._allowed(),
            trainer_pid=self._keeper.pid,
            device_kind="" if last is None else last.loaded.device_kind,
            month_bytes=self._meter.month_bytes,
        )

    def _follow_limits(self) -> None:
        """A trainer that was started under other limits is started again."""
        limits, before = self._allowed(), self._seen_limits
        self._seen_limits = limits
        if before.needs_another_trainer(limits):
            self._keeper.allow(False)

    def _tell_problems(self, problems: list[str]) -> None:
        """Each once, as long as it stays."""
        found = frozenset(problem for problem in problems if problem)
        for problem in sorted(found - self._said_problems):
            self._journal.say(problem)
        self._said_problems = found

    def _allowed(self) -> Limits:
        """The limits of now, on the device that was said."""
        return self._limits.current().with_device(self.options.device)

    def _ask_state(self) -> StateAnswer:
        """What the run is doing; at the traffic cap, what it did when it was asked last."""
        known = None if self._lookout is None else self._lookout.answer
        return known if known is not None and not self._may_talk else self._door.ask_state()

    def _check_base(self, prepared: Prepared) -> None:
        """The coordinator's word on the base that was loaded; if it is away, each unit is checked anyway."""
        loaded = prepared.loaded
        self._journal.say(
            f"{loaded.device}, {loaded.dtype}{f' ({loaded.dtype_reason})' if loaded.dtype_reason else ''}; "
            f"{loaded.n_train_documents} documents to train on, {loaded.n_heldout_documents} held out, "
            f"{loaded.n_tokens} tokens"
        )
        with suppress(NetworkError):
            self._rejoin(facts_of(prepared))

    def _rejoin(self, facts: BaseFacts | None = None) -> Welcome:
        try:
            return self._door.join(facts)
        except RefusedError as error:
            self._needs_update = str(error) if error.rule == "protocol" else ""
            raise

    def _device_bytes(self) -> int:
        return 0 if self._machine.gpu is None else self._machine.gpu.memory_total_bytes

    # --- what its owner wishes ---------------------------------------------------------------------------------------

    def pause(self, until_s: float = 0.0) -> str:
        """Free the device until then (seconds since 1970), or until resumed. It is free when the call returns.

        Raises:
            SettingError: That time is over.
        """
        if until_s and until_s <= self._wall():
            raise SettingError(f"{datetime.fromtimestamp(until_s):%Y-%m-%d %H:%M:%S} is over; give a time to come")
        self._store.change(is_paused=True, paused_until_s=until_s)
        self.refresh()
        until = f"until {datetime.fromtimestamp(until_s):%Y-%m-%d %H:%M:%S}" if until_s else "until you resume it"
        return f"paused {until}; the device's memory is free"

    def resume(self) -> str:
        """End a pause, and take back a wish to finish."""
        self._store.change(is_paused=False, paused_until_s=0.0, is_finishing=False)
        self.refresh()
        orders = self._board.orders
        if orders.state is WorkerState.PAUSED:
            return f"no longer paused by you; still held by {orders.reason}{f': {orders.detail}' * bool(orders.detail)}"
        return "goes on"

    def finish(self) -> str:
        """Leave after the unit under way."""
        self._store.change(is_finishing=True)
        self.refresh()
        work = self._bench.under_way
        return "leaves now; no unit is under way" if work is None else f"leaves after unit {work.unit.unit_id}"

    def leave(self) -> str:
        """Leave now: the unit under way keeps its checkpoint, and its lease is given back."""
        self._is_leaving = True
        self._journal.say("leaving; once more means at once")
        has_unit = self._bench.under_way is not None
        self.refresh()
        if not has_unit:  # otherwise it is given back first, and `_may_ask` is asked after that
            self._stop.set()
        return "leaves now; the unit under way is given back" if has_unit else "leaves now"

    def _leave_now(self) -> None:
        """Whatever is under way is left as it lies on disk."""
        self._is_now = True
        self._keeper.close(at_once=True)
        self._stop.set()

    def reload_limits(self) -> str:
        """Read the limits again, now and not at the next tick.

        Raises:
            SettingError: The file makes no sense; what was set before still holds.
        """
        self._tick()
        if self._limits.problem:
            raise SettingError(self._limits.problem)
        return "these limits hold now"

    # --- what it tells -----------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Everything at this moment."""
        machine, limits = self._machine, self._limits.current()
        return make_status(
            self._who,
            self._board.orders,
            work=self._bench.under_way,
            prepared=self._keeper.last,
            is_finishing=self._store.kept.is_finishing,
            temperature_c=machine.temperature_c or 0.0,
            memory_bytes=(machine.gpu.ours_bytes or 0) if machine.gpu is not None else 0,
            traffic=Traffic(
                self._meter.sent_bytes, self._meter.received_bytes, self._meter.month_bytes, limits.cap_bytes or 0
            ),
            n_outbox=self._n_waiting(),
            totals=self._credit.of(self._run_id),
            log=self._journal.latest,
            now_s=self._wall(),
        )

    def wait_for_news(self, version: int, *, timeout_s: float) -> int:
        """Wait for a change since `version`; returns the version of now."""
        return self._board.wait_for_news(version, timeout_s=timeout_s)

    def _n_waiting(self) -> int:
        """Updates without a receipt, in the outbox."""
        return sum(1 for _ in (self.options.home / UNITS).glob(f"*/{UPDATE}"))

    def _show_status(self) -> None:
        assert self._on_status is not None
        for status in statuses(self, self._over):
            self._on_status(status)
