"""Curves show the numbers of the metrics file, with titles and units."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from visgrpo.errors import UserError
from visgrpo.reporting import plot_curves, read_run
from visgrpo.reporting.figures import (
    DARK,
    LIGHT,
    curve_figure,
    curve_keys,
    moving_average,
    smoothing_window,
)


def logged(path, key):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return np.array([(line["step"], line[key]) for line in lines if key in line]).T


@pytest.mark.parametrize("key", ["kl", "eval/accuracy", "learning_rate", "rewards/correct/mean"])
@pytest.mark.parametrize("steps", [12, 120])
def test_the_first_line_is_the_logged_data(make_run, key, steps):
    path = make_run(steps=steps)
    axes = curve_figure(read_run(path), key).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata().T, logged(path, key))


def test_many_points_are_faint_under_their_moving_average(make_run):
    path = make_run(steps=120)
    raw, mean = curve_figure(read_run(path), "entropy").axes[0].lines
    values = logged(path, "entropy")[1]
    assert raw.get_alpha() < 0.5
    # 120 points: a window of 7. Independent: numpy's convolution, where the window fits.
    np.testing.assert_allclose(mean.get_ydata()[3:-3], np.convolve(values, np.ones(7) / 7, "valid"))
    assert mean.get_ydata()[0] == pytest.approx(values[:4].mean())
    assert mean.get_ydata()[-1] == pytest.approx(values[-4:].mean())


def test_moving_average_by_hand():
    np.testing.assert_allclose(moving_average([1, 2, 6, 3], 3), [1.5, 3, 11 / 3, 4.5])
    np.testing.assert_allclose(moving_average([5, 7], 1), [5, 7])
    assert [smoothing_window(n) for n in (1, 40, 41, 200, 1000)] == [1, 1, 5, 11, 51]


def test_few_points_are_one_full_line(make_run):
    (line,) = curve_figure(read_run(make_run(steps=12)), "kl").axes[0].lines
    assert line.get_alpha() == 1.0


def test_reward_has_a_band_of_one_std_on_each_side(make_run):
    path = make_run(steps=6)
    (band,) = curve_figure(read_run(path), "reward").axes[0].collections
    (steps, reward), (_, std) = logged(path, "reward"), logged(path, "reward_std")
    corners = {tuple(point) for point in np.round(band.get_paths()[0].vertices, 9)}
    for sign in (-1, 1):
        assert set(zip(steps, np.round(reward + sign * std, 9), strict=True)) <= corners


def test_reward_without_std_has_no_band(make_run):
    path = make_run()
    (path / "metrics.jsonl").write_text('{"step": 1, "reward": 1}\n{"step": 2, "reward": 2}\n')
    assert not curve_figure(read_run(path), "reward").axes[0].collections


def test_axes_have_titles_and_units(make_run):
    run = read_run(make_run(steps=3))
    for key in curve_keys(run):
        axes = curve_figure(run, key).axes[0]
        assert axes.get_title(loc="left")
        assert axes.get_xlabel() == "optimiser step"
        assert axes.get_ylabel()
    axes = curve_figure(run, "kl").axes[0]
    assert (axes.get_title(loc="left"), axes.get_ylabel()) == ("KL to the start", "nats")


def test_evaluation_points_and_a_single_step_have_markers(make_run):
    run = read_run(make_run(steps=1))
    for key in ("eval/accuracy", "reward"):
        assert curve_figure(run, key).axes[0].lines[0].get_marker() == "o"


def test_every_logged_metric_becomes_a_png(make_run, tmp_path):
    run = read_run(make_run(steps=2))
    paths = plot_curves(run, tmp_path / "plots")
    assert {path.name for path in paths} == {
        "eval_accuracy.png",
        "eval_ece.png",
        "eval_kl.png",
        "accuracy.png",
        "kl.png",
        "entropy.png",
        "reward.png",
        "loss.png",
        "frac_reward_zero_std.png",
        "clip_ratio_region_mean.png",
        "grad_norm.png",
        "learning_rate.png",
        "rewards_correct_mean.png",
    }
    with Image.open(paths[0]) as image:
        assert image.size == (864, 528)


def test_a_run_without_metrics_has_no_curves(make_run, tmp_path):
    path = make_run(samples=False)
    (path / "metrics.jsonl").write_text("")
    assert plot_curves(read_run(path), tmp_path / "plots") == []


def test_names_with_dollars_are_text(make_run, tmp_path):
    path = make_run()
    (path / "metrics.jsonl").write_text('{"step": 1, "rewards/$x_{/mean": 1, "../../a": 2}\n')
    paths = plot_curves(read_run(path), tmp_path / "plots")
    assert all(png.parent == tmp_path / "plots" and png.is_file() for png in paths)


def test_an_unknown_metric_is_an_error(make_run):
    with pytest.raises(UserError, match="Did you mean"):
        curve_figure(read_run(make_run(steps=2)), "entorpy")


def test_matplotlib_is_loaded_late_and_pyplot_never(make_run):
    code = (
        "import sys; from visgrpo.reporting import read_run; from visgrpo.reporting import figures;"
        "assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules);"
        "figures.curve_figure(read_run(sys.argv[1]), 'kl');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(make_run(steps=2))], check=True)


def test_palettes_have_equal_length():
    assert len(LIGHT.palette) == len(DARK.palette) == len(set(DARK.palette))
