"""Every error TinyLoRA raises on purpose, with the exit code its commands end with.

    TinyLoraError                 1   something we foresaw, without a class of its own
    ├── SettingError              2   an option or a setting is out of range or contradicts another
    ├── DataError                 3   the text: missing, empty, too small, binary, unreadable line, unknown column
    ├── BaseModelError            4   the base: not found, not a causal LM, not the one the run or the bundle needs
    │   └── OutOfMemory           4   the base is too large to be trained in the memory that this machine gives
    ├── BundleError               5   a bundle: truncated, altered, of an unknown format
    ├── NetworkError              6   coordinator unreachable, port in use, connection refused
    ├── RefusedError              7   the other side said no: wrong token, banned worker, protocol too old
    ├── StorageError              8   folder not writable, ledger locked or altered
    │   └── DiskFull              8   no space left; what was under way is tried again when there is some
    └── ProtocolError             9   a document or payload from the network breaks its contract
        └── ShapeMismatch         9   tensors that do not fit each other

A message is one sentence or two: what, where, expected against received, what to do next. Commands print it to stderr
after "error: " and nothing else; a traceback is a bug.
"""

from typing import NamedTuple


class Explanation(NamedTuple):
    """Why something fails or is refused, and what helps: in the reference, and where somebody asks a program.

    Both are Markdown of one paragraph, in sentences.
    """

    cause: str
    cure: str


class TinyLoraError(Exception):
    """Base of all foreseen errors; `exit_code` is what a command ends with.

    Args:
        message: For people.
        rule: For programs: one word for what was broken, where the class has many rules; else empty.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule


class SettingError(TinyLoraError):
    """An option or a setting is out of range, unknown, or contradicts another one."""

    exit_code = 2


class DataError(TinyLoraError):
    """Text that a shard or an evaluation needs is missing, empty, too small or unreadable."""

    exit_code = 3


class BaseModelError(TinyLoraError):
    """The base model cannot be loaded, cannot carry adapters, or is another one than expected."""

    exit_code = 4


class OutOfMemory(BaseModelError):
    """The base cannot be trained in the memory that this machine has or gives, however little at once."""


class BundleError(TinyLoraError):
    """A bundle is truncated, altered, or not one of ours."""

    exit_code = 5


class NetworkError(TinyLoraError):
    """The other side cannot be reached, or an address cannot be opened."""

    exit_code = 6


class RefusedError(TinyLoraError):
    """The coordinator answered, and refused."""

    exit_code = 7


class StorageError(TinyLoraError):
    """The disk is full, or a place cannot be written."""

    exit_code = 8


class DiskFull(StorageError):
    """No space is left; nothing was half-written, and the same call may succeed later."""


class ProtocolError(TinyLoraError):
    """A document or payload from the network breaks its contract."""

    exit_code = 9


class ShapeMismatch(ProtocolError):
    """Tensors that should fit each other do not."""
