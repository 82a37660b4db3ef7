"""`python -m tinylora.serving.child`: a child's life, from its first line to the end of that stream; see `messages`.

Requests are read by a thread of their own, so that the parent's end is heard in the middle of a request, too.
"""

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, TypeAlias, runtime_checkable

from tinylora.errors import TinyLoraError
from tinylora.serving import messages
from tinylora.serving.messages import Message

Tell: TypeAlias = Callable[[list[Any]], None]
"""Takes pairs, each a row's index in the request and what came of it."""


@runtime_checkable
class Held(Protocol):
    """What `answer` asks of a `LeafHolder`."""

    @property
    def told(self) -> Message:
        """What is held."""
        ...

    def use(self, policy: str) -> None:
        """Decide by this policy."""

    def route(self, rows: list[list[int]]) -> list[tuple[str, float]]:
        """Paths, and how probable they are."""
        ...

    def generate(self, rows: list[list[int]], *, batch_size: int, **options: Any) -> Any:
        """Pairs of index and what the row has become."""

    def score(self, rows: list[list[int]], *, batch_size: int) -> Any:
        """Pairs of index and numbers."""

    def give_memory_back(self) -> None:
        """Give what nothing holds any more back to the device."""


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not for the parent's ears
    first = messages.read(sys.stdin.buffer)
    requests: queue.Queue[Message] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), name="life line", daemon=True).start()
    with suppress(BrokenPipeError):
        if first is not None:
            serve(first, requests, out, _open, _is_out_of_memory)
    _leave()


def _listen(stream: IO[bytes], requests: "queue.Queue[Message]") -> None:
    with suppress(OSError, ValueError):
        while (message := messages.read(stream)) is not None:
            requests.put(message)
    _leave()


def _leave() -> NoReturn:
    """The end, at once: no request in progress is waited for, no library cleans up."""
    os._exit(0)


def serve(
    first: Message,
    requests: "queue.Queue[Message]",
    out: IO[bytes],
    load: Callable[[Message], Held],
    is_out_of_memory: Callable[[BaseException], bool],
) -> None:
    """Load, then answer one request after the other; back only after loading has failed.

    Args:
        first: What to load, and where.
        requests: What is asked for.
        out: Where the answers go.
        load: Makes what answers.
        is_out_of_memory: Tells whether an error means that memory did not suffice.

    Raises:
        BrokenPipeError: The parent is gone.
    """

    def failure_of(error: Exception) -> Message:
        if isinstance(error, BrokenPipeError):
            raise error
        if not isinstance(error, TinyLoraError):
            traceback.print_exc()
        return messages.failure_of(error, device=first["device"], is_out_of_memory=is_out_of_memory(error))

    try:
        holder = load(first)
    except Exception as error:
        messages.write(out, {"n": 0, "failure": failure_of(error)})
        return
    messages.write(out, {"n": 0, "done": holder.told})
    while True:
        request = requests.get()
        number = request["n"]
        try:
            done = answer(holder, request, lambda rows, n=number: messages.write(out, {"n": n, "rows": rows}))
            reply = {"n": number, "done": done}
        except Exception as error:
            reply = {"n": number, "failure": failure_of(error)}
        if "failure" in reply:
            holder.give_memory_back()  # here, where the error is gone with its traceback, which holds tensors
        messages.write(out, reply)


def answer(holder: Held, request: Message, tell: Tell) -> Message:
    """Do what is asked for, telling of rows as they are done; returns what is left to say at the end."""
    holder.use(request["policy"])
    if request["do"] == "route":
        return {"ways": holder.route(request["rows"])}
    if request["do"] == "score":
        found = holder.score(request["rows"], batch_size=request["batch_size"])
    else:
        found = holder.generate(request["rows"], batch_size=request["batch_size"], **request["options"])
    for pair in found:
        tell([pair])
    return {}


def _is_out_of_memory(error: BaseException) -> bool:
    from tinylora.training.out_of_memory import is_out_of_memory

    return is_out_of_memory(error)


def _open(first: Message) -> Held:
    import torch

    from tinylora.serving.holder import LeafHolder

    torch.set_num_threads(first["threads"])
    return LeafHolder.open(
        Path(first["bundle"]),
        first["base"],
        device=first["device"],
        leaves=first["leaves"],
        dtype=first["dtype"],
        quantise=first["quantise"],
        verify=first["verify"],
    )


if __name__ == "__main__":
    main()
