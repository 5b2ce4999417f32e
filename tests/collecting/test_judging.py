"""Answers, and the rows of feedback that they make."""

from __future__ import annotations

import pytest

from visgrpo.collecting.judging import (
    Answer,
    Ask,
    BadAnswer,
    Grade,
    Impression,
    Preference,
    agreement,
    rows_of,
)

LABELS = ("dog", "cat", "cow")
PROPENSITIES = (0.5, 0.3, 0.2)


def test_a_click_is_an_impression_of_every_label() -> None:
    assert rows_of("click", LABELS, PROPENSITIES, ["cat"]) == [
        Impression("dog", False, 1, 0.5),
        Impression("cat", True, 2, 0.3),
        Impression("cow", False, 3, 0.2),
    ]


def test_none_of_these_is_impressions_without_a_click() -> None:
    rows = rows_of("click", LABELS, PROPENSITIES, [])
    assert [row.clicked for row in rows if isinstance(row, Impression)] == [False] * 3


def test_a_ranking_is_all_its_pairs() -> None:
    assert rows_of("rank", LABELS, PROPENSITIES, ["cow", "dog", "cat"]) == [
        Preference("cow", "dog"),
        Preference("cow", "cat"),
        Preference("dog", "cat"),
    ]


def test_labels_left_out_of_a_ranking_are_behind_it() -> None:
    assert rows_of("rank", LABELS, PROPENSITIES, ["cat"]) == [
        Preference("cat", "dog"),
        Preference("cat", "cow"),
    ]
    assert rows_of("rank", LABELS, PROPENSITIES, []) == []


def test_grades_go_to_their_labels() -> None:
    assert rows_of("grade", LABELS, PROPENSITIES, [5, 1, 3]) == [
        Grade("dog", 5),
        Grade("cat", 1),
        Grade("cow", 3),
    ]


@pytest.mark.parametrize(
    ("ask", "answer", "message"),
    [
        ("click", ["dogs"], '"dogs" was not offered. Did you mean "dog"?'),
        ("click", ["dog", "cat"], "One label can be chosen, not 2."),
        ("click", [1], '"1" was not offered'),
        ("rank", ["dog", "dog"], "A label can be named once."),
        ("grade", [1, 2], "3 labels need a grade each, not 2 grades."),
        ("grade", [0, 1, 2], "A grade is a whole number from 1 to 5, not 0."),
        ("grade", [6, 1, 2], "from 1 to 5, not 6."),
        ("grade", ["5", 1, 2], "from 1 to 5, not '5'."),
    ],
)
def test_what_is_no_answer(ask: Ask, answer: Answer, message: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        rows_of(ask, LABELS, PROPENSITIES, answer)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "best", "answer", "expected"),
    [
        ("click", "cat", ["cat"], 1.0),
        ("click", "cat", ["dog"], 0.0),
        ("click", "cat", [], 0.0),
        ("click", "bird", ["dog"], None),
        ("rank", "cow", ["cow", "dog"], 1.0),
        ("rank", "dog", ["cow", "dog"], 0.0),
        ("grade", "cow", [5, 1, 3], 3.0),
        ("grade", "bird", [5, 1, 3], None),
    ],
)
def test_agreement_with_the_first_choice(
    ask: Ask, best: str, answer: Answer, expected: float | None
) -> None:
    assert agreement(ask, LABELS, best, answer) == expected
