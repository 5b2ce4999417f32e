"""Behaviour drawn from people's votes: clicks, pairwise preferences, and logs of a biased policy.

    python benchmarks/feedback/simulate.py runs/data/feedback/train-votes.parquet OUT [--seed 0]

writes tables that `visgrpo clip --feedback` reads. The *share* of a label is its part of an image's
votes, s(k). K is the number of classes, E the number of events of an image, e a level of noise.

    clicks-E-e.parquet     E labels offered for each image, uniformly: propensity 1/K.
        P(click) = (1 − e)·s(k) + e/K: with probability e the person does not look, and clicks as
        often as people click on average over the labels, so that e moves no click-through rate.
    clicks-positions.parquet    The same, but a label stands at position 1 … P of a list and is only
        clicked if it is examined: P(click) is multiplied by 1/position (a position-based model).
        Labels early in the list of classes stand near the top more often: P(position p | k) ∝
        exp(−tilt·z·(p − 1)) with z falling from 1 to −1 over the classes, so that uncorrected
        click-through prefers them.
    preferences-E.parquet  E pairs of different labels for each image, uniformly drawn; a is
        preferred to b with (s(a) + f)/(s(a) + s(b) + 2f), Bradley and Terry's model with a floor f.
    log-biased.parquet     Labels offered by a policy that is confidently wrong, clicked as above:
        propensity = (1 − ε)·softmax(skew · 1[k is the wrong class]) + ε/K, where the wrong class is
        the one after the voters' favourite.
    log-uniform.parquet    As many events of the uniform policy: what that log should amount to.

Everything is a function of the seed and of the table's name.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NOISES = (0.0, 0.2, 0.4)
EVENTS = (2, 8, 32)  # of an image
POSITIONS = 5
TILT = 0.5
FLOOR = 0.01  # about half a vote
SKEW = 4.0
EXPLORATION = 0.1
USERS = 200
START = 1_700_000_000.0  # of the log, seconds since 1970
GAP = 2.0  # mean seconds between events


@dataclass(frozen=True)
class Votes:
    """People's votes as shares.

    Attributes:
        images: M names.
        classes: K names, sorted.
        share_MK: rows sum to 1.
    """

    images: np.ndarray
    classes: np.ndarray
    share_MK: np.ndarray


@dataclass(frozen=True)
class Impressions:
    """What was shown and what happened, C events in the order of time; positions from 1."""

    image_C: np.ndarray
    label_C: np.ndarray
    clicked_C: np.ndarray
    propensity_C: np.ndarray
    position_C: np.ndarray | None = None


@dataclass(frozen=True)
class Pairs:
    """Which label of two was preferred, C events in the order of time."""

    image_C: np.ndarray
    preferred_C: np.ndarray
    rejected_C: np.ndarray


def read_votes(path: Path) -> Votes:
    """Read a table of image, label, votes; labels that are not in an image's rows have no vote."""
    table = pq.read_table(path)
    images, image_C = np.unique(table["image"].to_numpy(zero_copy_only=False), return_inverse=True)
    classes, label_C = np.unique(table["label"].to_numpy(zero_copy_only=False), return_inverse=True)
    votes_MK = np.zeros((len(images), len(classes)))
    np.add.at(votes_MK, (image_C, label_C), table["votes"].to_numpy())
    return Votes(images, classes, votes_MK / votes_MK.sum(axis=1, keepdims=True))


def click_probabilities(share_MK: np.ndarray, noise: float) -> np.ndarray:
    """Return (1 − noise)·share + noise/K: a label's click probability once it is examined."""
    return (1 - noise) * share_MK + noise / share_MK.shape[1]


def uniform_policy(share_MK: np.ndarray) -> np.ndarray:
    return np.full_like(share_MK, 1 / share_MK.shape[1])


def biased_policy(share_MK: np.ndarray, skew: float, exploration: float) -> np.ndarray:
    """Return the propensities of the policy that is confidently wrong, (M, K)."""
    n_images, n_classes = share_MK.shape
    weights_MK = np.ones_like(share_MK)
    weights_MK[np.arange(n_images), (share_MK.argmax(axis=1) + 1) % n_classes] = np.exp(skew)
    softmax_MK = weights_MK / weights_MK.sum(axis=1, keepdims=True)
    return (1 - exploration) * softmax_MK + exploration / n_classes


def position_probabilities(classes: int, positions: int, tilt: float) -> np.ndarray:
    """Return P(position | label), (K, P); early classes stand near the top."""
    lean_K = np.linspace(1, -1, classes)
    weights_KP = np.exp(-tilt * lean_K[:, None] * np.arange(positions))
    return weights_KP / weights_KP.sum(axis=1, keepdims=True)


def draw(probabilities_CK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one column from each row, by inverting its distribution function."""
    below_CK = probabilities_CK.cumsum(axis=1)
    uniform_C = rng.random(len(probabilities_CK)) * below_CK[:, -1]
    return (uniform_C[:, None] >= below_CK).sum(axis=1)


def draw_impressions(
    policy_MK: np.ndarray,
    click_MK: np.ndarray,
    events: int,
    rng: np.random.Generator,
    position_KP: np.ndarray | None = None,
) -> Impressions:
    """Offer `events` labels of each image by a policy, in random order, and let people click.

    With P(position | label), a click at position p is 1/p as probable as at the top.
    """
    image_C = rng.permutation(np.repeat(np.arange(len(policy_MK)), events))
    label_C = draw(policy_MK[image_C], rng)
    click_C = click_MK[image_C, label_C]
    position_C = None
    if position_KP is not None:
        position_C = draw(position_KP[label_C], rng) + 1
        click_C = click_C / position_C
    clicked_C = rng.random(len(image_C)) < click_C
    return Impressions(image_C, label_C, clicked_C, policy_MK[image_C, label_C], position_C)


def draw_pairs(share_MK: np.ndarray, pairs: int, floor: float, rng: np.random.Generator) -> Pairs:
    """Show `pairs` pairs of different labels of each image, and let people prefer one."""
    n_images, n_classes = share_MK.shape
    image_C = rng.permutation(np.repeat(np.arange(n_images), pairs))
    first_C = rng.integers(n_classes, size=len(image_C))
    second_C = (first_C + rng.integers(1, n_classes, size=len(image_C))) % n_classes
    first_share_C = share_MK[image_C, first_C] + floor
    second_share_C = share_MK[image_C, second_C] + floor
    first_wins_C = rng.random(len(image_C)) < first_share_C / (first_share_C + second_share_C)
    return Pairs(
        image_C,
        np.where(first_wins_C, first_C, second_C),
        np.where(first_wins_C, second_C, first_C),
    )


def tables(votes: Votes, seed: int) -> Iterator[tuple[str, pa.Table]]:
    """Yield every table with its name."""
    share_MK = votes.share_MK
    uniform_MK, clean_MK = uniform_policy(share_MK), click_probabilities(share_MK, 0.0)
    noisy_MK = click_probabilities(share_MK, 0.2)
    for events in EVENTS:
        for noise in NOISES:
            name = f"clicks-{events}-{noise:g}"
            click_MK = click_probabilities(share_MK, noise)
            seen = draw_impressions(uniform_MK, click_MK, events, _generator(seed, name))
            yield name, _impressions(votes, seen, _generator(seed, f"{name} times"))
        name = f"preferences-{events}"
        yield name, _pairs(votes, draw_pairs(share_MK, events, FLOOR, _generator(seed, name)))
    position_KP = position_probabilities(len(votes.classes), POSITIONS, TILT)
    biased_MK = biased_policy(share_MK, SKEW, EXPLORATION)
    for name, policy_MK, click_MK, places_KP in (
        ("clicks-positions", uniform_MK, clean_MK, position_KP),
        ("log-biased", biased_MK, noisy_MK, None),
        ("log-uniform", uniform_MK, noisy_MK, None),
    ):
        rng = _generator(seed, name)
        seen = draw_impressions(policy_MK, click_MK, max(EVENTS), rng, places_KP)
        yield name, _impressions(votes, seen, _generator(seed, f"{name} times"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("votes", type=Path)
    options.add_argument("target", type=Path)
    options.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    given = options.parse_args()
    given.target.mkdir(parents=True, exist_ok=True)
    for name, table in tables(read_votes(given.votes), given.seed):
        pq.write_table(table, given.target / f"{name}.parquet")
        print(f"{given.target / name}.parquet: {len(table)} rows")


def _generator(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for every table: adding one changes no other."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def _impressions(votes: Votes, seen: Impressions, rng: np.random.Generator) -> pa.Table:
    events = len(seen.image_C)
    users_U = np.array([f"user-{number}" for number in range(USERS)])
    columns = {
        "image": votes.images[seen.image_C],
        "label": votes.classes[seen.label_C],
        "clicked": seen.clicked_C,
        "propensity": seen.propensity_C,
        "time": START + rng.exponential(GAP, events).cumsum(),
        "user": users_U[rng.integers(USERS, size=events)],
    }
    if seen.position_C is not None:
        columns["position"] = seen.position_C
    return pa.table(columns)


def _pairs(votes: Votes, pairs: Pairs) -> pa.Table:
    return pa.table(
        {
            "image": votes.images[pairs.image_C],
            "preferred": votes.classes[pairs.preferred_C],
            "rejected": votes.classes[pairs.rejected_C],
        }
    )


if __name__ == "__main__":
    main()
