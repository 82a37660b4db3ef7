"""What we rely on of flwr's insides, symbol by symbol: after an update of flwr this fails first and says which."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

import tinylora.flower.compat as compat

MODULES = ("wire", "fleet", "link", "rounds", "memory")

# Symbol: parameters that we pass, by name or position. None: a value, a class we only name, or a protobuf document.
RELIED_ON: dict[str, tuple[str, ...] | None] = {
    # wire
    "SUPERLINK_NODE_ID": None,
    "ApiErrorCode": None,
    "ConfirmMessageReceivedRequest": None,
    "ErrorCode": None,
    "FlowerError": ("code", "message"),
    "Node": None,
    "NodeInfo": None,
    "ObjectPullError": ("object_id", "reason"),
    "ObjectPushError": ("object_id", "run_id", "session_id"),
    "ObjectTree": None,
    "ObjectUnavailableError": ("object_id",),
    "ProtoMessage": None,
    "PullObjectRequest": None,
    "PullObjectResponse": None,
    "PushObjectRequest": None,
    "PushObjectResponse": None,
    "get_all_nested_objects": ("obj",),
    "get_object_body_of_any": ("object_content",),
    "get_object_head_values_from_object_content": ("object_content",),
    "get_object_tree": ("obj",),
    "inflate_object_from_contents": ("object_id", "object_contents"),
    "iterate_object_tree": ("tree",),
    "make_confirm_message_received_fn_protobuf": ("confirm_message_received_protobuf", "node", "run_id"),
    "make_message": ("metadata", "content", "error"),
    "make_pull_object_fn_protobuf": ("pull_object_protobuf", "node", "run_id"),
    "make_push_object_fn_protobuf": ("push_object_protobuf", "node", "run_id", "session_id"),
    "message_from_proto": ("message_proto",),
    "message_to_proto": ("message",),
    "no_object_id_recompute": (),
    "push_objects": ("objects", "push_object_fn", "object_ids_to_push", "keep_objects"),
    "remove_content_from_message": ("message",),
    # fleet
    "FLEET_HTTP_PUBLIC_KEY_HEADER": None,
    "FLEET_HTTP_SIGNATURE_HEADER": None,
    "TIMESTAMP_HEADER": None,
    "ActivateNodeRequest": None,
    "DeactivateNodeRequest": None,
    "FleetHttpClient": (),
    "PullMessagesRequest": None,
    "PushMessagesRequest": None,
    "SendNodeHeartbeatRequest": None,
    "now": (),
    # link
    "NOOP_ACCOUNT_NAME": None,
    "NOOP_FLWR_AID": None,
    "SYSTEM_TIME_TOLERANCE": None,
    "TIMESTAMP_TOLERANCE": None,
    "LinkState": None,
    "NoOpControlAuthnPlugin": (),
    "NodeStatus": None,
    "RunStatus": ("status", "sub_status", "details"),
    "SubStatus": None,
    "SuperLinkLifespan": ("config", "state_factory"),
    "SuperLinkLifespanConfig": ("database", "isolation", "superexec_auth_secret", "enable_supernode_auth"),
    "create_app": ("config", "superlink_lifespan_class"),
    # rounds
    "AcquireTaskRequest": None,
    "ControlHttpClient": (),
    "Fab": None,
    "HttpGrid": ("runtime_api_address", "insecure", "token"),
    "ListRunsRequest": None,
    "ProtobufCall": None,
    "ProtobufRequestContext": ("request",),
    "PullAppMessagesRequest": None,
    "PullTaskInputRequest": None,
    "PushTaskOutputRequest": None,
    "RuntimeHttpClient": (),
    "RuntimeTokenHttpInterceptor": ("token",),
    "SendTaskHeartbeatRequest": None,
    "StartRunRequest": None,
    "Status": None,
    "StopRunRequest": None,
    "SuperExecAuthHttpInterceptor": ("master_secret", "protected_methods"),
    "TaskType": None,
    "build_fab_from_files": ("files",),
    "run_from_proto": ("run_proto",),
    # memory
    "FLWR_IN_MEMORY_DB_NAME": None,
    "NOOP_FEDERATION_ID": None,
    "InMemoryGrid": ("state_factory", "pull_interval"),
    "LinkStateFactory": None,
    "NoOpFederationManager": (),
    "ObjectStoreFactory": (),
}

FIELDS = {
    "ActivateNodeRequest": {"public_key", "heartbeat_interval"},
    "ConfirmMessageReceivedRequest": {"node", "run_id", "message_object_id"},
    "DeactivateNodeRequest": {"node_id"},
    "Fab": {"hash_str", "content"},
    "Node": {"node_id"},
    "NodeInfo": {"node_id", "public_key", "name"},
    "PullAppMessagesRequest": {"message_ids"},
    "PullMessagesRequest": {"node"},
    "PushMessagesRequest": {"node", "messages_list", "message_object_trees", "clientapp_runtime_list"},
    "PullObjectRequest": {"node", "run_id", "object_id"},
    "PushObjectRequest": {"node", "run_id", "object_id", "object_content", "session_id"},
    "PushTaskOutputRequest": {"sub_status", "details"},
    "SendNodeHeartbeatRequest": {"node", "heartbeat_interval"},
    "StartRunRequest": {"fab"},
    "ListRunsRequest": {"limit"},
    "StopRunRequest": {"run_id"},
    "AcquireTaskRequest": {"supported_task_types"},
}

MEMBERS = {
    "FleetHttpClient": {
        "from_server_address", "ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages",
        "PullObject", "PushObject", "ConfirmMessageReceived", "close",
    },
    "RuntimeHttpClient": {
        "from_server_address", "AcquireTask", "PullTaskInput", "PushTaskOutput", "SendTaskHeartbeat", "PullMessages",
        "PullObject", "ConfirmMessageReceived",
    },
    "ControlHttpClient": {"from_server_address", "ListRuns", "StartRun", "StopRun"},
    "HttpGrid": {"push_messages", "pull_messages", "get_nodes", "get_node_ids", "set_run", "run", "close"},
    "LinkState": {
        "cleanup_run", "create_node", "get_node_id_by_public_key", "get_node_info", "get_run_info", "stop_run",
        "activate_node", "get_message_ins", "store_message_res", "create_run", "num_message_ins", "object_store",
        "get_run_status",
    },
    "ApiErrorCode": {"FLEET_NODE_ACTIVATION_FAILED"},
    "ErrorCode": {"MESSAGE_UNAVAILABLE", "REPLY_MESSAGE_UNAVAILABLE", "NODE_UNAVAILABLE"},
    "FlowerError": {"from_json"},
    "NodeStatus": {"ONLINE"},
    "Status": {"FINISHED"},
    "SubStatus": {"STOPPED"},
    "TaskType": {"SERVER_APP"},
}  # fmt: skip


def symbol(name: str) -> object:
    homes = (importlib.import_module(f"tinylora.flower.compat.{module}") for module in MODULES)
    return next(getattr(home, name) for home in homes if name in home.__all__)


def test_every_symbol_has_its_contract() -> None:
    exported = {
        name for module in MODULES for name in importlib.import_module(f"tinylora.flower.compat.{module}").__all__
    }
    assert exported == set(RELIED_ON)


@pytest.mark.parametrize("name", [name for name, parameters in RELIED_ON.items() if parameters is not None])
def test_it_takes_what_we_pass(name: str) -> None:
    parameters = inspect.signature(symbol(name)).parameters  # type: ignore[arg-type]
    missing = set(RELIED_ON[name] or ()) - set(parameters)
    assert not missing or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


@pytest.mark.parametrize("name", [name for name, parameters in RELIED_ON.items() if parameters is None])
def test_it_exists(name: str) -> None:
    assert symbol(name) is not None


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_document_has_our_fields(name: str) -> None:
    assert FIELDS[name] <= set(symbol(name).DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_it_has_our_members(name: str) -> None:
    assert {member for member in MEMBERS[name] if not hasattr(symbol(name), member)} == set()


def test_the_links_configuration_has_exactly_our_fields() -> None:
    from tinylora.flower.compat.link import SuperLinkLifespanConfig
    from tinylora.flower.link import _lifespan_config

    made = _lifespan_config(Path("link.db"), b"secret")
    assert {field.name for field in dataclasses.fields(SuperLinkLifespanConfig)} == set(vars(made))


def test_the_grid_makes_its_client_where_we_put_ours() -> None:
    from tinylora.flower.compat.rounds import HttpGrid

    grid = HttpGrid("127.0.0.1:1", insecure=True, token="t")
    assert grid._client is None and "_client" in vars(grid)


def test_flwr_internals_are_imported_in_the_compat_package_only() -> None:
    public = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}
    package = Path(next(iter(compat.__path__))).parent
    for file in package.glob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].partition(".")[0] == "flwr":
                assert words[1] in public, f"{file.name}: {line}"
