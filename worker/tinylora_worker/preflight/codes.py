"""Every code that a check can end with. A code keeps its meaning for ever; docs/how-to/join.md explains each.

Numbers are never used again. `tests/worker/test_preflight_codes.py` compares this list with the page.
"""

from dataclasses import dataclass
from typing import Literal

CheckName = Literal[
    "python",
    "packages",
    "home",
    "device",
    "memory",
    "disk",
    "network",
    "tls",
    "protocol",
    "token",
    "clock",
    "power",
    "base",
    "data",
]
"""In the order in which they are told; also what `--skip-check` takes."""


@dataclass(frozen=True)
class Code:
    """What a code means to programs."""

    check: CheckName
    exit_code: int
    """What `doctor` and `join --dry-run` end with when this is the first check that fails; 0: it only warns."""
    title: str
    """Heading of its section in docs/how-to/join.md."""


_SETTING, _DATA, _BASE, _NETWORK, _REFUSED, _STORAGE = 2, 3, 4, 6, 7, 8

CODES: dict[str, Code] = {
    "TL-PY-001": Code("python", _SETTING, "Python is too old"),
    "TL-PKG-001": Code("packages", _SETTING, "A package is missing"),
    "TL-HOM-001": Code("home", _STORAGE, "The home folder cannot be written"),
    "TL-HOM-002": Code("home", _SETTING, "A worker is running in this home already"),
    "TL-DEV-001": Code("device", 0, "No accelerator: the CPU does the work"),
    "TL-DEV-002": Code("device", 0, "There is a GPU, and torch was installed without support for it"),
    "TL-DEV-003": Code("device", _SETTING, "The device that was asked for is not there"),
    "TL-DEV-004": Code("device", 0, "Another program is using the GPU"),
    "TL-DEV-005": Code("device", 0, "The NVIDIA driver does not answer"),
    "TL-MEM-001": Code("memory", _BASE, "Not even the smallest step fits into memory"),
    "TL-MEM-002": Code("memory", 0, "It fits, with restrictions"),
    "TL-MEM-003": Code("memory", 0, "Little memory is free"),
    "TL-DSK-001": Code("disk", _STORAGE, "Not enough space on disk"),
    "TL-DSK-002": Code("disk", 0, "Little space will be left on disk"),
    "TL-NET-001": Code("network", _NETWORK, "Nobody answers at the coordinator's address"),
    "TL-NET-002": Code("network", _NETWORK, "Who answers is no coordinator"),
    "TL-NET-003": Code("network", _SETTING, "The address makes no sense"),
    "TL-NET-004": Code("network", 0, "The connection is slow"),
    "TL-NET-005": Code("network", _NETWORK, "The coordinator cannot take anybody in now"),
    "TL-TLS-001": Code("tls", _REFUSED, "Another CA than the token names"),
    "TL-TLS-002": Code("tls", _NETWORK, "The coordinator's certificate does not hold"),
    "TL-TLS-003": Code("tls", _NETWORK, "Who answers speaks no TLS"),
    "TL-PRO-001": Code("protocol", _REFUSED, "The run speaks another version of the protocol"),
    "TL-TOK-001": Code("token", _SETTING, "This is no token"),
    "TL-TOK-002": Code("token", _REFUSED, "The token is unknown, or its secret is wrong"),
    "TL-TOK-003": Code("token", _REFUSED, "The token has expired"),
    "TL-TOK-004": Code("token", _REFUSED, "The token was used up"),
    "TL-TOK-005": Code("token", _REFUSED, "The token was revoked"),
    "TL-TOK-006": Code("token", _REFUSED, "This worker was removed from the run"),
    "TL-TOK-007": Code("token", 0, "The operator has yet to approve this worker"),
    "TL-TOK-008": Code("token", _SETTING, "No token was given, and this home has joined no run"),
    "TL-TOK-009": Code("token", _REFUSED, "Too many tries from this address"),
    "TL-TOK-010": Code("token", _REFUSED, "The coordinator did not take the request"),
    "TL-CLK-001": Code("clock", 0, "This machine's clock is off"),
    "TL-CLK-002": Code("clock", _REFUSED, "This machine's clock is off by more than can be made up for"),
    "TL-PWR-001": Code("power", 0, "On battery"),
    "TL-BAS-001": Code("base", _BASE, "The run's base model is not on this machine"),
    "TL-BAS-002": Code("base", _BASE, "Another base model than the run's"),
    "TL-BAS-003": Code("base", _STORAGE, "The folder that the base would be downloaded to cannot be written"),
    "TL-DAT-001": Code("data", _DATA, "No text was named, or it is not there"),
    "TL-DAT-002": Code("data", _DATA, "The text cannot be used"),
    "TL-DAT-003": Code("data", 0, "Part of the text was rejected"),
    "TL-DAT-004": Code("data", _DATA, "The text holds secrets, e-mail addresses or phone numbers"),
}
