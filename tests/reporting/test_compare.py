"""Comparisons: seeds of one configuration are one curve with a band, mistakes are one line."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from fake_runs import write_lines
from html_pages import Page, assert_offline, squeeze

from visgrpo.errors import UserError
from visgrpo.reporting import compare_runs, comparison_table, read_run
from visgrpo.reporting.compare import group_band, overlay_figure
from visgrpo.reporting.groups import differing_options, group_by_config, read_runs, unlike


@pytest.fixture
def three(make_run):
    """Two seeds of one configuration and a run of another, with KL values set by hand."""
    paths = [
        make_run("grpo-s0", seed=0, steps=3),
        make_run("grpo-s1", seed=1, steps=3),
        make_run("ppo", method="ppo", steps=3, config={"kl_weight": 0.1, "critic": {"width": 64}}),
    ]
    for path, values in zip(paths, [[1, 2, 3], [3, 6, 1], [0, 0, 5]], strict=True):
        lines = [{"step": step, "kl": value} for step, value in enumerate(values, start=1)]
        write_lines(path / "metrics.jsonl", lines)
    return paths


def test_seeds_of_one_configuration_are_one_group(three):
    groups = group_by_config(read_runs(three))
    assert [len(group.runs) for group in groups] == [2, 1]
    assert [group.name for group in groups] == ["grpo, kl_weight 0.04, 2 seeds", "ppo"]


def test_a_group_is_drawn_as_its_mean_with_a_band_from_least_to_greatest(three):
    groups = group_by_config(read_runs(three))
    band = group_band(groups[0], "kl")
    assert band.steps == [1, 2, 3]
    np.testing.assert_allclose(band.mean, [2, 4, 2])
    np.testing.assert_allclose(band.low, [1, 2, 1])
    np.testing.assert_allclose(band.high, [3, 6, 3])
    axes = overlay_figure(groups, "kl").axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2, 4, 2], [0, 0, 5]]
    (area,) = axes.collections
    corners = {tuple(point) for point in area.get_paths()[0].vertices}
    assert {(1, 1), (2, 2), (3, 1), (1, 3), (2, 6), (3, 3)} <= corners


def test_values_stand_below_a_plot_a_column_for_each_group(three, tmp_path):
    page = compare_runs(three, ["kl"], tmp_path / "compare.html").read_text()
    table = re.sub(r"\s*<[^>]+>\s*", " ", page[page.index('<details class="values">') :])
    table = " ".join(table[: table.index("Differing options")].split())
    assert "grpo, kl_weight 0.04, 2 seeds ppo 1 2.000 0.000 2 4.000 0.000 3 2.000 5.000" in table


def test_the_mean_is_taken_over_steps_that_all_seeds_have(three):
    with (three[0] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "kl": 100}\n')
    band = group_band(group_by_config(read_runs(three))[0], "kl")
    assert band.steps == [1, 2, 3]


def test_an_unfinished_seed_stays_apart(three):
    (three[1] / "summary.json").unlink()
    assert [len(group.runs) for group in group_by_config(read_runs(three))] == [1, 1, 1]


def test_differing_options_leave_out_seed_and_output(three):
    assert differing_options(group_by_config(read_runs(three))) == {
        "method": ["grpo", "ppo"],
        "kl_weight": ["0.04", "0.1"],
        "critic.width": ["–", "64"],
    }


def test_the_table_has_plain_numbers(three):
    summary = json.loads((three[2] / "summary.json").read_text())
    row = comparison_table([read_run(path) for path in three])[2]
    assert (row["run"], row["method"], row["seed"], row["steps"]) == ("ppo", "ppo", 0, 3)
    for key in ("accuracy", "ece", "kl", "entropy", "nll"):
        assert row[f"{key}_before"] == summary["before"][key]
        assert row[f"{key}_after"] == summary["after"][key]
    assert row["seconds"] == summary["seconds"]
    assert row["peak_memory_bytes"] == summary["peak_memory_bytes"]
    assert row["finished"] is True


def test_the_page_is_offline_and_names_every_run(three, tmp_path):
    page = compare_runs(three, ["kl"], tmp_path / "out" / "compare.html")
    html = page.read_text()
    assert_offline(html)
    words = squeeze(Page(html).words)
    for path in three:
        assert path.name in words
    assert "3 runs, 2 configurations" in words
    assert "mean: grpo, kl_weight 0.04, 2 seeds" in words
    assert html.count("<picture>") == 1


def test_an_existing_folder_gets_compare_html(three, tmp_path):
    assert compare_runs(three, ["kl"], tmp_path) == tmp_path / "compare.html"


def test_without_metrics_all_that_were_logged_are_drawn(three, tmp_path):
    (three[2] / "metrics.jsonl").write_text('{"step": 0, "eval/nll": 1, "step_time": 2}\n')
    html = compare_runs(three, None, tmp_path).read_text()
    assert html.count("<picture>") == 2


def test_a_metric_that_some_runs_lack_is_said_on_the_page(three, tmp_path):
    with (three[2] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "entropy": 0.5}\n')
    words = squeeze(Page(compare_runs(three, ["entropy"], tmp_path).read_text()).words)
    assert "Not logged by: grpo-s0, grpo-s1." in words


def test_unfinished_runs_are_named(three, tmp_path):
    (three[2] / "summary.json").unlink()
    words = squeeze(Page(compare_runs(three, ["kl"], tmp_path).read_text()).words)
    assert "Unfinished: ppo." in words


def test_run_names_are_text_and_distinct(make_run, tmp_path):
    paths = [make_run(f"{parent}/<b>_$x$", steps=1) for parent in ("one", "two")]
    paths.append(make_run("_hidden", steps=1, method="ppo"))
    page = Page(compare_runs(paths, ["kl"], tmp_path).read_text())
    assert "b" not in page.tags
    assert str(paths[0]) in page.words
    assert "_hidden" in page.words


def test_more_runs_than_colours(make_run, tmp_path):
    paths = [make_run(f"run{k}", steps=1, config={"kl_weight": k}) for k in range(9)]
    assert compare_runs(paths, ["kl"], tmp_path).is_file()
    lines = overlay_figure(group_by_config(read_runs(paths)), "kl").axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


def test_fewer_than_two_runs_is_an_error(three, tmp_path):
    with pytest.raises(UserError, match="at least two"):
        compare_runs(three[:1], ["kl"], tmp_path)


def test_one_run_twice_is_an_error(three, tmp_path):
    with pytest.raises(UserError, match="given twice"):
        compare_runs([three[0], three[0] / ".." / "grpo-s0"], ["kl"], tmp_path)


def test_a_metric_absent_in_all_runs_names_the_nearest(three, tmp_path):
    with pytest.raises(UserError, match=r'metric "kll"\. Did you mean "kl"\?'):
        compare_runs(three, ["kl", "kll"], tmp_path)
    assert not (tmp_path / "compare.html").exists()


def test_a_metric_of_runs_without_metrics_is_an_error(three, tmp_path):
    for path in three:
        (path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="They have logged no metrics yet"):
        compare_runs(three, ["kl"], tmp_path)


def test_a_run_that_cannot_be_read_is_named(three, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        compare_runs([*three, tmp_path / "no"], ["kl"], tmp_path)


def test_other_data_or_rewards_are_warned_of(make_run):
    paths = [
        make_run(name, steps=1, keys=("kl",), config={"data": data, "reward": [reward]})
        for name, data, reward in (("a", "digits", "hard"), ("b", "photos", "hard"))
    ]
    assert unlike(read_runs(paths)) == {"data": ["digits (a)", "photos (b)"]}
    words = Page(compare_runs(paths, ["kl"], paths[0].parent / "both.html").read_text()).words
    assert "Other data:" in words
    assert "Other rewards:" not in words
