"""A ledger on a disk of two MiB, filled, freed, made read-only: `python -m tests.ledger.small_disk DIR`.

Run in a mount namespace of its own, where it may mount; DIR is an empty folder.
"""

import subprocess
import sys
from pathlib import Path

from tests.federation.events import JOINED, STARTED
from tinylora.errors import DiskFull, StorageError
from tinylora.ledger.sqlite import SqliteLedger


def main(disk: Path) -> None:
    """Print what happened, a word for each thing that was tried."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], check=True)
    folder = disk / "run"
    with SqliteLedger(folder) as ledger:
        ledger.append([STARTED], 0.0)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(600_000))
        print("blobs", fill_with_blobs(ledger))
        print("events", fill_with_events(ledger))
        before = ledger.head()
        ballast.unlink()
        ledger.append([JOINED] * 100, 2.0)
        name = ledger.put_blob(bytes(100_000))
        assert ledger.get_blob(name) == bytes(100_000)
        assert ledger.head()[0] == before[0] + 100
        assert ledger.chain_at(before[0]) == before[1]
        assert ledger.verify() == ()
        print("freed: both succeed")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        SqliteLedger(folder)
    except StorageError as error:
        print("read-only:", error)
    with SqliteLedger.open_readonly(folder) as reader:
        print("read:", len(reader.events()) == before[0] + 100, reader.verify())


def fill_with_blobs(ledger: SqliteLedger) -> str:
    """Put blobs until there is no room, and the one that found none once more."""
    for number in range(1000):
        data = number.to_bytes(4, "big") * 25_000
        stored = ledger.stored_bytes()
        try:
            ledger.put_blob(data)
        except DiskFull as error:
            assert ledger.stored_bytes() == stored
            return str(error)
    return "never full"


def fill_with_events(ledger: SqliteLedger) -> str:
    """Append events until there is no room; what was acknowledged is there, and nothing else."""
    for _ in range(1000):
        number, chain = ledger.head()
        try:
            ledger.append([JOINED] * 100, 1.0)
        except DiskFull as error:
            assert ledger.head() == (number, chain)
            assert len(ledger.events()) == number
            return str(error)
    return "never full"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
