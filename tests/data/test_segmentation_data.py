"""Images with masks: what is checked, when, and which row a message names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from visgrpo.data.roles import class_counts_MK, image_and_mask, mask_table
from visgrpo.data.table import LazySequence, Table
from visgrpo.errors import UserError

CLASSES = ("background", "cat", "dog")
GOOD = np.array([[0, 1, 255], [2, 2, 0]], dtype=np.uint8)


def dataset(masks: list[Any], **changes: Any) -> Table:
    images = [Image.new("RGB", (3, 2), (row, 0, 0)) for row in range(len(masks))]
    given = {"name": "pets/train", "classes": CLASSES, "images": images, "masks": masks, **changes}
    return mask_table(**given)


@pytest.mark.parametrize(
    "stored",
    [
        GOOD,
        GOOD.astype(np.int64),
        Image.fromarray(GOOD),
        Image.fromarray(GOOD.astype(np.int32)),
        Image.fromarray(GOOD.astype(np.uint16)),
        Image.frombytes("P", (3, 2), GOOD.tobytes()),
    ],
)
def test_every_way_to_store_ids(stored: Any) -> None:
    image, ids = image_and_mask(dataset([stored]), 0)
    assert image.size == (3, 2)
    assert ids.dtype == np.uint8
    assert np.array_equal(ids, GOOD)


def test_a_mask_of_two_tones_is_ids_0_and_1() -> None:
    two_tones = Image.fromarray(np.array([[True, False, True], [False, False, True]]))
    assert dataset([two_tones]).masks[0].tolist() == [[1, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("count", "ignore_index", "dtype"),
    [
        (3, 255, np.uint8),
        (255, 255, np.uint8),
        (256, 300, np.int16),
        (3, -1, np.int16),
        (3, -100, np.int16),
        (30_000, 65_535, np.int32),
    ],
)
def test_ids_are_kept_small(count: int, ignore_index: int, dtype: type) -> None:
    classes = tuple(map(str, range(count)))
    stored = np.array([[0, count - 1, ignore_index]])
    ids = dataset([stored], classes=classes, ignore_index=ignore_index).masks[0]
    assert ids.dtype == dtype
    assert np.array_equal(ids, stored)


BAD = {
    "outside": (
        np.array([[0, 3, 255], [0, 0, 0]]),
        r"row 1: its mask has class id 3, outside the 3 classes \(0 to 2\) and not the ignored "
        r"id 255; mend the mask, the class names or --ignore-index\.",
    ),
    "negative": (np.array([[0, -1, 0], [0, 0, 0]]), "row 1: its mask has class id -1"),
    "unlabelled": (
        np.full((2, 3), 255),
        "row 1: its mask labels no pixel .*ignored id 255.*--skip-bad-images",
    ),
    "colours": (Image.new("RGB", (3, 2)), "row 1: its mask is a picture of mode RGB"),
    "fractions": (np.zeros((2, 3)), "row 1: its mask is float64 of shape"),
    "channels": (np.zeros((2, 3, 3), np.uint8), r"row 1: its mask is uint8 of shape \(2, 3, 3\)"),
    "size": (np.zeros((3, 2), np.uint8), r"row 1: its mask is 2 × 3 pixels but its image is 3 × 2"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_mask_is_named_by_its_stored_row(kind: str) -> None:
    mask, message = BAD[kind]
    whole = dataset([GOOD, mask])
    assert np.array_equal(whole.masks[0], GOOD)  # found when it is read, not before
    with pytest.raises(UserError, match=f"^pets/train: {message}"):
        image_and_mask(whole, 1)
    turned = whole.subset([1, 0]).subset([0])
    with pytest.raises(UserError, match=f"^pets/train: {message}"):
        image_and_mask(turned, 0)


def test_the_file_is_named_where_there_is_one() -> None:
    whole = dataset([GOOD, BAD["outside"][0]], columns={"file": ["a.png", "b.png"]})
    with pytest.raises(UserError, match=r"^pets/train: row 1 \(b\.png\): its mask has class id 3"):
        image_and_mask(whole.subset([1]), 0)


def test_subset_keeps_masks_with_their_images() -> None:
    masks = [np.full((2, 3), row % 3, dtype=np.uint8) for row in range(5)]
    part = dataset(masks, columns={"place": list("abcde")}, identity="x").subset([4, 2])
    assert [image.getpixel((0, 0))[0] for image in part.images] == [4, 2]
    assert [part.masks[row][0, 0] for row in range(2)] == [1, 2]
    assert list(part.columns["place"]) == ["e", "c"]
    assert len(part) == 2
    assert part.identity.startswith("x > ")
    assert dataset(masks).subset([1]).identity == ""


def test_nothing_is_decoded_before_it_is_asked_for() -> None:
    def unreadable(row: int) -> Any:
        raise UserError(f"picture {row} cannot be read")

    lazy = LazySequence(unreadable, range(3))
    part = mask_table("pets", CLASSES, lazy, lazy).subset([2, 1])
    with pytest.raises(UserError, match="picture 1 cannot"):
        part.masks[1]


def test_class_counts() -> None:
    whole = dataset([GOOD, np.full((2, 3), 2, np.uint8)])
    counts_MK = class_counts_MK(whole)
    assert counts_MK.tolist() == [[2, 1, 2], [0, 0, 6]]
    assert counts_MK.dtype == np.int64


def test_unusable_rows_are_left_out_on_request() -> None:
    masks = [GOOD, *(mask for mask, _ in BAD.values()), GOOD]
    good = dataset(masks).without_bad_rows()
    assert good.places is not None
    assert good.places.tolist() == [0, len(masks) - 1]
    assert len(good.skipped) == len(BAD)
    assert "row 1: its mask has class id 3" in good.skipped[0]
    untouched = dataset([GOOD])
    assert untouched.without_bad_rows() is untouched
    with pytest.raises(UserError, match=r"none of its 1 rows can be used: pets/train: row 0"):
        dataset([BAD["outside"][0]]).without_bad_rows()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ignore_index": 1}, '--ignore-index 1 is also the id of class "cat"'),
        ({"ignore_index": 2**40}, "needs over 32 bits"),
        ({"classes": ("cat", "cat")}, '"cat" is named twice'),
        ({"classes": ("cat",)}, "1 class .* needs at least two"),
        ({"images": []}, 'column "masks" has 1 rows but there are 0 images'),
        ({"columns": {"place": ["a", "b"]}}, 'column "place" has 2 rows but there are 1 images'),
    ],
)
def test_what_does_not_fit_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataset([GOOD], **changes)
