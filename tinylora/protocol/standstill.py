"""What a worker is doing, and why it is not working: the same words in its status, in JSON, on pages and in metrics.

Source: the idea of one list of reasons is BOINC's `SUSPEND_REASON`.
"""

from enum import StrEnum


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
