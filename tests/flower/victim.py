"""A worker process that sketches, takes its first train unit, says so, and never comes back from it.

python -m tests.flower.victim URL TOKEN HOME MARKER
"""

import sys
import threading
from pathlib import Path

from tests.flower.counting import CountingTrainer
from tinylora.flower.enrolment import ask_state, join
from tinylora.flower.fleet import FleetClient
from tinylora.flower.identity import load_or_create
from tinylora.flower.messages import by_folder
from tinylora.flower.outbox import FolderOutbox
from tinylora.flower.reach import Address
from tinylora.protocol.documents import Update, WorkUnit

url, token, home, marker = sys.argv[1:]
address, identity = Address.parse(url), load_or_create(Path(home))
trainer = CountingTrainer(identity, centre=3.0)


def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
    """A counting trainer that stalls at its first train unit."""
    if unit.kind == "train":
        Path(marker).write_text(unit.unit_id)
        threading.Event().wait()
    return trainer.run(unit, payload)


join(address, token, identity)
FleetClient(
    address,
    identity,
    by_folder(handle),
    FolderOutbox(Path(home)),
    phase=lambda: ask_state(address).phase,
    limit_bytes=2**26,
).work()
