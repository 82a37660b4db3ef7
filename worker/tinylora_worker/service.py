"""One worker's life: key, token, base, shard, then unit after unit until the run is over or a signal comes.

The base is loaded once and stays. Nothing that the coordinator sends is executed: units are documents and tensors.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from tinylora.config import BaseFacts
from tinylora.errors import DataError, SettingError
from tinylora.flower.enrolment import NotYetApproved, Welcome, ask_state, join
from tinylora.flower.fleet import Ending, FleetClient, Pace, Rejoin
from tinylora.flower.identity import Identity, load_or_create
from tinylora.flower.join_token import parse_token
from tinylora.flower.membership import Membership, load_membership, save_membership
from tinylora.flower.messages import Handle, by_folder
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.reach import Address, Trust
from tinylora.flower.receipts import ReceiptBook, ReceiptCollector, ReceiptDesk
from tinylora.protocol.documents import Update, WorkUnit

MIB = 2**20
APPROVAL_POLL_S = 10.0
"""Between two questions whether the operator has approved this worker."""


@dataclass(frozen=True)
class Options:
    """What a volunteer said."""

    url: str
    """Empty: where this home has joined before."""
    token: str = field(repr=False)
    """Empty: this home has joined before."""
    base: str
    data: tuple[Path, ...]
    home: Path
    name: str = ""
    threads: int | None = None
    text_column: str = "text"
    quantise: str | None = None
    max_rank: int = 0
    allow: tuple[str, ...] = ()


CheckBase: TypeAlias = Callable[[BaseFacts], None]
Prepare: TypeAlias = Callable[[Options, Identity, CheckBase], Handle]
"""Loads what units need; has the base checked by the coordinator before it goes on."""


def say(line: str) -> None:
    """One line for the volunteer."""
    print(line, file=sys.stderr, flush=True)


def work(
    options: Options,
    *,
    prepare: Prepare | None = None,
    pace: Pace | None = None,
    log: Callable[[str], None] = say,
    approval_poll_s: float = APPROVAL_POLL_S,
) -> Ending:
    """Join and work until the run is finished, or until SIGTERM or Ctrl-C; the coordinator is told at once.

    Args:
        options: What the volunteer said.
        prepare: Makes the function that does units; the real trainer unless told otherwise.
        pace: How often to ask the coordinator, and how long to wait for it.
        log: Takes one line for people.
        approval_poll_s: Between two questions whether the operator has approved this worker, where he wants to.

    Raises:
        SettingError: The address or the token makes no sense, or neither is known.
        DataError: There is no usable text.
        BaseModelError: The base cannot be loaded, or the run needs another one.
        NetworkError: The coordinator is unreachable.
        RefusedError: It says no, or is not the one that the token names.
    """
    _check_data_exists(options.data)
    address, trust = _whom(options)
    identity = load_or_create(options.home)
    try:
        with _leave_on_signals():
            welcome = _join(address, options, identity, trust, log, approval_poll_s)
            membership = Membership.of(address, welcome)
            save_membership(options.home, membership)
            log(f"run {welcome.answer.run}: joined {address.url()} as {identity.worker}")
            ending = _work(address, options, identity, welcome, prepare, pace, log)
    except KeyboardInterrupt:
        ending = "stopped"
    log("the run is finished" if ending == "finished" else "stopped; `tinylora-worker run` goes on, without a token")
    return ending


def _whom(options: Options) -> tuple[Address, Trust | None]:
    """Where the coordinator is, and by what it is recognised if that is known before asking it."""
    kept = load_membership(options.home)
    if options.token:
        pin = parse_token(options.token).pin
        known = kept.trust if kept is not None and kept.pin == pin and kept.ca_pem else None
        return Address.parse(options.url), known
    if kept is None:
        raise SettingError(f"{options.home}: has joined no run yet; join with the token that the operator gave you")
    return Address.parse(options.url or kept.url), kept.trust


def _join(
    address: Address,
    options: Options,
    identity: Identity,
    trust: Trust | None,
    log: Callable[[str], None],
    poll_s: float,
) -> Welcome:
    """Join; where the operator wants to approve workers, wait until he has."""
    is_told = False
    while True:
        try:
            return join(address, options.token, identity, trust=trust, name=options.name)
        except NotYetApproved as error:
            if not is_told:
                log(f"{error}: {identity.worker}; waiting")
            is_told = True
        threading.Event().wait(poll_s)


def _work(
    address: Address,
    options: Options,
    identity: Identity,
    welcome: Welcome,
    prepare: Prepare | None,
    pace: Pace | None,
    log: Callable[[str], None],
) -> Ending:
    def again(facts: BaseFacts | None = None) -> float:
        """Join once more; returns how far the coordinator's clock is ahead."""
        return join(address, options.token, identity, trust=welcome.trust, name=options.name, base=facts).clock_offset_s

    def check_base(facts: BaseFacts) -> None:
        again(facts)

    prepare = prepare or partial(load_trainer, feature_dim=welcome.answer.base.feature_dim)
    handle = prepare(options, identity, check_base)
    desk = ReceiptDesk(address, welcome.trust, identity, welcome.answer.run_key, welcome.clock_offset_s)
    outbox = FolderOutbox(options.home)
    with ReceiptCollector(desk, ReceiptBook(options.home), log=log, outbox=outbox) as receipts:

        def done(unit: WorkUnit, update: Update) -> None:
            log(describe(unit, update))
            receipts.expect(unit.unit_id)

        return _client(address, identity, welcome, told(handle, done), outbox, again, pace, log).work()


def _client(
    address: Address,
    identity: Identity,
    welcome: Welcome,
    handle: Handle,
    outbox: FolderOutbox,
    rejoin: Rejoin,
    pace: Pace | None,
    log: Callable[[str], None],
) -> FleetClient:
    return FleetClient(
        address,
        identity,
        by_folder(handle),
        outbox,
        phase=lambda: ask_state(address, trust=welcome.trust).phase,
        limit_bytes=int(welcome.answer.settings.max_update_mib * MIB),
        clock_offset_s=welcome.clock_offset_s,
        pace=pace,
        root_certificates=welcome.trust.root_certificates,
        rejoin=rejoin,
        log=log,
    )


def _check_data_exists(paths: tuple[Path, ...]) -> None:
    """Before anything slow: a mistyped path is the commonest mistake."""
    if not paths:
        raise DataError("no text: give files or folders with --data")
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise DataError(f"{missing}: no such file or folder; give text files, .jsonl, .parquet or folders with --data")


def load_trainer(options: Options, identity: Identity, check_base: CheckBase, *, feature_dim: int = 256) -> Handle:
    """The real trainer: base loaded once, with the run's routing feature; shard tokenised, updates signed."""
    from tinylora.base_model import load_base  # torch comes with it, and only now
    from tinylora.reading.layouts import text_in
    from tinylora.shards import load_shard
    from tinylora.training import UnitRunner

    base = load_base(options.base, quantise=options.quantise, feature_dim=feature_dim)
    check_base(base.facts)
    shard = load_shard(options.data, base, columns=text_in(options.text_column), allow=options.allow)
    say(f"shard: {len(shard.train)} documents to train on, {len(shard.heldout)} held out, {shard.n_tokens} tokens")
    return UnitRunner(
        base,
        shard,
        worker=identity.worker,
        sign=identity.sign,
        threads=options.threads,
        max_rank=options.max_rank,
    ).run


def told(handle: Handle, done: Callable[[WorkUnit, Update], None]) -> Handle:
    """The same, with a word after each unit."""

    def telling(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        update, result = handle(unit, payload)
        done(unit, update)
        return update, result

    return telling


def describe(unit: WorkUnit, update: Update) -> str:
    """One unit in one line."""
    if unit.kind != "train":
        return f"{unit.unit_id} {unit.kind}: {update.seconds:.1f} s"
    loss = f"loss {update.losses[0]:.3f} -> {update.losses[-1]:.3f}, " if update.losses else ""
    rate = update.tokens / update.seconds if update.seconds else 0.0
    return f"{unit.unit_id} node {unit.node or 'root'}: {update.n_steps} steps, {loss}{rate:.0f} tokens/s"


@contextmanager
def _leave_on_signals() -> Iterator[None]:
    """SIGTERM interrupts like Ctrl-C, in the middle of a step too; a second one while we say good-bye is ignored."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handled = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    old = {number: signal.signal(number, leave) for number in handled}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
