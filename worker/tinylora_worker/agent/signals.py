"""Ctrl-C and SIGTERM: the first asks to leave in order, the second to leave now."""

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def two_stages(first: Callable[[], object], second: Callable[[], object]) -> Iterator[None]:
    """While the context is open, the first signal calls `first`, every further one `second`, in a thread of its own.

    A handler may do next to nothing: it interrupts the main thread wherever it is, with whatever lock in its hands.
    Only the main thread can have handlers; in another nothing happens here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def listen() -> None:
        call = first
        while came.get():
            call()
            call = second

    def note(_number: int, _frame: FrameType | None) -> None:
        came.put(True)

    threading.Thread(target=listen, name="signals", daemon=True).start()
    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        came.put(False)
