"""Boxes as text, and their overlap: by hand, and against every assignment of small sets."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from visgrpo.boxes import Labelled, NoBoxes, boxes_in, inside, matched, overlaps, scaled, written
from visgrpo.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2, 3.5, 4]", [Labelled((1, 2, 3.5, 4))]),
        ("[[1,2,3,4],[5,6,7,8]]", [Labelled((1, 2, 3, 4)), Labelled((5, 6, 7, 8))]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "cat"}', [Labelled((1, 2, 3, 4), "cat")]),
        (
            "[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}]",  # of Visual-RFT
            [Labelled((1, 2, 3, 4), "", 0.5)],
        ),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]\n```', [Labelled((1, 2, 3, 4), "a")]),
        ("[7, 9]", [Labelled((7, 9, 7, 9))]),
        ('[{"point_2d": [7, 9], "label": "a"}]', [Labelled((7, 9, 7, 9), "a")]),
        ("[]", []),
        ("No Objects", []),
    ],
)
def test_the_forms_that_are_read(text: str, expected: list[Labelled]) -> None:
    assert boxes_in(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("it is at 1, 2, 3, 4", "no list of boxes"),
        ("[1, 2, 3]", "not four numbers"),
        ("[1, 2, 3, NaN]", "not four numbers"),
        ("[1, 2, 3, Infinity]", "not four numbers"),
        ('["1", 2, 3, 4]', "not four numbers"),
        ("[true, 2, 3, 4]", "not four numbers"),
        ("[3, 2, 1, 4]", r"corners are turned, \[3, 2, 1, 4\]"),
        ('[{"label": "cat"}]', 'an object without "box"'),
        ('[{"box": [1, 2, 3, 4], "label": 7}]', "a label that is no text"),
        ("7", "no list of boxes"),
        ("[" * 100_000, "longer than"),
        ("[" * 10_000, "no list of boxes"),
    ],
)
def test_what_is_no_box(text: str, why: str) -> None:
    with pytest.raises(NoBoxes, match=why):
        boxes_in(text)


def test_corner_and_size() -> None:
    assert boxes_in("[10, 20, 5, 6]", sizes=True) == [Labelled((10, 20, 15, 26))]
    with pytest.raises(NoBoxes, match="turned"):
        boxes_in("[10, 20, -5, 6]", sizes=True)


def test_what_is_written_is_read_again() -> None:
    for boxes in (
        [Labelled((1, 2, 3, 4))],
        [Labelled((1, 2, 3, 4), "a"), Labelled((0, 0, 1, 1), 'b"c')],
        [Labelled((1, 2, 1, 2))],
        [],
    ):
        assert boxes_in(written(boxes)) == boxes
    assert written([Labelled((1.24, 2, 3, 4.56), "x")], 1) == '[{"label":"x","box":[1.2,2,3,4.6]}]'


def test_overlap_by_hand_and_in_any_units() -> None:
    first = [Labelled((0, 0, 10, 10)), Labelled((0, 0, 0, 0))]
    second = [Labelled((0, 0, 10, 5)), Labelled((5, 5, 15, 15)), Labelled((20, 20, 30, 30))]
    expected = [[0.5, 25 / 175, 0.0], [0.0, 0.0, 0.0]]
    assert overlaps(first, second) == pytest.approx(np.array(expected))
    assert overlaps(scaled(first, 3, 0.5), scaled(second, 3, 0.5)) == pytest.approx(
        np.array(expected)
    )


def test_overlap_is_that_of_counted_pixels() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (40, 2, 2))
    boxes = [
        Labelled((*np.sort(c, 0)[0].tolist(), *(np.sort(c, 0)[1] + 1).tolist())) for c in corners
    ]
    iou = overlaps(boxes[:20], boxes[20:])
    for a, one in enumerate(boxes[:20]):
        for b, other in enumerate(boxes[20:]):
            masks = np.zeros((2, 16, 16), dtype=bool)
            for mask, each in zip(masks, (one, other), strict=True):
                left, top, right, bottom = map(int, each.box)
                mask[top:bottom, left:right] = True
            assert iou[a, b] == pytest.approx((masks[0] & masks[1]).sum() / masks.any(0).sum())


@pytest.mark.parametrize("labels", [True, False])
def test_the_assignment_is_the_best_of_all(labels: bool) -> None:
    rng = np.random.default_rng(1)

    def some(count: int) -> list[Labelled]:
        low = rng.uniform(0, 10, (count, 2))
        high = low + rng.uniform(1, 10, (count, 2))
        names = [("a", "b")[int(rng.integers(2))] if labels else "" for _ in range(count)]
        return [
            Labelled((*one.tolist(), *other.tolist()), name)
            for one, other, name in zip(low, high, names, strict=True)
        ]

    for _ in range(30):
        answered, true = some(int(rng.integers(1, 5))), some(4)
        iou = overlaps(answered, true)
        for a, one in enumerate(answered):
            for b, other in enumerate(true):
                iou[a, b] *= one.label == other.label
        best = max(
            sum(iou[a, b] for a, b in enumerate(order))
            for order in permutations(range(4), len(iou))
        )
        pairs = matched(answered, true)
        assert sum(value for _, _, value in pairs) == pytest.approx(best)
        assert all(iou[a, b] == value > 0 for a, b, value in pairs)


def test_labels_of_any_spelling_match_and_points_lie_inside() -> None:
    assert matched([Labelled((0, 0, 1, 1), "Red  Circle")], [Labelled((0, 0, 1, 1), "red circle")])
    assert inside(Labelled((5, 5, 5, 5)), Labelled((0, 0, 5, 10)))
    assert not inside(Labelled((0, 0, 20, 10)), Labelled((0, 0, 5, 10)))


def test_true_boxes_must_lie_in_their_image() -> None:
    from visgrpo.boxes import check_true

    check_true([Labelled((0, 0, 10, 11))], "row 3", (10, 10))
    with pytest.raises(UserError, match=r"row 3: its box \[0,0,0,5\] has no area"):
        check_true([Labelled((0, 0, 0, 5))], "row 3", None)
    with pytest.raises(UserError, match="outside the image of 10 × 10 pixels"):
        check_true([Labelled((0, 0, 12, 5))], "row 3", (10, 10))
