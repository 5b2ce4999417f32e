"""What is asked: which labels of an image are offered, and what counts as an answer.

Labels are drawn with exact probabilities, the design of the log.

A label's chance follows the model, softened and mixed with chance, so that every label can be
shown: p_k = (1 - ε) · π_k^(1/T) / Σ π^(1/T) + ε/K. G different labels are drawn by systematic
sampling (Madow 1949, "On the theory of systematic sampling, II"), whose inclusion probabilities are
exactly q_k = min(1, c · p_k), Σ_k q_k = G. The order on the page is shuffled, so a label's position
tells nothing of the model. The propensity that is recorded, q_k / G, is the probability that a
shown label of the image is this one; over K it sums to 1, and with it

    mean over shown labels of π_k r_k / propensity_k

has expectation Σ_k π_k r_k, whatever the dependence between the labels of one group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, cast

import numpy as np

from visgrpo.errors import UserError, nearest

# Labels this close to certainty count as certain: rounding must not draw one twice.
_CERTAIN = 1 - 1e-12


@dataclass(frozen=True)
class Group:
    """The labels that one image is offered with, in the order of the page.

    Attributes:
        label_G: class ids, all different.
        propensity_G: probability that a shown label of this image is this one.
    """

    label_G: np.ndarray
    propensity_G: np.ndarray


def draw_group(
    probability_K: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    exploration: float = 0.1,
    temperature: float = 1.0,
) -> Group:
    """Draw G = `size` different labels, in a random order, with the propensity of each.

    Args:
        probability_K: what the model gives each class; sums to 1.
        exploration: ε, the share of chance in (0, 1]; 0 would leave labels that are never shown.
        temperature: T above 0; over 1 softens what the model says.

    Raises:
        UserError: for more labels than there are, and settings out of range.
    """
    mixed_K = mix(probability_K, exploration, temperature)
    inclusion_K = inclusion_probabilities(mixed_K, size)
    label_G = rng.permutation(systematic_sample(inclusion_K, rng))
    return Group(label_G, inclusion_K[label_G] / size)


def mix(probability_K: np.ndarray, exploration: float, temperature: float) -> np.ndarray:
    """Return p_K of the module's docstring; sums to 1.

    Raises:
        UserError: for an exploration outside (0, 1], and a temperature that is not above 0.
    """
    if not 0 < exploration <= 1:
        raise UserError(
            f"--exploration {exploration} must lie in (0, 1]: every label needs a chance to be "
            "shown."
        )
    if not temperature > 0:
        raise UserError(f"--temperature must be above 0, not {temperature}.")
    # The largest is 1 before the power, so that a low temperature cannot make all of them 0.
    softened_K = (probability_K / probability_K.max()).astype(np.float64) ** (1 / temperature)
    return (1 - exploration) * softened_K / softened_K.sum() + exploration / len(probability_K)


def inclusion_probabilities(p_K: np.ndarray, size: int) -> np.ndarray:
    """Return q_k = min(1, c · p_k), with the c that makes them sum to `size`.

    Raises:
        UserError: for a size outside 1 to K.
    """
    classes = len(p_K)
    if not 1 <= size <= classes:
        raise UserError(f"--group-size {size} must lie between 1 and the {classes} classes.")
    certain_K = np.zeros(classes, dtype=bool)
    q_K = np.ones(classes)
    # Making one label certain raises c for the others, which may make more of them certain.
    while not certain_K.all():
        rest = size - certain_K.sum()
        q_K[~certain_K] = rest * p_K[~certain_K] / p_K[~certain_K].sum()
        more_K = ~certain_K & (q_K >= _CERTAIN)
        if not more_K.any():
            break
        q_K[more_K] = 1.0
        certain_K |= more_K
    return q_K


def systematic_sample(inclusion_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return class ids drawn so that each is among them with exactly its probability.

    One uniform number places a comb of unit spacing over the probabilities laid end to end. They
    are laid in a random order: in a fixed one, neighbours would never be offered together.

    Args:
        inclusion_K: in [0, 1]; sums to a whole number, which is how many are drawn.
    """
    certain = np.flatnonzero(inclusion_K == 1.0)
    order = rng.permutation(np.flatnonzero(inclusion_K < 1.0))
    count = round(inclusion_K.sum()) - len(certain)
    ends = np.cumsum(inclusion_K[order])
    ends[-1:] = count  # the sum itself, which rounding may miss
    teeth = np.arange(count) + rng.random()
    return np.concatenate([certain, order[np.searchsorted(ends, teeth, side="right")]])


Ask = Literal["click", "rank", "grade"]
Answer = Sequence[str | int]
HIGHEST_GRADE = 5
TABLES: Mapping[Ask, str] = {"click": "impressions", "rank": "preferences", "grade": "grades"}
"""The store's table that the answers to each question go to."""


Row = Mapping[str, str | float]
"""What an answer adds to its table, by column."""


class BadAnswer(UserError):
    """An answer that the question does not allow."""


def rows_of(
    ask: Ask, labels: Sequence[str], propensities: Sequence[float], answer: Answer
) -> list[Row]:
    """Return the rows that an answer to an offer adds to the table of its question.

    Args:
        labels: the offered labels, in the order of the page.
        propensities: of each.
        answer: click: the chosen label, or nothing where none fits. rank: labels from the best on;
            those left out are behind all that are named, in no order. grade: a whole number from 1
            to 5 for each label, in the order of the page.

    Raises:
        BadAnswer: when it is no answer to the question.
    """
    if ask == "grade":
        grades = zip(labels, _grades(labels, answer), strict=True)
        return [{"label": label, "grade": grade} for label, grade in grades]
    named = _named(labels, answer)
    if ask == "rank":
        rest = [label for label in labels if label not in named]
        ahead = [*combinations(named, 2), *((best, left) for best in named for left in rest)]
        return [{"preferred": one, "rejected": other, "tie": False} for one, other in ahead]
    if len(named) > 1:
        raise BadAnswer(f"One label can be chosen, not {len(named)}.")
    offered = enumerate(zip(labels, propensities, strict=True), start=1)
    return [
        {"label": k, "shown": 1, "clicked": k in named, "position": place, "propensity": p}
        for place, (k, p) in offered
    ]


def agreement(ask: Ask, labels: Sequence[str], best: str, answer: Answer) -> float | None:
    """Return how far an answer agrees with the model's own first choice.

    1 or 0: that label was chosen, or ranked first, or was not. For grades, the grade it was given.
    None where it was not among the offered labels, since nobody could choose it then.
    """
    if best not in labels:
        return None
    if ask == "grade":
        return float(answer[labels.index(best)])
    return float(bool(answer) and answer[0] == best)


def _grades(labels: Sequence[str], answer: Answer) -> list[int]:
    if len(answer) != len(labels):
        raise BadAnswer(f"{len(labels)} labels need a grade each, not {len(answer)} grades.")
    for grade in answer:
        if not isinstance(grade, int) or not 1 <= grade <= HIGHEST_GRADE:
            raise BadAnswer(f"A grade is a whole number from 1 to {HIGHEST_GRADE}, not {grade!r}.")
    return cast(list[int], list(answer))


def _named(labels: Sequence[str], answer: Answer) -> list[str]:
    for label in answer:
        if label not in labels:
            raise BadAnswer(f'"{label}" was not offered. {nearest(str(label), labels)}')
    if len(set(answer)) < len(answer):
        raise BadAnswer("A label can be named once.")
    return cast(list[str], list(answer))
