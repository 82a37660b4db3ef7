"""A child without a model, quick to start: it answers with what it was sent, and does to order what children may do."""

import os
import queue
import signal
import sys
import threading

from tinylora.serving import messages
from tinylora.serving.child import serve
from tinylora.serving.messages import Message


class Fake:
    """Leaves that are not there. The fault stands in the place of the base's name."""

    def __init__(self, fault: str, device: str) -> None:
        self.fault = fault if device == "cpu:1" else ""
        self.told = {"pid": os.getpid()}
        self.policy = ""
        if self.fault == "dies while it loads":
            print("a driver's last words", file=sys.stderr, flush=True)
            os._exit(7)
        if self.fault == "cannot load":
            raise MemoryError("cannot allocate memory")

    def use(self, policy: str) -> None:
        self.policy = policy

    def route(self, rows: list[list[int]]) -> list[tuple[str, float]]:
        return [("1" if row[0] else "0", 0.5) for row in rows]

    def generate(self, rows: list[list[int]], *, limits: list[int], **_: object):
        for index, (row, limit) in enumerate(zip(rows, limits, strict=True)):
            if self.fault == "crashes" and index == 1:
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.fault == "out of memory" and index == 1:
                raise MemoryError("no room")
            if self.fault == "waits for ever" and index == 1:
                threading.Event().wait()
            tokens = [row[-1]] * limit
            yield index, {"tokens": tokens, "text": " ".join(map(str, tokens)), "finish": "length"}

    def score(self, rows: list[list[int]], *, batch_size: int):
        raise ValueError(f"no scores by {batch_size}")

    def give_memory_back(self) -> None:
        pass


def is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError)


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    first = messages.read(sys.stdin.buffer)
    requests: queue.Queue[Message] = queue.Queue()

    def listen() -> None:
        while (message := messages.read(sys.stdin.buffer)) is not None:
            requests.put(message)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    assert first is not None
    serve(first, requests, out, lambda first: Fake(first["base"], first["device"]), is_memory)
    os._exit(0)


if __name__ == "__main__":
    main()
