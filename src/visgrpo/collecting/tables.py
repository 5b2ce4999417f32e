"""The SQLite file behind the page: its tables, how it is opened, and what stands in them."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgrpo.collecting.design import Answer, Ask
from visgrpo.errors import UserError
from visgrpo.files import parse_json

APPLICATION = 0x56475250  # "VGRP": tells a store from any other program's database
VERSION = 1
WAIT_SECONDS = 10.0  # for another process that is writing

# impressions, preferences and grades have the columns that feedback is read by, so that the store
# is a log as it stands. labels, propensities and answer are JSON; an offer's labels are in the
# order of the page. A judgement that was taken back stays, without rows in those three. Pages know
# an offer by its key: a page left open must not answer the offer of another store.
_TABLES = """
CREATE TABLE clock (time REAL NOT NULL);
INSERT INTO clock VALUES (0);
CREATE TABLE offers (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,
  image TEXT NOT NULL,
  user TEXT NOT NULL,
  ask TEXT NOT NULL,
  labels TEXT NOT NULL,
  propensities TEXT NOT NULL,
  best TEXT NOT NULL,
  model TEXT NOT NULL,
  time REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'judged', 'skipped'))
);
CREATE INDEX offers_by_image ON offers (ask, image, state);
CREATE INDEX offers_by_user ON offers (user, ask);
CREATE TABLE judgements (
  id INTEGER PRIMARY KEY,
  offer INTEGER NOT NULL REFERENCES offers (id),
  user TEXT NOT NULL,
  ask TEXT NOT NULL,
  time REAL NOT NULL,
  answer TEXT NOT NULL,
  agreement REAL,
  undone INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX judgements_by_user ON judgements (user, ask, undone);
CREATE TABLE impressions (
  image TEXT NOT NULL, label TEXT NOT NULL, shown INTEGER NOT NULL, clicked INTEGER NOT NULL,
  dwell REAL, position INTEGER NOT NULL, propensity REAL NOT NULL, time REAL NOT NULL,
  user TEXT NOT NULL, judgement INTEGER NOT NULL REFERENCES judgements (id)
);
CREATE INDEX impressions_of ON impressions (judgement);
CREATE TABLE preferences (
  image TEXT NOT NULL, preferred TEXT NOT NULL, rejected TEXT NOT NULL, tie INTEGER NOT NULL,
  user TEXT NOT NULL, judgement INTEGER NOT NULL REFERENCES judgements (id)
);
CREATE INDEX preferences_of ON preferences (judgement);
CREATE TABLE grades (
  image TEXT NOT NULL, label TEXT NOT NULL, grade INTEGER NOT NULL,
  user TEXT NOT NULL, judgement INTEGER NOT NULL REFERENCES judgements (id)
);
CREATE INDEX grades_of ON grades (judgement);
"""
_MENDS = {
    sqlite3.SQLITE_BUSY: "is locked by another program: close what writes to it, and try again",
    sqlite3.SQLITE_LOCKED: "is locked by another program: close what writes to it, and try again",
    sqlite3.SQLITE_READONLY: "cannot be written: make the file and its folder writable, or name "
    "another --store",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check the path, and that its folder is writable",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; make room, and try again",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: name another --store",
    sqlite3.SQLITE_CORRUPT: "is damaged: restore it from a copy, or name another --store",
    sqlite3.SQLITE_IOERR: "cannot be read or written: check the disk, and try again",
}
OFFER_COLUMNS = "id, key, offers.image, user, ask, state, labels, propensities, best, model"


class StoreTrouble(UserError):
    """The store cannot be used now; what was to be written is not in it."""


def open_store(path: Path) -> sqlite3.Connection:
    """Open a store, or make a new one, for use by several threads one at a time.

    Every commit is on the disk when it returns: write-ahead log, synchronous=FULL.

    Raises:
        UserError: when it cannot be read or written, is another program's database, or was made by
            another version.
    """
    if not path.parent.is_dir():
        raise UserError(f'Store "{path}" cannot be made: there is no folder "{path.parent}".')
    if path.is_dir():
        raise UserError(f'Store "{path}" is a folder: name a file, such as {path}/feedback.db.')
    with in_one_line(path):
        connection = sqlite3.connect(
            path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _check_ours(connection, path)
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            with transaction(connection):
                if not _check_ours(connection, path):
                    _make_tables(connection)
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise _damaged()
        except (sqlite3.Error, UserError):
            connection.close()
            raise
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Begin a write-ahead log; SQLite does not wait by itself for another that does so now."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything inside becomes durable together, or nothing does; waits for other writers."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    """Say what SQLite raises inside in one line, with the mend.

    Raises:
        StoreTrouble: for whatever the database refuses.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where in SQLite
        raise StoreTrouble(f'Store "{path}" {_MENDS.get(code, f"fails: {error}")}.') from error


def _check_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether the tables are there; refuse tables that are not a store's."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and application in (0, APPLICATION):
        return False
    if application != APPLICATION:
        raise UserError(
            f'Store "{path}" is another program\'s database: name a new file with --store. '
            "Feedback in it is read by --feedback."
        )
    if version != VERSION:
        raise UserError(
            f'Store "{path}" was made by another version of visgrpo (its tables are version '
            f"{version}, here {VERSION}): use that version, or name a new file with --store."
        )
    return True


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in _TABLES.split(";\n"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


@dataclass(frozen=True)
class Drawn:
    """What is offered for an image: labels in the order of the page, and where they come from."""

    labels: tuple[str, ...]
    propensities: tuple[float, ...]
    best: str  # the model's most probable label, offered or not
    model: str  # which model it was, by name


@dataclass(frozen=True)
class Offer:
    """An image with a group of labels, put before one person."""

    id: int
    key: str  # what pages and addresses call it
    image: str
    user: str
    ask: Ask
    state: str  # open, judged, skipped
    drawn: Drawn


class NoSuchOffer(UserError):
    """There is no such offer for this person."""


def find_offer(connection: sqlite3.Connection, key: str, user: str) -> Offer:
    """Return a person's offer.

    Raises:
        NoSuchOffer: there is none of this key, or it is someone else's.
    """
    query = f"SELECT {OFFER_COLUMNS} FROM offers WHERE key = ? AND user = ?"
    found = connection.execute(query, (key, user)).fetchone()
    if found is None:
        raise NoSuchOffer("The store knows no such offer to you: reload the page.")
    return offer_from(found)


def offer_from(found: Sequence[Any]) -> Offer:
    """Return the offer in a row of `OFFER_COLUMNS`."""
    number, key, image, user, ask, state, labels, propensities, best, model = found
    drawn = Drawn(listed(labels, str), listed(propensities, float), best, model)
    return Offer(number, key, image, user, ask, state, drawn)


def answer_to(connection: sqlite3.Connection, offer: Offer) -> Answer:
    """Return the answer that is stored to an offer."""
    query = "SELECT answer FROM judgements WHERE offer = ? AND NOT undone"
    found = connection.execute(query, (offer.id,)).fetchone()
    if found is None:
        raise _damaged()
    return list(listed(found[0], str, int))


def insert_offer(
    connection: sqlite3.Connection, image: str, user: str, ask: Ask, drawn: Drawn, now: float
) -> Offer:
    """Store a new offer, under a key that no other has."""
    key = secrets.token_hex(8)
    insert = "INSERT INTO offers VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open') RETURNING id"
    design = (as_json(drawn.labels), json.dumps(drawn.propensities), drawn.best, drawn.model)
    (number,) = connection.execute(insert, (key, image, user, ask, *design, now)).fetchone()
    return Offer(number, key, image, user, ask, "open", drawn)


def insert_row(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> None:
    """Store one row of a judgement, the names of whose columns are the program's own."""
    columns, places = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", dict(row))


def listed(text: str, *types: type) -> tuple[Any, ...]:
    """Return what `as_json` wrote, or raise as SQLite does of what it did not."""
    try:
        found = parse_json(text)
    except (TypeError, ValueError) as error:
        raise _damaged() from error
    if not isinstance(found, list) or not all(isinstance(each, types) for each in found):
        raise _damaged()
    return tuple(found)


def _damaged() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("what is in it is not what was put there")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def as_json(values: Sequence[str | int]) -> str:
    """Return labels or an answer as they are stored."""
    return json.dumps(list(values), ensure_ascii=False)
