"""flwr's ASGI app (the SuperLink) and the state behind it."""

from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NodeStatus
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

__all__ = [
    "NOOP_ACCOUNT_NAME",
    "NOOP_FLWR_AID",
    "LinkState",
    "NoOpControlAuthnPlugin",
    "NodeStatus",
    "SuperLinkLifespan",
    "SuperLinkLifespanConfig",
    "create_app",
]
