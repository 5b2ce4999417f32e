"""Offers and judgements, kept so that nothing a person did is lost.

A judgement and the rows it makes are one transaction, on the disk before the person is answered.
Any number of threads and processes may use one store: every change begins by taking the writer's
lock, so each sees what the others did before it decides.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from visgrpo.collecting.design import TABLES, Answer, Ask, agreement, rows_of
from visgrpo.collecting.tables import (
    OFFER_COLUMNS,
    Drawn,
    NoSuchOffer,
    Offer,
    answer_to,
    as_json,
    find_offer,
    in_one_line,
    insert_offer,
    insert_row,
    listed,
    offer_from,
    open_store,
    transaction,
)
from visgrpo.errors import UserError

HELD_SECONDS = 600.0  # how long an image that one person was offered is kept from the others


@dataclass(frozen=True)
class Progress:
    """How far judging has come, for one question over the images at hand."""

    images: int
    judged_images: int
    judgements: int
    people: int
    own: int  # judgements of the person who asks
    agreement: float | None  # mean with the model that made each offer, before it learned from it
    agreement_now: float | None  # the same, over the offers of the model of this moment


@dataclass(frozen=True)
class Past:
    """A judgement that still counts: the key of its offer, and what was answered."""

    key: str
    labels: tuple[str, ...]
    answer: Answer


class AlreadyJudged(UserError):
    """The offer has its judgement; `answer` is the one that is stored."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("This image is judged already: undo that first to judge it again.")
        self.answer = answer


class NothingToUndo(UserError):
    """The person has no judgement that could be taken back."""


class Store(AbstractContextManager["Store"]):
    """The judgements on a set of images; a context manager that closes the file.

    Args:
        path: the SQLite file; made where there is none.
        images: names of the images at hand, in the order in which they are offered. A store may
            hold judgements on others, which count neither here nor there.

    Raises:
        UserError: when the file cannot be used, as `open_store`.
    """

    def __init__(self, path: Path, images: Sequence[str]) -> None:
        self.path = path
        self._lock = Lock()
        self._connection = open_store(path)
        with in_one_line(path):
            self._connection.execute("CREATE TEMP TABLE choices (image TEXT PRIMARY KEY, place)")
            with transaction(self._connection):
                pairs = ((image, place) for place, image in enumerate(images))
                self._connection.executemany("INSERT INTO choices VALUES (?, ?)", pairs)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._connection.close()

    def next_offer(
        self, user: str, ask: Ask, draw: Callable[[str, int], Drawn], *, held: float = HELD_SECONDS
    ) -> Offer | None:
        """Return what a person is to judge now: the oldest open offer of theirs, or a new one.

        A new one is of the image with the fewest judgements among those that they were not yet
        offered. Images that someone else was offered within the last `held` seconds come last.

        Args:
            draw: makes the labels, from an image's name and how often it was offered before.

        Returns:
            None where the person has judged every image.
        """
        with self._writing() as connection:
            offer = connection.execute(_OPEN_OFFER, (user, ask)).fetchone()
            if offer is not None:
                return offer_from(offer)
            now = self._now()
            query = {"user": user, "ask": ask, "since": now - held}
            found = connection.execute(_NEXT_IMAGE, query).fetchone()
            if found is None:
                return None
            image, times = found
            return insert_offer(connection, image, user, ask, draw(image, times), now)

    def offer(self, key: str, user: str) -> Offer:
        """Return a person's offer.

        Raises:
            NoSuchOffer: there is none of this key, or it is someone else's.
        """
        with self._using() as connection:
            return find_offer(connection, key, user)

    def judge(self, key: str, user: str, answer: Answer) -> None:
        """Store a person's answer to an offer and the rows it makes; on the disk on return.

        Raises:
            NoSuchOffer: as `offer`, or the image could not be shown.
            AlreadyJudged: the offer has a judgement; nothing is changed.
            BadAnswer: the answer does not go with the offer.
        """
        with self._writing() as connection:
            offer = find_offer(connection, key, user)
            if offer.state == "judged":
                raise AlreadyJudged(answer_to(connection, offer))
            if offer.state == "skipped":
                raise NoSuchOffer("This image was skipped or cannot be shown, so it is not judged.")
            drawn, now = offer.drawn, self._now()
            rows = rows_of(offer.ask, drawn.labels, drawn.propensities, answer)
            agreed = agreement(offer.ask, drawn.labels, drawn.best, answer)
            insert = "INSERT INTO judgements VALUES (NULL, ?, ?, ?, ?, ?, ?, 0) RETURNING id"
            values = (offer.id, user, offer.ask, now, as_json(answer), agreed)
            (judgement,) = connection.execute(insert, values).fetchone()
            told = {"image": offer.image, "user": user, "judgement": judgement}
            if offer.ask == "click":
                told["time"] = now
            for row in rows:
                insert_row(connection, TABLES[offer.ask], {**row, **told})
            connection.execute("UPDATE offers SET state = 'judged' WHERE id = ?", (offer.id,))

    def undo(self, user: str, ask: Ask) -> Offer:
        """Take back a person's last judgement: its rows go, and its offer is open again.

        Raises:
            NothingToUndo: there is none.
        """
        with self._writing() as connection:
            found = connection.execute(_LAST_JUDGEMENT, (user, ask)).fetchone()
            if found is None:
                raise NothingToUndo("There is no judgement of yours to undo.")
            judgement, offer, key = found
            for table in TABLES.values():
                connection.execute(f"DELETE FROM {table} WHERE judgement = ?", (judgement,))
            connection.execute("UPDATE judgements SET undone = 1 WHERE id = ?", (judgement,))
            connection.execute(
                "UPDATE offers SET state = 'open', time = ? WHERE id = ?", (self._now(), offer)
            )
            return find_offer(connection, key, user)

    def pass_over(self, key: str, user: str) -> None:
        """Close an offer that a person would rather not judge: nothing is logged of it, the person
        is not asked again, and others still are.

        Raises:
            NoSuchOffer: as `offer`.
            AlreadyJudged: the offer has a judgement; nothing is changed.
        """
        with self._writing() as connection:
            offer = find_offer(connection, key, user)
            if offer.state == "judged":
                raise AlreadyJudged(answer_to(connection, offer))
            connection.execute("UPDATE offers SET state = 'skipped' WHERE id = ?", (offer.id,))

    def skip(self, image: str) -> None:
        """Take an image that cannot be shown out of the choices, and close its open offers."""
        with self._writing() as connection:
            connection.execute("DELETE FROM choices WHERE image = ?", (image,))
            connection.execute(
                "UPDATE offers SET state = 'skipped' WHERE image = ? AND state = 'open'", (image,)
            )

    def judged_images(self, ask: Ask) -> list[str]:
        """Return the images at hand that a question's table says something of."""
        query = f"SELECT DISTINCT image FROM {TABLES[ask]} JOIN choices USING (image)"
        with self._using() as connection:
            return [image for (image,) in connection.execute(query)]

    def last(self, user: str, ask: Ask, most: int) -> list[Past]:
        """Return a person's last judgements, the newest first."""
        with self._using() as connection:
            found = connection.execute(_LAST, (user, ask, most)).fetchall()
            return [Past(key, listed(k, str), listed(a, str, int)) for key, k, a in found]

    def people_agree(self, ask: Ask) -> tuple[int, float | None]:
        """Return how many pairs of judgements of one image by two people can be compared, and the
        share that agrees.

        Of clicks and rankings the first choices of two people are compared where either could have
        made the other's: labels that only one of them was offered say nothing. Of grades, any two
        of one label; they agree where they are at most one apart.
        """
        with self._using() as connection:
            pairs, agreed = connection.execute(
                _EQUAL_GRADES if ask == "grade" else _EQUAL_CHOICES, {"ask": ask}
            ).fetchone()
            return pairs, agreed

    def agreements(self, ask: Ask) -> dict[str, tuple[int, float]]:
        """Return, for each model, the judgements of its own offers that `Progress.agreement` is the
        mean of, and that mean."""
        with self._using() as connection:
            found = connection.execute(_AGREEMENTS, (ask,)).fetchall()
            return {model: (count, mean) for model, count, mean in found}

    def progress(self, user: str, ask: Ask, model: str) -> Progress:
        """Return how far judging has come.

        Args:
            model: the model of this moment, by the name that its offers carry.
        """
        with self._using() as connection:
            query = {"user": user, "ask": ask, "model": model}
            return Progress(*connection.execute(_PROGRESS, query).fetchone())

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._using() as connection, transaction(connection):
            yield connection

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, in_one_line(self.path):
            yield self._connection

    def _now(self) -> float:
        """Seconds since 1970, never before a time that is in the store already."""
        tick = "UPDATE clock SET time = max(time, ?) RETURNING time"
        return float(self._connection.execute(tick, (time.time(),)).fetchone()[0])


_OPEN_OFFER = f"""
SELECT {OFFER_COLUMNS} FROM offers JOIN choices USING (image)
WHERE user = ? AND ask = ? AND state = 'open' ORDER BY id LIMIT 1"""
_NEXT_IMAGE = """
SELECT image, coalesce(times, 0) FROM choices LEFT JOIN (
  SELECT image, count(*) AS times, count(*) FILTER (WHERE state = 'judged') AS judged,
         max(CASE WHEN state = 'open' THEN time END) AS held
  FROM offers WHERE ask = :ask GROUP BY image
) USING (image)
WHERE image NOT IN (SELECT image FROM offers WHERE user = :user AND ask = :ask)
ORDER BY coalesce(held, 0) > :since, coalesce(judged, 0), place LIMIT 1"""
_LAST_JUDGEMENT = """
SELECT judgements.id, offer, key
FROM judgements JOIN offers ON offers.id = offer JOIN choices USING (image)
WHERE judgements.user = ? AND judgements.ask = ? AND NOT undone
ORDER BY judgements.id DESC LIMIT 1"""
_PROGRESS = """
SELECT (SELECT count(*) FROM choices), count(DISTINCT offers.image), count(*),
       count(DISTINCT judgements.user), count(*) FILTER (WHERE judgements.user = :user),
       avg(agreement), avg(agreement) FILTER (WHERE model = :model)
FROM judgements JOIN offers ON offers.id = offer JOIN choices USING (image)
WHERE judgements.ask = :ask AND NOT undone"""
_LAST = """
SELECT key, labels, answer
FROM judgements JOIN offers ON offers.id = offer JOIN choices USING (image)
WHERE judgements.user = ? AND judgements.ask = ? AND NOT undone
ORDER BY judgements.id DESC LIMIT ?"""
_AGREEMENTS = """
SELECT model, count(*), avg(agreement)
FROM judgements JOIN offers ON offers.id = offer JOIN choices USING (image)
WHERE judgements.ask = ? AND NOT undone AND agreement IS NOT NULL GROUP BY model"""
# An answer of nothing is "none of these": it disagrees with a choice that it could have made.
_EQUAL_CHOICES = """
WITH chosen AS (
  SELECT judgements.id, image, judgements.user, labels, json_extract(answer, '$[0]') AS choice
  FROM judgements JOIN offers ON offers.id = offer JOIN choices USING (image)
  WHERE judgements.ask = :ask AND NOT undone
)
SELECT count(*), avg(one.choice IS two.choice)
FROM chosen AS one JOIN chosen AS two USING (image)
WHERE one.id < two.id AND one.user <> two.user
  AND coalesce(one.choice, two.choice) IS NOT NULL
  AND (one.choice IS NULL OR one.choice IN (SELECT value FROM json_each(two.labels)))
  AND (two.choice IS NULL OR two.choice IN (SELECT value FROM json_each(one.labels)))"""
_EQUAL_GRADES = """
SELECT count(*), avg(abs(one.grade - two.grade) <= 1)
FROM grades AS one JOIN grades AS two USING (image, label) JOIN choices USING (image)
WHERE one.judgement < two.judgement AND one.user <> two.user AND :ask = 'grade'"""
