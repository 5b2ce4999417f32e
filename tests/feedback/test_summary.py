"""Summaries against published numbers, scipy and loops."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from event_files import IMPRESSIONS, write_csv, write_parquet
from scipy.stats import binomtest, norm

from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.matching import match
from visgrpo.feedback.summary import Summary, summary_of
from visgrpo.feedback.summary_details import (
    Bin,
    Clicks,
    Grades,
    Preferences,
    Row,
    Votes,
    mean_row,
    wilson,
)

D = TypeVar("D", Clicks, Votes, Preferences, Grades)
# Fleiss (1971), table 1 in its usual form: 14 raters, 10 subjects, 5 categories; kappa is 0.210.
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def summary(tmp_path: Path, columns: Mapping[str, Sequence[Any]]) -> Summary:
    with open_events(str(write_parquet(tmp_path / "log.parquet", columns))) as events:
        return summary_of(events)


def details_of(tmp_path: Path, columns: Mapping[str, Sequence[Any]], kind: type[D]) -> D:
    details = summary(tmp_path, columns).details
    assert isinstance(details, kind)
    return details


def votes_of(table: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    cells = [(f"i{m}", f"k{k}", v) for m, row in enumerate(table) for k, v in enumerate(row)]
    return dict(zip(("image", "label", "votes"), map(list, zip(*cells, strict=True)), strict=True))


# ---- intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "count"), [(0, 5), (5, 5), (3, 10), (150, 1000)])
def test_wilson_is_scipys(part: int, count: int) -> None:
    expected = binomtest(part, count).proportion_ci(0.95, method="wilson")
    assert wilson(part, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_of_a_mean() -> None:
    low, high = norm.interval(0.95, loc=2.0, scale=3.0 / math.sqrt(9))
    assert mean_row("x", 9, 2.0, 3.0) == Row("x", 9, 2.0, pytest.approx(low), pytest.approx(high))
    assert mean_row("x", 1, 2.0, None) == Row("x", 1, 2.0)


def test_rows_per_image_are_in_bins_that_double(tmp_path: Path) -> None:
    images = [f"{rows}" for rows in (1, 1, 2, 3, 4, 4, 9) for _ in range(rows)]
    columns = {"image": images, "label": ["x"] * len(images), "votes": [1] * len(images)}
    found = summary(tmp_path, columns).rows_per_image
    assert found == (Bin(2, 2, 2), Bin(3, 4, 1), Bin(5, 8, 1), Bin(9, 16, 1))


# ---- what all kinds have ------------------------------------------------------------------------


def test_what_is_in_a_log(tmp_path: Path) -> None:
    found = summary(tmp_path, IMPRESSIONS)
    assert (found.source, found.kind, found.rows) == ("log.parquet", "impressions", 5)
    assert (found.images, found.labels, found.users) == (3, 3, 3)
    assert (found.first_time, found.last_time) == (1.7e9, 1.7e9 + 4 / 7)
    assert found.rows_per_image == (Bin(1, 1, 2), Bin(3, 4, 1))
    assert found.coverage.pairs == 5
    assert found.coverage.share == 5 / 9
    assert (found.missing, found.notes) == ({}, ())


def test_what_is_missing_and_what_that_rules_out(tmp_path: Path) -> None:
    found = summary(tmp_path, {"image": ["a"], "label": ["x"], "clicked": [1]})
    assert set(found.missing) == {"propensity", "position", "dwell", "time", "user"}
    assert "replay are not possible" in found.missing["propensity"]
    assert isinstance(found.details, Clicks)
    assert (found.details.propensities, found.details.position_bias) == (None, None)
    assert (found.users, found.first_time) == (None, None)


def test_coverage_of_data(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "log.parquet", {
        "image": ["a", "a", "b", "lost"], "label": ["x", "x", "y", "x"], "clicked": [1, 0, 0, 1],
        "shown": [1, 1, 0, 1],
    })  # fmt: skip
    with open_events(str(path)) as events:
        found = summary_of(events, match(events, [["a"], ["b"], ["c"]], ("x", "y"))).coverage
    assert (found.images, found.labels, found.pairs, found.of_data) == (3, 2, 1, True)
    assert found.share == 1 / 6  # (b, y) was never shown
    assert (found.unmatched_rows, found.unmatched_images) == (1, (("lost", 1),))


def test_names_that_several_images_share_are_noted(tmp_path: Path) -> None:
    votes = {"image": ["a", "b", "lost"], "label": ["x", "x", "x"], "votes": [1, 1, 1]}
    with open_events(str(write_parquet(tmp_path / "log.parquet", votes))) as events:
        found = summary_of(events, match(events, [["a"], ["b"], ["b"]], ("x", "y")))
    (note,) = found.notes
    assert note.startswith(
        "1 of 3 events of log.parquet left out, since several images of the data"
    )
    assert (found.coverage.unmatched_rows, found.coverage.unmatched_images) == (1, (("lost", 1),))


def test_coverage_of_preferences_and_votes(tmp_path: Path) -> None:
    pairs = {"image": ["a", "b"], "preferred": ["x", "y"], "rejected": ["y", "z"]}
    votes = {"image": ["a", "b"], "label": ["x", "y"], "votes": [1, 0]}
    for columns, expected in ((pairs, 4), (votes, 3)):
        with open_events(str(write_parquet(tmp_path / "log.parquet", columns))) as events:
            matched = match(events, [["a"], ["b"]], "xyz")
            assert summary_of(events, matched).coverage.pairs == expected


# ---- impressions --------------------------------------------------------------------------------


def test_clicks_by_label_and_position(tmp_path: Path) -> None:
    columns = {
        "image": ["a"] * 4, "label": ["x", "x", "y", "z"], "shown": [10, 5, 20, 0],
        "clicked": [3, 1, 5, 0], "position": [1, 2, None, 3], "dwell": [4.0, None, 8.0, None],
        "propensity": [0.5, 0.5, 0.25, 1.0],
    }  # fmt: skip
    details = details_of(tmp_path, columns, Clicks)
    assert (details.shown, details.clicked, details.rate.value) == (35, 9, 9 / 35)
    assert [(row.name, row.count, row.value) for row in details.labels] == [
        ("y", 20, 0.25),
        ("x", 15, 4 / 15),
    ]
    assert [(row.name, row.value) for row in details.positions] == [("1", 0.3), ("2", 0.2)]
    assert (details.labels[0].low, details.labels[0].high) == wilson(5, 20)
    assert details.dwell is not None
    assert details.dwell.share == 8 / 9
    found = details.propensities
    assert found is not None
    assert (found.least, found.greatest) == (0.25, 0.5)
    first, second = 15 * 2 + 20 * 4, 15 * 4 + 20 * 16
    assert found.effective_share == pytest.approx(first**2 / (35 * second))
    assert found.mean_inverse == pytest.approx(first / 35)


@pytest.mark.parametrize(
    ("rows", "pairs", "reason"),
    [  # label, position, clicked
        ([("x", 1, 1), ("x", 2, 0), ("y", 2, 1)], 1, ""),
        ([("x", 1, 1), ("y", 2, 1)], 0, "no clicked label of an image was shown at two"),
        ([("x", 1, 1), ("x", 2, 0)], 1, "clicks are at one position only"),
        ([("x", 1, 1), ("x", 2, 1), ("y", 3, 1), ("y", 4, 1)], 2, "do not connect all"),
        ([("x", 1, 1), ("x", 2, 1), ("y", 3, 1), ("y", 2, 0)], 2, ""),
        ([("x", 1, 0), ("x", 2, 0), ("y", 1, 1), ("z", 2, 1)], 0, "no clicked label"),
    ],
)
def test_whether_position_bias_can_be_estimated(
    tmp_path: Path, rows: list[tuple[str, int, int]], pairs: int, reason: str
) -> None:
    columns = dict(zip(("label", "position", "clicked"), zip(*rows, strict=True), strict=True))
    details = details_of(tmp_path, {"image": ["a"] * len(rows), **columns}, Clicks)
    found = details.position_bias
    assert found is not None
    assert found.pairs == pairs
    assert found.can_be_estimated == (not reason)
    assert reason in found.reason


def test_a_log_in_which_nothing_was_shown(tmp_path: Path) -> None:
    columns = {"image": ["a"], "label": ["x"], "clicked": [0], "shown": [0], "propensity": [0.5]}
    details = details_of(tmp_path, columns, Clicks)
    assert (details.rate, details.labels, details.propensities) == (Row("all", 0, 0.0), (), None)


# ---- votes --------------------------------------------------------------------------------------


def test_kappa_is_fleiss_own(tmp_path: Path) -> None:
    details = details_of(tmp_path, votes_of(FLEISS), Votes)
    assert details.kappa == pytest.approx(0.210, abs=5e-4)
    assert (details.votes, details.per_image) == (140, 14)
    tops = [max(row) / 14 for row in FLEISS]
    assert details.majority == pytest.approx(np.mean(tops))
    counts, _ = np.histogram(tops, bins=10, range=(0, 1))
    assert [b.count for b in details.majority_shares] == [n for n in counts if n]
    assert details.labels[0] == Row("k2", 39, 39 / 140)


@pytest.mark.parametrize("table", [[[5, 0], [3, 0]], [[1, 0], [0, 1]], [[0, 0]]])
def test_kappa_of_votes_that_have_none(tmp_path: Path, table: list[list[int]]) -> None:
    details = details_of(tmp_path, votes_of(table), Votes)
    assert details.kappa is None


def test_raters_against_a_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(3, size=60)
    right = {"ann": 0.9, "bob": 0.8, "cat": 0.7, "dan": 0.1, "eve": 0.5}
    rows = []
    for image, label in enumerate(truth):
        for user, share in right.items():
            if rng.random() < 0.8:
                said = label if rng.random() < share else rng.integers(3)
                rows.append((f"i{image}", f"k{said}", 1, user))
    rows.append(("i0", "k0", 1, "rare"))
    columns = dict(zip(("image", "label", "votes", "user"), zip(*rows, strict=True), strict=True))
    details = details_of(tmp_path, columns, Votes)
    assert details.raters is not None

    agreed: dict[str, list[bool]] = defaultdict(list)
    for image, label, _, user in rows:
        others = Counter(row[1] for row in rows if row[0] == image and row[3] != user)
        top = others.most_common(2)
        if top and (len(top) == 1 or top[0][1] > top[1][1]):
            agreed[user].append(top[0][0] == label)
    expected = sorted(
        (float(np.mean(yes)), user, len(yes)) for user, yes in agreed.items() if len(yes) >= 10
    )
    found = [(row.value, row.name, row.count) for row in details.raters.least_agreeing]
    assert found == [(pytest.approx(share), user, count) for share, user, count in expected]
    assert found[0][1] == "dan"
    assert details.raters.judged == 5
    assert details.raters.median == pytest.approx(np.median([share for share, _, _ in expected]))


# ---- preferences and grades ---------------------------------------------------------------------


def test_preferences(tmp_path: Path) -> None:
    columns = {
        "image": ["a", "a", "a", "a", "b"],
        "preferred": ["x", "y", "x", "x", "z"],
        "rejected": ["y", "x", "y", "y", "x"],
        "tie": [False, False, False, True, False],
    }
    details = details_of(tmp_path, columns, Preferences)
    assert (details.comparisons, details.pairs, details.ties) == (5, 2, 0.2)
    assert details.agreement == 2 / 3
    assert [(row.name, row.count, row.value) for row in details.labels] == [
        ("x", 4, 0.5),
        ("y", 3, 1 / 3),
        ("z", 1, 1.0),
    ]


def test_few_grades_are_bins_of_their_own(tmp_path: Path) -> None:
    columns = {"image": list("aab"), "label": list("xyx"), "grade": [1.0, 5.0, 5.0]}
    details = details_of(tmp_path, columns, Grades)
    assert details.histogram == (Bin(1, 1, 1), Bin(5, 5, 2))
    assert (details.least, details.greatest) == (1, 5)
    assert details.deviation == pytest.approx(np.std([1, 5, 5]))
    assert [(row.name, row.count, row.value) for row in details.labels] == [
        ("x", 2, 3),
        ("y", 1, 5),
    ]
    assert details.labels[1].low is None


def test_many_grades_are_counted_as_numpy_does(tmp_path: Path) -> None:
    grades = np.random.default_rng(1).normal(size=500)
    columns = {"image": ["a"] * 500, "label": ["x"] * 500, "grade": list(grades)}
    details = details_of(tmp_path, columns, Grades)
    counts, edges = np.histogram(grades, bins=20)
    assert [b.count for b in details.histogram] == [n for n in counts if n]
    assert details.histogram[0].low == pytest.approx(edges[0])


def test_sources_agree(tmp_path: Path) -> None:
    with open_events(str(write_csv(tmp_path / "log.parquet.csv", IMPRESSIONS))) as events:
        from_csv = summary_of(events)
    other = summary(tmp_path, IMPRESSIONS)
    assert (from_csv.details, from_csv.coverage) == (other.details, other.coverage)
