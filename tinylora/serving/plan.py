"""Which row goes to which process. Pure decisions on token ids and paths.

With a decision once per sequence a row's life has two parts. Before its leaf is decided, at token P, it uses the root's
adapter or none at all, which every process has: so a row that is shorter begins anywhere. Once it has P tokens its leaf
is known, and it goes to the process that holds this leaf; there it is read again from the start, its first P - 1 tokens
by the root and the rest by the leaf, as one process for everything would have read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tinylora.errors import SettingError
from tinylora.generation import Finish
from tinylora.routing.decision import Policy
from tinylora.serving.device_map import Device, DeviceMap
from tinylora.tree import NodePath

Way: TypeAlias = tuple[NodePath, float]
"""A decided path, and the probability that the text belongs there."""


@dataclass
class Row:
    """One text on its way."""

    ids: list[int]
    """The prompt."""
    new: list[int] = field(default_factory=list)
    """What came after it so far."""
    text: str = ""
    """Of these."""
    finish: Finish | None = None
    """What ended it; None while it goes on."""
    way: Way | None = None
    """What was decided; None before the decision."""
    device: Device = ""
    """Where it was served last."""

    @property
    def path(self) -> NodePath | None:
        """The node that was decided for."""
        return None if self.way is None else self.way[0]

    @property
    def all_ids(self) -> list[int]:
        """The whole text so far."""
        return self.ids + self.new


def check_policy(policy: Policy, devices: DeviceMap) -> None:
    """Check that each row can be served by one process alone.

    Raises:
        SettingError: Leaves of one row would lie on several devices.
    """
    is_once = policy.granularity == "sequence" and policy.decision in ("hard", "elastic")
    if len(devices.devices) > 1 and not is_once:
        raise SettingError(
            f"policy {policy}: with leaves on {len(devices.devices)} devices a text must stay on one path; choose "
            "hard@sequence:32 or elastic@sequence:32, or put all leaves on one device"
        )


def is_decided_at(policy: Policy, n_tokens: int) -> bool:
    """Whether a text of so many tokens has its path, which it then keeps."""
    return policy.granularity == "sequence" and n_tokens >= policy.size


def limit_of(row: Row, policy: Policy | None, max_new_tokens: int) -> int:
    """How many new tokens, in all, a row may have where it is: then it ends, or is to be sent where its leaf lies.

    Args:
        row: Served so far.
        policy: With decisions once per sequence; None where one process holds all leaves.
        max_new_tokens: In all.
    """
    if policy is None or row.path is not None:
        return max_new_tokens
    return min(max_new_tokens, policy.size - len(row.ids))


def place(rows: Sequence[Row], devices: DeviceMap) -> dict[Device, list[int]]:
    """Indices of rows by the device that is to serve them, each list in order, none empty.

    A row with a path goes to a device that holds it. The others, and those that several devices could take, go where
    there is least to do, the first of equals, so that equal rows are placed equally.
    """
    loads = dict.fromkeys(devices.devices, 0)
    placed: dict[Device, list[int]] = {device: [] for device in loads}
    holders = {row.path: devices.holders(row.path) for row in rows if row.path is not None}
    choices = {i: devices.devices if row.path is None else holders[row.path] for i, row in enumerate(rows)}
    for index in sorted(choices, key=lambda index: (len(choices[index]), index)):
        device = min(choices[index], key=lambda device: loads[device])
        loads[device] += 1
        placed[device].append(index)
    return {device: sorted(indices) for device, indices in placed.items() if indices}


def batches(lengths: Sequence[int], limits: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of rows by batch, rows of similar limit and length together: the others wait for the longest."""
    order = sorted(range(len(lengths)), key=lambda index: (limits[index], lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
