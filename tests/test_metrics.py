"""The table of metrics: how numbers are written, and where a row is shown."""

from __future__ import annotations

import pytest

from visgrpo.metrics import (
    _AS_LOGGED,
    _IN_ORDER,
    EVERYWHERE,
    Metric,
    add,
    added,
    describe_gain,
    duration,
    memory,
    metric,
    number,
    ordered,
    remove,
)
from visgrpo.models.save import label_card
from visgrpo.progress import Bar
from visgrpo.reporting import compare_runs, print_measures, write_report
from visgrpo.training.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (-0.0001, "−1.00e−04"), (0.0125, "0.013"), (12.34, "12.3"), (1234.0, "1234")],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2.0 s"), (59.7, "1 min 00 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_memory():
    assert memory(512 * 2**20) == "512 MiB"
    assert memory(3.5 * 2**30) == "3.5 GiB"


def test_gain_of_a_share_is_in_points_and_of_a_number_plain():
    assert describe_gain(0.81, 0.842) == "81.0 % → 84.2 % (+3.2 points)"
    assert describe_gain(0.842, 0.81) == "84.2 % → 81.0 % (−3.2 points)"
    assert describe_gain(0.1, 0.046, "ece") == "0.100 → 0.046 (−0.054)"
    assert describe_gain(0.0, 0.3, "kl") == "0.000 → 0.300 (+0.300)"
    assert describe_gain(0.5, 0.50001, "kl") == "0.500 → 0.500 (+1.00e−05)"


def test_no_change_has_no_sign():
    assert metric("accuracy").change(0.5, 0.5) == "0.0 points"
    assert metric("accuracy").change(0.5, 0.49999) == "0.0 points"
    assert metric("kl").change(0.5, 0.5) == "0.000"


@pytest.mark.parametrize(
    ("key", "before", "after", "verdict"),
    [
        ("accuracy", 0.5, 0.6, "gain"),
        ("accuracy", 0.6, 0.5, "loss"),
        ("eval/ece", 0.2, 0.1, "gain"),
        ("nll", 0.1, 0.2, "loss"),
        ("kl", 0.0, 0.4, "same"),
        ("accuracy", 0.5, 0.5, "same"),
    ],
)
def test_verdict_follows_the_direction_that_is_better(key, before, after, verdict):
    assert metric(key).verdict(before, after) == verdict


def test_every_metric_has_a_title_and_a_unit():
    assert (metric("kl").title, metric("kl").unit) == ("KL to the start", "nats")
    assert metric("rewards/correct/mean").title == "Reward: correct"
    assert (metric("eval/odd").title, metric("odd").unit) == ("odd", "odd")


def test_known_metrics_come_first_in_reading_order():
    assert ordered(["zeta", "kl", "alpha", "accuracy"]) == ["accuracy", "kl", "zeta", "alpha"]


def test_rows_are_written_well():
    for row in {*_IN_ORDER, *_AS_LOGGED}:
        assert row.title
        assert row.unit
        assert set(row.shown.split()) <= set(EVERYWHERE.split())
        assert set(row.hidden.split()) <= {"page", "curve"}
    keys = [(row.of, row.key) for row in (*_IN_ORDER, *_AS_LOGGED)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("key", "subject", "title"),
    [
        ("knn/5", "images", "kNN accuracy, k = 5"),
        ("rewards/exact/mean", "answers", "Reward: exact"),
        ("rewards/exact", "answers", "Reward: exact"),
        ("accuracy/out", "answers", "Accuracy, out"),
        ("perplexity", "images", "Perplexity"),  # of another subject, but with its title
        ("rewards", "images", "rewards"),
    ],
)
def test_patterns_and_names_with_a_rest(key, subject, title):
    assert metric(f"eval/{key}", subject).title == title


def test_a_word_within_a_line():
    words = {"accuracy": "accuracy", "ece": "ECE", "miou": "mIoU", "knn/20": "kNN 20"}
    assert {key: metric(key).in_a_line for key in words} == words


BLUE = Metric(
    "blueness", "Blueness of answers", "share of blue", "higher", True, short="Blue",
    shown=EVERYWHERE, about="how blue they are",
)  # fmt: skip


@pytest.fixture
def blue():
    """One row more in the table."""
    add(BLUE)
    yield BLUE
    remove(BLUE.key)


def test_one_row_shows_everywhere(blue, tmp_path, capsys):
    with Bar("train", 4, training=True) as display:
        display.log(4, {"blueness": 0.5, "eval/blueness": 0.75})
    assert "blue 0.500  validation blue 0.750" in capsys.readouterr().err

    before, after = {"accuracy": 0.5, "blueness": 0.25}, {"accuracy": 0.5, "blueness": 0.75}
    print_measures("", {"start": before, "end": after})
    heading = capsys.readouterr().out.split("\n")[2]
    assert [word.strip() for word in heading.split("┃")[2:4]] == ["blue", "accuracy"]
    data = {"name": "sky", "test": 9, "classes": 2}
    summary = {"recipe": "toy", "method": "m", "model": "x", "steps": 1, "kept_step": 1}
    summary |= {"data": data, "before": before, "after": after}
    assert "| blue | 0.2500 | 0.7500 |" in label_card(summary)

    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        run = RunDirectory(str(folder))
        run.create("toy", {"seed": 0})
        run.log_metrics({"step": 0, "eval/blueness": 0.25})
        run.write_summary(summary)
    page = write_report(folders[0]).read_text(encoding="utf-8")
    assert "Blueness of answers 25.0 % → 75.0 % (+50.0 points)" in page
    assert "Blueness of answers: how blue they are." in page
    assert "Curve: Blueness of answers, validation" in page
    assert "<th>Blue</th>" in compare_runs(folders, None, tmp_path).read_text(encoding="utf-8")
    assert added("sweep") == ["blueness"]


def test_a_row_taken_out_is_gone():
    add(BLUE)
    remove(BLUE.key)
    assert metric("blueness").title == "blueness"
    assert added("sweep") == []
