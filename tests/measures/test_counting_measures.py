"""Measures of counting, by hand."""

from __future__ import annotations

import json

import pytest

from visgrpo.errors import UserError
from visgrpo.measures.answers import answer_measures, confusion, counting_measures


def reasoned(answer: str) -> str:
    return f"<think>1 1</think><answer>{answer}</answer>"


# Right, one too many, four too few, right but for the format, no number, no answer.
TEXTS = [
    reasoned("2"),
    reasoned("3"),
    reasoned("0"),
    "<answer>02</answer>",
    reasoned("two"),
    "2",
]
ANSWERS = ["2", "2", "4", "2", "2", "0"]


def test_counting_by_hand() -> None:
    measures = counting_measures(TEXTS, ANSWERS)
    expected = {
        "examples": 6,
        "accuracy": 2 / 6,
        # 2 of 6, z = 1.959964: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
        "accuracy_low": 0.096771,
        "accuracy_high": 0.700007,
        "unparsed": 2 / 6,
        "mean_absolute_error": (0 + 1 + 4 + 0) / 4,
        "majority": 4 / 6,
        "format": 4 / 6,
    }
    assert measures == pytest.approx(expected, abs=1e-6)
    json.dumps(measures, allow_nan=False)


def test_an_answer_that_is_no_number_is_an_answer_all_the_same() -> None:
    measures = answer_measures(TEXTS, ["2", "2", "4", "2", "two", "0"])
    assert measures["accuracy"] == 3 / 6
    assert measures["unparsed"] == pytest.approx(1 / 6)
    assert "mean_absolute_error" not in measures


def test_the_form_of_direct_answers_has_no_reasoning() -> None:
    assert counting_measures(TEXTS, ANSWERS, direct=True)["format"] == pytest.approx(1 / 6)


def test_the_interval_of_8_of_10_right() -> None:
    texts = [reasoned("1")] * 8 + [reasoned("0")] * 2
    measures = counting_measures(texts, ["1"] * 10)
    ends = (measures["accuracy_low"], measures["accuracy_high"])
    assert ends == pytest.approx((0.490, 0.943), abs=5e-4)


def test_without_any_number_there_is_no_mean_error() -> None:
    measures = counting_measures(["", "three"], ["3", "4"])
    assert "mean_absolute_error" not in measures
    assert (measures["accuracy"], measures["unparsed"], measures["majority"]) == (0, 1, 0.5)


def test_equal_numbers_are_one_truth() -> None:
    assert counting_measures(["", "", ""], ["3", "03", "4"])["majority"] == pytest.approx(2 / 3)


def test_confusion_by_hand() -> None:
    texts = [*TEXTS, reasoned("7"), reasoned("-1")]
    found = confusion(texts, [*ANSWERS, "4", "0"])
    assert found == {
        "counts": [0, 1, 2, 3, 4],
        #        0  1  2  3  4  other  none
        "rows": [
            [0, 0, 0, 0, 0, 1, 1],
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 2, 1, 0, 0, 1],
            [0, 0, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 1, 0],
        ],
    }


def test_a_confusion_of_too_many_counts_is_left_out() -> None:
    within = confusion(["", ""], ["200", "0"])
    assert within is not None
    assert len(within["rows"]) == 201
    assert confusion(["", ""], ["201", "0"]) is None


@pytest.mark.parametrize("measure", [answer_measures, counting_measures, confusion])
@pytest.mark.parametrize(
    ("texts", "answers", "message"),
    [
        ([], [], "there are no completions"),
        (["a"], ["1", "2"], "1 completions for 2 true answers"),
        (["a", "b"], ["1", " "], "Example 1 has no true answer"),
    ],
)
def test_nothing_to_compare_is_a_mistake(measure, texts, answers, message) -> None:
    with pytest.raises(UserError, match=message):
        measure(texts, answers)


@pytest.mark.parametrize("measure", [counting_measures, confusion])
def test_counting_needs_true_numbers(measure) -> None:
    with pytest.raises(UserError, match='true answer of example 1 is "red"'):
        measure(["", ""], ["1", "red"])


def test_counts_start_at_nothing() -> None:
    with pytest.raises(UserError, match="A true count is -2"):
        confusion([""], ["-2"])
