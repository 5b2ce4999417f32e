"""Pages of language runs: measures, completions, memory, curves against sampled tokens."""

from __future__ import annotations

import json
from functools import partial

import pytest
from fake_runs import language_run, write_lines
from html_pages import Page, assert_offline, read_page, squeeze

from visgrpo.errors import UserError
from visgrpo.metrics import memory, metric
from visgrpo.reporting import compare_runs, comparison_table, outcome, read_run, write_report
from visgrpo.reporting.compare import group_band, overlay_figure
from visgrpo.reporting.examples import examples, group_table
from visgrpo.reporting.figures import curve_figure, curve_keys
from visgrpo.reporting.groups import group_by_config
from visgrpo.reporting.outcome import memory_parts
from visgrpo.reporting.run import common_subject, positions


@pytest.fixture
def small_run(make_run):
    """Runs with few metrics, so that their pages are drawn quickly."""
    return partial(language_run, make_run, keys=("eval/kl", "eval/gold_reward", "sampled_tokens"))


def test_the_measures_are_those_of_language(small_run):
    summary = {
        "before": {"reward": 0.0, "gold_reward": 0.25, "kl": 0.0, "ended": 0.25, "length": 32.0},
        "after": {"reward": 2.0, "gold_reward": 0.75, "kl": 9.5, "ended": 0.5, "length": 20.0},
    }
    summary["after"]["prompts"] = 64
    path = small_run(summary=summary)
    text = squeeze(read_page(write_report(path)).words)
    assert "Gold reward 0.250 → 0.750 (+0.500)" in text
    titles = "Gold reward Reward KL to the start Length of completions Completions that end"
    assert f"Before and after {titles} before 0.250 0.000 0.000 32.0 25.0 %" in text
    assert "change +0.500 +2.000 +9.500 −12.0 +25.0 points" in text
    assert "Measured on 64 held-out prompts." in text
    assert_offline((path / "report.html").read_text())


@pytest.mark.parametrize(
    ("options", "unit", "about"),
    [
        ({"method": "sft"}, "share of tokens", "share of tokens that the model holds likeliest"),
        ({"method": "reward"}, "share of pairs", "share of pairs whose preferred text"),
        ({"method": "x", "config": {"stage": "reward"}}, "share of pairs", "share of pairs whose"),
    ],
)
def test_accuracy_is_a_share_of_what_was_measured(small_run, options, unit, about):
    measured = {"accuracy": 0.5, "nll": 0.7, "examples": 12}
    path = small_run(summary={"before": measured, "after": measured}, **options)
    write_lines(path / "metrics.jsonl", [{"step": 0, "eval/accuracy": 0.5}])
    run = read_run(path)
    assert curve_figure(run, "eval/accuracy").axes[0].get_ylabel() == unit
    text = squeeze(read_page(write_report(path)).words)
    assert about in text
    assert "Measured on 12 held-out examples." in text
    assert "images" not in text


def test_kl_of_evaluations_is_of_completions_and_that_of_training_of_tokens(make_run):
    run = read_run(language_run(make_run))
    assert curve_figure(run, "eval/kl").axes[0].get_ylabel() == "nats per completion"
    assert curve_figure(run, "kl").axes[0].get_ylabel() == "nats per token"
    kl = next(change for change in outcome.measures(run) if change.name == "kl")
    assert kl.label.unit == "nats per completion"
    keys = curve_keys(run)
    assert keys[:3] == ["eval/gold_reward", "eval/reward", "eval/kl"]
    assert not {"sampled_tokens", "tokens_per_second", "reward_std"} & set(keys)


@pytest.mark.parametrize(
    ("kinds", "subject"),
    [
        (["sft", "grpo"], "tokens"),
        (["reward"], "pairs"),
        (["reward", "grpo"], "tokens"),
        (["grpo", None], "images"),
    ],
)
def test_runs_of_several_kinds_are_labelled_by_the_commonest(make_run, kinds, subject):
    paths = [
        make_run("clip", steps=1, samples=False)
        if kind is None
        else language_run(make_run, kind, method=kind)
        for kind in kinds
    ]
    assert common_subject([read_run(path) for path in paths]) == subject


def test_completions_keep_their_lines_and_are_only_text(small_run):
    path = small_run()
    page = read_page(write_report(path))
    assert "Act 1\n\n  Scene 1" in page.words
    assert "ROMEO:\n  It is the east,\n  and <b>Juliet</b> is the sun" in page.words
    assert "b" not in page.tags
    words = squeeze(page.words)
    assert "step 1 · 3 completions completion reward adv. gold JULIET:" in words
    assert "the the the 2 times · cut off 1.50 0.70 −0.50 ROMEO:" in words


def test_without_gold_there_is_no_such_column(small_run):
    path = small_run(summary={"memory": {}})
    line = {"step": 1, "index": 0, "prompt": "a", "outputs": ["", "b"], "ended": [True, True]}
    write_lines(path / "samples.jsonl", [line])
    words = squeeze(read_page(write_report(path)).words)
    assert "completion reward adv. (empty) – – b – –" in words
    assert "Memory of the models" not in words


def test_completions_come_by_falling_reward_and_ended_ones_apart():
    table = group_table(
        {
            "step": 3,
            "prompt": "a",
            "outputs": ["x", "y", "x", "x"],
            "rewards": [0.5, 2.0, 1.5, None],
            "gold": [1.0, 0.0, 3.0, 4.0],
            "ended": [True, True, True, False],
        }
    )
    rows = [(row.output, row.count, row.reward, row.gold, row.cut_off) for row in table.rows]
    assert rows == [
        ("y", 1, 2.0, 0.0, False),
        ("x", 2, 1.0, 2.0, False),
        ("x", 1, None, 4.0, True),
    ]


@pytest.mark.parametrize("key", ["gold", "ended"])
def test_lists_of_a_sample_are_as_long_as_its_outputs(small_run, key):
    path = small_run()
    write_lines(path / "samples.jsonl", [{"step": 1, "outputs": ["a", "b"], key: [1]}])
    with pytest.raises(UserError, match=f'"{key}" must be a list as long as "outputs"'):
        read_run(path)


def test_the_first_and_the_last_group_of_a_prompt_are_shown(small_run):
    shown, logged = examples(read_run(small_run()))
    assert logged == 2
    assert [[table.step for table in example.groups] for example in shown] == [[1, 40]] * 2
    assert all(example.is_text and example.has_gold for example in shown)


def test_memory_by_parts(small_run):
    ppo, grpo = (read_run(small_run(name, method=name)) for name in ("ppo", "grpo"))
    parts = [(part.name, part.size, part.share) for part in memory_parts([ppo])]
    assert parts == [
        ("policy", "4 MiB", 4 / 24),
        ("critic", "4 MiB", 4 / 24),
        ("reference", "4 MiB", 4 / 24),
        ("reward model", "4 MiB", 4 / 24),
        ("optimiser", "8 MiB", 8 / 24),
        ("together", "24 MiB", 1),
    ]
    assert [part.size for part in memory_parts([grpo])][1] == "–"
    assert [part.size for part in memory_parts([ppo, grpo])][1] == "2 MiB"
    assert memory(96 * 1024) == "96 KiB"


def test_sampled_tokens_are_among_the_facts_and_in_the_table(small_run, make_run, tmp_path):
    path = small_run(summary={"tokens_per_second": 5120.4})
    words = squeeze(read_page(write_report(path)).words)
    assert "Sampled tokens 20,480 Tokens per second 5,120" in words
    (path / "summary.json").unlink()
    assert comparison_table([read_run(path)])[0]["sampled_tokens"] == 20_480
    clip = [make_run(name, steps=1, samples=False, config={"a": name}) for name in ("a", "b")]
    assert comparison_table([read_run(clip[0])])[0]["sampled_tokens"] is None
    assert "sampled tokens" not in compare_runs(clip, ["kl"], tmp_path).read_text()


def test_steps_become_sampled_tokens_in_proportion(small_run):
    path = small_run()
    lines = [{"step": 10, "sampled_tokens": 1000}, {"step": 20, "sampled_tokens": 3000}]
    write_lines(path / "metrics.jsonl", lines)
    places = positions(read_run(path), [0, 5, 10, 15, 20, 25], "token")
    assert places == [0, 500, 1000, 2000, 3000, 3000]


def test_seeds_lie_at_the_mean_of_their_tokens(small_run):
    runs = [
        read_run(small_run(f"s{k}", seed=k, tokens=tokens)) for k, tokens in enumerate((100, 300))
    ]
    (group,) = group_by_config(runs)
    band = group_band(group, "eval/gold_reward", "token")
    assert band.places == [200 * step for step in band.steps]
    axes = overlay_figure([group], "eval/gold_reward", axis="token").axes[0]
    assert axes.get_xlabel() == "sampled tokens"
    assert axes.xaxis.get_major_formatter()(2000) == "2 k"
    assert overlay_figure([group], "eval/gold_reward").axes[0].get_xlabel() == "optimiser step"


def test_a_comparison_shows_rewards_against_kl_and_tokens(small_run, tmp_path):
    paths = [small_run("a"), small_run("b", seed=1), small_run("ppo", method="ppo")]
    html = compare_runs(paths, None, tmp_path).read_text()
    assert_offline(html)
    page = Page(html)
    assert [value for name, value in page.attributes if name == "alt"] == [
        "Curve: gold reward against KL",
        "Curve: Gold reward, validation",
        "Curve: Gold reward, validation",
        "Curve: KL to the start, validation",
    ]
    words = squeeze(page.words)
    order = ["Results", "Memory of the models", "Reward against KL"]
    order += ["Reward against sampled tokens", "Curves", "Differing options"]
    places = [words.index(title) for title in order]
    assert places == sorted(places)
    assert "gold Reward KL Entropy length time steps peak memory sampled tokens" in words


def test_where_a_run_does_not_count_tokens_there_is_no_such_axis(small_run, tmp_path):
    paths = [small_run("a"), small_run("ppo", method="ppo")]
    write_lines(paths[1] / "metrics.jsonl", [{"step": 0, "eval/gold_reward": 0.5}])
    words = squeeze(Page(compare_runs(paths, ["eval/gold_reward"], tmp_path).read_text()).words)
    assert "against sampled tokens" not in words
    assert "Reward against KL" in words


def test_other_recipes_have_none_of_this(make_run):
    path = make_run(steps=2, keys=("eval/kl",))
    lines = [{"step": 0, "eval/kl": 0.0, "eval/reward": 0.5}]
    (path / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    words = read_page(write_report(path)).words
    assert not (path / "plots" / "overoptimization.png").exists()
    for title in ("Reward against KL", "Memory of the models", "Sampled tokens"):
        assert title not in words


def test_metrics_of_language_have_titles():
    assert metric("eval/perplexity", "tokens").title == "Perplexity"
    assert metric("rewards/length/mean", "tokens").title == "Reward: length"
    assert metric("margin", "pairs").better == "higher"
    assert metric("eval/accuracy").unit == "share of images"
