"""Images of several prompts in one tensor: chosen, repeated and moved without mixing them up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from visgrpo.data.batches import Batch
from visgrpo.data.pictures import Picture, Pictures
from visgrpo.errors import UserError

# Pixels tell the image and the row: 10·image + row. Prompts have two, none, one and three images.
ROWS = (2, 1, 4, 3, 1, 2)
COUNTS = (2, 0, 1, 3)


def image(number: int, width: int = 5) -> Picture:
    rows = ROWS[number]
    pixels = (10 * number + torch.arange(rows).float())[:, None].expand(rows, width)
    return Picture(pixels.clone(), (1, rows, 2), rows)


def pictures() -> Pictures:
    each = iter(range(len(ROWS)))
    numbers = [[next(each) for _ in range(count)] for count in COUNTS]
    made = Pictures.of(
        [[image(number) for number in row] for row in numbers],
        [[f"image {number}" for number in row] for row in numbers],
    )
    assert made is not None
    return made


def assert_holds(some: Pictures | None, prompts: list[list[int]]) -> None:
    """Each prompt has these images, with their pixels, grids, rows and keys."""
    assert some is not None
    numbers = [number for row in prompts for number in row]
    assert some.counts_N == tuple(map(len, prompts))
    assert some.rows_I == tuple(ROWS[number] for number in numbers)
    assert some.keys == tuple(f"image {number}" for number in numbers)
    assert some.grids_I3.tolist() == [[1, ROWS[number], 2] for number in numbers]
    pixels = [10.0 * number + row for number in numbers for row in range(ROWS[number])]
    assert some.pixels.tolist() == [[value] * 5 for value in pixels]
    assert len(some) == len(prompts)


WHOLE = [[0, 1], [], [2], [3, 4, 5]]


def test_images_stand_one_prompts_after_anothers() -> None:
    made = pictures()
    assert_holds(made, WHOLE)
    assert made.grids_I3.dtype == torch.int64


@pytest.mark.parametrize(
    "rows", [[0, 1, 2, 3], [3, 0], [2], [1, 2], [2, 1], [3, 3, 1, 0], [0, 1, 1]]
)
def test_prompts_are_chosen_with_their_own_images(rows: list[int]) -> None:
    expected = [WHOLE[row] for row in rows]
    assert_holds(pictures().select(rows), expected)
    assert_holds(pictures().select(torch.tensor(rows)), expected)


def test_prompts_without_images_have_none() -> None:
    assert pictures().select([1]) is None
    assert pictures().select([1, 1]) is None
    assert Pictures.of([(), ()], [(), ()]) is None


def test_a_choice_of_a_choice() -> None:
    part = pictures().select([3, 1, 2])
    assert part is not None
    assert_holds(part.select([2, 1]), [[2], []])


def test_copies_of_a_prompt_stand_side_by_side() -> None:
    assert_holds(pictures().repeated(1), WHOLE)
    assert_holds(pictures().repeated(2), [row for row in WHOLE for _ in range(2)])


def test_images_apart_from_their_prompts() -> None:
    assert_holds(pictures().images([4, 0, 4]), [[4], [0], [4]])


def test_moving_moves_the_tensors() -> None:
    moved = pictures().to("meta")
    assert (moved.pixels.device.type, moved.grids_I3.device.type) == ("meta", "meta")
    assert replace(moved, pixels=pictures().pixels, grids_I3=pictures().grids_I3).keys == (
        pictures().keys
    )
    chosen = moved.select([3, 0])
    assert chosen is not None
    assert chosen.pixels.shape == (3 + 1 + 2 + 2 + 1, 5)
    assert chosen.rows_I == (3, 1, 2, 2, 1)


def test_pieces_of_different_shapes_are_refused() -> None:
    with pytest.raises(UserError, match=r"different shapes, \(5,\) and \(6,\)"):
        Pictures.of([[image(0)], [image(1, width=6)]], [["a"], ["b"]])


# In a batch


def batch() -> Batch:
    answers = torch.tensor([[1, 2, -1], [3, -1, -1], [4, 5, 6], [7, -1, -1]])
    column = {"answer": ["a", "b", "c", "d"]}
    inputs = torch.arange(8).view(4, 2)
    return Batch(torch.arange(4), inputs, torch.ones(4), column, None, pictures(), answers)


def test_a_batch_takes_images_and_answers_along() -> None:
    for rows in ([2, 0], torch.tensor([2, 0])):
        part = batch().select(rows)
        assert_holds(part.pictures, [[2], [0, 1]])
        assert part.answers_NT is not None
        assert part.answers_NT.tolist() == [[4, 5, 6], [1, 2, -1]]
    assert batch().select([1]).pictures is None
    bare = replace(batch(), pictures=None, answers_NT=None).select([1, 2])
    assert bare.pictures is None
    assert bare.answers_NT is None


def test_a_batch_moves_its_images_and_answers() -> None:
    moved = batch().to("meta")
    assert moved.pictures is not None
    assert moved.answers_NT is not None
    assert {moved.pictures.pixels.device.type, moved.answers_NT.device.type} == {"meta"}
    bare = replace(batch(), pictures=None, answers_NT=None).to("meta")
    assert bare.pictures is None
    assert bare.answers_NT is None
