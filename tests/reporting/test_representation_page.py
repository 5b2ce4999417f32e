"""Pages of representation runs: measures of features, shifted data, curves against epochs."""

from __future__ import annotations

import json

import pytest
from fake_runs import curve, representation_run, segmentation_run
from html_pages import Page, assert_offline, read_page, squeeze

from visgrpo.metrics import metric, ordered
from visgrpo.reporting import compare_runs, comparison_table, outcome, read_run, write_report
from visgrpo.reporting.compare import overlay_figure
from visgrpo.reporting.figures import curve_figure
from visgrpo.reporting.groups import group_by_config


def test_head_and_features_have_a_table_each(make_run):
    baseline = {"name": "cross-entropy", "after": {"accuracy": 0.7, "knn": {"5": 0.6}}}
    path = representation_run(make_run, summary={"baseline": baseline})
    text = squeeze(read_page(write_report(path)).words)
    assert "Accuracy 25.0 % → 75.0 % (+50.0 points)" in text
    titles = "Softmax regression kNN accuracy, k = 1 kNN accuracy, k = 5 kNN accuracy, k = 20"
    assert f"Features of the backbone {titles} Alignment Uniformity" in text
    assert "before 60.0 % 50.0 % 55.0 % 52.5 % 0.800 −1.500" in text
    assert "after 74.0 % 70.0 % 72.0 % 71.0 % 0.400 −2.500" in text
    assert "cross-entropy (baseline) – – 60.0 % – – –" in text
    assert "before 25.0 % 1.500" in text
    assert_offline((path / "report.html").read_text())


def test_shifted_data_stand_below_the_data_themselves(make_run):
    run = read_run(representation_run(make_run))
    rows = [(row.name, row.before, row.after) for row in outcome.shifts(run)]
    assert rows == [
        ("not shifted", "25.0 %", "75.0 %"),
        ("blur", "20.0 %", "50.0 %"),
        ("jpeg", "24.0 %", "70.0 %"),
    ]
    words = squeeze(read_page(write_report(run.path)).words)
    assert "Shifted copies of the test data: Accuracy" in words


def test_a_run_without_shifts_has_no_such_table(make_run):
    path = representation_run(make_run, summary={"shifts": {}})
    assert "Shifted" not in read_page(write_report(path)).words


def test_curves_go_across_epochs(make_run):
    run = read_run(representation_run(make_run))
    axes = curve_figure(run, "eval/accuracy").axes[0]
    assert axes.get_xlabel() == "epoch"
    assert axes.lines[0].get_xydata().tolist() == [[0, 0.25], [1, 0.5], [2, 0.75]]


def test_without_epochs_curves_go_across_steps(make_run):
    path = representation_run(make_run)
    (path / "metrics.jsonl").write_text('{"step": 8, "eval/accuracy": 0.5}\n')
    axes = curve_figure(read_run(path), "eval/accuracy").axes[0]
    assert axes.get_xlabel() == "optimiser step"
    assert axes.lines[0].get_xdata().tolist() == [8]


def test_batches_of_different_sizes_meet_at_the_same_epoch(make_run):
    large, small = (
        representation_run(make_run, name, config={"batch_size": size})
        for name, size in (("large", 1024), ("small", 256))
    )
    curve(small, "accuracy", [0.3, 0.6, 0.9], steps_per_epoch=16)
    groups = group_by_config([read_run(large), read_run(small)])
    axes = overlay_figure(groups, "eval/accuracy").axes[0]
    assert axes.get_xlabel() == "epoch"
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 1, 2], [0, 1, 2]]
    clip = group_by_config([read_run(large), read_run(make_run("clip", steps=1))])
    assert overlay_figure(clip, "eval/accuracy").axes[0].get_xlabel() == "optimiser step"


def test_comparisons_draw_accuracy_and_losses_unless_told_otherwise(make_run, tmp_path):
    paths = [representation_run(make_run, name, method=name) for name in ("grpo-rm", "supervised")]
    line = {"step": 0, "epoch": 0, "loss": 1, "grad_norm": 1, "eval/accuracy": 0.5, "eval/nll": 1}
    for path in paths:
        (path / "metrics.jsonl").write_text(json.dumps(line | {"eval/ece": 0.1}) + "\n")
    html = compare_runs(paths, None, tmp_path).read_text()
    titles = ["Accuracy, validation", "Negative log-likelihood, validation", "Loss"]
    assert [v for k, v in Page(html).attributes if k == "alt"] == [f"Curve: {t}" for t in titles]
    html = compare_runs(paths, ["grad_norm"], tmp_path).read_text()
    assert html.count("<picture>") == 1


def test_the_table_has_the_measures_that_any_run_has(make_run, tmp_path):
    paths = [representation_run(make_run, "classes"), segmentation_run(make_run, "pixels")]
    rows = comparison_table([read_run(path) for path in paths])
    assert (rows[0]["knn/5_before"], rows[0]["knn/5_after"]) == (0.55, 0.72)
    assert (rows[0]["miou_after"], rows[1]["miou_after"]) == (None, 0.5)
    assert not [key for key in rows[0] if key.startswith(("ece", "kl"))]
    words = squeeze(Page(compare_runs(paths, None, tmp_path).read_text()).words)
    assert "method Mean IoU Pixel accuracy Mean class accuracy Accuracy Softmax regression" in words
    assert "kNN, k = 1 kNN, k = 5 kNN, k = 20 Alignment Uniformity NLL time" in words


def test_features_have_titles_and_an_order():
    assert metric("eval/knn/20").title == "kNN accuracy, k = 20"
    assert metric("knn/20").text(0.5) == "50.0 %"
    assert metric("rewards/uniformity/mean").title == "Reward: uniformity"
    assert metric("alignment").verdict(0.8, 0.4) == "same"
    keys = ["uniformity", "eval/nll", "knn/1", "knn/5", "eval/accuracy", "softmax_regression"]
    known = ["eval/accuracy", "softmax_regression", "knn/1", "knn/5", "uniformity", "eval/nll"]
    assert ordered(keys) == known


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0], [0.01, 0.99], [0.0, 0.4]])
def test_the_axis_of_a_share_ends_at_0_and_100_per_cent(make_run, values):
    run = read_run(curve(make_run(steps=1), "accuracy", values))
    axes = curve_figure(run, "eval/accuracy").axes[0]
    low, high = axes.get_ylim()
    assert low <= min(values)
    assert max(values) <= high
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert shown
    assert min(shown) >= 0
    assert max(shown) <= 1


def test_other_axes_are_left_alone(make_run):
    run = read_run(curve(make_run(steps=1), "uniformity", [-1.0, -3.0]))
    low, high = curve_figure(run, "eval/uniformity").axes[0].get_ylim()
    assert low < -3
    assert -1 < high < 0


def test_a_curve_that_is_constant_but_for_rounding_is_flat(make_run):
    values = [-0.1, -0.1 + 3e-9, -0.1 - 2e-9]
    run = read_run(curve(make_run(steps=1), "uniformity", values))
    low, high = curve_figure(run, "eval/uniformity").axes[0].get_ylim()
    assert (low, high) == pytest.approx((-0.105, -0.095), abs=1e-6)
