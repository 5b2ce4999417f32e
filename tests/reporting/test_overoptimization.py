"""Rewards against KL: the points are those of the files, on the scale of √KL."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runs import language_run, write_lines
from html_pages import read_page, squeeze
from matplotlib.colors import to_hex
from PIL import Image

from visgrpo.reporting import read_run, write_report
from visgrpo.reporting.figures import LIGHT
from visgrpo.reporting.groups import RunGroup, group_by_config
from visgrpo.reporting.overoptimization import (
    best_of_n_trajectory,
    drawn_groups,
    overoptimization,
    overoptimization_figure,
    reward_trajectory,
)

LINES = [
    {"step": 0, "eval/kl": -0.01, "eval/reward": 0.0, "eval/gold_reward": 0.1},
    {"step": 4, "eval/kl": 4.0, "eval/reward": 1.0},
    {"step": 8, "eval/kl": 16.0, "eval/reward": 2.0, "eval/gold_reward": 0.3},
    {"step": 9, "eval/reward": 7.0, "kl": 2.0, "sampled_tokens": 90},
]
BEST_OF_N = [
    {"n": 2, "kl": 0.19, "reward": 0.5, "gold_reward": 0.2},
    {"n": 4, "kl": 0.64, "reward": 0.9},
]


@pytest.fixture
def make(make_run):
    def run(name="grpo", lines=LINES, **options):
        path = language_run(make_run, name, **options)
        write_lines(path / "metrics.jsonl", lines)
        return read_run(path)

    return run


def group(*runs):
    return RunGroup(runs[0].name, runs)


def test_points_are_evaluations_with_both_and_kl_is_never_below_zero(make):
    run = make()
    proxy, gold = (reward_trajectory(run, f"eval/{key}") for key in ("reward", "gold_reward"))
    assert (proxy.steps, proxy.kl.tolist()) == ([0, 4, 8], [0.0, 4.0, 16.0])
    assert proxy.values.tolist() == [0.0, 1.0, 2.0]
    assert (gold.steps, gold.values.tolist()) == ([0, 8], [0.1, 0.3])
    assert reward_trajectory(run, "eval/length") is None


def test_each_reward_has_a_panel_on_the_scale_of_the_root(make):
    figure = overoptimization_figure([group(make())])
    proxy, gold = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Reward that is trained on",
        "Gold reward",
    ]
    assert proxy.get_xlabel() == "KL to the start, nats per completion, √ scale"
    assert (proxy.get_ylabel(), gold.get_ylabel()) == ("mean reward", "mean gold reward")
    assert proxy.lines[0].get_xydata().tolist() == [[0, 0], [4, 1], [16, 2]]
    across = proxy.transData.transform([(0, 0), (4, 0), (16, 0)])[:, 0]
    assert across[2] - across[0] == pytest.approx(2 * (across[1] - across[0]))
    assert gold.get_xlim() == proxy.get_xlim()
    ticks = proxy.get_xticks()
    assert (ticks[0], ticks[-1]) == (0, 15)
    assert len(ticks) == 6


def test_seeds_are_thin_lines_under_their_mean(make):
    second = [line | {"eval/kl": line.get("eval/kl", 0.0) + 2.0} for line in LINES[:3]]
    runs = [make("a", seed=0), make("b", seed=1, lines=[second[0], second[2]])]
    (both,) = group_by_config(runs)
    thin, other, mean = overoptimization_figure([both]).axes[0].lines
    assert max(thin.get_linewidth(), other.get_linewidth()) < 1 < mean.get_linewidth()
    # Only steps 0 and 8 are in both; the KL below zero was taken as zero.
    np.testing.assert_allclose(mean.get_xydata(), [[0.995, 0], [17, 2]])


def test_best_of_n_is_squares_in_the_colour_of_its_run(make):
    first = make()
    second = make("best", [{"step": 0}], method="best", summary={"best_of_n": BEST_OF_N})
    groups = [group(first), group(second)]
    assert drawn_groups(groups) == [0, 1]
    proxy, gold = overoptimization_figure(groups).axes
    assert proxy.lines[1].get_xydata().tolist() == [[0.19, 0.5], [0.64, 0.9]]
    assert gold.lines[1].get_xydata().tolist() == [[0.19, 0.2]]
    assert (proxy.lines[1].get_marker(), to_hex(proxy.lines[1].get_color())) == (
        "s",
        LIGHT.palette[1],
    )
    assert [text.get_text() for text in proxy.texts if text.get_text().isdigit()] == ["2", "4"]
    assert best_of_n_trajectory(first, "eval/reward") is None


def test_a_run_without_kl_or_reward_has_no_figure(make, make_run):
    assert overoptimization([group(make("no-kl", [{"step": 0, "eval/reward": 1.0}]))]) is None
    apart = [{"step": 0, "eval/reward": 1.0}, {"step": 1, "eval/kl": 1.0}]
    assert overoptimization([group(make("apart", apart))]) is None
    clip = make_run("clip", steps=1, samples=False)
    write_lines(clip / "metrics.jsonl", LINES)
    assert overoptimization([group(read_run(clip))]) is None


def test_one_reward_is_one_panel(make):
    proxy_only = [{k: v for k, v in line.items() if "gold" not in k} for line in LINES]
    groups = [group(make(lines=proxy_only))]
    assert len(overoptimization_figure(groups).axes) == 1
    assert overoptimization(groups).alt == "reward that is trained on against KL"


def test_a_policy_that_never_moved_can_be_drawn(make):
    figure = overoptimization_figure([group(make(lines=LINES[:1]))])
    assert figure.axes[0].get_xlim() == (0, 1)


def test_the_page_has_the_figure_and_the_folder_its_png(make):
    run = make()
    words = squeeze(read_page(write_report(run.path)).words)
    assert words.index("Reward against KL") < words.index("Curves")
    assert "Gao et al. 2022" in words
    with Image.open(run.path / "plots" / "overoptimization.png") as image:
        assert image.size == (1728, 576)
