"""What a worker is doing, and why it is not working: the same words in its status, in JSON, on pages and in metrics.

Source: the idea of one list of reasons is BOINC's `SUSPEND_REASON`.
"""

from collections.abc import Mapping
from enum import StrEnum

from tinylora.errors import Explanation


class WorkerState(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    """It reaches the coordinator, loads the base and reads its text."""
    WORKING = "working"
    """A unit is under way."""
    WAITING = "waiting"
    """It would work; `Reason` tells what is missing."""
    PAUSED = "paused"
    """It may not work; `Reason` tells who or what forbids it. Its device's memory is free."""
    LEAVING = "leaving"
    """It writes its last step down, gives the lease back, and goes."""
    FINISHED = "finished"
    """The run is over."""


class Reason(StrEnum):
    """Why a worker is not working."""

    USER_PAUSED = "user_paused"
    SCHEDULE = "schedule"
    BATTERY = "battery"
    GPU_BUSY = "gpu_busy"
    EXCLUSIVE_APP = "exclusive_app"
    TOO_HOT = "too_hot"
    VRAM = "vram"
    DISK = "disk"
    DATA_CAP = "data_cap"
    NO_WORK = "no_work"
    WAITING_FOR_PEERS = "waiting_for_peers"
    RUN_PAUSED = "run_paused"
    COORDINATOR_UNREACHABLE = "coordinator_unreachable"
    UPDATE_REQUIRED = "update_required"
    ERROR = "error"

    @property
    def is_pause(self) -> bool:
        """Whether the worker itself holds still, by its owner's word; otherwise it waits for somebody else."""
        return self in _PAUSES


_PAUSES = frozenset(
    {
        Reason.USER_PAUSED,
        Reason.SCHEDULE,
        Reason.BATTERY,
        Reason.GPU_BUSY,
        Reason.EXCLUSIVE_APP,
        Reason.TOO_HOT,
        Reason.VRAM,
        Reason.DISK,
        Reason.DATA_CAP,
    }
)

REASONS: Mapping[Reason, Explanation] = {
    Reason.USER_PAUSED: Explanation(
        "Its owner said `pause`.", "It goes on with `tinylora-worker resume`, or at the time that was said."
    ),
    Reason.SCHEDULE: Explanation(
        "The limit `schedule` allows no work at this hour.",
        "It goes on when the next window opens; `status` tells when.",
    ),
    Reason.BATTERY: Explanation(
        "The machine runs on battery, and `on_battery` is false.", "It goes on ten seconds after the plug is back."
    ),
    Reason.GPU_BUSY: Explanation(
        "Another program uses the GPU, and `when_gpu_busy` is `pause`.", "It goes on after a minute of quiet."
    ),
    Reason.EXCLUSIVE_APP: Explanation(
        "A program of the limit `exclusive_apps` runs.", "It goes on ten seconds after that program has ended."
    ),
    Reason.TOO_HOT: Explanation(
        "The device is hotter than `max_temp_c`.", "It goes on 5 °C below the limit. Clean the fans, or lower the load."
    ),
    Reason.VRAM: Explanation(
        "Less of the device's memory is free than the trainer needs.", "It goes on when there is as much again."
    ),
    Reason.DISK: Explanation(
        "The worker's files have reached the limit `disk`, or less than 1 GiB of the disk is free.",
        "It goes on when there is room; `tinylora-worker clean` makes some.",
    ),
    Reason.DATA_CAP: Explanation(
        "The month's traffic has reached `data_cap`.", "It goes on the first of the next month, or with a higher limit."
    ),
    Reason.NO_WORK: Explanation(
        "The coordinator has no unit for this worker now: all leaves are held or done.",
        "Nothing to do; it gets one when a leaf is free.",
    ),
    Reason.WAITING_FOR_PEERS: Explanation(
        "The run begins when more workers have come, or what others train has to arrive first.",
        "Nothing to do; the tree is set with fewer after `start_after_s`.",
    ),
    Reason.RUN_PAUSED: Explanation(
        "The operator paused the run, or its disk is full.", "It goes on with the operator's `resume`."
    ),
    Reason.COORDINATOR_UNREACHABLE: Explanation(
        "Nobody answers at the coordinator's address; training goes on, and updates wait on disk.",
        "It connects again by itself. If it lasts, ask the operator, and look at this machine's network.",
    ),
    Reason.UPDATE_REQUIRED: Explanation(
        "The run speaks another version of the protocol than this worker.",
        "Install the run's version: `uv tool upgrade tinylora`, then `tinylora-worker run`.",
    ),
    Reason.ERROR: Explanation(
        "Something failed that waiting does not cure; `status` and the log say what.",
        "Do what the sentence says, then `tinylora-worker run`.",
    ),
}
"""Why it is so, and when it ends or what ends it."""
