"""How long a call took, and how much memory."""

import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

MIB = 1 << 20
MAX_SECONDS, MAX_BYTES = 1.0, 50 * MIB
_UNIT = 1 if sys.platform == "darwin" else 1024

Found = TypeVar("Found")


def measured(call: Callable[[], Found]) -> tuple[Found, float, int]:
    """What a call returns, its seconds of CPU, and the bytes that it took beside what was there.

    Python's own memory is counted exactly; that of libraries shows in how far the peak of the process went up.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    begun = time.process_time()
    try:
        found = call()
        seconds, (_, traced) = time.process_time() - begun, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    grown = _UNIT * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return found, seconds, max(traced, grown)
