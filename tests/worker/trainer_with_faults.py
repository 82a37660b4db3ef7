"""A trainer like any other, in which memory runs out in the third step of units that are called `oom…`."""

import torch
from tinylora_worker.trainer import child

from tinylora.training.optimiser import Optimiser
from tinylora.training.runner import UnitRunner

_run, _update = UnitRunner.run, Optimiser.update
_unit_id, _n_updates = "", 0


def run(self, unit, *arguments):
    global _unit_id, _n_updates
    _unit_id, _n_updates = unit.unit_id, 0
    return _run(self, unit, *arguments)


def update(self, *arguments):
    global _n_updates
    _n_updates += 1
    if _unit_id.startswith("oom") and _n_updates == 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return _update(self, *arguments)


UnitRunner.run, Optimiser.update = run, update  # type: ignore[method-assign]

if __name__ == "__main__":
    child.main()
