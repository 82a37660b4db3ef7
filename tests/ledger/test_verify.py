"""Whatever is altered behind the ledger's back is found, and said with the number of the event."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.federation.events import JOINED, LOST, STARTED
from tests.ledger.test_rows import accepted, leased
from tinylora.errors import StorageError
from tinylora.federation.events import BlobsPruned, Event, GatesSolved, NodeAveraged
from tinylora.ledger.chain import START, link
from tinylora.ledger.sqlite import FILE, SqliteLedger

DATA = (b"update", b"average", b"gates", b"to be pruned")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with a small run in it, closed."""
    folder = tmp_path_factory.mktemp("written")
    with SqliteLedger(folder) as ledger:
        names = [ledger.put_blob(data) for data in DATA]
        history: list[Event] = [
            STARTED,
            JOINED,
            leased(),
            accepted().model_copy(update={"blob": names[0]}),
            NodeAveraged(node="0", version=1, contributors=("w0",), blob=names[1], n_steps=5),
            GatesSolved(version=1, contributors=("w0",), drift=1.0, blob=names[2]),
            GatesSolved(version=2, contributors=("w0",), drift=0.5, blob=names[3]),
            BlobsPruned(blobs=(names[3],)),
            LOST,
        ]
        for number, event in enumerate(history):
            ledger.append([event], number / 3)
        ledger.drop_blobs([names[3]])
        assert ledger.verify() == ()
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "run"))


def alter(folder: Path, statement: str, *values: object) -> None:
    database = sqlite3.connect(folder / FILE)
    with database:
        database.execute(statement, values)
    database.close()


def faults(folder: Path) -> list[tuple[int, str]]:
    with SqliteLedger.open_readonly(folder) as ledger:
        return [(fault.number, fault.what) for fault in ledger.verify()]


def rows(folder: Path) -> list[tuple]:
    database = sqlite3.connect(folder / FILE)
    try:
        return database.execute("SELECT number, type, CAST(body AS BLOB), at_s, chain FROM event").fetchall()
    finally:
        database.close()


# --- the chain -------------------------------------------------------------------------------------------------------


def test_the_chain_by_hand(folder):
    chain = START
    with SqliteLedger.open_readonly(folder) as ledger:
        assert ledger.chain_at(0) == START
        for number, type_, body, at_s, stored in rows(folder):
            chain = link(chain, number, type_.encode(), body, at_s)
            assert ledger.chain_at(number) == stored == chain
        assert ledger.head() == (len(rows(folder)), chain)
        with pytest.raises(StorageError, match="no event 99"):
            ledger.chain_at(99)


def test_no_two_rows_have_one_encoding():
    assert link(START, 1, b"ab", b"c", 0.0) != link(START, 1, b"a", b"bc", 0.0)


def test_every_byte_of_every_text_counts(folder):
    """Bit by bit would take minutes: one bit of each byte, in all rows and all columns that are text."""
    database = sqlite3.connect(folder / FILE, isolation_level=None)
    with SqliteLedger.open_readonly(folder) as ledger:
        for number, type_, body, _, chain in rows(folder):
            for column, text in (("type", type_.encode()), ("body", body), ("chain", chain.encode())):
                for place in range(0, len(text), 41 if len(text) > 100 else 5):
                    flipped = bytearray(text)
                    flipped[place] ^= 1
                    set_column = f"UPDATE event SET {column} = CAST(? AS TEXT) WHERE number = ?"
                    database.execute(set_column, (bytes(flipped), number))
                    with pytest.raises(StorageError, match=f"event {number}"):
                        ledger.events()
                    database.execute(set_column, (text, number))
        assert len(ledger.events()) == len(rows(folder))
    database.close()


@pytest.mark.parametrize("column", ["body", "chain", "at_s", "type"])
def test_each_altered_row_is_named_and_no_other(folder, column):
    value = {"body": rows(folder)[0][2].decode(), "chain": "0" * 64, "at_s": 0.25, "type": "other"}[column]
    for number in (2, 5):
        alter(folder, f"UPDATE event SET {column} = ? WHERE number = ?", value, number)
    assert [number for number, what in faults(folder) if "altered" in what] == [2, 5]


def test_a_row_that_is_gone_and_rows_that_changed_places(folder):
    alter(folder, "DELETE FROM event WHERE number = 4")
    assert any("expected event 4 here" in what for number, what in faults(folder) if number == 5)
    alter(folder, "UPDATE event SET number = 4 WHERE number = 9")
    assert any("altered" in what for number, what in faults(folder) if number == 4)


def test_the_end_cut_off_shows_in_the_tables(folder):
    """The chain of a shorter log is right in itself; the tables, and every receipt, know better."""
    alter(folder, "DELETE FROM event WHERE number >= 7")
    assert any("table router_version, row 2: follows from no event" in what for _, what in faults(folder))


def test_flips_anywhere_in_the_file(folder):
    """A flipped bit of the file either changes no event, or is found; it never passes for another history."""
    data, before = (folder / FILE).read_bytes(), rows(folder)
    used = [place for place, byte in enumerate(data) if byte]
    places = random.Random(0).sample(used, 150)
    n_found = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        (folder / FILE).write_bytes(bytes(flipped))
        try:
            is_found = bool(faults(folder))
        except StorageError:
            is_found = True
        n_found += is_found
        if not is_found:
            assert rows(folder) == before
    assert n_found > 60


# --- tables and blobs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "number", "what"),
    [
        ("UPDATE unit SET tokens = 1000000", 4, "tokens is 1000000, the events say 40"),
        ("UPDATE worker SET standing = 'revoked'", 2, "standing is 'revoked'"),
        ("DELETE FROM node_version", 5, "table node_version, row 0, 1: is missing"),
        ("INSERT INTO router_version VALUES (7, 6, 'x', 0.0, '[]', '')", 6, "follows from no event"),
        ("UPDATE blob SET state = 'live'", 8, "state is 'live', the events say 'pruned'"),
    ],
)
def test_a_table_that_says_something_else(folder, statement, number, what):
    alter(folder, statement)
    ((found, said),) = faults(folder)
    assert found == number
    assert what in said
    with SqliteLedger(folder) as ledger:
        ledger.rebuild()
        assert ledger.verify() == ()


def test_blobs_missing_and_altered(folder):
    missing, altered, *_ = sorted((folder / "blobs").glob("*/*"))
    missing.unlink()
    altered.write_bytes(b"something else")
    found = faults(folder)
    assert len(found) == 2
    assert all(number in (4, 5, 6) for number, _ in found)
    assert any(f"{missing.name} is missing" in what for _, what in found)
    assert any(f"{altered.name} was altered" in what for _, what in found)
    with SqliteLedger.open_readonly(folder) as ledger:
        with pytest.raises(StorageError, match=f"{missing.name}: not in .* backup"):
            ledger.get_blob(missing.name)
        with pytest.raises(StorageError, match=r"altered on disk, .* backup"):
            ledger.get_blob(altered.name)


def test_an_event_of_another_program_is_named(folder):
    with SqliteLedger(folder) as ledger:
        number, chain = ledger.head()
    body = '{"type":"moon_landed"}'
    values = (number + 1, "moon_landed", body, 0.5, link(chain, number + 1, b"moon_landed", body.encode(), 0.5))
    alter(folder, "INSERT INTO event VALUES (?, ?, ?, ?, ?)", *values)
    with SqliteLedger.open_readonly(folder) as ledger:
        with pytest.raises(StorageError, match=r"event 10 cannot be read .*moon_landed"):
            ledger.events()
        assert [fault.number for fault in ledger.verify()] == [10, 0]


def test_a_fault_reads_as_a_sentence(folder):
    alter(folder, "UPDATE event SET at_s = 7 WHERE number = 3")
    with SqliteLedger.open_readonly(folder) as ledger:
        assert str(ledger.verify()[0]).startswith("event 3: altered")
