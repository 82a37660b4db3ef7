"""How much of a base has come from the hub so far, seen from outside: the size of its files in the hub's cache."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

EVERY_S = 1.0


def cache_of(base: str, cache: Path | None = None) -> Path | None:
    """The folder in which the hub's client keeps the files of a base; None for a folder of the owner's."""
    if Path(base).expanduser().is_dir():
        return None
    return (cache or Path(HF_HUB_CACHE)) / f"models--{base.replace('/', '--')}" / "blobs"


def bytes_in(folder: Path | None) -> int:
    """Bytes in the files of this folder, half-done ones included."""
    if folder is None or not folder.is_dir():
        return 0
    return sum(_size(file) for file in folder.iterdir())


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # renamed meanwhile: it counts the next time
        return 0


@contextmanager
def watched(folder: Path | None, tell: Callable[[int], None], *, every_s: float = EVERY_S) -> Iterator[None]:
    """Within it `tell` hears now and then how many bytes have come since the beginning, when there are more."""
    over, before = threading.Event(), bytes_in(folder)

    def look() -> None:
        told = 0
        while not over.wait(every_s):
            n_bytes = bytes_in(folder) - before
            if n_bytes > told:
                told = n_bytes
                tell(n_bytes)

    looker = threading.Thread(target=look, name="downloads", daemon=True)
    if folder is not None:
        looker.start()
    try:
        yield
    finally:
        over.set()
        if folder is not None:
            looker.join()
