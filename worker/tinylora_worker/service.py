"""One worker's life: key, token, base, shard, then unit after unit until the run is over or a signal comes.

The base is loaded once and stays. Nothing that the coordinator sends is executed: units are documents and tensors.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from tinylora.config import BaseFacts
from tinylora.errors import DataError
from tinylora.flower.enrolment import Address, Welcome, ask_state, join
from tinylora.flower.fleet import Ending, FleetClient, Pace
from tinylora.flower.identity import Identity, load_or_create
from tinylora.flower.messages import Handle
from tinylora.protocol.documents import Update, WorkUnit

MIB = 2**20


@dataclass(frozen=True)
class Options:
    """What a volunteer said."""

    url: str
    token: str
    base: str
    data: tuple[Path, ...]
    home: Path
    name: str = ""
    threads: int | None = None
    text_column: str = "text"
    quantise: str | None = None
    max_rank: int = 0


CheckBase: TypeAlias = Callable[[BaseFacts], None]
Prepare: TypeAlias = Callable[[Options, Identity, CheckBase], Handle]
"""Loads what units need; has the base checked by the coordinator before it goes on."""


def say(line: str) -> None:
    """One line for the volunteer."""
    print(line, file=sys.stderr, flush=True)


def work(
    options: Options, *, prepare: Prepare | None = None, pace: Pace | None = None, log: Callable[[str], None] = say
) -> Ending:
    """Join and work until the run is finished, or until SIGTERM or Ctrl-C; the coordinator is told at once.

    Args:
        options: What the volunteer said.
        prepare: Makes the function that does units; the real trainer unless told otherwise.
        pace: How often to ask the coordinator, and how long to wait for it.
        log: Takes one line for people.

    Raises:
        SettingError: The address makes no sense.
        DataError: There is no usable text.
        BaseModelError: The base cannot be loaded, or the run needs another one.
        NetworkError: The coordinator is unreachable.
        RefusedError: It says no.
    """
    address = Address.parse(options.url)
    _check_data_exists(options.data)
    identity = load_or_create(options.home)
    welcome = join(address, options.token, identity, name=options.name)
    log(f"run {welcome.answer.run}: joined {address.url()} as {identity.worker}")

    def check_base(facts: BaseFacts) -> None:
        join(address, options.token, identity, name=options.name, base=facts)

    with _leave_on_signals():
        try:
            prepare = prepare or partial(load_trainer, feature_dim=welcome.answer.base.feature_dim)
            handle = prepare(options, identity, check_base)
            client = _client(address, identity, welcome, logged(handle, log), pace, log)
            ending = client.work()
        except KeyboardInterrupt:
            ending = "stopped"
    log("the run is finished" if ending == "finished" else "stopped; join again to go on")
    return ending


def _client(
    address: Address,
    identity: Identity,
    welcome: Welcome,
    handle: Handle,
    pace: Pace | None,
    log: Callable[[str], None],
) -> FleetClient:
    return FleetClient(
        address,
        identity,
        handle,
        phase=lambda: ask_state(address).phase,
        limit_bytes=int(welcome.answer.settings.max_update_mib * MIB),
        clock_offset_s=welcome.clock_offset_s,
        pace=pace,
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
    from tinylora.shards import load_shard
    from tinylora.training import UnitRunner

    base = load_base(options.base, quantise=options.quantise, feature_dim=feature_dim)
    check_base(base.facts)
    shard = load_shard(options.data, base, text_column=options.text_column)
    say(f"shard: {len(shard.train)} documents to train on, {len(shard.heldout)} held out, {shard.n_tokens} tokens")
    return UnitRunner(
        base,
        shard,
        worker=identity.worker,
        sign=identity.sign,
        threads=options.threads,
        max_rank=options.max_rank,
    ).run


def logged(handle: Handle, log: Callable[[str], None]) -> Handle:
    """The same, with one line for each unit."""

    def told(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        update, result = handle(unit, payload)
        log(describe(unit, update))
        return update, result

    return told


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
