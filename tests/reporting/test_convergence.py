"""Epochs to 99 % of the final value, on curves drawn by hand."""

from __future__ import annotations

import math

import pytest
from fake_runs import curve, representation_run, write_lines
from html_pages import Page, squeeze

from visgrpo.reporting import compare_runs, read_run
from visgrpo.reporting.groups import (
    convergence_keys,
    convergence_rows,
    epochs_to_final,
    group_by_config,
)
from visgrpo.tasks.options import CompareConfig
from visgrpo.tasks.pages import compare


@pytest.mark.parametrize(
    ("key", "values", "epoch"),
    [
        ("accuracy", [0.1, 0.5, 0.79, 0.792, 0.8], 3),  # 0.99 × 0.8 = 0.792
        ("accuracy", [0.1, 0.9, 0.5, 0.8], 1),  # above the end counts as reached
        ("accuracy", [0.5, 0.4, 0.3], 0),
        ("accuracy", [0.1, 0.2, 0.9], 2),
        ("nll", [2.0, 1.5, 1.01, 1.0], 2),  # at most 1 / 0.99 = 1.0101
        ("nll", [2.0, 1.5, 1.02, 1.0], 3),
        ("miou", [0.0, 0.0], None),  # nothing to reach
        ("accuracy", [0.5], None),  # not evaluated after its start
    ],
)
def test_by_hand(make_run, key, values, epoch):
    run = read_run(curve(make_run(steps=1), key, values))
    assert epochs_to_final(run, f"eval/{key}") == epoch


def test_a_run_without_an_end_epochs_or_the_metric_has_no_answer(make_run):
    unfinished = read_run(curve(make_run("a", steps=1, finished=False), "accuracy", [0.1, 0.8]))
    assert epochs_to_final(unfinished, "eval/accuracy") is None
    path = make_run("b", steps=1)
    (path / "metrics.jsonl").write_text(
        '{"step": 0, "eval/accuracy": 0.1}\n{"step": 9, "eval/accuracy": 0.8}\n'
    )
    assert epochs_to_final(read_run(path), "eval/accuracy") is None
    assert epochs_to_final(read_run(path), "eval/nll") is None


@pytest.fixture
def seeds(make_run):
    """Three seeds that arrive at epochs 1, 2 and 3, and another method that never started."""
    curves = [[0.1, 0.8, 0.8, 0.8], [0.1, 0.5, 0.6, 0.6], [0.1, 0.2, 0.3, 0.7]]
    paths = []
    for seed, values in enumerate(curves):
        path = representation_run(make_run, f"rm-{seed}", seed=seed)
        paths.append(curve(path, "accuracy", values))
    ce = representation_run(make_run, "ce", method="supervised")
    return [*paths, curve(ce, "accuracy", [0.1])]


def test_seeds_have_mean_and_spread(seeds):
    runs = [read_run(path) for path in seeds]
    groups = group_by_config(runs)
    keys = convergence_keys(runs, None)
    assert keys == ["eval/accuracy"]
    rows = [
        (name, [(cell.main, cell.below) for cell in cells])
        for group in groups
        for name, cells in convergence_rows(group, runs, keys)
    ]
    assert rows == [
        ("rm-0", [("80.0 %", ""), ("1", "")]),
        ("rm-1", [("60.0 %", ""), ("2", "")]),
        ("rm-2", [("70.0 %", ""), ("3", "")]),
        ("mean ± std: grpo-rm, 3 seeds", [("70.0 % ± 10.0 %", ""), ("2 ± 1", "")]),
        ("ce", [("–", ""), ("–", "")]),
    ]


def test_seeds_without_an_answer_are_counted(seeds):
    curve(seeds[0], "accuracy", [0.1])
    runs = [read_run(path) for path in seeds[:3]]
    (group,) = group_by_config(runs)
    _, cells = convergence_rows(group, runs, ["eval/accuracy"])[-1]
    assert [(cell.main, cell.below) for cell in cells] == [
        ("65.0 % ± 7.1 %", "2 of 3 runs"),
        (f"2.5 ± {math.sqrt(0.5):.2f}", "2 of 3 runs"),
    ]


def test_the_metrics_asked_for_are_tabulated_if_they_have_a_better_side(seeds):
    lines = [
        {"step": s, "epoch": s, "loss": 1, "eval/nll": 1 + s, "eval/kl": s, "eval/accuracy": 1}
        for s in (0, 1)
    ]
    write_lines(seeds[0] / "metrics.jsonl", lines)
    runs = [read_run(path) for path in seeds]
    assert convergence_keys(runs, ["loss", "eval/kl", "eval/nll", "eval/nll"]) == ["eval/nll"]
    assert convergence_keys(runs, None) == ["eval/accuracy"]


def test_the_table_is_on_the_page(seeds, tmp_path):
    words = squeeze(Page(compare_runs(seeds, None, tmp_path).read_text()).words)
    assert "Epochs to 99 % of the final value" in words
    assert "Accuracy, final Accuracy, epochs to 99 % rm-0 80.0 % 1" in words
    assert "mean ± std: grpo-rm, 3 seeds 70.0 % ± 10.0 % 2 ± 1" in words


def test_runs_that_log_no_epochs_have_no_table(make_run, tmp_path):
    paths = [make_run("a", steps=1), make_run("b", steps=1, method="ppo")]
    for path in paths:
        (path / "metrics.jsonl").write_text('{"step": 1, "eval/accuracy": 0.5}\n')
    words = Page(compare_runs(paths, None, tmp_path).read_text()).words
    assert "Epochs to 99 %" not in words


def test_the_command_prints_what_the_page_shows(seeds, tmp_path, capsys):
    page = tmp_path / "compare.html"
    compare(CompareConfig(runs=tuple(map(str, seeds)), output=str(page)))
    text = squeeze(capsys.readouterr().out.replace("│", " "))
    assert "Epochs to 99 % of the final value, on validation data" in text
    assert "Accuracy, final" in text
    assert "Accuracy, epochs to 99 %" in text
    rows = ["rm-0 80.0 % 1", "rm-1 60.0 % 2", "rm-2 70.0 % 3", "ce – –"]
    rows.append("mean ± std: grpo-rm, 3 seeds 70.0 % ± 10.0 % 2 ± 1")
    for row in rows:
        assert row in text


def test_the_command_prints_no_table_without_epochs(make_run, tmp_path, capsys):
    paths = [make_run(name, steps=1, keys=("loss",)) for name in ("a", "b")]
    compare(CompareConfig(runs=tuple(map(str, paths)), output=str(tmp_path / "compare.html")))
    assert "99 %" not in capsys.readouterr().out
