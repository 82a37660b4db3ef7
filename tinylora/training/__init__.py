"""One unit of work on one shard: a work unit and its payload in, an update and its payload out.

The code is organised as follows:

* `optimiser`: learning-rate schedule, AdamW with moments that survive between units, the step loop;
* `received`: what a unit's payload holds, checked against the unit and the base;
* `split`: whose text is whose: documents dealt to the leaves of a subtree, documents nearest to an adopted leaf;
* `sending`: what a worker tells of its text: statistics, router scores, locally trained gates;
* `runner`: `UnitRunner`, which puts these together around one resident base.
"""

from tinylora.training.optimiser import OnStep, Schedule
from tinylora.training.runner import UnitRunner

__all__ = ["OnStep", "Schedule", "UnitRunner"]
