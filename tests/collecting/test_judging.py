"""Answers, and the rows of feedback that they make."""

from __future__ import annotations

import pytest

from visgrpo.collecting.design import (
    Answer,
    Ask,
    BadAnswer,
    agreement,
    rows_of,
)

LABELS = ("dog", "cat", "cow")
PROPENSITIES = (0.5, 0.3, 0.2)


@pytest.mark.parametrize(
    ("ask", "answer", "rows"),
    [
        # a click is an impression of every label, and none of these impressions without a click
        ("click", ["cat"], [("dog", 1, False, 1, 0.5), ("cat", 1, True, 2, 0.3),
                            ("cow", 1, False, 3, 0.2)]),
        ("click", [], [("dog", 1, False, 1, 0.5), ("cat", 1, False, 2, 0.3),
                       ("cow", 1, False, 3, 0.2)]),
        # a ranking is all its pairs; labels left out of it are behind
        ("rank", ["cow", "dog", "cat"], [("cow", "dog", False), ("cow", "cat", False),
                                         ("dog", "cat", False)]),
        ("rank", ["cat"], [("cat", "dog", False), ("cat", "cow", False)]),
        ("rank", [], []),
        ("grade", [5, 1, 3], [("dog", 5), ("cat", 1), ("cow", 3)]),
    ],
)  # fmt: skip
def test_the_rows_of_an_answer(ask: Ask, answer: Answer, rows: list[tuple[object, ...]]) -> None:
    found = rows_of(ask, LABELS, PROPENSITIES, answer)
    assert [tuple(row.values()) for row in found] == rows


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
