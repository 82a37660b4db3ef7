"""One unit of work on one shard: a work unit and its payload in, an update and its payload out.

The code is organised as follows:

* `devices`: which device, and in which dtype the base is held there, with the reason;
* `fit`: what a step is cut into so that a machine can hold it;
* `batch`: windows of a step and their parts;
* `out_of_memory`: how it shows, and stepping down until the same work fits;
* `flat`: many small tensors as a few long vectors in main memory;
* `snapshot`: a unit after its last finished step, to go on from;
* `optimiser`: learning-rate schedule, AdamW with moments that survive between units, the step loop;
* `losses`: what the steps of a unit minimise;
* `memory`, `sizing`: what fits on this machine, found by real steps;
* `received`: what a unit's payload holds, checked against the unit and the base;
* `split`: whose text is whose: documents dealt to the leaves of a subtree, documents nearest to an adopted leaf;
* `sending`: what a worker tells of its text: statistics, router scores, locally trained gates;
* `canary`: made-up secrets in a copy of the shard, and how much of them an adapter gives away;
* `runner`: `UnitRunner`, which puts these together around one resident base.
"""

from tinylora.training.fit import Fit
from tinylora.training.optimiser import OnStep, Schedule
from tinylora.training.runner import UnitRunner
from tinylora.training.snapshot import Snapshot

__all__ = ["Fit", "OnStep", "Schedule", "Snapshot", "UnitRunner"]
