"""The projection's fold: what each event changes of what is shown. No clock, no file, no thread.

It follows `tinylora.federation.campaign`, which decides; tests hold the two against each other. Unlike that one it
changes its records in place, and notes which ones (`Changes`), because an event must cost microseconds.

    run.py      the whole: each event is handed to the parts below, each of which knows its own
    workers.py  who is there, who says what, who holds which node
    units.py    leases
    updates.py  what came back, and the rounds that it goes into
    tree.py     the tree's shape, and its gates
    removal.py  who is out
    sums.py     shares of text, progress and loss over the whole tree
    board.py    the records that all of them read and change
    changes.py  what was changed
"""

from tinylora_coordinator.dashboard.fold.changes import Changes
from tinylora_coordinator.dashboard.fold.run import RunFold

__all__ = ["Changes", "RunFold"]
