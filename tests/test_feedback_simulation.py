"""Behaviour drawn from votes has the distributions that benchmarks/feedback/simulate.py says."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

BENCHMARKS = Path(__file__).parent.parent / "benchmarks" / "feedback"
SHARE_MK = np.array([[0.7, 0.3, 0.0], [0.0, 0.2, 0.8]])
MANY = 60_000


def loaded(name: str) -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module(name)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def simulate() -> Iterator[ModuleType]:
    yield from loaded("simulate")


@pytest.fixture(scope="module")
def prepare() -> Iterator[ModuleType]:
    yield from loaded("prepare")


@pytest.fixture
def votes(simulate: ModuleType, tmp_path: Path) -> Any:
    columns = {
        "image": ["7", "7", "12", "12"],
        "label": ["cat", "dog", "dog", "fox"],
        "votes": [35, 15, 10, 40],
    }
    pq.write_table(pa.table(columns), tmp_path / "votes.parquet")
    return simulate.read_votes(tmp_path / "votes.parquet")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def likely(successes: int, trials: int, probability: float) -> bool:
    """Whether a binomial count lies within four standard deviations of its mean."""
    deviation = math.sqrt(trials * probability * (1 - probability))
    return abs(successes - trials * probability) <= 4 * deviation


def test_votes_become_shares(votes: Any) -> None:
    assert votes.images.tolist() == ["12", "7"]
    assert votes.classes.tolist() == ["cat", "dog", "fox"]
    np.testing.assert_allclose(votes.share_MK, [[0, 0.2, 0.8], [0.7, 0.3, 0]])


def test_noise_moves_labels_but_no_click_through_rate(simulate: ModuleType) -> None:
    click_MK = simulate.click_probabilities(SHARE_MK, 0.3)
    np.testing.assert_allclose(click_MK, [[0.59, 0.31, 0.1], [0.1, 0.24, 0.66]])
    np.testing.assert_allclose(click_MK.mean(axis=1), 1 / 3)
    np.testing.assert_array_equal(simulate.click_probabilities(SHARE_MK, 0), SHARE_MK)


def test_the_biased_policy_prefers_the_class_after_the_favourite(simulate: ModuleType) -> None:
    policy_MK = simulate.biased_policy(SHARE_MK, math.log(2), 0.1)
    # Softmax weights 1, 2, 1 and 2, 1, 1; a tenth is spread evenly.
    rare, often = 0.9 / 4 + 0.1 / 3, 0.9 / 2 + 0.1 / 3
    np.testing.assert_allclose(policy_MK, [[rare, often, rare], [often, rare, rare]])
    np.testing.assert_allclose(simulate.uniform_policy(SHARE_MK), np.full((2, 3), 1 / 3))


def test_draws_follow_their_rows(simulate: ModuleType) -> None:
    drawn_C = simulate.draw(np.repeat(SHARE_MK, MANY, axis=0), rng())
    for row, probabilities_K in enumerate(SHARE_MK):
        counts_K = np.bincount(drawn_C[row * MANY : (row + 1) * MANY], minlength=3)
        possible = probabilities_K > 0
        assert counts_K[~possible].sum() == 0
        assert chisquare(counts_K[possible], MANY * probabilities_K[possible]).pvalue > 1e-3


def test_impressions_are_offered_by_the_policy_and_clicked_as_promised(
    simulate: ModuleType,
) -> None:
    policy_MK = np.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
    click_MK = simulate.click_probabilities(SHARE_MK, 0.3)
    seen = simulate.draw_impressions(policy_MK, click_MK, MANY, rng())
    assert np.bincount(seen.image_C).tolist() == [MANY, MANY]
    assert seen.position_C is None
    for image in range(2):
        for label in range(3):
            events_C = (seen.image_C == image) & (seen.label_C == label)
            shown = int(events_C.sum())
            assert likely(shown, MANY, policy_MK[image, label])
            assert likely(int(seen.clicked_C[events_C].sum()), shown, click_MK[image, label])
            assert set(seen.propensity_C[events_C].tolist()) == {policy_MK[image, label]}
    assert 0.4 < seen.image_C[: MANY // 10].mean() < 0.6  # images take turns in random order


def test_propensities_recover_the_value_of_another_policy(simulate: ModuleType) -> None:
    policy_MK = simulate.biased_policy(SHARE_MK, 2.0, 0.2)
    seen = simulate.draw_impressions(policy_MK, SHARE_MK, MANY, rng())
    target_C = SHARE_MK[seen.image_C, seen.label_C]
    terms_C = target_C / seen.propensity_C * seen.clicked_C
    true_value = (0.7**2 + 0.3**2 + 0.2**2 + 0.8**2) / 2
    error = terms_C.std() / math.sqrt(len(terms_C))
    assert abs(terms_C.mean() - true_value) < 4 * error
    assert seen.clicked_C.mean() < true_value - 0.1  # what ignoring the policy would report


def test_positions_lean_by_class_and_hide_clicks(simulate: ModuleType) -> None:
    position_KP = simulate.position_probabilities(3, 2, math.log(2))
    np.testing.assert_allclose(position_KP, [[2 / 3, 1 / 3], [1 / 2, 1 / 2], [1 / 3, 2 / 3]])
    certain_MK, uniform_MK = np.ones((2, 3)), np.full((2, 3), 1 / 3)
    seen = simulate.draw_impressions(uniform_MK, certain_MK, MANY, rng(), position_KP)
    for label in range(3):
        of_label_C = seen.label_C == label
        top_C = of_label_C & (seen.position_C == 1)
        assert likely(int(top_C.sum()), int(of_label_C.sum()), position_KP[label, 0])
    assert seen.clicked_C[seen.position_C == 1].all()
    below_C = seen.position_C == 2
    assert likely(int(seen.clicked_C[below_C].sum()), int(below_C.sum()), 1 / 2)


def test_preferences_follow_bradley_and_terry(simulate: ModuleType) -> None:
    pairs = simulate.draw_pairs(SHARE_MK[:1], MANY, 0.05, rng())
    assert (pairs.preferred_C != pairs.rejected_C).all()
    won = Counter(zip(pairs.preferred_C.tolist(), pairs.rejected_C.tolist(), strict=True))
    strength = {0: 0.75, 1: 0.35, 2: 0.05}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        shown = won[a, b] + won[b, a]
        assert likely(shown, MANY, 1 / 3)
        assert likely(won[a, b], shown, strength[a] / (strength[a] + strength[b]))


def test_tables_are_what_feedback_reads_and_depend_on_the_seed_alone(
    simulate: ModuleType, votes: Any
) -> None:
    first, again, other = (dict(simulate.tables(votes, seed)) for seed in (0, 0, 1))
    assert list(first) == [
        *["clicks-2-0", "clicks-2-0.2", "clicks-2-0.4", "preferences-2"],
        *["clicks-8-0", "clicks-8-0.2", "clicks-8-0.4", "preferences-8"],
        *["clicks-32-0", "clicks-32-0.2", "clicks-32-0.4", "preferences-32"],
        *["clicks-positions", "log-biased", "log-uniform"],
    ]
    for name, table in first.items():
        assert table.equals(again[name])
        assert not table.equals(other[name])
        assert set(table["image"].to_pylist()) == {"7", "12"}
    clicks = first["clicks-8-0.2"]
    assert clicks.column_names == ["image", "label", "clicked", "propensity", "time", "user"]
    assert len(clicks) == 2 * 8
    assert (np.diff(clicks["time"].to_numpy()) > 0).all()
    assert clicks["propensity"].to_pylist() == [1 / 3] * 16
    assert first["preferences-8"].column_names == ["image", "preferred", "rejected"]
    assert set(first["clicks-positions"]["position"].to_pylist()) <= {1, 2, 3, 4, 5}


def test_the_split_holds_out_each_image_once(prepare: ModuleType) -> None:
    train, test = prepare.split_rows(100, 20, 0)
    assert len(test) == 20
    assert sorted([*train, *test]) == list(range(100))
    assert train == sorted(train)
    assert prepare.split_rows(100, 20, 1) != (train, test)


@pytest.fixture(scope="module")
def feedback_table() -> ModuleType:
    # Not by name: other benchmarks have a table.py of their own.
    spec = importlib.util.spec_from_file_location("feedback_table", BENCHMARKS / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_means_over_seeds(feedback_table: ModuleType, tmp_path: Path) -> None:
    for run, accuracies in {"supervised": (0.5, 0.6), "clicks-32-0.2": (0.48, 0.62)}.items():
        for seed, accuracy in enumerate(accuracies):
            folder = tmp_path / f"seed-{seed}" / run
            folder.mkdir(parents=True)
            measures = dict.fromkeys(feedback_table.COLUMNS, 0.25) | {"accuracy": accuracy}
            (folder / "people.json").write_text(json.dumps({"model": measures}))
    runs = feedback_table.read_runs(tmp_path)
    row = feedback_table.main_table(runs)[-1]
    assert row.split(" | ")[0] == "| (c) clicks, 32 events, noise 0.2"
    assert row.split(" | ")[1] == "55.0 ± 9.9"
    assert row.endswith(" | +0.0 ± 2.8 |")
    assert feedback_table.clicks_table(runs, "people_kl")[-1] == "| 32 | – | 0.250 ± 0.000 | – |"
