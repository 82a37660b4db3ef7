"""What parent and child say to each other: one JSON object a line, and errors as a kind and a sentence. No pickle.

parent → child    first {"bundle", "base", "device", "leaves", ...}; then {"n": number, "do": what, ...}. The end of the
                  stream is the child's end, so that whatever ends the parent leaves no child behind
child → parent    {"n": number, "rows": [...]} as rows are done; {"n": number, "done": {...}} at the end of a request,
                  or {"n": number, "failure": {...}}. Number 0 is the start.
"""

import json
from typing import IO, Any, TypeAlias

from tinylora import errors
from tinylora.errors import OutOfMemory, TinyLoraError

Message: TypeAlias = dict[str, Any]
_MAX_SENTENCE = 1000


def write(stream: IO[bytes], message: Message) -> None:
    """Send a message.

    Raises:
        OSError: The other side is gone.
    """
    stream.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    stream.flush()


def read(stream: IO[bytes]) -> Message | None:
    """The next message; None when the other side is gone, in the middle of a word or not."""
    line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def failure_of(error: BaseException, *, device: str, is_out_of_memory: bool) -> Message:
    """What to tell of an error.

    Args:
        error: What was raised.
        device: Where.
        is_out_of_memory: Whether it means that memory did not suffice.
    """
    if isinstance(error, TinyLoraError):
        return {"kind": type(error).__name__, "message": str(error)[:_MAX_SENTENCE], "rule": error.rule}
    first_line = str(error).strip().partition("\n")[0][:_MAX_SENTENCE]
    if is_out_of_memory:
        message = (
            f"{device}: out of memory ({first_line or type(error).__name__}); serve fewer rows at once, put fewer "
            "leaves on this device, or load the base quantised"
        )
        return {"kind": OutOfMemory.__name__, "message": message, "rule": ""}
    said = f"{device}: {type(error).__name__}: {first_line or 'no reason given'}"
    return {"kind": TinyLoraError.__name__, "message": said, "rule": ""}


def error_of(failure: Message) -> TinyLoraError:
    """The error that a failure tells of."""
    kind = getattr(errors, failure["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, TinyLoraError)):
        kind = TinyLoraError
    return kind(failure["message"], rule=failure["rule"])
