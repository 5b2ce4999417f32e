"""Logs of a known policy in a known world, for the tests of off-policy estimates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visgrpo.feedback.worth.cells import LogCells

TYPES, CLASSES = 40, 4


@dataclass(frozen=True)
class Rows:
    """Impressions one by one: image, label, propensity, click."""

    image: np.ndarray
    label: np.ndarray
    propensity: np.ndarray
    click: np.ndarray

    def cells(self) -> LogCells:
        """The sums that the database makes of the rows."""
        pair = self.image * CLASSES + self.label
        known, cell = np.unique(pair, return_inverse=True)

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(cell, weights=values, minlength=len(known))

        return LogCells(
            image_C=known // CLASSES,
            label_C=known % CLASSES,
            count_C=total(np.ones(len(pair))),
            clicks_C=total(self.click),
            inverse_C=total(1 / self.propensity),
            inverse_square_C=total(1 / self.propensity**2),
            clicks_inverse_C=total(self.click / self.propensity),
        )


@dataclass(frozen=True)
class World:
    """Images of T types, each with a click rate, a logging and a target probability a label."""

    rates_TK: np.ndarray
    logging_TK: np.ndarray
    target_TK: np.ndarray

    @property
    def value(self) -> float:
        """Clicks per impression of the target policy."""
        return float((self.target_TK * self.rates_TK).sum(axis=1).mean())

    def log(self, seed: int, images: int, most: int = 6) -> tuple[Rows, np.ndarray]:
        """Impressions of new images, 1 to `most` each, and the images' types."""
        rng = np.random.default_rng((seed, 1))
        type_M = rng.integers(TYPES, size=images)
        image = np.repeat(np.arange(images), rng.integers(1, most + 1, size=images))
        kind = type_M[image]
        edges = self.logging_TK[kind].cumsum(axis=1)
        label = (rng.random((len(image), 1)) > edges[:, :-1]).sum(axis=1)
        click = (rng.random(len(image)) < self.rates_TK[kind, label]).astype(float)
        return Rows(image, label, self.logging_TK[kind, label], click), type_M


def world(seed: int = 0) -> World:
    """A logging policy that explores, and a target that prefers what is clicked."""
    rng = np.random.default_rng(seed)
    rates_TK = rng.uniform(0.05, 0.9, (TYPES, CLASSES))
    logging_TK = 0.3 / CLASSES + 0.7 * rng.dirichlet(np.ones(CLASSES), TYPES)
    target_TK = np.exp(2 * rates_TK)
    return World(rates_TK, logging_TK, target_TK / target_TK.sum(axis=1, keepdims=True))
