"""Rewards of boxes and points, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from visgrpo.errors import UserError
from visgrpo.rewards.boxes import BOX_REWARDS
from visgrpo.rewards.texts import parse_text_rewards

TRUTH = "[0,0,10,10]"
TWO = '[{"label":"a","box":[0,0,10,10]},{"label":"b","box":[20,20,30,30]}]'


def earned(spec: str, answers: list[str], truth: str = TRUTH) -> list[Any]:
    rewards = parse_text_rewards([spec], None, BOX_REWARDS)
    texts = [f"<think>x</think><answer>{answer}</answer>" for answer in answers]
    return rewards.functions[0](
        prompts=["?"] * len(texts),
        completions=texts,
        completion_ids=[[0]] * len(texts),
        answer=[truth] * len(texts),
    )


def test_iou_pays_the_overlap_and_no_list_of_guesses() -> None:
    answers = ["[0,0,10,10]", "[0,0,10,5]", "[[0,0,10,10],[0,0,10,10]]", "words", "[20,20,30,30]"]
    assert earned("iou", answers) == pytest.approx([1, 0.5, 0.5, 0, 0])
    assert earned("iou:0.5", answers) == pytest.approx([1, 1, 0.5, 0, 0])
    assert earned("iou:0.6", answers) == pytest.approx([1, 0, 0.5, 0, 0])


def test_a_perfect_set_is_worth_one_and_nothing_of_nothing_too() -> None:
    assert earned("boxes", [TWO], TWO) == [1.0]
    assert earned("boxes", ["[]", "[0,0,1,1]", "words"], "[]") == [1.0, -0.3, -1.0]
    assert earned("iou", ["[]", "[0,0,1,1]", "words"], "[]") == [1.0, 0.0, 0.0]


def test_a_set_pays_for_overlap_and_takes_for_duplicates_and_misses() -> None:
    half = '[{"label":"a","box":[0,0,10,5]}]'  # one of two found by half, one missed
    twice = TWO[:-1] + ',{"label":"a","box":[0,0,10,10]}]'
    swapped = TWO.replace('"a"', '"c"')
    found = earned("boxes", [half, twice, swapped, "[]", "words"], TWO)
    assert found == pytest.approx(
        [
            (0.5 - 1) / 2,
            (2 - 0.3) / 2,
            (1 - 0.3 - 1) / 2,  # another label is a false alarm and a miss
            -1,
            -1,
        ]
    )


def test_classes_weigh_as_they_are_told() -> None:
    only_a = '[{"label":"a","box":[0,0,10,10]}]'
    assert earned("boxes:a=3", [only_a], TWO) == pytest.approx([(3 - 1) / 4])
    assert earned("boxes:b=3", [only_a], TWO) == pytest.approx([(1 - 3) / 4])


def test_points_hit_or_come_near() -> None:
    answers = ["[5,5]", "[10,5]", "[11,5]", "[[5,5],[5,5]]", "words"]
    assert earned("inside", answers) == [1, 1, 0, 0, 0]
    assert earned("near:10", answers) == pytest.approx([1, 0.5, 0.4, 0, 0])


def test_without_a_truth_nothing_is_said() -> None:
    assert earned("iou", ["[1,2,3,4]"], "") == [None]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("iou:2", "above 0 and up to 1"),
        ("iou:half", "above 0 and up to 1"),
        ("boxes:a", "no label with a weight above 0"),
        ("boxes:a=-1", "no label with a weight above 0"),
        ("inside:3", "takes no argument"),
        ("near", "the distance that earns nothing"),
        ("near:nan", "the distance that earns nothing"),
    ],
)
def test_arguments_that_mean_nothing(spec: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_text_rewards([spec], None, BOX_REWARDS)


def test_truths_that_are_no_boxes_are_refused() -> None:
    with pytest.raises(UserError, match='Reward "iou" needs boxes as true answers, but "3"'):
        earned("iou", ["[1,2,3,4]"], "3")
    with pytest.raises(UserError, match="one true box or point for each question, not 2"):
        earned("inside", ["[1,2]"], TWO)
    with pytest.raises(UserError, match="one true box or point for each question, not 0"):
        earned("near:3", ["words"], "[]")


def test_what_is_no_number_or_turned_finds_nothing() -> None:
    answers = ["[NaN,1,2,3]", "[9,9,0,0]", "at [0,0,10,10]", "[]"]
    assert earned("boxes", answers) == [-1, -1, -1, -1]
    assert earned("boxes", answers, "[]") == [-1, -1, -1, 1]
