"""Updates leave the outbox when their receipts are in hand, and not before."""

from tinylora.flower.outbox import Outbox
from tinylora.flower.receipts import ReceiptBook


def settle(outbox: Outbox, book: ReceiptBook) -> int:
    """What has its receipt is gone from the outbox; returns how many updates still wait for theirs.

    Raises:
        StorageError: The outbox cannot be read or written.
    """
    n_waiting = 0
    for kept in outbox.kept():
        if kept.update is None:
            continue
        if book.has(kept.unit.run, kept.unit.unit_id):
            outbox.settle(kept.unit.unit_id)
        else:
            n_waiting += 1
    return n_waiting
