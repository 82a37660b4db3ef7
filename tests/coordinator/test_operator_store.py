"""The operator's file: what a token lets in, that its cap holds under load, that orders wait until they are done."""

import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tinylora_coordinator.operator_store import DAY_S, FILE, OperatorStore, Refused, Worker

from tinylora.errors import DiskFull, SettingError, StorageError
from tinylora.failpoints import armed
from tinylora.federation.ports import Desk
from tinylora.flower.join_token import SYSTEM, JoinToken

NOW = 1_700_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> OperatorStore:
    return OperatorStore(tmp_path)


@dataclass
class Case:
    """A stranger comes with a token at some time."""

    token: JoinToken
    secret: str
    now_s: float = NOW

    def enrol(self, store: OperatorStore, worker: str = "w-1") -> Worker | Refused:
        token_id, key = self.token.token_id, f"key of {worker}"
        return store.enrol(worker, key, name="n", token_id=token_id, secret=self.secret, now_s=self.now_s)


def made(store: OperatorStore, **choices: object) -> Case:
    token = store.create_token(SYSTEM, now_s=NOW, **choices)  # type: ignore[arg-type]
    return Case(token, token.secret)


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_lets_one_worker_in_for_a_day_by_default(store: OperatorStore) -> None:
    case = made(store)
    assert case.enrol(store) == Worker("w-1", case.token.token_id, "n", "approved", NOW)
    (token,) = store.tokens(NOW)
    assert (token.max_workers, token.expires_s, token.n_workers, token.state) == (1, NOW + DAY_S, 1, "used_up")


def test_the_same_worker_is_welcome_again_and_another_is_not(store: OperatorStore) -> None:
    case = made(store)
    first = case.enrol(store)
    assert case.enrol(store) == first
    assert Case(case.token, "").enrol(store) == first  # known: no token needed
    refused = case.enrol(store, "w-2")
    assert isinstance(refused, Refused) and refused.code == "used_up"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"secret": "x" * 32}, "token"),
        ({"secret": ""}, "token"),
        ({"token": JoinToken(SYSTEM, "unknown", "s")}, "token"),
        ({"now_s": NOW + DAY_S}, "expired"),
    ],
)
def test_what_lets_nobody_in(store: OperatorStore, change: dict[str, object], code: str) -> None:
    case = made(store)
    refused = Case(**{**vars(case), **change}).enrol(store)  # type: ignore[arg-type]
    assert isinstance(refused, Refused) and refused.code == code and case.token.secret not in refused.reason
    assert store.workers() == []


def test_an_unknown_token_and_a_wrong_secret_have_one_answer(store: OperatorStore) -> None:
    case = made(store)
    unknown = Case(JoinToken(SYSTEM, "unknown", ""), case.secret).enrol(store)
    assert Case(case.token, "wrong").enrol(store) == unknown


def test_a_wrong_secret_learns_nothing_of_a_revoked_token(store: OperatorStore) -> None:
    case = made(store)
    store.revoke_token(case.token.token_id, NOW)
    assert [getattr(case.enrol(store), "code", ""), getattr(Case(case.token, "x").enrol(store), "code", "")] == [
        "token_revoked",
        "token",
    ]
    assert store.tokens(NOW)[0].state == "revoked"


def test_a_revoked_token_keeps_its_workers(store: OperatorStore) -> None:
    case = made(store, max_workers=2)
    case.enrol(store)
    store.revoke_token(case.token.token_id, NOW)
    assert isinstance(case.enrol(store), Worker) and isinstance(case.enrol(store, "w-2"), Refused)


def test_the_cap_holds_when_two_hundred_come_at_once(tmp_path: Path) -> None:
    with OperatorStore(tmp_path) as store:
        case = made(store, max_workers=7)

        def come(number: int) -> bool:
            return isinstance(case.enrol(store, f"w-{number}"), Worker)

        with ThreadPoolExecutor(16) as pool:
            welcome = list(pool.map(come, range(200)))
        assert sum(welcome) == 7 == len(store.workers()) == store.tokens(NOW)[0].n_workers


COME = """
import sys
import threading
from pathlib import Path
from tinylora_coordinator.operator_store import OperatorStore, Worker
root, token_id, secret, now_s, first = sys.argv[1:]
with OperatorStore(Path(root)) as store:
    for n in range(int(first), int(first) + 30):
        who = dict(name="", token_id=token_id, secret=secret, now_s=float(now_s))
        print(isinstance(store.enrol(f"w-{n}", f"key {n}", **who), Worker))
"""


def test_the_cap_holds_between_processes(tmp_path: Path) -> None:
    with OperatorStore(tmp_path) as store:
        case = made(store, max_workers=20)
        words = [str(tmp_path), case.token.token_id, case.secret, str(NOW)]
        children = [
            subprocess.Popen([sys.executable, "-c", COME, *words, str(first)], stdout=subprocess.PIPE, text=True)
            for first in (0, 30)
        ]
        welcome = [line for child in children for line in child.communicate(timeout=60)[0].split()]
        assert len(welcome) == 60 and welcome.count("True") == 20 == len(store.workers())


def test_secrets_are_not_on_disk(tmp_path: Path) -> None:
    with OperatorStore(tmp_path) as store:
        case = made(store)
        case.enrol(store)
    found = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert case.secret.encode() not in found and case.secret not in repr(case.token)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("choices", [{"max_workers": 0}, {"expires_in_s": 0.0}, {"expires_in_s": -1.0}])
def test_a_token_for_nobody_is_refused(store: OperatorStore, choices: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="at least one worker and a time in the future"):
        made(store, **choices)


# --- tokens for people ----------------------------------------------------------------------------------------------


def test_tokens_for_people_are_kept_without_their_secret(tmp_path: Path) -> None:
    with OperatorStore(tmp_path) as store:
        viewer = store.create_access("viewer", "0" * 16, now_s=NOW, note="for Ada")
        admin = store.create_access("admin", "0" * 16, now_s=NOW + 1, expires_in_s=60.0)
        known = store.access_tokens()
        assert [(token.token_id, token.role, token.note) for token in known] == [
            (viewer.token_id, "viewer", "for Ada"),
            (admin.token_id, "admin", ""),
        ]
        assert [token.state(NOW + 100) for token in known] == ["open", "expired"]
        assert store.find_access(viewer.token_id) == known[0] and store.find_access("unknown") is None
        assert store.tokens(NOW) == []  # none of them lets a worker in
    found = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for token in (viewer, admin):
        assert token.secret.encode() not in found and token.secret not in repr(token)


def test_a_token_for_people_is_revoked_by_the_same_word_and_the_first_time_stays(store: OperatorStore) -> None:
    token = store.create_access("admin", "0" * 16, now_s=NOW)
    store.revoke_token(token.token_id, NOW + 1)
    store.revoke_token(token.token_id, NOW + 2)
    (known,) = store.access_tokens()
    assert known.revoked_s == NOW + 1 and known.state(NOW + 3) == "revoked"


def test_a_token_for_people_lets_no_worker_in(store: OperatorStore) -> None:
    token = store.create_access("admin", "0" * 16, now_s=NOW)
    refused = Case(JoinToken(SYSTEM, token.token_id, token.secret), token.secret).enrol(store)
    assert isinstance(refused, Refused) and refused.code == "token"


# --- workers --------------------------------------------------------------------------------------------------------


def test_who_needs_approval_waits_for_it(store: OperatorStore) -> None:
    case = made(store, needs_approval=True, tags=("night", "gpu"))
    first = case.enrol(store)
    assert isinstance(first, Worker) and (first.state, first.tags) == ("pending", ("night", "gpu"))
    assert not store.is_approved("w-1")
    store.approve("w-1")
    assert store.is_approved("w-1") and store.workers() == [case.enrol(store)]


def test_a_revoked_worker_is_out_at_once_and_an_order_waits(store: OperatorStore) -> None:
    case = made(store)
    case.enrol(store)
    order = store.revoke("w-1", reason="bad", now_s=NOW)
    assert not store.is_approved("w-1") and store.orders() == [order]
    assert getattr(case.enrol(store), "code", "") == "banned"
    with pytest.raises(SettingError, match="was revoked"):
        store.approve("w-1")


@pytest.mark.parametrize("act", ["approve", "revoke", "erase"])
def test_an_unknown_worker_is_named(store: OperatorStore, act: str) -> None:
    more = {} if act == "approve" else {"reason": "", "now_s": NOW}
    with pytest.raises(SettingError, match="worker w-9: no such worker"):
        getattr(store, act)("w-9", **more)
    assert store.orders() == []


# --- orders ---------------------------------------------------------------------------------------------------------


def test_orders_wait_in_order_until_they_are_done_once(tmp_path: Path) -> None:
    with OperatorStore(tmp_path) as store:
        given = [store.order(kind, now_s=NOW) for kind in ("pause", "resume", "finish")]
    with OperatorStore(tmp_path) as again:
        assert isinstance(again, Desk) and list(again.orders()) == given
        again.done(given[1], "resumed")
        again.done(given[1], "twice")
        assert list(again.orders()) == [given[0], given[2]]
        assert [job.outcome for job in again.jobs()] == [None, "resumed", None]


# --- the file -------------------------------------------------------------------------------------------------------


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def come(number: int) -> None:
        for run in range(10):
            (tmp_path / str(run)).mkdir(exist_ok=True)
            start.wait()
            with OperatorStore(tmp_path / str(run)) as store:
                store.order("pause", now_s=NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come, range(8)))
    for run in range(10):
        with OperatorStore(tmp_path / str(run)) as store:
            assert len(store.orders()) == 8


def test_another_format_is_refused(tmp_path: Path) -> None:
    OperatorStore(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="format 99, this program reads format 2"):
        OperatorStore(tmp_path)


def test_a_file_of_format_1_gets_the_table_that_it_lacks_and_keeps_the_rest(tmp_path: Path) -> None:
    with OperatorStore(tmp_path) as store:
        case = made(store)
        store.order("pause", now_s=NOW)
    with sqlite3.connect(tmp_path / FILE) as database:
        new = _columns(database)
        database.execute("DROP TABLE access")
        database.execute("ALTER TABLE job DROP COLUMN node")
        database.execute("PRAGMA user_version = 1")
    start = threading.Barrier(4)

    def come(number: int) -> int:
        start.wait()
        with OperatorStore(tmp_path) as store:
            return len(store.access_tokens())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(come, range(4))) == [0, 0, 0, 0]
    with OperatorStore(tmp_path) as store:
        assert isinstance(case.enrol(store), Worker) and len(store.orders()) == 1
        store.create_access("viewer", "0" * 16, now_s=NOW)
    with sqlite3.connect(tmp_path / FILE) as database:
        assert _columns(database) == new
        assert database.execute("PRAGMA user_version").fetchone() == (2,)


def _columns(database: sqlite3.Connection) -> dict[str, list[tuple]]:
    """Of every table, by name."""
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return {name: sorted(database.execute(f"PRAGMA table_info({name})").fetchall()) for name in sorted(tables)}


def test_orders_about_a_worker_name_him_and_the_node(store: OperatorStore) -> None:
    made(store).enrol(store)
    store.steer("release", "w-1", reason="it hangs", now_s=NOW)
    store.steer("reassign", "w-1", node="01", now_s=NOW)
    assert [(order.kind, order.worker, order.node, order.reason) for order in store.orders()] == [
        ("release", "w-1", "", "it hangs"),
        ("reassign", "w-1", "01", ""),
    ]
    with pytest.raises(SettingError, match="no such worker"):
        store.steer("release", "w-2", now_s=NOW)


def test_something_else_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        OperatorStore(tmp_path)


def test_a_full_disk_changes_nothing(store: OperatorStore) -> None:
    case = made(store)
    with armed("operator.commit.before:enospc"), pytest.raises(DiskFull, match="try again"):
        case.enrol(store)
    assert store.workers() == [] and isinstance(case.enrol(store), Worker)
