"""What feedback is worth once there is a model: predicted pairs, groups of a log, doubly robust."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feedback_tables import (
    CLASSES,
    FEATURES,
    Linear,
    Listening,
    config_of,
    inputs,
    name,
    splits_of,
    write_table,
)

from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError
from visgrpo.feedback.learn import FeedbackLearning
from visgrpo.feedback.reward import Log, doubly_robust
from visgrpo.feedback.worth.cells import LogCells
from visgrpo.objectives import preset
from visgrpo.rewards.sets import parse_rewards
from visgrpo.tasks.clip.options import ClipConfig


@pytest.fixture
def splits(tiny_dataset: Table) -> Splits:
    return splits_of(tiny_dataset)


Rows = list[tuple[Any, ...]]
LOG_HEADER = "image label clicked propensity"
RATES = np.random.default_rng(2).uniform(0.1, 0.9, (24, 3))
WEIGHT = torch.tensor([[1.0, 0.0, -0.5], [0.0, 0.8, 0.2], [0.3, -0.4, 0.6]])
POLICY = (FEATURES @ WEIGHT).softmax(dim=1).double().numpy()


def logged_rows(rows: range, n: int = 12, seed: int = 0) -> Rows:
    """n impressions an image of labels drawn with their propensities."""
    rng = np.random.default_rng(seed)
    found: Rows = []
    for m in rows:
        p_K = rng.dirichlet(np.full(3, 4.0)).clip(0.1)
        p_K /= p_K.sum()
        for k in rng.choice(3, size=n, p=p_K):
            found.append((name(m), CLASSES[k], int(rng.random() < RATES[m, k]), float(p_K[k])))
    return found


def used(
    config: ClipConfig, splits: Splits, *, in_groups: bool = True
) -> tuple[Any, Log | None, list[str]]:
    """Feedback with the rewards that it ends with, the log of its groups, and what was said."""
    session = Listening()
    feedback = FeedbackLearning(config, splits, session)  # type: ignore[arg-type]
    rewards, grpo = feedback.start(
        Linear(WEIGHT),  # type: ignore[arg-type]
        inputs(),
        parse_rewards(config.reward, None, CLASSES, feedback.rewards),
        replace(preset("grpo"), scope="group" if in_groups else "batch"),
    )
    feedback.rewards = dict(zip(rewards.names, rewards.functions, strict=True))
    return feedback, getattr(grpo, "keywords", {}).get("log"), session.lines


def test_nothing_is_added_to_averaged_rewards(splits: Splits, tmp_path: Path) -> None:
    file = write_table(tmp_path / "log.csv", LOG_HEADER, logged_rows(range(24)))
    before: Any = FeedbackLearning(config_of(file), splits, Listening())  # type: ignore[arg-type]
    feedback, log, _ = used(config_of(file), splits)
    assert log is None
    assert torch.equal(feedback.rewards["clicks"].worth_MK, before.rewards["clicks"].worth_MK)


def test_the_log_becomes_groups(splits: Splits, tmp_path: Path) -> None:
    """Shares, harmonic mean propensities and click rates weighted by 1/p, by loops over rows."""
    rows = logged_rows(range(24))
    rows[:4] = [(name(0), "cat", 1, 0.5), (name(0), "cat", 0, 0.25), *rows[2:4]]
    del rows[60:63]  # three of image 5
    config = config_of(
        write_table(tmp_path / "log.csv", LOG_HEADER, rows), estimator="exact", off_policy="ratio"
    )
    feedback, log, lines = used(config, splits)
    worth, observed = feedback.rewards["clicks"].worth_MK, feedback.rewards["clicks"].observed_MK
    for m in (0, 5, 17):
        mine = [row for row in rows if row[0] == name(m)]
        for k, label in enumerate(CLASSES):
            shown = [row for row in mine if row[1] == label]
            assert observed[m, k].item() == bool(shown)
            assert log.shares_MK[m, k].item() == pytest.approx(len(shown) / len(mine))
            if shown:
                inverse = sum(1 / p for *_, p in shown)
                rate = sum(c / p for *_, c, p in shown) / inverse
                assert worth[m, k].item() == pytest.approx(rate)
                harmonic = np.log(len(shown) / inverse)
                assert log.log_propensities_MK[m, k].item() == pytest.approx(harmonic, abs=1e-6)
            else:
                assert log.log_propensities_MK[m, k].item() == 0.0
    assert feedback.rewards["clicks"].masks
    ratio = [POLICY[int(i[:2]), CLASSES.index(a)] / p for i, a, _, p in rows if int(i[:2]) < 16]
    effective = sum(ratio) ** 2 / sum(r * r for r in ratio)
    assert feedback.report["effective_samples"] == pytest.approx(effective, rel=1e-5)
    assert feedback.report["effective_share"] == pytest.approx(effective / len(ratio), rel=1e-5)
    assert any(
        line.startswith(f"Log: 189 impressions are worth {effective:,.0f}") for line in lines
    )


def test_logs_that_cannot_support_the_start(splits: Splits, tmp_path: Path) -> None:
    options: dict[str, Any] = {"estimator": "exact", "off_policy": "self-normalized"}
    file = write_table(tmp_path / "log.csv", LOG_HEADER, logged_rows(range(24)))
    with pytest.raises(UserError, match="its effective sample size is"):
        used(config_of(file, least_effective_share=0.999, **options), splits)
    single = [(name(m), "cat", m % 2, 0.5) for m in range(24)]
    alone = write_table(tmp_path / "single.csv", LOG_HEADER, single)
    with pytest.raises(UserError, match="two different labels"):
        used(config_of(alone, **options), splits)
    used(config_of(alone, **options), splits, in_groups=False)
    # The support is that of training images alone: validation and test do not count.
    wrong = [(*row[:3], 1e-4) for row in logged_rows(range(16, 24))]
    mixed = write_table(tmp_path / "mixed.csv", LOG_HEADER, logged_rows(range(16)) + wrong)
    used(config_of(mixed, **options), splits)


def test_doubly_robust_is_the_textbooks_sum(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Σ_k π_k r_k = Σ_k π_k q_k + mean of π/p (c - q) over an image's impressions, for any π."""
    rows = logged_rows(range(24), n=9)
    q = np.random.default_rng(9).random((24, 3))
    seen = {}

    def predicted(cells: Any, features_MD: np.ndarray, classes: int, *, seed: int) -> np.ndarray:
        seen.update(cells=cells, features=features_MD, seed=seed)
        return q

    monkeypatch.setattr("visgrpo.feedback.reward.predicted_clicks", predicted)
    file = write_table(tmp_path / "log.csv", LOG_HEADER, rows)
    feedback, log, _ = used(config_of(file, off_policy="doubly-robust", seed=7), splits)
    assert log is None
    assert not feedback.rewards["clicks"].masks
    assert seen["cells"].image_C.max() == 15  # q learns from training images alone
    np.testing.assert_allclose(seen["features"], FEATURES, rtol=1e-6)
    assert seen["seed"] == 7
    worth = feedback.rewards["clicks"].worth_MK.double().numpy()
    for seed in range(3):
        policy = np.random.default_rng(seed).dirichlet(np.ones(3), 24)
        for m in range(24):
            mine = [row for row in rows if row[0] == name(m)]
            value = policy[m] @ q[m]
            for _, label, click, p in mine:
                k = CLASSES.index(label)
                value += policy[m, k] / p * (click - q[m, k]) / len(mine)
            assert policy[m] @ worth[m] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("right_q", "right_p", "unbiased"),
    [(True, False, True), (False, True, True), (False, False, False)],
)
def test_doubly_robust_needs_one_of_two(
    right_q: bool, right_p: bool, unbiased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean table over 600 logs, in standard errors from the true click rates."""
    truth, p = RATES[:4], np.random.default_rng(6).dirichlet(np.full(3, 3.0), 4)
    q = truth if right_q else np.full((4, 3), 0.5)
    told = p if right_p else np.full((4, 3), 1 / 3)
    monkeypatch.setattr("visgrpo.feedback.reward.predicted_clicks", lambda *a, **b: q)
    rng = np.random.default_rng(10)
    tables = []
    for _ in range(600):
        count = np.stack([rng.multinomial(20, row) for row in p]).astype(float)
        clicks = rng.binomial(count.astype(int), truth).astype(float)
        image_C, label_C = np.nonzero(count)
        n, c = count[image_C, label_C], clicks[image_C, label_C]
        inverse = 1 / told[image_C, label_C]
        cells = LogCells(image_C, label_C, n, c, n * inverse, n * inverse**2, c * inverse)
        reward = doubly_robust(cells, np.ones(4, bool), FEATURES.double().numpy(), 3, seed=0)
        tables.append(reward.worth_MK.double().numpy())
    error = np.std(tables, axis=0, ddof=1) / np.sqrt(len(tables))
    z = np.abs(np.mean(tables, axis=0) - truth) / error
    assert (z.max() < 4) == unbiased


def test_unseen_pairs_are_predicted(splits: Splits, tmp_path: Path) -> None:
    """Grades that are linear in the features: what was left out is found again."""
    true = (FEATURES @ WEIGHT).double().numpy()
    rows = [
        (name(m), CLASSES[k], float(true[m, k])) for m in range(24) for k in range(3) if (m + k) % 4
    ]
    file = write_table(tmp_path / "grades.csv", "image label grade", rows)
    config = config_of(file, "grades", unknown="predict", prior_strength=1e-6)
    feedback, log, lines = used(config, splits)
    assert log is None
    reward = feedback.rewards["grades"]
    unseen = ~reward.observed_MK.numpy()
    assert unseen.sum() == 18
    assert not reward.masks
    error = np.abs(reward.worth_MK.numpy() - true)
    assert error[unseen].max() < 0.3
    assert error[~unseen].max() < 1e-4
    assert feedback.report["grades_predicted_r2"] > 0.97
    low, _, _ = used(replace(config, pessimism=2.0), splits)
    less = reward.worth_MK.numpy() - low.rewards["grades"].worth_MK.numpy()
    assert (less[unseen] > 0.001).all()  # twice the error of predictions
    assert any("18 unseen pairs predicted from 36; R²" in line for line in lines)


def test_predictions_learn_from_training_images_alone(splits: Splits, tmp_path: Path) -> None:
    found = []
    for salt in (0.0, 5.0):
        rows = [
            (name(m), CLASSES[k], (m * k) % 5 + salt * (m >= 16))
            for m in range(24)
            for k in range(3)
            if (m + k) % 5
        ]
        file = write_table(tmp_path / f"{salt}.csv", "image label grade", rows)
        feedback, _, _ = used(config_of(file, "grades", unknown="predict"), splits)
        found.append(feedback.rewards["grades"])
    assert torch.equal(found[0].worth_MK[:16], found[1].worth_MK[:16])
    unseen = ~found[0].observed_MK
    assert unseen[16:].any()
    assert torch.equal(found[0].worth_MK[unseen], found[1].worth_MK[unseen])


def test_too_little_to_predict_from(splits: Splits, tmp_path: Path) -> None:
    file = write_table(
        tmp_path / "log.csv", "image label clicked", [(name(m), "cat", 1) for m in (3, 17)]
    )
    with pytest.raises(UserError, match="--unknown mask or --unknown prior"):
        used(config_of(file, unknown="predict"), splits)
