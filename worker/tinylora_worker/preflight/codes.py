"""Every code that a check can end with, and what it tells. A code keeps its meaning for ever; no number is reused.

The reference's page is made of this list (docs/reference/errors.md), and `tinylora-worker doctor --explain CODE` prints
from it.
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
    """What a code means: to programs, and to people."""

    check: CheckName
    exit_code: int
    """What `doctor` and `join --dry-run` end with when this is the first check that fails; 0: it only warns."""
    title: str
    """What is the matter, in a few words."""
    cause: str
    """Why it comes to that: a sentence or more."""
    cure: str
    """What helps."""


_SETTING, _DATA, _BASE, _NETWORK, _REFUSED, _STORAGE = 2, 3, 4, 6, 7, 8

CODES: dict[str, Code] = {
    "TL-PY-001": Code(
        "python",
        _SETTING,
        "Python is too old",
        "The package needs Python 3.11 or newer.",
        "Install it with a newer one: `uv tool install --python 3.11 tinylora`.",
    ),
    "TL-PKG-001": Code(
        "packages",
        _SETTING,
        "A package is missing",
        "The installation is damaged, or was made with `--no-deps`.",
        "Install it anew: `uv tool install --reinstall --torch-backend auto tinylora`.",
    ),
    "TL-HOM-001": Code(
        "home",
        _STORAGE,
        "The home folder cannot be written",
        "The folder for identity, units and logs belongs to somebody else, lies on a read-only disk, or there is no "
        "home directory.",
        "Name another with `--home`, or set `TINYLORA_HOME`.",
    ),
    "TL-HOM-002": Code(
        "home",
        _SETTING,
        "A worker is running in this home already",
        "One worker holds a home at a time.",
        "Stop that one with `tinylora-worker stop`, or give a second `--home` for a second worker with an identity of "
        "its own.",
    ),
    "TL-DEV-001": Code(
        "device",
        0,
        "No accelerator: the CPU does the work",
        "No NVIDIA GPU and no Apple GPU was found.",
        "None is needed; a CPU is tens of times slower than a small GPU, and suits small bases.",
    ),
    "TL-DEV-002": Code(
        "device",
        0,
        "There is a GPU, and torch was installed without support for it",
        "The CPU build of torch is installed.",
        "Install it anew: `uv tool install --reinstall --torch-backend auto tinylora`.",
    ),
    "TL-DEV-003": Code(
        "device",
        _SETTING,
        "The device that was asked for is not there",
        "The limit `gpu` names a device that this machine does not have, or that torch cannot use.",
        "Let the worker choose: `tinylora-worker limits set gpu=auto`.",
    ),
    "TL-DEV-004": Code(
        "device",
        0,
        "Another program is using the GPU",
        "NVML names other programs that compute on it.",
        'None is needed: by default the worker pauses meanwhile; `when_gpu_busy = "share"` lets it work beside them.',
    ),
    "TL-DEV-005": Code(
        "device",
        0,
        "The NVIDIA driver does not answer",
        "Most often an update of the driver without a restart.",
        "Look at `nvidia-smi`, restart the machine.",
    ),
    "TL-MEM-001": Code(
        "memory",
        _BASE,
        "Not even the smallest step fits into memory",
        "A real training step at the run's longest sequence was tried, with ever smaller settings, and none fitted.",
        "Close other programs, raise the limit `vram`, allow a quantised base (`--quantise nf4`), or help a run with "
        "a smaller base.",
    ),
    "TL-MEM-002": Code(
        "memory",
        0,
        "It fits, with restrictions",
        "The step fits with a lower rank, a single leaf, a quantised base, or with activations computed twice.",
        "None is needed: the coordinator is told, and gives fitting work.",
    ),
    "TL-MEM-003": Code(
        "memory",
        0,
        "Little memory is free",
        "Less than about a gigabyte of main memory is free.",
        "Close what you do not need.",
    ),
    "TL-DSK-001": Code(
        "disk",
        _STORAGE,
        "Not enough space on disk",
        "Base and units need more than is free.",
        "Free some; `tinylora-worker clean` removes what is ours; `HF_HOME` moves the base elsewhere.",
    ),
    "TL-DSK-002": Code(
        "disk",
        0,
        "Little space will be left on disk",
        "Less than a gigabyte would be left.",
        "Free some space soon; the worker pauses when there is none.",
    ),
    "TL-NET-001": Code(
        "network",
        _NETWORK,
        "Nobody answers at the coordinator's address",
        "The address is wrong, this machine is offline, or the coordinator is down.",
        "Check the first two, else try again later.",
    ),
    "TL-NET-002": Code(
        "network",
        _NETWORK,
        "Who answers is no coordinator",
        "Another service listens at that address or port.",
        "Check both.",
    ),
    "TL-NET-003": Code(
        "network",
        _SETTING,
        "The address makes no sense",
        "It is not of the form `https://host:port`; plain `http` is for this machine only.",
        "Copy the whole line that the operator gave you.",
    ),
    "TL-NET-004": Code(
        "network",
        0,
        "The connection is slow",
        "Less than 1 Mbit/s came through, or an answer took a second.",
        "None is needed; there will be longer pauses between units.",
    ),
    "TL-NET-005": Code(
        "network",
        _NETWORK,
        "The coordinator cannot take anybody in now",
        "Its disk is full, or it is just starting.",
        "Try again later.",
    ),
    "TL-TLS-001": Code(
        "tls",
        _REFUSED,
        "Another CA than the token names",
        "Whoever answers is not the coordinator that made the token; or it has been set up anew. Nothing secret was "
        "sent.",
        "Check the address; if it is right, ask the operator for a new token.",
    ),
    "TL-TLS-002": Code(
        "tls",
        _NETWORK,
        "The coordinator's certificate does not hold",
        "It is for another name than the one in the address, has expired, or this machine's clock is wrong.",
        "Use the address that the operator named; set the clock; else tell the operator.",
    ),
    "TL-TLS-003": Code(
        "tls",
        _NETWORK,
        "Who answers speaks no TLS",
        "Another service, or the wrong port.",
        "Check the address.",
    ),
    "TL-PRO-001": Code(
        "protocol",
        _REFUSED,
        "The run speaks another version of the protocol",
        "Your tinylora and the coordinator's are too far apart. The token was not sent.",
        "Install the run's version: `uv tool upgrade tinylora`, or the version that the operator names.",
    ),
    "TL-TOK-001": Code(
        "token",
        _SETTING,
        "This is no token",
        "It was copied in part, or is something else.",
        "Copy all of it: `tl1.` and three further parts.",
    ),
    "TL-TOK-002": Code(
        "token",
        _REFUSED,
        "The token is unknown, or its secret is wrong",
        "It is of another run, or a character is missing.",
        "Copy all of it, or ask for a new one.",
    ),
    "TL-TOK-003": Code(
        "token",
        _REFUSED,
        "The token has expired",
        "Tokens are valid for a day unless the operator says otherwise.",
        "Ask for a new one.",
    ),
    "TL-TOK-004": Code(
        "token",
        _REFUSED,
        "The token was used up",
        "As many workers as it admits have come with it.",
        "Join with the `--home` that used it, or ask for a new one.",
    ),
    "TL-TOK-005": Code(
        "token",
        _REFUSED,
        "The token was revoked",
        "The operator took it back.",
        "Ask for a new one.",
    ),
    "TL-TOK-006": Code(
        "token",
        _REFUSED,
        "This worker was removed from the run",
        "The operator removed it.",
        "Ask why.",
    ),
    "TL-TOK-007": Code(
        "token",
        0,
        "The operator has yet to approve this worker",
        "The operator wants to see who comes.",
        "None is needed: the worker waits, and begins once that is done.",
    ),
    "TL-TOK-008": Code(
        "token",
        _SETTING,
        "No token was given, and this home has joined no run",
        "A first join needs a token.",
        "Ask the operator for one.",
    ),
    "TL-TOK-009": Code(
        "token",
        _REFUSED,
        "Too many tries from this address",
        "Five joins in vain within a minute.",
        "Wait a minute.",
    ),
    "TL-TOK-010": Code(
        "token",
        _REFUSED,
        "The coordinator did not take the request",
        "What was sent did not look as it expects.",
        "Install the run's version of tinylora; tell the operator if that does not help.",
    ),
    "TL-CLK-001": Code(
        "clock",
        0,
        "This machine's clock is off",
        "It differs from the coordinator's by more than half a minute.",
        "Set it by `timedatectl set-ntp true`; until then the worker makes up for it.",
    ),
    "TL-CLK-002": Code(
        "clock",
        _REFUSED,
        "This machine's clock is off by more than can be made up for",
        "It differs by more than a day: certificates do not hold then.",
        "Set the clock.",
    ),
    "TL-PWR-001": Code(
        "power",
        0,
        "On battery",
        "The machine is not plugged in.",
        "Plug it in, or `tinylora-worker limits set on_battery=true`.",
    ),
    "TL-BAS-001": Code(
        "base",
        _BASE,
        "The run's base model is not on this machine",
        "It is no hub id that could be downloaded, or the hub may not be asked (`HF_HUB_OFFLINE`).",
        "Give the folder that holds it with `--base`.",
    ),
    "TL-BAS-002": Code(
        "base",
        _BASE,
        "Another base model than the run's",
        "Weights, config or tokenizer differ from the run's, by their fingerprints.",
        "Leave `--base` out, or give the run's.",
    ),
    "TL-BAS-003": Code(
        "base",
        _STORAGE,
        "The folder that the base would be downloaded to cannot be written",
        "The hub's cache is read-only, or belongs to somebody else.",
        "Set `HF_HOME` to a folder of yours, or give `--base`.",
    ),
    "TL-DAT-001": Code(
        "data",
        _DATA,
        "No text was named, or it is not there",
        "`--data` is missing or mistyped.",
        "Name files, folders or patterns.",
    ),
    "TL-DAT-002": Code(
        "data",
        _DATA,
        "The text cannot be used",
        "No row of it could be read, its columns are unknown, or there is too little of it.",
        "Ask `tinylora-worker data check`, which says what is wrong with which line; `--map` names the columns.",
    ),
    "TL-DAT-003": Code(
        "data",
        0,
        "Part of the text was rejected",
        "Some rows could not be read or are empty.",
        "None is needed; `tinylora-worker data check` says which.",
    ),
    "TL-DAT-004": Code(
        "data",
        _DATA,
        "The text holds secrets, e-mail addresses or phone numbers",
        "A scan found what looks like one; it would be trained on.",
        "Take it out, or say `--allow KIND` if you mean it.",
    ),
}
