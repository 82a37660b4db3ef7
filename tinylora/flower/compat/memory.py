"""Flower's in-memory grid: the same apps without sockets, processes or Ray."""

from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

__all__ = [
    "FLWR_IN_MEMORY_DB_NAME",
    "NOOP_ACCOUNT_NAME",
    "NOOP_FEDERATION_ID",
    "NOOP_FLWR_AID",
    "InMemoryGrid",
    "LinkStateFactory",
    "NoOpFederationManager",
    "ObjectStoreFactory",
    "TaskType",
]
