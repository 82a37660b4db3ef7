"""A worker process that sketches, takes its first train unit, says so, and never comes back from it.

python -m tests.flower.victim URL TOKEN HOME MARKER
"""

import sys
import threading
from pathlib import Path

from tinylora_worker.service import CheckBase, Options, work

from tests.federation.facts import FACTS
from tests.flower.counting import CountingTrainer
from tinylora.flower.identity import Identity
from tinylora.flower.messages import Handle
from tinylora.protocol.documents import Update, WorkUnit

url, token, home, marker = sys.argv[1:]


def prepare(options: Options, identity: Identity, check_base: CheckBase) -> Handle:
    """A counting trainer that stalls at its first train unit."""
    check_base(FACTS)
    trainer = CountingTrainer(identity, centre=3.0)

    def handle(unit: WorkUnit, payload: bytes) -> tuple[Update, bytes]:
        if unit.kind == "train":
            Path(marker).write_text(unit.unit_id)
            threading.Event().wait()
        return trainer.run(unit, payload)

    return handle


work(Options(url, token, base="fake", data=(Path(home),), home=Path(home)), prepare=prepare)
