"""Starting a Flower run and acting as its ServerApp process."""

from flwr.cli.build import build_fab_from_files
from flwr.common.constant import Status
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

__all__ = [
    "AcquireTaskRequest",
    "ControlHttpClient",
    "Fab",
    "HttpGrid",
    "ListRunsRequest",
    "ProtobufCall",
    "ProtobufRequestContext",
    "PullAppMessagesRequest",
    "PullTaskInputRequest",
    "PushTaskOutputRequest",
    "RuntimeHttpClient",
    "RuntimeTokenHttpInterceptor",
    "SendTaskHeartbeatRequest",
    "StartRunRequest",
    "Status",
    "StopRunRequest",
    "SuperExecAuthHttpInterceptor",
    "TaskType",
    "build_fab_from_files",
    "run_from_proto",
]
