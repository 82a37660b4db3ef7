"""The life of one ledger, from an old folder to its end, so that every step that reaches the disk is taken.

`live` may be cut off anywhere and called again: it goes on with the events that are there, as a coordinator does.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.ledger.test_rows import accepted, leased
from tinylora.errors import DiskFull
from tinylora.federation.events import BlobsPruned, Event, GatesSolved, NodeAveraged, WorkerErased, WorkerJoined
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.protocol.documents import sha256

FORMAT_1 = Path(__file__).parent / "format_1"
N_OLD = 38
N_BLOBS = 5

Any_ = TypeVar("Any_")
DATA = [f"blob {number}".encode() * 50 for number in range(N_BLOBS)]
NAMES = [sha256(data) for data in DATA]
STEPS: tuple[tuple[Event, ...], ...] = (
    (WorkerJoined(worker="v0", name="eve", token="t"),),
    (leased("v-u0", "v0"),),
    (accepted("v-u0", "v0").model_copy(update={"blob": NAMES[0]}),),
    (
        NodeAveraged(node="0", version=9, contributors=("v0",), blob=NAMES[1], n_steps=5, momentum=NAMES[2]),
        GatesSolved(version=9, contributors=("v0",), drift=1.0, blob=NAMES[3]),
    ),
    (BlobsPruned(blobs=(NAMES[2],)), WorkerErased(worker="v0", blobs=(NAMES[0],))),
    (GatesSolved(version=10, contributors=("v0",), drift=0.5, blob=NAMES[2]),),
)
"""What is appended, in groups. The third blob is pruned and comes again."""


def begin(folder: Path) -> Path:
    """A folder as the first format left it, with what a killed process may have left beside."""
    shutil.copytree(FORMAT_1, folder)
    (folder / "spool").mkdir()
    (folder / "spool" / "half-a-body").write_bytes(b"half")
    (folder / "blobs" / "ff").mkdir()
    (folder / "blobs" / "ff" / ("f" * 64)).write_bytes(b"put, and never named")
    return folder


def live(
    folder: Path, acknowledge: Callable[[int], None] = lambda number: None, *, is_patient: bool = False
) -> tuple[str, frozenset[str]]:
    """Go through all steps that are left.

    Args:
        folder: Made by `begin`.
        acknowledge: Told the number of the last event after each append that returned.
        is_patient: Whether what a full disk refused is tried once more, on the same object.

    Returns:
        The hash over all events, and the files in the end.
    """
    again = _try_twice if is_patient else _try_once
    ledger = again(lambda: SqliteLedger(folder))
    try:
        n_events = _go_on(ledger, acknowledge, again)
        chain = ledger.head()[1]
    except BaseException:
        ledger.close()
        raise
    again(ledger.close)
    with SqliteLedger(folder) as reopened:
        assert reopened.load_snapshot() == (n_events, f"state {n_events}")
        assert reopened.verify() == ()
        assert reopened.stored_bytes() == sum(file.stat().st_size for file in (folder / "blobs").glob("*/*"))
    files = frozenset(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return chain, files


def _go_on(ledger: SqliteLedger, acknowledge: Callable[[int], None], again: Callable) -> int:
    n_events = N_OLD
    for number, group in enumerate(STEPS):
        n_events += len(group)
        if ledger.head()[0] < n_events:
            _take(ledger, number, group, again)
            acknowledge(n_events)
        again(lambda: ledger.save_snapshot(n_events, f"state {n_events}"))  # noqa: B023  (called at once)
    again(ledger.rebuild)
    again(lambda: ledger.drop_blobs([NAMES[0]]))
    assert ledger.verify() == ()
    return n_events


def _take(ledger: SqliteLedger, number: int, group: tuple[Event, ...], again: Callable) -> None:
    if number == 2:
        again(lambda: _adopt(ledger))
    if number == 3:
        for data in DATA[1:4]:
            again(lambda: ledger.put_blob(data))  # noqa: B023
    if number == 5:
        again(lambda: ledger.put_blob(DATA[2]))
    again(lambda: ledger.append(group, float(number)))
    if number == 4:
        again(lambda: ledger.drop_blobs([NAMES[0], NAMES[2]]))


def _adopt(ledger: SqliteLedger) -> None:
    """A body arrives: spooled, then taken over. The file is still there when the disk was full."""
    spooled = ledger.spool / "body"
    if not spooled.exists():
        spooled.write_bytes(DATA[0])
    ledger.adopt_blob(spooled, NAMES[0])


def _try_once(call: Callable[[], Any_]) -> Any_:
    return call()


def _try_twice(call: Callable[[], Any_]) -> Any_:
    try:
        return call()
    except DiskFull:
        return call()
