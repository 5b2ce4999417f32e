"""What answered boxes and points are worth over a data set: mean IoU, average precision, hits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from visgrpo.boxes import Labelled, centre, inside, overlaps, plain
from visgrpo.errors import UserError
from visgrpo.rewards.answers import has_format
from visgrpo.rewards.boxes import answered, mean_overlap, one_true, true_boxes

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100  # of an image and class, as COCO counts


def box_measures(
    texts: Sequence[str], answers: Sequence[str], *, direct: bool = False
) -> dict[str, float]:
    """Measure the boxes that M completions answer.

    Args:
        texts: the completions.
        answers: the true boxes, as text.
        direct: the prompts asked for the answer alone, without reasoning.

    Returns:
        * `examples`: M;
        * `mean_iou`: mean over rows of Σ IoU of matched boxes / the larger number of boxes;
        * `found_50`, `found_75`: share of true boxes with a matched answer of that IoU;
        * `ap50`, `ap75`, `ap`: COCO's average precision at an IoU of .5, of .75, and the mean over
          .5, .55, … .95; left out where there are no true boxes at all;
        * `unparsed`: share of completions without a list of boxes;
        * `format`: share of completions that are of the form asked for and nothing else.

    Raises:
        UserError: there are no completions, not one truth for each, or one that is no box.
    """
    given, true = _read(texts, answers)
    each = [boxes or [] for boxes in given]
    pairs = list(zip(given, true, strict=True))
    # Nothing that can be read is no answer, also where there is nothing to find.
    rows = [0.0 if boxes is None else mean_overlap(boxes, truth) for boxes, truth in pairs]
    measures = {"examples": len(texts), "mean_iou": sum(rows) / len(rows)}
    total = sum(map(len, true))
    if total:
        for percent in (50, 75):
            found = sum(
                mean_overlap(boxes, truth, percent / 100) * max(len(boxes), len(truth))
                for boxes, truth in zip(each, true, strict=True)
                if truth
            )
            measures[f"found_{percent}"] = found / total
        by_threshold = average_precision(each, true)
        measures |= {
            "ap50": by_threshold[0.5],
            "ap75": by_threshold[0.75],
            "ap": sum(by_threshold.values()) / len(by_threshold),
        }
    return measures | _form(texts, given, direct)


def point_measures(
    texts: Sequence[str], answers: Sequence[str], *, direct: bool = False
) -> dict[str, float]:
    """Measure the points that M completions answer; boxes count by their middle.

    Returns:
        * `examples`, `unparsed`, `format`: as `box_measures`;
        * `hit`: share of single points within the true box; left out where truths are points;
        * `distance`: mean distance to the middle of the true box, in the units of the answers, of
          the single points; left out where there is none.

    Raises:
        UserError: as `box_measures`, or a row with several true boxes or none.
    """
    given, listed = _read(texts, answers)
    true = [one_true(each, "points") for each in listed]
    measures: dict[str, float] = {"examples": len(texts)}
    single = [
        (boxes[0], truth)
        for boxes, truth in zip(given, true, strict=True)
        if boxes is not None and len(boxes) == 1
    ]
    if any(truth.box[:2] != truth.box[2:] for truth in true):
        measures["hit"] = sum(inside(point, truth) for point, truth in single) / len(texts)
    if single:
        distances = [math.dist(centre(point), centre(truth)) for point, truth in single]
        measures["distance"] = sum(distances) / len(distances)
    return measures | _form(texts, given, direct)


def average_precision(
    answered: Sequence[Sequence[Labelled]], true: Sequence[Sequence[Labelled]]
) -> dict[float, float]:
    """Return COCO's average precision by the least IoU that counts, `THRESHOLDS`.

        AP = mean over recalls r of 0, .01, … 1 of the best precision at a recall of r or more

    Answers of all rows, in the order of their scores, take each the free true box of their row and
    class with the largest IoU, if it counts; the mean is over the classes that have true boxes
    (Lin et al. 2014, and the published evaluation code).

    Args:
        answered: boxes of every row, with labels where the true ones have any.
        true: the true ones; at least one row has some.
    """
    labelled = any(each.label for row in true for each in row)

    def of(rows: Sequence[Sequence[Labelled]], name: str) -> list[list[Labelled]]:
        return [[b for b in row if not labelled or plain(b.label) == name] for row in rows]

    names = sorted({plain(each.label) if labelled else "" for row in true for each in row})
    each = [_of_one_class(of(answered, name), of(true, name)) for name in names]
    return {least: sum(ap[least] for ap in each) / len(each) for least in THRESHOLDS}


def _of_one_class(
    answered: Sequence[Sequence[Labelled]], true: Sequence[Sequence[Labelled]]
) -> dict[float, float]:
    rows = [sorted(row, key=lambda box: -box.score)[:MOST_DETECTIONS] for row in answered]
    iou_of = [overlaps(row, truth) for row, truth in zip(rows, true, strict=True)]
    scores = np.array([box.score for row in rows for box in row])
    order = np.argsort(-scores, kind="stable")
    total = sum(map(len, true))
    return {
        least: _interpolated(
            np.concatenate([_right(iou_AB, least) for iou_AB in iou_of])[order], total
        )
        for least in THRESHOLDS
    }


def _right(iou_AB: np.ndarray, least: float) -> np.ndarray:
    """Return which answers of a row, by falling score, have a true box of their own, (A,)."""
    right_A = np.zeros(len(iou_AB), dtype=bool)
    free_B = np.ones(iou_AB.shape[1], dtype=bool)
    for place, iou_B in enumerate(iou_AB):
        open_B = np.where(free_B & (iou_B >= least), iou_B, -1.0)
        if open_B.size and open_B.max() >= 0:
            right_A[place] = True
            # Of equal overlaps the published code takes the last.
            free_B[len(open_B) - 1 - int(open_B[::-1].argmax())] = False
    return right_A


def _interpolated(right_D: np.ndarray, total: int) -> float:
    """Return the mean best precision over recalls, of D answers by falling score."""
    if not len(right_D):
        return 0.0
    found_D = right_D.cumsum()
    precision_D = found_D / np.arange(1, len(right_D) + 1)
    best_D = np.maximum.accumulate(precision_D[::-1])[::-1]
    places = np.searchsorted(found_D / total, RECALLS, side="left")
    return float(np.append(best_D, 0.0)[np.minimum(places, len(best_D))].mean())


def _read(
    texts: Sequence[str], answers: Sequence[str]
) -> tuple[list[list[Labelled] | None], list[list[Labelled]]]:
    if len(texts) != len(answers):
        raise UserError(f"{len(texts)} completions for {len(answers)} true answers.")
    if not texts:
        raise UserError("Nothing to evaluate: there are no completions.")
    return [answered(text) for text in texts], [true_boxes(answer, "iou") for answer in answers]


def _form(
    texts: Sequence[str], given: Sequence[list[Labelled] | None], direct: bool
) -> dict[str, float]:
    return {
        "unparsed": sum(boxes is None for boxes in given) / len(texts),
        "format": sum(has_format(text, direct) for text in texts) / len(texts),
    }
