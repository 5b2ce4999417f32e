"""Offers and rows of feedback as they stand in the store's tables."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from visgrpo.collecting.judging import Answer, Ask, Impression, Preference, Row
from visgrpo.errors import UserError

OFFER_COLUMNS = "id, key, offers.image, user, ask, state, labels, propensities, best, model"


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
    drawn = Drawn(tuple(json.loads(labels)), tuple(json.loads(propensities)), best, model)
    return Offer(number, key, image, user, ask, state, drawn)


def answer_to(connection: sqlite3.Connection, offer: Offer) -> Answer:
    """Return the answer that is stored to an offer."""
    query = "SELECT answer FROM judgements WHERE offer = ? AND NOT undone"
    return cast(Answer, json.loads(connection.execute(query, (offer.id,)).fetchone()[0]))


def insert_offer(
    connection: sqlite3.Connection, image: str, user: str, ask: Ask, drawn: Drawn, now: float
) -> Offer:
    """Store a new offer, under a key that no other has."""
    key = secrets.token_hex(8)
    insert = "INSERT INTO offers VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open') RETURNING id"
    design = (as_json(drawn.labels), json.dumps(drawn.propensities), drawn.best, drawn.model)
    (number,) = connection.execute(insert, (key, image, user, ask, *design, now)).fetchone()
    return Offer(number, key, image, user, ask, "open", drawn)


def insert_row(
    connection: sqlite3.Connection, row: Row, image: str, user: str, now: float, judgement: int
) -> None:
    """Store one row of a judgement in the table it belongs to."""
    if isinstance(row, Impression):
        values = (image, row.label, row.clicked, row.position, row.propensity, now, user, judgement)
        insert = "INSERT INTO impressions VALUES (?, ?, 1, ?, NULL, ?, ?, ?, ?, ?)"
        connection.execute(insert, values)
    elif isinstance(row, Preference):
        insert = "INSERT INTO preferences VALUES (?, ?, ?, 0, ?, ?)"
        connection.execute(insert, (image, row.preferred, row.rejected, user, judgement))
    else:
        insert = "INSERT INTO grades VALUES (?, ?, ?, ?, ?)"
        connection.execute(insert, (image, row.label, row.grade, user, judgement))


def as_json(values: Sequence[str | int]) -> str:
    """Return labels or an answer as they are stored."""
    return json.dumps(list(values), ensure_ascii=False)
