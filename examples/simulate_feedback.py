"""Digits, and simulated people who judge them. Usage: simulate_feedback.py FOLDER

FOLDER/digits/train.parquet, test.parquet    images with image_id and label
FOLDER/photos/                the same images as files, without labels
FOLDER/clicks.parquet         what a policy showed, with its propensities, and what was clicked
FOLDER/votes.parquet          what twelve people take every image for
FOLDER/preferences.parquet    which of two labels fits better
FOLDER/grades.parquet         how well a label fits, from 1 to 5
"""

import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import visgrpo as vg

EVENTS = 30  # impressions of an image; also its comparisons, and its grades
LOOKED_AT = np.array([1.0, 0.6, 0.3])  # how often people look at the first, second, third place
PEOPLE, CARELESS = 12, 2  # voters, and how many of them vote for anything
datasets.disable_progress_bars()


def main(folder):
    rng = np.random.default_rng(0)
    splits = vg.read("digits")
    parts, classes = (splits.train, splits.test), splits.train.classes
    images = [image for part in parts for image in part.images]
    label_M = np.concatenate([part.labels for part in parts])
    name_M = np.array([f"{row:04}.png" for row in range(len(images))])
    write_images(folder, images, label_M, name_M, classes, len(splits.train))

    K, names = len(classes), np.array(classes)
    opinion_MK = opinions(images, label_M, K)
    row = np.repeat(np.arange(len(images)), EVENTS)
    events = {"image": name_M[row]}

    # The policy that wrote the log prefers other labels for every image, but shows all of them.
    logging_MK = 0.8 * rng.dirichlet(np.full(K, 0.5), len(images)) + 0.2 / K
    shown = drawn(logging_MK[row], rng)
    place = rng.integers(len(LOOKED_AT), size=len(row))
    clicked = rng.random(len(row)) < opinion_MK[row, shown] * LOOKED_AT[place]
    seconds = rng.exponential(30 * opinion_MK[row, shown]).round(1)
    write(
        folder / "clicks.parquet",
        **events,
        label=names[shown],
        clicked=clicked,
        dwell=pa.array(seconds, mask=~clicked),
        position=place + 1,
        propensity=logging_MK[row, shown],
        time=1_735_689_600.0 + np.arange(len(row)),
    )

    voted, user = (index.ravel() for index in np.indices((len(images), PEOPLE)))
    vote = drawn(opinion_MK[voted], rng)
    vote[user < CARELESS] = rng.integers(K, size=(user < CARELESS).sum())
    write(
        folder / "votes.parquet",
        image=name_M[voted],
        label=names[vote],
        votes=np.ones_like(vote),
        user=[f"person {number}" for number in user],
    )

    first = rng.integers(K, size=len(row))
    second = (first + rng.integers(1, K, size=len(row))) % K
    fits, other = opinion_MK[row, first], opinion_MK[row, second]
    wins = rng.random(len(row)) < fits / (fits + other)
    write(
        folder / "preferences.parquet",
        **events,
        preferred=names[np.where(wins, first, second)],
        rejected=names[np.where(wins, second, first)],
    )

    grade = (1 + 4 * fits + rng.normal(0, 0.5, len(row))).round().clip(1, 5)
    write(folder / "grades.parquet", **events, label=names[first], grade=grade)


def opinions(images, label_M, K):
    """The share of people who take each image for each digit: half know, half go by looks."""
    ink_MD = np.stack([np.asarray(image.convert("L").resize((8, 8))).ravel() for image in images])
    ink_MD = ink_MD / 255
    mean_KD = np.stack([ink_MD[label_M == k].mean(axis=0) for k in range(K)])
    looks_MK = np.exp(-((ink_MD[:, None] - mean_KD) ** 2).sum(axis=2))
    return (np.eye(K)[label_M] + looks_MK / looks_MK.sum(axis=1, keepdims=True)) / 2


def drawn(probability_NK, rng):
    """One class id for each row."""
    below_NK = probability_NK.cumsum(axis=1)[:, :-1] < rng.random((len(probability_NK), 1))
    return below_NK.sum(axis=1)


def write_images(folder, images, label_M, name_M, classes, train):
    features = datasets.Features(
        image_id=datasets.Value("string"),
        image=datasets.Image(),
        label=datasets.ClassLabel(names=list(classes)),
    )
    for name, part in (("train", slice(train)), ("test", slice(train, None))):
        columns = {"image_id": name_M[part], "image": images[part], "label": label_M[part]}
        file = folder / "digits" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features).to_parquet(str(file))
    (folder / "photos").mkdir(exist_ok=True)
    for name, image in zip(name_M, images, strict=True):
        image.save(folder / "photos" / name)


def write(file, **columns):
    pq.write_table(pa.table(columns), file)
    print(f"{file}: {len(columns['image']):,} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
