"""Questions about images in memory: rows, what they must hold, unreadable images."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pictures import picture, png, red
from PIL import Image

from visgrpo.data.batches import batch_columns
from visgrpo.data.images import decode
from visgrpo.data.roles import (
    question_table,
    require_answers,
    require_counts,
    require_traces,
)
from visgrpo.data.table import LazySequence, Table
from visgrpo.errors import UserError


def rows(answers: Sequence[str] = ("1", "2", "3"), **fields: Any) -> Table:
    images = [(picture(row),) for row in range(len(answers))]
    questions = tuple(f"q{row}" for row in range(len(answers)))
    return question_table("toy", images, questions, tuple(answers), **fields)


def decoded(row: int) -> tuple[Image.Image, ...]:
    stored = b"damaged" if row in (1, 2) else png(picture(row))
    return (decode(stored, f"toy: image of row {row}"),)


def test_a_subset_takes_its_share_of_everything() -> None:
    dataset = rows(traces=("a", "b", "c"), columns={"kind": ["x", "y", "z"]}, identity="toy 1")
    part = dataset.subset(np.array([2, 0]))
    assert len(part) == 2
    assert part.questions == ("q2", "q0")
    assert part.answers == ("3", "1")
    assert part.traces == ("c", "a")
    assert part.columns == {"kind": ["z", "x"], "answer": ["3", "1"]}
    assert [red(images[0]) for images in part.images] == [2, 0]
    assert part.identity.startswith("toy 1 > 2 rows ")
    assert part.named("other").name == "other"
    assert part.subset([0]).where(0) == "toy: row 2"
    assert rows().subset([1]).traces is None


def test_rewards_receive_the_answers() -> None:
    dataset = rows(columns={"answer": ["9", "9", "9"], "mask": [picture(0)] * 3})
    assert dataset.columns["answer"] == ["1", "2", "3"]
    assert batch_columns(dataset) == ["answer"]


def test_other_lengths_are_refused() -> None:
    with pytest.raises(UserError, match='toy: column "traces" has 1 rows but there are 3 q'):
        rows(traces=("a",))
    with pytest.raises(UserError, match='toy: column "images" has 1 rows but there are 2 questi'):
        question_table("toy", [(picture(0),)], ("a", "b"), ("", ""))


def test_unreadable_images_are_left_out_and_listed() -> None:
    dataset = rows("abcd")
    lazy = LazySequence(decoded, range(4))
    part = question_table("toy", lazy, dataset.questions, dataset.answers).without_bad_rows()
    assert part.answers == ("a", "d")
    assert len(part.skipped) == 2
    assert part.skipped[0].startswith("toy: image of row 1 cannot be read (not an image)")
    assert pickle.loads(pickle.dumps(part)).images[1][0].size == (6, 4)
    bad = question_table("toy", lazy, dataset.questions, dataset.answers).subset([1, 2])
    with pytest.raises(UserError, match="toy: none of its 2 rows can be read: toy: image of row 1"):
        bad.without_bad_rows()
    assert dataset.without_bad_rows() is dataset


def test_answers_and_reasoning_where_they_are_needed() -> None:
    require_answers(rows())
    with pytest.raises(UserError, match=r"^toy: row 1 has no answer; .* --answer-column"):
        require_answers(rows(("3", "", "")))
    require_traces(rows(traces=("a", "b", "c")))
    with pytest.raises(UserError, match=r"^toy has no reasoning to imitate; .* --trace-column"):
        require_traces(rows())
    with pytest.raises(UserError, match=r"^toy: row 2 has no reasoning to imitate; fill it"):
        require_traces(rows(traces=("a", "b", "")))


@pytest.mark.parametrize("answer", ["3.0", "-1", "three", "³", "1 2"])
def test_counts_are_whole_numbers(answer: str) -> None:
    require_counts(rows(("0", "10", "007")))
    with pytest.raises(UserError, match=f'^toy: row 1 has the answer "{answer}", which is no cou'):
        require_counts(rows(("3", answer)))


def test_a_count_that_is_missing_is_a_missing_answer() -> None:
    with pytest.raises(UserError, match="row 0 has no answer"):
        require_counts(rows(("", "3")).subset([0]))
