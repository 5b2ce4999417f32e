"""The demo's people: what they click is what is said of them, and the truth is hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from visgrpo import read
from visgrpo.tasks.demo_people import CLICKS_RIGHT, CLICKS_WRONG, EXPLORED, OFFERS, ask_people


@pytest.fixture(scope="module")
def people(tiny_clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    ask_people(tiny_clip_folder, folder, seed=3)
    return folder


def test_clicks_are_as_frequent_as_is_said_and_propensities_sum_to_one(people: Path) -> None:
    log = pq.read_table(people / "clicks.parquet").to_pydict()
    pictures = pq.read_table(people / "pictures" / "train.parquet").to_pydict()
    truth = dict(zip(pictures["image_id"], pictures["label"], strict=True))
    assert len(log["image"]) == OFFERS * len(truth)
    pairs = zip(log["image"], log["label"], strict=True)
    right = np.array([truth[image] == label for image, label in pairs])
    clicked, propensity = np.array(log["clicked"]), np.array(log["propensity"])
    for rate, rows in ((CLICKS_RIGHT, right), (CLICKS_WRONG, ~right)):
        noise = 4 * np.sqrt(rate * (1 - rate) / rows.sum())
        assert abs(clicked[rows].mean() - rate) < noise
    K = len(set(pictures["label"]))
    assert propensity.min() >= EXPLORED / K
    # 1 / propensity has as its mean the number of labels.
    assert abs((1 / propensity).mean() / K - 1) < 0.05


def test_guessed_labels_come_from_clicks_alone_and_files_stay(
    people: Path, tiny_clip_folder: Path
) -> None:
    files = {path: path.stat().st_mtime_ns for path in people.rglob("*.parquet")}
    ask_people(tiny_clip_folder, people, seed=3)
    assert {path: path.stat().st_mtime_ns for path in people.rglob("*.parquet")} == files
    assert len(files) == 5
    tables = {
        name: pq.read_table(people / name / "train.parquet").to_pydict()
        for name in ("guessed", "pictures")
    }
    truth = dict(zip(tables["pictures"]["image_id"], tables["pictures"]["label"], strict=True))
    pairs = zip(tables["guessed"]["image_id"], tables["guessed"]["label"], strict=True)
    right = np.mean([truth[image] == label for image, label in pairs])
    assert 0.2 < right < 1.0  # better than chance, and not the truth
    assert len(read(str(people / "guessed")).train.classes) == 10
