"""Measures of boxes: COCO's own code gives the same average precision; the rest by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visgrpo.boxes import Labelled, written
from visgrpo.errors import UserError
from visgrpo.measures.boxes import THRESHOLDS, average_precision, box_measures, point_measures

NAMES = ("red circle", "blue square", "star")


def answer(text: str) -> str:
    return f"<answer>{text}</answer>"


def moved(rng: np.random.Generator, box: Labelled, by: float) -> Labelled:
    left, top, right, bottom = np.array(box.box) + rng.normal(0, by, 4)
    edges = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    return box._replace(box=tuple(map(float, edges)), score=float(rng.uniform()))


def scene(
    rng: np.random.Generator, labels: bool
) -> tuple[list[list[Labelled]], list[list[Labelled]]]:
    """Rows of true boxes, with answers near them, twice, of another class, missing and made up."""
    answered, true = [], []
    for _ in range(25):
        truth = []
        for _ in range(int(rng.integers(0, 5))):
            corner = rng.uniform(0, 60, 2)
            end = corner + rng.uniform(8, 40, 2)
            name = NAMES[int(rng.integers(3))] if labels else ""
            truth.append(Labelled((*corner.tolist(), *end.tolist()), name))
        given = [moved(rng, box, 3.0) for box in truth for _ in range(int(rng.integers(0, 3)))]
        given += [moved(rng, Labelled((1, 1, 9, 9), NAMES[0] if labels else ""), 5.0)]
        if labels and given:
            given[0] = given[0]._replace(label=NAMES[int(rng.integers(3))])
        answered.append(given)
        true.append(truth)
    return answered, true


def of_coco(
    answered: list[list[Labelled]], true: list[list[Labelled]], labels: bool
) -> dict[float, float]:
    """Average precision by IoU, by the published code."""
    ids = {name: number for number, name in enumerate(NAMES if labels else ("",), start=1)}

    def rows(boxes: list[list[Labelled]]) -> list[dict[str, object]]:
        return [
            {
                "id": 100 * row + place + 1,
                "image_id": row + 1,
                "category_id": ids[box.label],
                "bbox": [*box.box[:2], box.box[2] - box.box[0], box.box[3] - box.box[1]],
                "area": (box.box[2] - box.box[0]) * (box.box[3] - box.box[1]),
                "iscrowd": 0,
                "score": box.score,
            }
            for row, listed in enumerate(boxes)
            for place, box in enumerate(listed)
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": row + 1} for row in range(len(true))],
            "categories": [{"id": number} for number in ids.values()],
            "annotations": rows(true),
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows(answered)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRK = evaluation.eval["precision"][..., 0, -1]
    return {
        least: float(precision_TRK[place][precision_TRK[place] > -1].mean())
        for place, least in enumerate(THRESHOLDS)
    }


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_the_published_code(
    seed: int, scored: bool, labels: bool
) -> None:
    answered, true = scene(np.random.default_rng(seed), labels)
    if not scored:
        answered = [[box._replace(score=1.0) for box in row] for row in answered]
    expected = of_coco(answered, true, labels)
    found = average_precision(answered, true)
    assert 0.05 < expected[0.5] < 0.95
    assert found == pytest.approx(expected, abs=1e-9)


def test_measures_of_single_boxes_by_hand() -> None:
    texts = [
        answer("[0,0,10,10]"),  # right
        answer("[0,0,10,5]"),  # half of it
        answer("[0,0,10,8]"),  # four fifths
        answer("[[0,0,10,10],[0,0,10,10]]"),  # right, but twice
        answer("over there"),
        "[0,0,10,10]",  # no answer
        answer("[10,10,0,0]"),  # turned corners
    ]
    measures = box_measures(texts, ["[0,0,10,10]"] * 7, direct=True)
    assert measures["mean_iou"] == pytest.approx((1 + 0.5 + 0.8 + 0.5) / 7)
    assert measures["found_50"] == pytest.approx(4 / 7)
    assert measures["found_75"] == pytest.approx(3 / 7)
    assert measures["unparsed"] == pytest.approx(3 / 7)
    assert measures["format"] == pytest.approx(6 / 7)
    assert measures["examples"] == 7
    # Of five answers four are right: recall ends at 4/7, precision there is 4/4 up to the copy.
    assert measures["ap50"] == pytest.approx(58 / 101)


def test_nothing_said_of_nothing_is_right_and_words_are_not() -> None:
    texts = [answer("[]"), answer("[0,0,1,1]"), answer("nothing there")]
    measures = box_measures(texts, ["[]"] * 3, direct=True)
    assert measures["mean_iou"] == pytest.approx(1 / 3)
    assert "ap50" not in measures
    assert "found_50" not in measures


def test_points_count_by_their_middle() -> None:
    truth = written([Labelled((0, 0, 10, 10))])
    texts = [answer("[5,5]"), answer("[8,9]"), answer("[0,0,20,10]"), answer("[20,5]"), "[5,5]"]
    measures = point_measures(texts, [truth] * 5, direct=True)
    assert measures["hit"] == pytest.approx(3 / 5)
    assert measures["distance"] == pytest.approx((0 + 5 + 5 + 15) / 4)
    assert measures["unparsed"] == pytest.approx(1 / 5)
    assert "hit" not in point_measures(texts, ["[5,5]"] * 5)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UserError, match="2 completions for 1 true answers"):
        box_measures(["a", "b"], ["[0,0,1,1]"])
    with pytest.raises(UserError, match="no completions"):
        box_measures([], [])
    with pytest.raises(UserError, match=r'"7" is no list of boxes'):
        box_measures(["a"], ["7"])
    with pytest.raises(UserError, match="one true box or point"):
        point_measures(["a"], ["[]"])
