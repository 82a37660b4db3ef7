"""Ledgers of all formats: opened, brought up to date, refused; read by others meanwhile."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from tests.federation.events import JOINED, STARTED
from tinylora.errors import StorageError
from tinylora.failpoints import armed, watched
from tinylora.federation.campaign import fold
from tinylora.ledger import schema
from tinylora.ledger.sqlite import FILE, SqliteLedger
from tinylora.ledger.tables import metadata

FORMAT_1 = Path(__file__).parent / "format_1"
"""A run of four workers, written by the program that knew no other format: 38 events, nine blobs."""


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(FORMAT_1, tmp_path / "old"))


def schema_of(file: Path) -> set[str]:
    """What the tables are made of, whatever the spacing."""
    with closing(sqlite3.connect(file)) as database:
        found = database.execute("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql IS NOT NULL")
        return {" ".join(sql.replace('"', "").split()) for (sql,) in found}


def test_an_old_run_goes_on(old):
    with SqliteLedger.open_readonly(old) as reader:
        before = reader.events()
    with SqliteLedger(old) as ledger:
        assert ledger.events() == before
        assert len(before) == ledger.head()[0] == 38
        assert ledger.verify() == ()
        ledger.append([JOINED.model_copy(update={"worker": "w9"})], 99.0)
        assert ledger.rows("worker", worker="w9")[0]["joined_event"] == 39
        assert len(ledger.rows("unit", state="accepted")) == sum(event.type == "update_accepted" for event in before)
    state = fold(before)
    assert state is not None
    assert state.n_events == 38


def test_the_old_bodies_stay_byte_for_byte(old):
    with closing(sqlite3.connect(old / FILE)) as database:
        before = database.execute("SELECT number, type, body, at_s FROM event").fetchall()
    SqliteLedger(old).close()
    with closing(sqlite3.connect(old / FILE)) as database:
        assert database.execute("SELECT number, type, body, at_s FROM event").fetchall() == before


def test_migrated_is_made_anew_is_declared(old, tmp_path):
    """Three ways to one schema: from format 1, from nothing, and from the tables as the code declares them."""
    SqliteLedger(old).close()
    SqliteLedger(tmp_path / "new").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'declared.sqlite'}")
    metadata.create_all(engine)
    engine.dispose()
    assert schema_of(old / FILE) == schema_of(tmp_path / "new" / FILE) == schema_of(tmp_path / "declared.sqlite")
    assert all(sql.endswith("STRICT") for sql in schema_of(old / FILE) if sql.startswith("CREATE TABLE"))


def test_readers_see_one_format_or_the_other(old):
    """At every step of a migration somebody else reads: always all events."""
    reader = SqliteLedger.open_readonly(old)
    events = reader.events()
    seen = []

    def read(name: str) -> None:
        if name.startswith("ledger.migrate"):
            with SqliteLedger.open_readonly(old) as fresh:
                assert fresh.events() == events
            assert reader.events() == events
            seen.append(name)

    with watched(read), SqliteLedger(old) as ledger:
        assert reader.events() == events
        assert reader.head() == ledger.head()
    assert {"ledger.migrate.begin.before", "ledger.migrate.chain.after", "ledger.migrate.commit.after"} <= set(seen)
    reader.close()


def test_a_reader_that_comes_first_finds_nothing_and_then_all(tmp_path):
    """A file in which nothing is yet is a ledger without events, never one of an unknown format."""
    readers = []

    def look(name: str) -> None:
        if (tmp_path / FILE).exists():
            readers.append(SqliteLedger.open_readonly(tmp_path))
            assert readers[-1].events() == ()

    with watched(look):
        ledger = SqliteLedger(tmp_path)
    assert len(readers) > 10
    ledger.append([STARTED], 0.0)
    for reader in readers:
        assert reader.events() == (STARTED,)
        reader.close()
    ledger.close()


@pytest.mark.parametrize("place", ["ledger.migrate.steps", "ledger.migrate.tables", "ledger.migrate.commit"])
def test_a_migration_that_fails_leaves_the_old_format(old, place):
    with armed(f"{place}.before:enospc"), pytest.raises(StorageError, match="free some space"):
        SqliteLedger(old)
    with closing(sqlite3.connect(old / FILE)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
    with SqliteLedger(old) as ledger:
        assert ledger.verify() == ()


def test_what_only_hashes_can_tell_is_refused_of_a_file_without(old):
    with SqliteLedger.open_readonly(old) as reader:
        for ask in (reader.head, reader.verify, lambda: reader.chain_at(1), lambda: reader.rows("unit")):
            with pytest.raises(StorageError, match=r"older format, .*serve the run once"):
                ask()
        assert reader.load_snapshot() is None
        assert reader.stored_bytes() == 3640


@pytest.mark.parametrize("mark", ["PRAGMA user_version = 99", "UPDATE alembic_version SET version_num = '0099'"])
def test_a_newer_format_is_refused(tmp_path, mark):
    SqliteLedger(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        database.execute(mark)
        database.commit()
    before = (tmp_path / FILE).read_bytes()
    for opening in (SqliteLedger, SqliteLedger.open_readonly):
        with pytest.raises(StorageError, match=r"format 99, this program reads up to format 2; install"):
            opening(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_the_formats_are_counted_once():
    assert int(schema.HEAD) == schema.FORMAT


def test_opening_what_is_up_to_date_loads_no_alembic(tmp_path):
    SqliteLedger(tmp_path).close()
    program = (
        "import sys; from tinylora.ledger.sqlite import SqliteLedger\n"
        "SqliteLedger(sys.argv[1]).close(); print('alembic' in sys.modules, 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == ["False", "False"]
