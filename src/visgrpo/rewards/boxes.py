"""Rewards of boxes and points between answer tags, with TRL's signature.

The truth is the column `answer`, in the form and the units that are answered (`visgrpo.boxes`). A
text without one answer, or whose answer lists no boxes, earns the least that there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from visgrpo.boxes import Labelled, NoBoxes, boxes_in, centre, inside, matched, plain
from visgrpo.errors import UserError
from visgrpo.rewards.answers import AnswerReward, answer_of
from visgrpo.rewards.texts import Text, completion_text

DUPLICATE = 0.3


def answered(completion: Text) -> list[Labelled] | None:
    """Return the boxes that a completion answers; None where it has no answer that lists any."""
    answer = answer_of(completion_text(completion))
    if answer is None:
        return None
    try:
        return boxes_in(answer)
    except NoBoxes:
        return None


def true_boxes(answer: str, reward: str) -> list[Labelled]:
    """Return the boxes of a true answer.

    Raises:
        UserError: for a truth that is none; `reward` is what needs it.
    """
    try:
        return boxes_in(answer)
    except NoBoxes as error:
        raise UserError(
            f'Reward "{reward}" needs boxes as true answers, but "{answer}" {error}: give them as '
            "[left, top, right, bottom]."
        ) from error


def mean_overlap(
    boxes: Sequence[Labelled], true: Sequence[Labelled], least: float | None = None
) -> float:
    """Return Σ IoU over matched pairs / max(answered, true), 0 to 1; 1 for none of none.

    Args:
        least: with it a pair counts as 1 where its IoU is this or more, and else as 0.
    """
    most = max(len(boxes), len(true))
    if not most:
        return 1.0
    pairs = matched(boxes, true)
    if least is None:
        return sum(iou for _, _, iou in pairs) / most
    return sum(iou >= least for _, _, iou in pairs) / most


@dataclass(frozen=True)
class BoxReward:
    """A reward by what `score` makes of the answered and the true boxes.

    Attributes:
        nothing: what a text without boxes earns.
    """

    name: str
    score: Callable[[list[Labelled], list[Labelled]], float]
    nothing: float = 0.0

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self, *, completions: list[Any], answer: list[str], **_: Any
    ) -> list[float | None]:
        return [
            self._score(completion, truth) if truth.strip() else None
            for completion, truth in zip(completions, answer, strict=True)
        ]

    def _score(self, completion: Text, truth: str) -> float:
        true, boxes = true_boxes(truth, self.name), answered(completion)
        score = self.score(
            boxes or [], true
        )  # refuses a truth that it cannot pay by, whatever came
        return self.nothing if boxes is None else score


@dataclass(frozen=True)
class SetScore:
    """(Σ w·IoU of matched pairs − 0.3 · answers without a pair − Σ w of missed ones) / Σ w.

    Pairs are matched so that their IoU together is largest, within a label where truths have
    labels. None of none is 1; each answer where nothing is true takes 0.3.

    Attributes:
        weights: w by label, 1 for others.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    least: ClassVar[float] = -1.0  # of an answer that finds nothing

    def __call__(self, boxes: Sequence[Labelled], true: Sequence[Labelled]) -> float:
        if not true:
            return -DUPLICATE * len(boxes) if boxes else 1.0
        weight_B = [self.weights.get(plain(each.label), 1.0) for each in true]
        pairs = matched(boxes, true)
        gained = sum(weight_B[b] * iou for _, b, iou in pairs)
        missed = sum(weight_B) - sum(weight_B[b] for _, b, _ in pairs)
        return (gained - DUPLICATE * (len(boxes) - len(pairs)) - missed) / sum(weight_B)


def inside_score(points: Sequence[Labelled], true: Sequence[Labelled]) -> float:
    """Return 1 for one point, or centre of a box, within the true box; else 0."""
    target = one_true(true, "inside")
    return float(len(points) == 1 and inside(points[0], target))


def one_true(true: Sequence[Labelled], reward: str) -> Labelled:
    """Return the one true box or point.

    Raises:
        UserError: where there are several, or none.
    """
    if len(true) != 1:
        raise UserError(
            f'Reward "{reward}" needs one true box or point for each question, not {len(true)}: '
            'take "boxes" or "iou" for this data.'
        )
    return true[0]


def _iou(argument: str) -> AnswerReward:
    if not argument:
        return BoxReward("iou", mean_overlap)
    least = _number(argument)
    if least is None or not 0 < least <= 1:
        raise UserError(
            f'Reward "iou:{argument}": write the least IoU that is paid for, above 0 and up to 1, '
            'as in "iou:0.5"; or "iou" alone, which pays the IoU itself.'
        )
    return BoxReward("iou", lambda boxes, true: mean_overlap(boxes, true, least))


def _boxes(argument: str) -> AnswerReward:
    weights = {}
    for part in argument.split(",") if argument else ():
        label, _, text = part.rpartition("=")
        weight = _number(text)
        if not label or weight is None or weight <= 0:
            raise UserError(
                f'Reward "boxes:{argument}": "{part}" is no label with a weight above 0; write '
                '"boxes:red circle=2,blue square=1", or "boxes" alone.'
            )
        weights[plain(label)] = weight
    return BoxReward("boxes", SetScore(weights), nothing=SetScore.least)


def _inside(argument: str) -> AnswerReward:
    if argument:
        raise UserError('Reward "inside" takes no argument: write "inside".')
    return BoxReward("inside", inside_score)


def _near(argument: str) -> AnswerReward:
    scale = _number(argument)
    if scale is None or scale <= 0:
        raise UserError(
            'Reward "near" needs the distance that earns nothing, in the units of the answers: '
            'write for example "near:20".'
        )

    def score(points: Sequence[Labelled], true: Sequence[Labelled]) -> float:
        target = one_true(true, "near")
        if len(points) != 1:
            return 0.0
        return max(0.0, 1 - math.dist(centre(points[0]), centre(target)) / scale)

    return BoxReward("near", score)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


BOX_REWARDS: Mapping[str, Callable[[str], AnswerReward]] = {
    "iou": _iou,
    "boxes": _boxes,
    "inside": _inside,
    "near": _near,
}
"""The built-in rewards of boxes and points, as `ANSWER_REWARDS` has those of other answers."""
