"""The orders of the moment, where every thread of the agent can see them change."""

import threading
from collections.abc import Callable

from tinylora_worker.agent.desk import Orders


class Board:
    """Holds the latest orders."""

    def __init__(self, orders: Orders) -> None:
        self._orders, self._changed = orders, threading.Condition()
        self.version = 0
        """How often something worth showing has changed."""

    @property
    def orders(self) -> Orders:
        """The latest."""
        return self._orders

    def post(self, orders: Orders) -> bool:
        """These hold from now on; returns whether they are others than before."""
        with self._changed:
            is_new, self._orders = orders != self._orders, orders
            if is_new:
                self.touch()
            return is_new

    def touch(self) -> None:
        """Something worth showing has changed, orders or not."""
        with self._changed:
            self.version += 1
            self._changed.notify_all()

    def wait(self, is_enough: Callable[[Orders], bool], *, timeout_s: float | None = None) -> Orders:
        """Wait for orders of this kind; returns the latest, which after `timeout_s` may be of another."""
        with self._changed:
            self._changed.wait_for(lambda: is_enough(self._orders), timeout_s)
            return self._orders

    def wait_for_news(self, version: int, *, timeout_s: float) -> int:
        """Wait until something has changed since `version`; returns the version of now."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != version, timeout_s)
            return self.version
