"""Credit: what the run has thanked this worker for. From receipts alone; the coordinator's ledger is behind them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tinylora.flower.receipts import FILE, read_receipts
from tinylora.protocol.documents import Receipt


@dataclass(frozen=True)
class Totals:
    """Accepted updates of one worker in one run, as the coordinator's table of workers counts them."""

    n_updates: int = 0
    """Of every kind: sketches and probes too."""
    n_trained: int = 0
    """Units that trained."""
    tokens: int = 0

    @classmethod
    def of(cls, receipts: Iterable[Receipt], *, run: str, worker: str) -> "Totals":
        """The sum over this run's receipts for this worker, each unit once."""
        mine = {receipt.unit_id: receipt for receipt in receipts if (receipt.run, receipt.worker) == (run, worker)}
        return cls(
            n_updates=len(mine),
            n_trained=sum(receipt.kind == "train" for receipt in mine.values()),
            tokens=sum(receipt.tokens for receipt in mine.values()),
        )

    def sentence(self) -> str:
        """For people."""
        return f"{self.n_updates} accepted updates, {self.n_trained} of them trained, {self.tokens} tokens"


class Credit:
    """The totals of a home, read anew only when there are more receipts."""

    def __init__(self, home: Path, worker: str) -> None:
        self._home, self._worker = home, worker
        self._key: tuple[str, int] = ("", 0)
        self._totals = Totals()

    def of(self, run: str) -> Totals:
        """Totals of one run.

        Raises:
            StorageError: The file of receipts is not readable.
        """
        file = self._home / FILE
        key = (run, file.stat().st_size if file.exists() else 0)
        if key != self._key:
            self._totals = Totals.of(read_receipts(self._home), run=run, worker=self._worker)
            self._key = key
        return self._totals
