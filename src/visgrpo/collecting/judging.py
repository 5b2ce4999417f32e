"""What a person is asked, what counts as an answer, and the rows of feedback that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, cast

from visgrpo.errors import UserError, nearest

Ask = Literal["click", "rank", "grade"]
Answer = Sequence[str | int]
HIGHEST_GRADE = 5
TABLES: Mapping[Ask, str] = {"click": "impressions", "rank": "preferences", "grade": "grades"}
"""The store's table that the answers to each question go to."""


Row = Mapping[str, str | float]
"""What an answer adds to its table, by column."""


class BadAnswer(UserError):
    """An answer that the question does not allow."""


def rows_of(
    ask: Ask, labels: Sequence[str], propensities: Sequence[float], answer: Answer
) -> list[Row]:
    """Return the rows that an answer to an offer adds to the table of its question.

    Args:
        labels: the offered labels, in the order of the page.
        propensities: of each.
        answer: click: the chosen label, or nothing where none fits. rank: labels from the best on;
            those left out are behind all that are named, in no order. grade: a whole number from 1
            to 5 for each label, in the order of the page.

    Raises:
        BadAnswer: when it is no answer to the question.
    """
    if ask == "grade":
        grades = zip(labels, _grades(labels, answer), strict=True)
        return [{"label": label, "grade": grade} for label, grade in grades]
    named = _named(labels, answer)
    if ask == "rank":
        rest = [label for label in labels if label not in named]
        ahead = [*combinations(named, 2), *((best, left) for best in named for left in rest)]
        return [{"preferred": one, "rejected": other, "tie": False} for one, other in ahead]
    if len(named) > 1:
        raise BadAnswer(f"One label can be chosen, not {len(named)}.")
    offered = enumerate(zip(labels, propensities, strict=True), start=1)
    return [
        {"label": k, "shown": 1, "clicked": k in named, "position": place, "propensity": p}
        for place, (k, p) in offered
    ]


def agreement(ask: Ask, labels: Sequence[str], best: str, answer: Answer) -> float | None:
    """Return how far an answer agrees with the model's own first choice.

    1 or 0: that label was chosen, or ranked first, or was not. For grades, the grade it was given.
    None where it was not among the offered labels, since nobody could choose it then.
    """
    if best not in labels:
        return None
    if ask == "grade":
        return float(answer[labels.index(best)])
    return float(bool(answer) and answer[0] == best)


def _grades(labels: Sequence[str], answer: Answer) -> list[int]:
    if len(answer) != len(labels):
        raise BadAnswer(f"{len(labels)} labels need a grade each, not {len(answer)} grades.")
    for grade in answer:
        if not isinstance(grade, int) or not 1 <= grade <= HIGHEST_GRADE:
            raise BadAnswer(f"A grade is a whole number from 1 to {HIGHEST_GRADE}, not {grade!r}.")
    return cast(list[int], list(answer))


def _named(labels: Sequence[str], answer: Answer) -> list[str]:
    for label in answer:
        if label not in labels:
            raise BadAnswer(f'"{label}" was not offered. {nearest(str(label), labels)}')
    if len(set(answer)) < len(answer):
        raise BadAnswer("A label can be named once.")
    return cast(list[str], list(answer))
