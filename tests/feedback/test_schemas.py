"""Which of the four tables a source holds, by its columns."""

from __future__ import annotations

import pytest

from visgrpo.errors import UserError
from visgrpo.feedback.source.schemas import (
    IMAGE_NAMES,
    SCHEMAS,
    canonical_columns,
    find_schema,
    kinds_of,
)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_required_columns_are_enough(kind: str) -> None:
    required = SCHEMAS[kind].required  # type: ignore[index]
    assert find_schema("log", required).kind == kind
    assert kinds_of(required) == [kind]


def test_capitals_and_other_columns_do_not_matter() -> None:
    assert canonical_columns(["Image_ID", "LABEL", "Clicked", "browser"]) == {
        "image": "Image_ID",
        "label": "LABEL",
        "clicked": "Clicked",
    }


@pytest.mark.parametrize("place", range(len(IMAGE_NAMES)))
def test_the_first_name_of_the_image_counts(place: int) -> None:
    names = [*reversed(IMAGE_NAMES[place:]), "label", "votes"]
    assert canonical_columns(names)["image"] == IMAGE_NAMES[place]


def test_kind_chooses_where_columns_suit_several() -> None:
    columns = ["image", "label", "votes", "grade"]
    assert find_schema("log", columns, "grades").kind == "grades"
    with pytest.raises(UserError, match=r"log could be votes or grades: leave the columns of one"):
        find_schema("log", columns)


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        (["image", "lable", "votes"], None, 'no column "label", which votes need. Did you mean "l'),
        (["label", "clicked"], None, 'no column "image", which impressions need. Choose from'),
        (["image", "preferred"], None, 'no column "rejected", which preferences need'),
        (["a", "b"], None, r"no table of feedback: its columns are a, b\. .*grades: image, label"),
        ([], None, "its columns are none"),
        (list("abcdefghijklmno"), None, "k, l, …"),
        (["image", "label", "votes"], "impressions", "holds votes, not impressions, which need"),
        (["image", "label"], "impressions", 'no column "clicked", which impressions need'),
    ],
)
def test_columns_that_do_not_do(columns: list[str], kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_schema("log", columns, kind)  # type: ignore[arg-type]
