"""All checks that need no torch, at once: what is on this machine, who answers at the door, where base and text are."""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tinylora
from tinylora.adapters.shapes import n_adapter_parameters
from tinylora.errors import SettingError
from tinylora.flower.enrolment import JoinAnswer
from tinylora.flower.identity import IDENTITY_FILE, Identity, load_or_create, new_identity
from tinylora_worker.preflight import looking
from tinylora_worker.preflight.base import find_base, hub_cache, is_offline
from tinylora_worker.preflight.check import Check, in_order, skipped
from tinylora_worker.preflight.codes import CheckName
from tinylora_worker.preflight.door import AT_THE_DOOR, NOT_ASKED, AtTheDoor, Whom, knock, whom
from tinylora_worker.preflight.facts import BasePlace
from tinylora_worker.preflight.judging import (
    judge_base,
    judge_device,
    judge_disk,
    judge_free_memory,
    judge_home,
    judge_packages,
    judge_power,
    judge_python,
    judge_refusal,
    judge_text_place,
)

UNITS_ON_DISK = 4
"""Adapters of a node that lie in the home at once: payload, checkpoint with its optimiser's two moments, result."""
BYTES_PER_NUMBER = 4


@dataclass(frozen=True)
class Asked:
    """What the volunteer said, as far as checks need it."""

    home: Path
    url: str = ""
    token: str = field(default="", repr=False)
    base: str = ""
    data: Sequence[str] = ()
    device: str = "auto"
    """The limit `gpu`."""
    skip: Collection[CheckName] = ()
    is_joining: bool = False
    """A join needs text and a coordinator; a doctor may do without."""


@dataclass(frozen=True)
class Examined:
    """What all of it came to."""

    checks: Sequence[Check]
    answer: JoinAnswer | None
    """The run, where the coordinator let us in."""
    base: BasePlace
    door: AtTheDoor | None
    device_bytes: int = 0
    """Memory of the GPU that would be used, for limits that are a share of it; 0: not known."""


def examine(asked: Asked, *, told: Callable[[Check], None] = lambda check: None) -> Examined:
    """Make every check that needs no torch; `told` gets each as it is known.

    Nothing is downloaded and nothing registered, and the token is not used up. A home that is not there is made only
    by joining: a doctor that only looks leaves no identity behind.
    """
    found: list[Check] = []

    def tell(*checks: Check) -> None:
        for check in checks:
            if check.name not in asked.skip:
                found.append(check)
                told(check)

    with ThreadPoolExecutor(2) as pool:
        devices = pool.submit(looking.look_at_devices)
        door = pool.submit(_ask_at_the_door, asked)
        tell(judge_python(looking.python_version()))
        tell(judge_packages(tinylora.__version__, looking.missing_packages(asked.data)))
        if "home" not in asked.skip:
            tell(judge_home(looking.look_at_home(asked.home)))
        tell(judge_power(looking.look_at_power()))
        found_devices = devices.result()
        tell(judge_device(found_devices, asked.device))
        entered = door.result()
    tell(*entered.checks)
    answer = None if entered.welcome is None else entered.welcome.answer
    place = find_base(
        asked.base,
        None if answer is None else answer.base,
        cache=hub_cache(os.environ),
        is_offline=is_offline(os.environ),
    )
    tell(*_judge_base_and_disk(asked, answer, place))
    text = skipped("data", "") if "data" in asked.skip else _judge_data(asked)
    is_tried_next = asked.is_joining and answer is not None and place.folder is not None
    if not is_tried_next:
        tell(judge_free_memory(looking.look_at_memory()))
    if not is_tried_next or text.status != "ok":
        tell(text)
    checks = [*found, *(skipped(name, "you said --skip-check") for name in asked.skip)]
    device_bytes = max((gpu.total_bytes for gpu in found_devices.gpus), default=0)
    return Examined(in_order(checks), answer, place, entered, device_bytes)


def _ask_at_the_door(asked: Asked) -> AtTheDoor:
    try:
        who = whom(asked.url, asked.token, asked.home)
    except SettingError as error:
        refused = judge_refusal(error.rule or "none", str(error))
        rest = [skipped(name, NOT_ASKED) for name in AT_THE_DOOR if name != refused.name]
        return AtTheDoor([refused, *rest])
    if who is None:
        checks = [skipped(name, "no coordinator was named") for name in AT_THE_DOOR]
        missing = judge_refusal("none", "no address was given, and this home has joined no run")
        return AtTheDoor([check if check.name != "token" or not asked.is_joining else missing for check in checks])
    return knock(who, _identity(asked, who))


def _identity(asked: Asked, who: Whom) -> Identity:
    """This home's own; one that is thrown away for a look by a home that has none."""
    if asked.is_joining or (asked.home / IDENTITY_FILE).exists():
        return load_or_create(asked.home)
    return new_identity()


def _judge_data(asked: Asked) -> Check:
    if not asked.data and not asked.is_joining:
        return skipped("data", "no text was named")
    return judge_text_place(looking.look_at_text(asked.data))


def _judge_base_and_disk(asked: Asked, answer: JoinAnswer | None, place: BasePlace) -> list[Check]:
    is_known = bool(asked.base) or answer is not None
    base = judge_base(place) if is_known else skipped("base", "no base was named, and no run was asked")
    numbers = 0 if answer is None else n_adapter_parameters(answer.base, answer.settings.spec)
    folder = hub_cache(os.environ) if place.download_bytes else asked.home
    return [
        base,
        judge_disk(looking.look_at_disk(folder), place.download_bytes + numbers * BYTES_PER_NUMBER * UNITS_ON_DISK),
    ]
