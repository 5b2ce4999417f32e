"""The page of a table of feedback: what it says, and that names in it stay text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from html_pages import assert_offline, read_page, squeeze

from visgrpo.reporting.feedback import (
    MOST_ROWS,
    facts,
    feedback_figures,
    feedback_tables,
    write_feedback_page,
)

HOSTILE = "<script>alert(1)</script>"


def row(name: str, count: float, value: float, spread: float | None = None) -> dict[str, Any]:
    low, high = (None, None) if spread is None else (value - spread, value + spread)
    return {"name": name, "count": count, "value": value, "low": low, "high": high}


def summary(kind: str, details: dict[str, Any]) -> dict[str, Any]:
    coverage = {
        "images": 3, "labels": 2, "pairs": 3, "share": 0.5, "of_data": True, "unmatched_rows": 7,
        "unmatched_image_count": 30, "unmatched_images": [[HOSTILE, 5]],
    }  # fmt: skip
    return {
        "source": "it's <b>.csv", "kind": kind, "rows": 1234, "images": 3, "labels": 2, "users": 9,
        "first_time": 0.0, "last_time": 86400.0, "coverage": coverage,
        "rows_per_image": [{"low": 1, "high": 1, "count": 2}, {"low": 3, "high": 4, "count": 1}],
        "details": details, "missing": {"dwell": "--reward dwell is not possible"},
        "notes": ["the clock goes backwards"],
    }  # fmt: skip


CLICKS = summary(
    "impressions",
    {
        "shown": 100.0, "clicked": 20.0, "rate": row("all", 100, 0.2, 0.1),
        "labels": [row(HOSTILE, 60, 0.25, 0.05), row("$x_1$", 40, 0.1, 0.05)],
        "positions": [row("1", 50, 0.3, 0.1), row("2", 50, 0.1, 0.1)],
        "position_bias": {"pairs": 0, "can_be_estimated": False, "reason": "clicks are at one"},
        "propensities": {"least": 0.1, "median": 0.5, "greatest": 1.0, "effective_share": 0.75,
                         "mean_inverse": 2.5},
        "dwell": {"share": 0.9, "quartiles": [1.0, 2.0, 4.0]},
    },
)  # fmt: skip
VOTES = summary(
    "votes",
    {
        "votes": 50.0, "per_image": 5.0, "majority": 0.8, "kappa": 0.21,
        "majority_shares": [{"low": 0.5, "high": 0.6, "count": 3}],
        "labels": [row("cat", 50, 1.0)],
        "raters": {"judged": 4, "median": 0.9, "least_agreeing": [row(HOSTILE, 12, 0.25)]},
    },
)  # fmt: skip
PREFERENCES = summary(
    "preferences",
    {"comparisons": 5, "pairs": 2, "ties": 0.2, "agreement": 0.66,
     "labels": [row("cat", 4, 0.5, 0.2)]},
)  # fmt: skip
GRADES = summary(
    "grades",
    {"least": 1.0, "mean": 3.0, "greatest": 5.0, "deviation": 1.5,
     "labels": [row("cat", 4, 3.0, 0.2)], "histogram": [{"low": 1.0, "high": 1.0, "count": 2}]},
)  # fmt: skip
ALL = (CLICKS, VOTES, PREFERENCES, GRADES)


@pytest.mark.parametrize("given", ALL, ids=lambda given: given["kind"])
def test_the_page_is_offline_and_names_are_text(tmp_path: Path, given: dict[str, Any]) -> None:
    path = write_feedback_page(given, tmp_path)
    assert path == tmp_path / "feedback.html"
    html = path.read_text(encoding="utf-8")
    assert_offline(html)
    assert HOSTILE not in html
    text = squeeze(read_page(path).words)
    assert HOSTILE in text  # a label, a user or an image that the data does not have
    assert "it's <b>.csv" in text
    assert "No column dwell : --reward dwell is not possible." in text
    assert "The clock goes backwards." in text
    assert "The most frequent of 30." in text
    assert html.count("<picture>") == len(feedback_figures(given))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (CLICKS, {"Click-through": "20.0 %, 95 % interval 10.0 % to 30.0 %",
                  "Position bias": "cannot be estimated: clicks are at one",
                  "Dwell": "median about 2.000 s, half of them 1.000 to 4.000 s, of 90.0 % of "
                           "clicks",
                  "Time": "1970-01-01 00:00 to 1970-01-02 00:00", "Rows": "1,234",
                  "Coverage": "50.0 % of the data, 3 pairs of an image and a label",
                  "Not in the data": "7 rows about 30 images"}),
        (VOTES, {"Agreement": "Fleiss' kappa 0.210", "Votes": "50, 5.000 for an image",
                 "Raters": "median agreement 90.0 % with the majority of the others, 4 users"}),
        (PREFERENCES, {"Ties": "20.0 % of comparisons"}),
        (GRADES, {"Grades": "1.000 to 5.000, mean 3.000, standard deviation 1.500"}),
    ],
    ids=lambda given: given.get("kind", ""),
)  # fmt: skip
def test_facts(given: dict[str, Any], expected: dict[str, str]) -> None:
    found = dict(facts(given))
    assert {name: found[name] for name in expected} == expected


def test_tables() -> None:
    labels, positions = feedback_tables(CLICKS)
    assert labels.headings == ("label", "impressions", "clicks per impression", "95 % interval")
    assert labels.rows[0] == (HOSTILE, "60", "25.0 %", "20.0 % to 30.0 %")
    assert positions.title == "Click-through by position"
    votes, raters = feedback_tables(VOTES)
    assert votes.headings == ("label", "votes", "share of all votes")
    assert raters.rows == ((HOSTILE, "12", "25.0 %"),)


def test_many_labels_are_cut_and_little_is_left_out(tmp_path: Path) -> None:
    many = copy.deepcopy(CLICKS)
    many["details"]["labels"] = [row(f"class {n}", 10, 0.5, 0.1) for n in range(1000)]
    table = feedback_tables(many)[0]
    assert (len(table.rows), table.left_out) == (MOST_ROWS, 1000 - MOST_ROWS)
    write_feedback_page(many, tmp_path / "new" / "page.html")
    assert "And 980 more." in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    few = copy.deepcopy(CLICKS)
    few["users"] = few["first_time"] = None
    few["details"] |= {"labels": [], "positions": [], "shown": 0.0, "position_bias": None,
                       "propensities": None, "dwell": None, "rate": row("all", 0, 0.0)}  # fmt: skip
    assert feedback_tables(few) == []
    assert list(feedback_figures(few)) == ["Rows per image"]
    assert dict(facts(few))["Click-through"] == "0.0 %"
    write_feedback_page(few, tmp_path)
