"""Pages of vision-language runs: answers in and out of distribution, counts, images and prompts."""

from __future__ import annotations

import re
from functools import partial

import pytest
from fake_runs import QUESTION, answered, draw_scene, language_run, vlm_run, write_lines
from html_pages import Page, assert_offline, read_page, squeeze

from visgrpo.metrics import metric, ordered
from visgrpo.reporting import compare_runs, comparison_table, outcome, read_run, write_report
from visgrpo.reporting.examples import examples
from visgrpo.reporting.figures import curve_figure, curve_keys
from visgrpo.reporting.outcome import count_confusions, distributions
from visgrpo.reporting.run import common_subject


@pytest.fixture
def small_run(make_run):
    """Runs with few metrics, so that their pages are drawn quickly."""
    return partial(vlm_run, make_run, keys=("eval/accuracy", "sampled_tokens"))


def test_the_measures_are_those_of_answers(small_run):
    path = small_run()
    html = write_report(path).read_text()
    assert_offline(html)
    text = squeeze(Page(html).words)
    assert "Accuracy 50.0 % → 81.2 % (95 % interval 77.9 % to 84.6 %), +31.2 points" in text
    titles = "Accuracy Sampled accuracy Mean absolute error Without an answer Right format"
    assert f"Before and after {titles} before 50.0 % 45.0 % 1.000 6.2 % 75.0 % after" in text
    assert "change +31.2 points +31.2 points −0.625 −3.9 points +15.6 points" in text
    assert f"Out of distribution {titles} before 25.0 % 20.0 % 1.500" in text
    assert (
        "Measured on 512 held-out questions; the accuracy at the end lies between 77.9 % and "
        "84.6 % (95 % interval); always giving the commonest answer would be right for 12.5 %."
    ) in text
    assert text.count("share of questions that the likeliest completion answers right") == 1
    assert "Shifted copies" not in text


def test_accuracy_in_and_out_of_distribution_has_its_intervals(small_run):
    run = read_run(small_run())
    rows = [(row.name, row.before, row.after, row.verdict) for row in distributions(run)]
    half, four_fifths = "50.0 % (45.7 % to 54.3 %)", "81.2 % (77.9 % to 84.6 %)"
    assert rows == [
        ("in distribution", half, four_fifths, "gain"),
        ("out of distribution", "25.0 % (21.2 % to 28.7 %)", half, "gain"),
    ]
    text = squeeze(read_page(write_report(run.path)).words)
    assert "In and out of distribution: Accuracy, with 95 % intervals data" in text
    assert "out of distribution 25.0 % (21.2 % to 28.7 %) 50.0 % (45.7 % to 54.3 %) +25.0" in text


def test_data_of_the_users_own_keeps_its_name(small_run):
    found = {"before": answered(0.25, 0.1), "after": {"accuracy": 0.5}}
    run = read_run(small_run(summary={"shifts": {"super <clevr>": found}}))
    assert [row.name for row in distributions(run)] == ["in distribution", "super <clevr>"]
    assert distributions(run)[1].after == "50.0 %"
    page = read_page(write_report(run.path))
    assert "Super <clevr>" in page.words
    assert "clevr" not in page.tags


def test_without_other_data_there_is_nothing_to_compare(small_run, make_run):
    run = read_run(small_run(summary={"shifts": {}, "confusion": {}}))
    assert distributions(run) == []
    words = read_page(write_report(run.path)).words
    assert "of distribution" not in words
    assert "true counts" not in words
    shifted = {"shifts": {"blur": {"before": {"accuracy": 0.5}, "after": {"accuracy": 0.4}}}}
    clip = read_run(make_run("clip", steps=1, samples=False, summary=shifted))
    assert distributions(clip) == []
    assert len(outcome.shifts(clip)) == 2


def test_confusion_of_counts_by_hand(small_run):
    rows = [[3, 1, 0, 0], [0, 2, 1, 5]]  # true 0 and 1; answered 0, 1, another number, none
    run = read_run(small_run(summary={"confusion": {"in": {"counts": [0, 1], "rows": rows}}}))
    (name, matrix), *others = count_confusions(run).items()
    assert (name, others) == ("in distribution", [])
    assert matrix.names == ["0", "1"]
    assert matrix.columns == ["0", "1", "other", "none"]
    cells = [(cell.row, cell.column, cell.count, cell.share) for cell in matrix.cells]
    assert cells == [
        (0, 0, 3, 0.75),
        (0, 1, 1, 0.25),
        (1, 1, 2, 0.25),
        (1, 2, 1, 0.125),
        (1, 3, 5, 0.625),
    ]
    html = write_report(run.path).read_text()
    assert "true 1, predicted none: 5 (62.5 %)" in html
    # A column more than the rows for each of "other" and "none": none of them is cut off.
    side, margin = 44, 18 + 9 * len("other")
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)" role', html).groups())
    assert width >= margin + 4 * side
    assert height < width


def test_a_group_has_its_image_its_prompt_and_its_completions(small_run):
    path = small_run()
    shown, logged = examples(read_run(path))
    assert logged == 2
    assert all(example.is_text and example.picture.uri for example in shown)
    html = write_report(path).read_text()
    assert_offline(html)
    page = Page(html)
    assert html.count('<article class="card example seen">') == 2
    assert not {"b", "script"} & set(page.tags)
    assert f"Prompt, input 1 · true answer: 3 {QUESTION} step 1 · 3 completions" in squeeze(
        page.words
    )
    assert "<think>1 0\n1 1</think><answer>3</answer>" in page.words
    assert "alert(1)</script> cut off 0.00 −1.40 step 40 · 3 completions" in squeeze(page.words)
    assert "prob." not in page.words


def test_an_image_that_is_gone_is_named_beside_its_prompt(small_run):
    path = small_run()
    (path / "samples" / "1.png").unlink()
    words = squeeze(read_page(write_report(path)).words)
    assert "Image cannot be shown: samples/1.png Prompt, input 1" in words


def test_a_group_without_a_known_truth_or_an_image_has_neither(small_run):
    path = small_run()
    line = {"step": 1, "index": 4, "prompt": "a", "outputs": ["b"], "ended": [True]}
    write_lines(path / "samples.jsonl", [line])
    words = squeeze(read_page(write_report(path)).words)
    assert "Prompt, input 4 a step 1" in words
    draw_scene(path / "samples" / "4.png", 3)
    write_lines(path / "samples.jsonl", [line | {"image": "samples/4.png"}])
    page = write_report(path).read_text()
    assert 'alt="Input 4"' in page
    assert "true answer" not in page


def test_units_and_reading_order(make_run):
    run = read_run(vlm_run(make_run, stage="sft"))
    assert curve_figure(run, "eval/accuracy").axes[0].get_ylabel() == "share of questions"
    assert curve_figure(run, "eval/nll").axes[0].get_ylabel() == "nats per token"
    measured = ["accuracy", "sampled_accuracy", "mean_absolute_error", "unparsed", "format", "nll"]
    assert curve_keys(run) == [*(f"eval/{name}" for name in measured), "nll", "loss"]
    directions = {"unparsed": "lower", "format": "higher"}
    directions |= {f"sampled_{name}": better for name, better in directions.items()}
    for name, better in directions.items():
        assert metric(f"eval/{name}", "answers").better == better
    assert metric("eval/kl", "answers").unit == "nats per completion"
    assert metric("eval/accuracy/out", "answers").title == "Accuracy, out"
    keys = ["kl", "rewards/exact/mean", "accuracy/out", "reward", "accuracy"]
    assert ordered(keys, "answers") == [
        *("accuracy/out", "accuracy", "reward", "kl", "rewards/exact/mean")
    ]


def test_a_run_that_is_going_on_has_a_page(small_run):
    keys = ("eval/accuracy", "eval/accuracy_low", "eval/accuracy_high", "eval/examples")
    path = small_run("begun", finished=False, keys=keys)
    words = squeeze(read_page(write_report(path)).words)
    assert "Unfinished." in words
    assert "latest 80.0 %" in words
    assert "between 76.0 % and 84.0 %" in words


def test_both_stages_are_compared(small_run, tmp_path):
    paths = [small_run("sft", stage="sft"), small_run("s0"), small_run("s1", seed=1)]
    page = compare_runs(paths, None, tmp_path).read_text()
    assert_offline(page)
    text = squeeze(Page(page).words)
    assert "3 runs, 2 configurations" in text
    columns = "method Accuracy Accuracy, out sampled error no answer format time"
    assert f"Results run {columns}" in text
    assert "sft sft 81.2 % from 50.0 % 50.0 % from 25.0 %" in text
    assert "mean: grpo, stage grpo, 2 seeds grpo 81.2 % 81.2 % to 81.2 % 50.0 %" in text
    assert "Reward against KL" not in text


def test_other_distributions_are_columns_of_the_table(small_run, make_run):
    other = small_run("plain", summary={"shifts": {"clevr": {"before": {"accuracy": 0.5}}}})
    rows = comparison_table([read_run(path) for path in (small_run("both"), other)])
    assert [row["accuracy/out_before"] for row in rows] == [0.25, None]
    assert [row["accuracy/clevr_after"] for row in rows] == [None, None]
    assert rows[1]["accuracy/clevr_before"] == 0.5
    assert not {"majority_after", "accuracy_low_after", "examples_after"} & set(rows[0])


@pytest.mark.parametrize(("other", "subject"), [("language", "tokens"), ("vlm", "answers")])
def test_runs_of_two_recipes_share_what_both_have(make_run, other, subject):
    make = language_run if other == "language" else vlm_run
    runs = [read_run(vlm_run(make_run, "a")), read_run(make(make_run, "b"))]
    assert common_subject(runs) == subject
