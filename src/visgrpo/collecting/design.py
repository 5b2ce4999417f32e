"""Which labels of an image are offered, with exact probabilities: the design of the log.

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

from dataclasses import dataclass

import numpy as np

from visgrpo.errors import UserError

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
