"""Rows and tables of a sweep, against numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visgrpo.tasks.options import RunConfig
from visgrpo.tasks.sweep import (
    complaints,
    measure_of,
    measured,
    print_rows,
    sweep_rows,
    write_rows,
)
from visgrpo.tasks.sweep_plan import Combination

PAIR = (
    Combination("a|b_beta=0.1", "a|b", {"beta": 0.1}, RunConfig()),
    Combination("c_beta=0.1", "c", {"beta": 0.1}, RunConfig()),
)


def summary(accuracy: float, knn: float | None = None) -> dict:
    after = {"accuracy": accuracy, "knn": {"1": 0.1, "20": knn}, "per_class": {"St. B.": 0.5}}
    return {"seconds": 7, "recipe": "clip", "before": {"accuracy": 0.25}, "after": after}


SUMMARIES = {
    ("a|b_beta=0.1", 0): summary(0.5, 0.1),
    ("c_beta=0.1", 0): summary(0.25),
    ("a|b_beta=0.1", 1): summary(0.7, 0.3),
    ("a|b_beta=0.1", 2): summary(0.9, 0.2),
}
MEASURES = ["accuracy", "knn.20"]


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("accuracy", 0.5),
        ("knn.20", 0.3),
        ("before.accuracy", 0.25),
        ("after.accuracy", 0.5),
        ("seconds", 7.0),
        ("per_class.St. B.", 0.5),
        ("recipe", None),
        ("knn", None),
        ("knn.5", None),
        ("accuracy.x", None),
    ],
)
def test_measures_are_paths(measure: str, value: float | None) -> None:
    assert measure_of(summary(0.5, 0.3), measure) == value


def test_mean_and_spread_over_seeds() -> None:
    rows = sweep_rows(PAIR, SUMMARIES, MEASURES)
    assert [row["name"] for row in rows] == ["a|b_beta=0.1", "c_beta=0.1"]
    assert rows[0]["seeds"] == [0, 1, 2]
    accuracy = rows[0]["measures"]["accuracy"]
    assert accuracy["values"] == [0.5, 0.7, 0.9]
    assert accuracy["mean"] == pytest.approx(0.7)
    assert accuracy["spread"] == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    # One seed has no spread, and a value that is missing is not left out of a mean.
    assert rows[1]["measures"]["accuracy"] == {"values": [0.25], "mean": 0.25, "spread": None}
    assert rows[1]["measures"]["knn.20"] == {"values": [None], "mean": None, "spread": None}


def test_a_row_without_runs_is_empty() -> None:
    cell = sweep_rows(PAIR, {}, ["accuracy"])[0]["measures"]["accuracy"]
    assert cell == {"values": [], "mean": None, "spread": None}


def test_the_files(tmp_path: Path) -> None:
    rows = sweep_rows(PAIR, SUMMARIES, MEASURES)
    write_rows(tmp_path, "visgrpo sweep clip", rows)
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["rows"] == rows
    assert content["spread"] == "standard deviation over seeds (n - 1)"
    assert (tmp_path / "table.md").read_text().splitlines() == [
        "    visgrpo sweep clip",
        "",
        "| variant | beta | seeds | accuracy | knn.20 |",
        "| --- | --- | --- | --- | --- |",
        "| a\\|b | 0.1 | 3 | 0.700 ± 0.200 | 0.200 ± 0.100 |",
        "| c | 0.1 | 1 | 0.250 | – |",
        "",
        "Mean ± standard deviation over seeds (n - 1). Options of the runs: sweep.yaml.",
    ]
    (tmp_path / "compare.html").touch()  # not before the last run, and not where none has curves
    write_rows(tmp_path, "visgrpo sweep clip", rows)
    text = (tmp_path / "table.md").read_text()
    assert text.endswith("Options of the runs: sweep.yaml; their curves: compare.html.\n")


def test_the_printed_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("clip", sweep_rows(PAIR, SUMMARIES, MEASURES))
    text = capsys.readouterr().out
    assert text.startswith("clip: mean ± standard deviation over seeds (n - 1)\n")
    assert "0.700 ± 0.200" in text
    assert "a|b" in text


def test_measures_that_some_run_has() -> None:
    assert measured(SUMMARIES.values(), ["accuracy", "knn.20", "knn.5"]) == ["accuracy", "knn.20"]
    without = [summary(0.25)]
    assert measured(without, ["knn.20", "accuracy"]) == ["accuracy"]
    assert measured([], ["accuracy"]) == []


def test_runs_without_measures_of_a_tuned_model() -> None:
    """A stage that trains nothing has other numbers; they are offered too."""
    made = [{"pairs": 40, "judge_accuracy": 0.75}]
    assert measure_of(made[0], "judge_accuracy") == 0.75
    assert measure_of(made[0], "accuracy") is None
    found = complaints(made, ["judge_acuracy"])
    assert found == ['No run measured "judge_acuracy". Did you mean "judge_accuracy"?']


def test_a_measure_that_no_run_has() -> None:
    found = complaints(SUMMARIES.values(), ["acuracy", "accuracy", "knn.20"])
    assert found == ['No run measured "acuracy". Did you mean "accuracy"?']
