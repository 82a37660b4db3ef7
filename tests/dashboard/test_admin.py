"""The operator's desk of the page: what is asked lands in the operator's file, as with the commands."""

from pathlib import Path

import pytest
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.admin import MOST_ORDERS, RunAdmin
from tinylora_coordinator.folder import RunFolder, write_run
from tinylora_coordinator.operator_store import OperatorStore, Refused, Worker

from tests.federation.facts import FACTS, SETTINGS
from tinylora.errors import SettingError
from tinylora.federation.events import BundlePublished
from tinylora.flower.join_token import parse_token

NOW = 1_700_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> OperatorStore:
    write_run(RunFolder(tmp_path), SETTINGS, FACTS, None, hosts=["tree.example.org"])
    return OperatorStore(tmp_path)


@pytest.fixture
def admin(tmp_path: Path, store: OperatorStore) -> RunAdmin:
    return RunAdmin(tmp_path, store, clock=lambda: NOW)


def come(store: OperatorStore, made: doc.NewToken, worker: str = "w-1") -> Worker | Refused:
    secret = parse_token(made.token).secret
    return store.enrol(worker, f"key of {worker}", name="mine", token_id=made.token_id, secret=secret, now_s=NOW)


def test_a_token_lets_a_worker_in_who_waits_for_approval(admin: RunAdmin, store: OperatorStore) -> None:
    made = admin.make_token(doc.TokenRequest(uses=2, expires="2h", tags=("gpu",), needs_approval=True), "")
    assert made.command == "tinylora-worker join https://tree.example.org:8443 --data TEXTS"
    assert (made.expires_unix_s, made.max_workers) == (NOW + 7200, 2)
    assert isinstance(come(store, made), Worker)
    (pending,) = admin.state().pending
    assert (pending.worker, pending.name, pending.tags, pending.since_unix_s) == ("w-1", "mine", ("gpu",), NOW)
    admin.approve("w-1")
    assert admin.state().pending == ()
    (row,) = admin.tokens().tokens
    assert (row.token_id, row.state, row.n_workers, row.tags) == (made.token_id, "open", 1, ("gpu",))
    admin.revoke_token(made.token_id)
    assert admin.tokens().tokens[0].state == "revoked"


def test_the_join_command_names_the_address_by_which_the_operator_came(admin: RunAdmin) -> None:
    made = admin.make_token(doc.TokenRequest(), "https://here.example:9443")
    assert made.command == "tinylora-worker join https://here.example:9443 --data TEXTS"


def test_orders_with_what_became_of_them(admin: RunAdmin, store: OperatorStore) -> None:
    come(store, admin.make_token(doc.TokenRequest(), ""))
    asked = [
        doc.OrderRequest(kind="pause"),
        doc.OrderRequest(kind="release", worker="w-1", reason="it\nhangs"),
        doc.OrderRequest(kind="reassign", worker="w-1", node="01", reason="nearer"),
        doc.OrderRequest(kind="revoke", worker="w-1"),
        doc.OrderRequest(kind="finish", reason="enough"),
    ]
    given = [admin.order(request) for request in asked]
    assert [row.kind for row in given] == [request.kind for request in asked]
    store.done(store.orders()[0], "paused")
    rows = admin.state().orders
    assert [(row.kind, row.worker, row.reason, row.outcome) for row in rows] == [
        ("finish", "", "enough", None),
        ("revoke", "w-1", "", None),
        ("reassign", "w-1", "to 01: nearer", None),
        ("release", "w-1", "it hangs", None),
        ("pause", "", "", "paused"),
    ]
    assert store.orders()[1].node == "01"
    assert store.find("w-1").state == "revoked"  # pyright: ignore[reportOptionalMemberAccess]


def test_the_order_to_name_a_bundle_is_told_by_its_hash(admin: RunAdmin, store: OperatorStore) -> None:
    made = BundlePublished(sha256="ab" * 32, bytes=1, n_events=1, log_sha256="0" * 64, router_version=0)
    store.order("record", reason=made.model_dump_json(), now_s=NOW)
    assert admin.state().orders[0].reason == "bundle abababababab"


def test_only_the_latest_orders_are_shown(admin: RunAdmin, store: OperatorStore) -> None:
    for number in range(MOST_ORDERS + 5):
        store.order("pause", reason=str(number), now_s=NOW)
    rows = admin.state().orders
    assert [row.reason for row in rows] == [str(number) for number in range(MOST_ORDERS + 4, 4, -1)]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "release"}, "name the worker"),
        ({"kind": "reassign", "worker": "w-9"}, "name the leaf"),
        ({"kind": "reassign", "worker": "w-9", "node": "0"}, "no such worker"),
        ({"kind": "revoke", "worker": "w-9"}, "no such worker"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(admin: RunAdmin, fields: dict, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        admin.order(doc.OrderRequest(**fields))
    assert admin.state().orders == ()


def test_names_that_are_not_there(admin: RunAdmin) -> None:
    with pytest.raises(SettingError, match="no such worker"):
        admin.approve("w-9")
    with pytest.raises(SettingError, match="no such join token"):
        admin.revoke_token("abcd")
