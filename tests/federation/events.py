"""A few events to write down and read back."""

from tests.federation.facts import FACTS, SETTINGS
from tinylora.federation.events import RunStarted, WorkerJoined, WorkerLost

STARTED = RunStarted(run="test", settings=SETTINGS, base=FACTS)
JOINED = WorkerJoined(worker="w0", name="ann", at_s=1.0)
LOST = WorkerLost(worker="w0", at_s=2.0)
