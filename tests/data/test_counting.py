"""The built-in counting world: what is asked, how it is reasoned, and that rows stay the same."""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
from collections import Counter

import numpy as np
import pytest

from visgrpo.data.read import read
from visgrpo.data.worlds.counting import (
    ASKED_SHAPES,
    CELL,
    GRID,
    KINDS,
    MOST,
    SIZE,
    Question,
    Row,
    counting_row,
    counting_splits,
    reasoning,
)
from visgrpo.data.worlds.scenes import SHAPES
from visgrpo.errors import UserError


def rows(style: str = "in", many: int = 600) -> list[Row]:
    return [counting_row(np.random.default_rng((7, i)), style) for i in range(many)]


def test_a_row_that_must_not_change() -> None:
    train = counting_splits(0, train=3, validation=1, test=1).train
    assert train.questions == (
        "How many squares are there in the image?",
        "How many squares are there in the image?",
        "How many items are there in the image?",
    )
    assert train.answers == ("5", "0", "6")
    assert train.traces is not None
    assert train.traces[1] == (
        "circle0 none0 triangle0 circle0 none0 circle0 circle0 none0 "
        "none0 none0 circle0 none0 none0 none0 none0 none0"
    )
    assert train.traces[2] == (
        "none0 none0 none0 none0 item1 item2 item3 none3 "
        "none3 none3 none3 none3 item4 item5 item6 none6"
    )
    assert dict(train.columns) == {
        "kind": ["shape", "shape", "items"],
        "count": [5, 0, 6],
        "answer": ["5", "0", "6"],
    }


@pytest.mark.parametrize("style", ["in", "out"])
def test_the_answer_is_the_number_of_objects_that_are_asked_for(style: str) -> None:
    for row in rows(style, 200):
        question = row.question
        seen = [
            item
            for item in row.scene.objects
            if (question.colour or item.colour) == item.colour
            and (question.shape or item.shape) == item.shape
        ]
        assert row.count == len(seen)
        words = reasoning(row).split()
        assert len(words) == GRID**2
        assert int(words[-1].lstrip("abcdefghijklmnopqrstuvwxyz")) == row.count


@pytest.mark.parametrize("style", ["in", "out"])
def test_objects_lie_in_the_cells_that_the_reasoning_names(style: str) -> None:
    for row in rows(style, 100):
        for place, item in enumerate(row.cells):
            if item is None:
                continue
            down, across = divmod(place, GRID)
            for centre, cell in ((item.x, across), (item.y, down)):
                low, high = (centre - item.radius) * GRID, (centre + item.radius) * GRID
                assert cell <= low < high <= cell + 1


def test_kinds_and_counts_are_as_likely() -> None:
    many = rows(many=2200)
    kinds = Counter(row.question.kind for row in many)
    counts = Counter(row.count for row in many)
    assert set(kinds) == set(KINDS)
    assert set(counts) == set(range(MOST + 1))
    assert all(abs(n - 2200 / 3) < 120 for n in kinds.values())  # 5 standard deviations
    assert all(abs(n - 200) < 70 for n in counts.values())


def test_others_are_not_rare() -> None:
    # Whoever takes every object of such a question for what is asked must not be right too often.
    asking = [row for row in rows(many=1200) if row.question.kind != "items"]
    objects = sum(len(row.scene.objects) for row in asking)
    # The mean count is 5, that of the others (16 - count) / 2, so 5.5: a share of 10 in 21.
    assert sum(row.count for row in asking) / objects == pytest.approx(10 / 21, abs=0.02)
    assert max(len(row.scene.objects) for row in asking) == GRID**2


def test_objects_out_of_distribution_are_crowded() -> None:
    def spread(style: str) -> float:
        """Mean distance in cells between objects of one scene."""
        distances = []
        for row in rows(style, 300):
            places = [(item.x * GRID, item.y * GRID) for item in row.scene.objects]
            distances += [math.dist(a, b) for a, b in itertools.combinations(places, 2)]
        return sum(distances) / len(distances)

    assert spread("out") < spread("in") - 0.2


def test_questions_in_words() -> None:
    assert Question("items", None, None).text() == "How many items are there in the image?"
    assert Question("colour", "red", None).text() == "How many red items are in the image?"
    assert Question("shape", None, "circle").text() == "How many circles are there in the image?"


def test_other_looks_out_of_distribution_under_the_same_words() -> None:
    inside, outside = rows(), rows("out")
    assert {item.shape for row in inside for item in row.scene.objects} == set(ASKED_SHAPES)
    assert {item.shape for row in outside for item in row.scene.objects} == set(SHAPES)
    fills = [
        {item.fill for row in part for item in row.scene.objects} for part in (inside, outside)
    ]
    assert not fills[0] & fills[1]
    textures = [{row.scene.background.texture for row in part} for part in (inside, outside)]
    assert not textures[0] & textures[1]
    assert {row.question for row in outside} == {row.question for row in inside}


def test_rows_depend_on_their_place_alone() -> None:
    short = counting_splits(3, train=4, validation=2, test=2)
    long = counting_splits(3, train=8, validation=4, test=4)
    for name in ("train", "validation", "test"):
        a, b = getattr(short, name), getattr(long, name)
        assert a.questions == b.questions[: len(a)]
        assert a.traces == b.traces[: len(a)]
        assert a.images[1][0].tobytes() == b.images[1][0].tobytes()
        assert a.images[1][0].size == (SIZE, SIZE) == (GRID * CELL, GRID * CELL)


def test_seeds_differ_and_the_test_rows_do_not() -> None:
    first, second = (counting_splits(seed, train=6, validation=6, test=6) for seed in (0, 1))
    assert first.train.traces != second.train.traces
    assert first.validation.traces != second.validation.traces
    assert first.test.traces == second.test.traces
    assert first.shifts["out"].traces == second.shifts["out"].traces
    assert first.test.traces != first.train.traces
    assert first.train.identity != second.train.identity


def test_it_travels_to_workers() -> None:
    dataset = counting_splits(0, train=2, validation=1, test=1).train
    again = pickle.loads(pickle.dumps(dataset))
    digests = [hashlib.sha256(d.images[1][0].tobytes()).hexdigest() for d in (dataset, again)]
    assert digests[0] == digests[1]


def test_it_is_called_shapes() -> None:
    splits = read("shapes", "questions", validation_fraction=0.1, seed=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4000, 200, 1000)
    assert list(splits.shifts) == ["out"]


def test_a_split_without_rows_is_refused() -> None:
    with pytest.raises(UserError, match="shapes/test: 0 rows asked for; ask for at least one"):
        counting_splits(0, test=0)
