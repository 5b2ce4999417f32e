"""From tables of feedback to the rewards of a CLIP job: by hand, and kept apart from held-out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from feedback_tables import (
    CLASSES,
    Listening,
    OneProcess,
    config_of,
    name,
    splits_of,
    write_table,
)
from scipy.optimize import brentq
from scipy.special import digamma, expit

from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError
from visgrpo.feedback import learn
from visgrpo.feedback.images import read_votes
from visgrpo.feedback.learn import FeedbackLearning
from visgrpo.feedback.options import FEEDBACK_REWARDS
from visgrpo.feedback.posteriors import MAKERS, best_answers
from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.matching import match
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.clip.train import objective_of

Log = list[tuple[Any, ...]]


@pytest.fixture
def splits(tiny_dataset: Table) -> Splits:
    return splits_of(tiny_dataset)


def read(config: ClipConfig, splits: Splits) -> tuple[Any, list[str]]:
    session = Listening()
    return FeedbackLearning(config, splits, session), session.lines  # type: ignore[arg-type]


# Every pair of images 0-19 shown twice, at a position each; clicks by a rule with both answers.
def impressions(rows: range = range(24), salt: int = 0) -> Log:
    return [
        (name(m), CLASSES[k], int((m * 7 + k * 3 + p * 5 + salt) % 4 > p), p, (m + k + salt) % 5)
        for m in rows
        for k in range(3)
        for p in (1, 2)
    ]


def votes(rows: range = range(24), salt: int = 0) -> Log:
    return [
        (name(m), CLASSES[k], (m + 2 * k + u + salt) % 3, f"user{u}")
        for m in rows
        for k in range(3)
        for u in range(4)
    ]


def preferences(rows: range = range(24), salt: int = 0) -> Log:
    return [
        (name(m), CLASSES[(m + salt) % 3], CLASSES[(m + salt + n) % 3], int(n == 2 and m % 2))
        for m in rows
        for n in (1, 2)
    ]


def grades(rows: range = range(24), salt: int = 0) -> Log:
    return [
        (name(m), CLASSES[k], (m * 3 + k * 5 + u + salt) % 7)
        for m in rows
        for k in range(3)
        for u in range(2)
    ]


KINDS: dict[str, tuple[str, Callable[..., Log], dict[str, Any]]] = {
    "clicks": ("image label clicked position dwell", impressions, {}),
    "clicks, no bias": (
        "image label clicked position dwell",
        impressions,
        {"position_bias": "none"},
    ),
    "dwell": ("image label clicked position dwell", impressions, {}),
    "votes": ("image label votes user", votes, {}),
    "votes, dawid-skene": ("image label votes user", votes, {"raters": "dawid-skene"}),
    "log-votes": ("image label votes user", votes, {"pessimism": 1.0}),
    "preferences": ("image preferred rejected tie", preferences, {}),
    "grades": ("image label grade", grades, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_feedback_never_reaches_training(
    kind: str, splits: Splits, tmp_path: Path
) -> None:
    header, make, options = KINDS[kind]
    reward = kind.partition(",")[0]
    tables = []
    # Other feedback on validation images, and none at all on test images.
    for held_out in (make(range(16, 24)), make(range(16, 20), 1)):
        rows = make(range(16)) + held_out
        file = write_table(tmp_path / "log.csv", header, rows)
        feedback, _ = read(config_of(file, reward, **options), splits)
        tables.append(feedback.rewards[reward].worth_MK)
    assert torch.equal(tables[0][:16], tables[1][:16])
    assert not torch.equal(tables[0][16:20], tables[1][16:20])
    assert not torch.equal(tables[0][20:], tables[1][20:])
    assert all(torch.isfinite(table).all() for table in tables)


def test_clicks_by_hand(splits: Splits, tmp_path: Path) -> None:
    """One click in four impressions of training images is the prior's mean, 2 its strength."""
    rows = [(0, "cat", 3, 1), (0, "dog", 1, 0), (16, "cat", 5, 5)]
    file = write_table(
        tmp_path / "log.csv", "image label shown clicked", [(name(m), *rest) for m, *rest in rows]
    )
    feedback, lines = read(config_of(file), splits)
    reward = feedback.rewards["clicks"]
    assert reward.worth_MK[0].tolist() == pytest.approx([(0.5 + 1) / 5, 0.5 / 3, 0.25])
    assert reward.worth_MK[1].tolist() == [0.25] * 3
    assert reward.observed_MK.sum().item() == 3
    assert reward.masks
    everything = 6 / 9  # what held-out images have for a prior
    assert reward.worth_MK[16, 0].item() == pytest.approx((2 * everything + 5) / 7)
    stronger, _ = read(config_of(file, prior_strength=8.0), splits)
    assert stronger.rewards["clicks"].worth_MK[0, 0].item() == pytest.approx((2 + 1) / 11)
    low, _ = read(config_of(file, pessimism=2.0), splits)
    mean, strength = 0.3, 5
    sd = (mean * (1 - mean) / (strength + 1)) ** 0.5
    assert low.rewards["clicks"].worth_MK[0, 0].item() == pytest.approx(mean - 2 * sd)
    assert feedback.report["events"] == feedback.report["matched"] == 3
    assert feedback.report["coverage"] == pytest.approx(2 / 48)
    assert feedback.report["images_with_feedback"] == 1
    assert any("of the training images 1 of 16 have some" in line for line in lines)


def test_preferences_by_hand(splits: Splits, tmp_path: Path) -> None:
    """One comparison, scores ±s: 1 - σ(2s) = s · strength, the prior's precision."""
    rows = [(name(m), "cat", "dog") for m in (0, 17)]
    file = write_table(tmp_path / "pairs.csv", "image preferred rejected", rows)
    for strength in (None, 4.0):
        feedback, _ = read(config_of(file, "preferences", prior_strength=strength), splits)
        s = brentq(lambda s, tau=strength or 1.0: 1 - expit(2 * s) - s * tau, 0, 1)
        assert feedback.rewards["preferences"].worth_MK[0].tolist() == pytest.approx([s, -s, 0])
        assert feedback.report["tie"] == 0


def test_half_life_by_hand(splits: Splits, tmp_path: Path) -> None:
    """An hour ago counts half: cat 0.5 clicks of 1.5, dog 1 of 1, so the prior's mean is 0.6."""
    rows = [(0, "cat", 1, 0), (0, "cat", 0, 3600), (0, "dog", 1, 3600)]
    table = [(name(m), *rest) for m, *rest in rows]
    file = write_table(tmp_path / "log.csv", "image label clicked time", table)
    options: dict[str, Any] = {"half_life": 3600.0, "select": "accuracy"}
    feedback, _ = read(config_of(file, **options), splits)
    worth_K = feedback.rewards["clicks"].worth_MK[0].tolist()
    assert worth_K == pytest.approx([(1.2 + 0.5) / 3.5, (1.2 + 1) / 3, 0.6])
    dwell = write_table(
        tmp_path / "dwell.csv", "image label clicked time dwell", [(*row, 1.0) for row in table]
    )
    timed, _ = read(config_of(dwell, "dwell", **options), splits)
    every, _ = read(config_of(dwell, "dwell", select="accuracy"), splits)
    assert not torch.equal(timed.rewards["dwell"].worth_MK, every.rewards["dwell"].worth_MK)


def test_unreliable_raters_count_less(splits: Splits, tmp_path: Path) -> None:
    """Three people agree, the fourth answers another label every time."""
    rows = [
        (name(m), CLASSES[(m + (user == 3) * (1 + m % 2)) % 3], 1, f"user{user}")
        for m in range(20)
        for user in range(4)
    ]
    file = write_table(tmp_path / "votes.csv", "image label votes user", rows)
    plain, _ = read(config_of(file, "votes"), splits)
    weighted, _ = read(config_of(file, "votes", raters="dawid-skene"), splits)
    ours, theirs = weighted.rewards["votes"].worth_MK, plain.rewards["votes"].worth_MK
    agreed = torch.arange(16) % 3
    assert (ours[range(16), agreed] > theirs[range(16), agreed] + 0.02).all()
    assert weighted.report["raters"] == 4
    assert 0.5 < weighted.report["rater_reliability"] < 0.95
    assert "raters" not in plain.report


def test_queries_and_repeated_events(splits: Splits, tmp_path: Path) -> None:
    rows = [(name(m), "cat", 1, 10) for m in (3, 17)] + [(name(3), "cat", 1, 10)]
    file = write_table(tmp_path / "log.csv", "image label clicked time", rows)
    with pytest.raises(UserError, match="--drop-duplicates"):
        read(config_of(file), splits)
    feedback, _ = read(config_of(file, drop_duplicates=True), splits)
    assert feedback.report["events"] == 2
    query = "SELECT DISTINCT image, label, clicked FROM events"
    chosen, _ = read(config_of(file, query=query), splits)
    assert chosen.report["events"] == 2


def test_two_rewards_of_one_table(splits: Splits, tmp_path: Path) -> None:
    header, make, _ = KINDS["clicks"]
    file = write_table(tmp_path / "log.csv", header, make(range(20)))
    feedback, _ = read(config_of(file, "clicks", "hard", "dwell"), splits)
    assert list(feedback.rewards) == ["clicks", "dwell"]
    assert feedback.report["examination"]["1"] == pytest.approx(1.0)
    assert 0 < feedback.report["examination"]["2"] < 1
    unbiased, _ = read(config_of(file, position_bias="none"), splits)
    assert "examination" not in unbiased.report


def test_positions_that_cannot_be_compared(splits: Splits, tmp_path: Path) -> None:
    """Labels that were shown at one position each: clicks stand as they are, which is said."""
    rows = [(name(m), CLASSES[k], (m + k) % 2, k + 1) for m in range(20) for k in range(3)]
    file = write_table(tmp_path / "log.csv", "image label clicked position", rows)
    feedback, lines = read(config_of(file), splits)
    plain, _ = read(config_of(file, position_bias="none"), splits)
    assert torch.equal(feedback.rewards["clicks"].worth_MK, plain.rewards["clicks"].worth_MK)
    assert "examination" not in feedback.report
    assert any("clicks are not corrected for positions" in line for line in lines)


def test_advantages_are_not_scaled_by_what_nobody_clicked() -> None:
    feedback = {"feedback": "log.csv", "reward": ("clicks",)}
    assert objective_of(ClipConfig(**feedback)).scale == "none"
    assert objective_of(ClipConfig(**feedback, scale="std")).scale == "std"
    assert objective_of(ClipConfig()).scale == "std"


def test_votes_are_kept_to_measure_with(splits: Splits, tmp_path: Path) -> None:
    rows = [(name(17), "dog", 3), (name(2), "cat", 5), (name(2), "apple", 1), (name(23), "dog", 2)]
    file = write_table(tmp_path / "votes.csv", "image label votes", rows)
    feedback, _ = read(config_of(file, "votes", unknown="prior"), splits)
    assert feedback.votes("validation").tolist() == [[0, 0, 0], [0, 3, 0], [0, 0, 0], [0, 0, 0]]
    assert feedback.votes("train")[[2, 0]].tolist() == [[5, 0, 1], [0, 0, 0]]
    processes: Any = OneProcess()
    assert read_votes(file, splits.test, processes).tolist() == [[0, 0, 0]] * 3 + [[0, 2, 0]]
    worth_MK = feedback.rewards["votes"].worth_MK
    assert worth_MK[2].tolist() == pytest.approx([5.5 / 7.5, 0.5 / 7.5, 1.5 / 7.5])
    logs, _ = read(config_of(file, "log-votes", unknown="prior"), splits)
    expected = digamma([5.5, 0.5, 1.5]) - digamma(7.5)
    assert logs.rewards["log-votes"].worth_MK[2].tolist() == pytest.approx(expected.tolist())
    # All labels of an image that people voted on are known: the others were passed over.
    assert feedback.rewards["votes"].observed_MK.all(dim=1).nonzero().flatten().tolist() == [
        2, 17, 23,
    ]  # fmt: skip
    clicks = write_table(tmp_path / "log.csv", "image label clicked", [(name(2), "cat", 1)])
    other, _ = read(config_of(clicks, select="accuracy"), splits)
    assert other.votes("train") is None


def test_every_reward_that_can_be_named_can_be_made() -> None:
    assert tuple(MAKERS) == FEEDBACK_REWARDS


def test_the_best_answers(tmp_path: Path) -> None:
    """The label with the highest rate of those that were shown, however low."""
    rows = [("a", "dog", 9, 0), ("c", "cat", 5, 2), ("c", "apple", 4, 3), ("c", "dog", 9, 6)]
    file = write_table(tmp_path / "log.csv", "image label shown clicked", rows)
    with open_events(file) as events:
        matched = match(events, [["a"], ["b"], ["c"]], CLASSES)
        best_M, judged_M = best_answers(matched, config_of(file))
    assert judged_M.tolist() == [True, False, True]
    assert best_M[[0, 2]].tolist() == [1, 2]


SPARSE = [(name(m), "cat", 1) for m in (3, 5, 11, 17)]


def test_images_without_feedback_are_left_out(splits: Splits, tmp_path: Path) -> None:
    file = write_table(tmp_path / "log.csv", "image label clicked", SPARSE)
    feedback, lines = read(config_of(file), splits)
    train = feedback.splits.train
    assert list(train.columns["feedback_row"]) == [3, 5, 11]
    assert [Path(file).name for file in train.columns["file"]] == [name(m) for m in (3, 5, 11)]
    assert list(train.subset([2, 0]).columns["feedback_row"]) == [11, 3]
    assert list(feedback.splits.validation.columns["feedback_row"]) == [16, 17, 18, 19]
    assert list(feedback.splits.test.columns["feedback_row"]) == [20, 21, 22, 23]
    assert any("13 of 16 training images have no feedback and were left out" in x for x in lines)


def test_labels_known_alone_are_said_to_teach_nothing(splits: Splits, tmp_path: Path) -> None:
    """Two of three judged images know one label; with a pair for each nothing is said."""
    rows = [*SPARSE, (name(3), "dog", 0)]
    for more, alone in (([], True), ([(name(5), "dog", 0), (name(11), "dog", 0)], False)):
        file = write_table(tmp_path / "log.csv", "image label clicked", [*rows, *more])
        said = "2 of 3 training images with feedback have it on one label alone"
        for options, hears in (({}, alone), ({"unknown": "predict"}, False)):
            _, lines = read(config_of(file, **options), splits)
            assert any(said in x and "take --unknown predict" in x for x in lines) == hears


@pytest.mark.parametrize(
    "options",
    [{"supervised_weight": 0.5}, {"warm_start": 3}, {"unknown": "prior"}, {"unknown": "predict"}],
    ids=str,
)
def test_images_from_which_something_else_is_learned_stay(
    options: dict[str, Any], splits: Splits, tmp_path: Path
) -> None:
    file = write_table(tmp_path / "log.csv", "image label clicked", SPARSE)
    feedback, lines = read(config_of(file, **options), splits)
    assert list(feedback.splits.train.columns["feedback_row"]) == list(range(16))
    assert not any("left out" in line for line in lines)
    assert feedback.rewards["clicks"].masks == ("unknown" not in options)
    assert feedback.report["unknown"] == options.get("unknown", "mask")


def test_images_that_the_data_does_not_have_are_listed(splits: Splits, tmp_path: Path) -> None:
    gone = [("gone/<b>.png", "cat", 1)] * 3 + [(f"{n}.jpg", "dog", 0) for n in range(6)]
    file = write_table(tmp_path / "log.csv", "image label clicked", SPARSE + gone)
    feedback, lines = read(config_of(file), splits)
    assert feedback.report["unmatched_images"] == 7
    assert feedback.report["matched"] == 4
    (told,) = [line for line in lines if "are not in the data" in line]
    assert "9 of 13 events are about 7 images" in told
    assert told.endswith(
        '"gone/<b>.png" (3), "0.jpg" (1), "1.jpg" (1), "2.jpg" (1), "3.jpg" (1), ….'
    )


# Mistakes


def refused(config: ClipConfig, splits: Splits) -> str:
    with pytest.raises(UserError) as caught:
        read(config, splits)
    return str(caught.value)


def test_tables_that_will_not_do(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks = write_table(tmp_path / "log.csv", "image label clicked", SPARSE)
    assert "cannot hold grades and votes" in refused(config_of(clicks, "votes", "grades"), splits)
    assert "holds impressions, not votes" in refused(config_of(clicks, "votes"), splits)
    held = write_table(tmp_path / "held.csv", "image label clicked", SPARSE[-1:])
    assert "No training image has feedback" in refused(config_of(held), splits)
    blind = write_table(tmp_path / "blind.csv", "image label clicked", SPARSE[:-1])
    assert "--select accuracy, or a larger --validation-fraction" in refused(
        config_of(blind), splits
    )
    assert "No validation image" in refused(config_of(blind, unknown="prior"), splits)
    read(config_of(blind, select="accuracy"), splits)
    odd = write_table(tmp_path / "odd.csv", "image label clicked", [(name(0), "aple", 1)])
    assert 'row 1: unknown label "aple". Did you mean "apple"' in refused(config_of(odd), splits)
    other = write_table(tmp_path / "other.csv", "image label clicked", [("x.png", "cat", 1)])
    assert "none of its images is in the data" in refused(config_of(other), splits)
    lacking = refused(config_of(clicks, off_policy="ratio", estimator="exact"), splits)
    assert 'needs the column "propensity"' in lacking
    assert 'no column "nmae"' in refused(config_of(clicks, id_column="nmae"), splits)
    assert "which" in refused(config_of(clicks, "dwell"), splits)
    monkeypatch.setattr(learn, "MOST_PAIRS", 71)
    assert "24 images × 3 labels are more pairs than fit in memory (71)" in refused(
        config_of(clicks), splits
    )


def test_images_without_names(tiny_dataset: Table, tmp_path: Path) -> None:
    clicks = write_table(tmp_path / "log.csv", "image label clicked", SPARSE)
    bare = Splits(*(tiny_dataset.subset([m]) for m in range(3)))
    assert "none of its columns names its images" in refused(config_of(clicks), bare)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feedback": None}, 'Reward "clicks" is of what people did: name it with --feedback'),
        ({"reward": ("hard",)}, "--feedback needs a --reward that is made of it. Choose from"),
        ({"reward": ("vote",)}, 'made of it. Did you mean "votes"'),
        ({"reward": ("votes",), "position_bias": "none"}, "--position-bias is of clicks"),
        ({"least_effective_share": 0.5}, "--least-effective-share is for learning with --off"),
        ({"off_policy": "doubly-robust", "prior_strength": 9.0}, "--prior-strength changes"),
        ({"off_policy": "doubly-robust", "position_bias": "none"}, "--position-bias changes"),
        ({"prior_strength": 0.0}, "--prior-strength must be above 0"),
        ({"half_life": -1.0}, "--half-life must be above 0"),
        ({"pessimism": -0.5}, "--pessimism must not be negative"),
        ({"least_effective_share": 1.0}, r"--least-effective-share 1.0 must lie in \[0, 1\)"),
        ({"raters": "dawid-skene"}, "--raters weighs votes: it does not go with --reward clicks"),
        ({"reward": ("votes",), "half_life": 9.0}, "--half-life is of impressions"),
        ({"off_policy": "ratio"}, "add --estimator exact"),
        ({"off_policy": "doubly-robust", "reward": ("dwell",)}, "--reward clicks, alone"),
        ({"off_policy": "doubly-robust", "reward": ("clicks", "hard")}, "--reward clicks, alone"),
        ({"off_policy": "doubly-robust", "method": "supervised"}, "is for GRPO methods"),
        ({"off_policy": "doubly-robust", "pessimism": 1.0}, "--pessimism changes averaged rewards"),
        ({"off_policy": "doubly-robust", "half_life": 1.0}, "--half-life changes averaged"),
        ({"off_policy": "doubly-robust", "unknown": "prior"}, "--unknown changes averaged"),
        (
            {"feedback": None, "reward": ("hard",), "unknown": "prior"},
            "--unknown is about feedback",
        ),
        ({"feedback": None, "reward": ("hard",), "query": "x"}, "--query is about feedback"),
        ({"supervised_schedule": "linear"}, "--supervised-schedule is of --supervised-weight"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClipConfig(**{"feedback": "log.csv", "reward": ("clicks",)} | options).check()
