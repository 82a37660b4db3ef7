"""How many requests one address has under way. Connections are counted already, but a proxy's are not its clients'."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Crowd:
    """Requests under way, by place. All of it happens in the door's event loop.

    Args:
        most: Of one place.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: Counter[str] = Counter()

    def has_room(self, place: str) -> bool:
        """Whether one more may begin from there."""
        return self._under_way[place] < self._most

    @contextmanager
    def one(self, place: str) -> Iterator[None]:
        """Until the block ends, one more is under way."""
        self._under_way[place] += 1
        try:
            yield
        finally:
            self._under_way -= Counter((place,))
