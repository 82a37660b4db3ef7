"""flwr's ASGI app (the SuperLink) and the state behind it."""

from flwr.common.constant import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    Status,
    SubStatus,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, NodeStatus
from flwr.supercore.date import now
from flwr.supercore.run import RunStatus
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

__all__ = [
    "FLEET_HTTP_PUBLIC_KEY_HEADER",
    "FLEET_HTTP_SIGNATURE_HEADER",
    "NOOP_ACCOUNT_NAME",
    "NOOP_FLWR_AID",
    "SYSTEM_TIME_TOLERANCE",
    "TIMESTAMP_HEADER",
    "TIMESTAMP_TOLERANCE",
    "LinkState",
    "NoOpControlAuthnPlugin",
    "NodeStatus",
    "RunStatus",
    "Status",
    "SubStatus",
    "SuperLinkLifespan",
    "SuperLinkLifespanConfig",
    "create_app",
    "now",
]
