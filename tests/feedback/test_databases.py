"""SQLite as people have it: untyped, locked, foreign; and the same rows from every source."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from event_files import (
    IMPRESSIONS,
    VOTES,
    WRITERS,
    rows_of,
    write_csv,
    write_parquet,
    write_sqlite,
)

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.sources import parse_address

GRADES = {"image": ["a"], "label": ["x"], "grade": [0.5]}


def test_the_same_rows_are_the_same_from_every_source(tmp_path: Path) -> None:
    found = {name: rows_of(write(tmp_path / name, IMPRESSIONS)) for name, write in WRITERS.items()}
    columns = list(zip(*found["log.parquet"], strict=True))
    order = ["image", "label", "clicked", "dwell", "position", "propensity", "time", "user"]
    assert columns[1:9] == [tuple(IMPRESSIONS[name]) for name in order]  # exact, to the last bit
    for rows in found.values():
        assert rows == found["log.parquet"]


def test_a_column_may_change_its_type_far_below(tmp_path: Path) -> None:
    rows = 70_000  # more than a batch of the driver
    columns = {
        "image": [*range(rows), "late.png"],
        "label": ["x"] * (rows + 1),
        "grade": [1] * rows + [0.1],
        "user": [None] * rows + ["ann"],
    }
    last = rows_of(write_sqlite(tmp_path / "log.db", columns))[-1]
    assert last == (rows + 1, "late.png", "x", 0.1, "ann")


@pytest.mark.parametrize("spec", ["{}", "{}?table=log", "sqlite:///{}", "sqlite:///{}?table=log"])
def test_ways_to_name_a_table(tmp_path: Path, spec: str) -> None:
    path = write_sqlite(tmp_path / "app.sqlite3", VOTES)
    with open_events(spec.format(path)) as events:
        assert events.name == "app.sqlite3, table log"
        assert events.rows == 2


def test_a_relative_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_sqlite(Path("app.db"), VOTES)
    assert len(rows_of("sqlite:///app.db")) == 2


def test_a_table_may_be_called_anything(tmp_path: Path) -> None:
    table = 'votes"; DROP TABLE "votes'
    path = write_sqlite(tmp_path / "app.db", VOTES, table.replace('"', '""'))
    assert len(rows_of(path)) == 2
    assert len(rows_of(path)) == 2


def test_a_query_runs_in_the_database(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "app.db", VOTES, "ballots")
    query = (
        "WITH b AS (SELECT * FROM ballots) SELECT image, label, votes FROM b ORDER BY image DESC"
    )
    assert rows_of(path, query) == [(1, "b", "y", 2.0), (2, "a", "x", 1.0)]


def test_the_database_is_only_read(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "app.db", VOTES)
    with pytest.raises(UserError, match=r"app\.db: .*syntax error"):
        rows_of(path, "DELETE FROM log")
    path.chmod(0o444)
    assert len(rows_of(path)) == 2


def test_kind_chooses_between_tables(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "store.db", VOTES, "ballots")
    write_sqlite(path, GRADES, "marks")
    write_sqlite(path, {"id": [1]}, "people")
    with open_events(str(path), kind="grades") as events:
        assert (events.kind, events.name) == ("grades", "store.db, table marks")
    with pytest.raises(UserError, match=r"several tables of feedback, ballots, marks: choose one"):
        open_events(str(path))
    with pytest.raises(UserError, match=r"no table of preferences \(its tables: ballots, marks,"):
        open_events(str(path), kind="preferences")
    with pytest.raises(UserError, match=r'no table "mark". Did you mean "marks"'):
        open_events(f"{path}?table=mark")


def test_empty_tables_do_not_count_beside_a_full_one(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "store.db", {name: [] for name in VOTES}, "ballots")
    with pytest.raises(UserError, match=r"store\.db, table ballots has no rows"):
        open_events(str(path))
    write_sqlite(path, GRADES, "marks")
    with open_events(str(path)) as events:
        assert events.kind == "grades"


# ---- mistakes -----------------------------------------------------------------------------------


@contextmanager
def written(path: Path, statements: str) -> Iterator[None]:
    """While another process has a database open for writing: locks are between processes."""
    hold = (
        f"import sqlite3, sys; c = sqlite3.connect({str(path)!r}, isolation_level=None);"
        f"[c.execute(each).fetchall() for each in {statements!r}.split(';')];"
        "print('writing', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield
        process.communicate("")


def test_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sqlite(tmp_path / "app.db", VOTES)
    monkeypatch.setattr("visgrpo.feedback.source.sources._BUSY_MILLISECONDS", 10)
    told = r"app\.db is locked .* close that, or copy the file"
    with written(path, "BEGIN EXCLUSIVE"), pytest.raises(UserError, match=told):
        open_events(str(path))


def test_a_store_that_is_being_written_can_be_read(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "app.db", VOTES)
    insert = "INSERT INTO log VALUES (1, 2, 3)"
    with written(path, f"PRAGMA journal_mode = WAL;BEGIN IMMEDIATE;{insert}"):
        assert len(rows_of(path)) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("text.db", "is no SQLite database, whatever its name says"),
        ("txt.db", r'not found\. Did you mean "text\.db"\?'),
        ("sqlite:///folder.db", "is a folder, not a file"),
        ("text.db?tabel=x", 'unknown option "tabel". Did you mean "table"'),
        ("sqlite://text.db", "is no address of feedback: write sqlite:///relative.db"),
        ("mysql://host/db", "is no address of feedback"),
        ("bare.db", r"has no table of feedback \(its tables: none\)"),
        ("bare.db?table=x", "It has no tables"),
    ],
)
def test_wrong_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.db").write_text("image,label,votes\n" * 100)
    Path("folder.db").mkdir()
    sqlite3.connect("bare.db").close()
    Path("bare.db").touch()
    with pytest.raises(UserError, match=message):
        open_events(spec)


def test_errors_of_a_query_are_one_line(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "app.db", VOTES)
    with pytest.raises(UserError, match="no such column: vots") as raised:
        rows_of(path, "SELECT image, label, vots FROM log")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r'v\.csv: .*"vots" not found'):
        rows_of(write_csv(tmp_path / "v.csv", VOTES), "SELECT image, label, vots FROM events")


# ---- Postgres -----------------------------------------------------------------------------------


def test_a_postgres_address_keeps_its_options_and_hides_its_password() -> None:
    address = parse_address("postgresql://ann:secret@host:5432/app?table=a.b&sslmode=require")
    assert address is not None
    assert (address.system, address.table) == ("Postgres", "a.b")
    assert address.target == "postgresql://ann:secret@host:5432/app?sslmode=require"
    assert address.name == "postgresql://host:5432/app"


def test_a_postgres_on_a_socket_needs_no_host_before_the_path() -> None:
    address = parse_address("postgresql:///app?host=/run/pg&table=log")
    assert address is not None
    assert (address.table, address.target) == ("log", "postgresql:///app?host=%2Frun%2Fpg")
    plain = parse_address("postgresql:///app?table=log")
    assert plain is not None
    assert plain.target == "postgresql:///app"


def test_a_postgres_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("adbc_driver_postgresql")
    with pytest.raises(UserError, match="postgresql:///app: ") as raised:
        open_events(f"postgresql://ann:secret@/app?host={tmp_path}")
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_postgres_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    with pytest.raises(UserError, match=r'pip install "visgrpo\[postgres\]"'):
        open_events("postgresql://localhost/app")


@pytest.mark.skipif("VISGRPO_TEST_POSTGRES" not in os.environ, reason="needs a Postgres server")
def test_postgres_gives_the_same_rows(tmp_path: Path) -> None:
    """VISGRPO_TEST_POSTGRES is the address of a database to write tables into."""
    dbapi = pytest.importorskip("adbc_driver_postgresql.dbapi")
    address = os.environ["VISGRPO_TEST_POSTGRES"]
    path = write_parquet(tmp_path / "log.parquet", IMPRESSIONS)
    with dbapi.connect(address) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("visgrpo_log", pq.read_table(path), mode="replace")
        connection.commit()
    mark = "&" if "?" in address else "?"
    assert rows_of(f"{address}{mark}table=visgrpo_log") == rows_of(path)
    newest_first = "SELECT * FROM visgrpo_log ORDER BY time DESC -- why"
    assert [row[1:] for row in rows_of(address, newest_first)] == [
        row[1:] for row in reversed(rows_of(path))
    ]
    with pytest.raises(UserError, match=r'column "vots" does not exist$'):
        rows_of(address, "SELECT image, label, vots FROM visgrpo_log")
