"""Long runs: what an event costs does not depend on how many there were."""

import time

import pytest

from tests.federation.events import JOINED, STARTED
from tests.ledger.test_rows import accepted, leased
from tinylora.federation.campaign import fold
from tinylora.federation.events import Event, UpdateRejected
from tinylora.ledger.sqlite import SqliteLedger

N = 10_000
SKETCH = {"kind": "sketch", "n_steps": 0}
REFUSED = UpdateRejected(unit_id="u", worker="w0", code="duplicate", reason="it was accepted before", at_s=4.0)


def history(n: int, blob: str) -> list[Event]:
    """Units leased and brought back, and every third event a repetition."""
    events: list[Event] = [STARTED, JOINED]
    while len(events) < n:
        unit = f"u{len(events):08d}"
        lease = leased(unit).model_copy(update=SKETCH)
        update = accepted(unit).model_copy(update={**SKETCH, "node": "", "blob": blob})
        events += [lease, update, REFUSED.model_copy(update={"unit_id": unit})]
    return events[:n]


@pytest.mark.slow
def test_ten_thousand_events_one_by_one(tmp_path):
    """CPU time, because flushes take as long as the disk pleases: the last quarter costs what the first one did."""
    quarters = [0.0] * 4
    with SqliteLedger(tmp_path) as ledger:
        events = history(N, ledger.put_blob(b"sketch"))
        for number, event in enumerate(events):
            start = time.process_time()
            ledger.append([event], float(number))
            quarters[4 * number // N] += time.process_time() - start
    start = time.perf_counter()
    with SqliteLedger(tmp_path) as ledger:
        state = fold(ledger.events())
        seconds = time.perf_counter() - start
        assert ledger.verify() == ()
    print(f"{N} appends: {[round(quarter, 2) for quarter in quarters]} s CPU; open and fold: {seconds:.2f} s")
    assert quarters[3] < 2 * quarters[0]
    assert state is not None
    assert state.n_events == N
    assert seconds < 5
