"""Reading run directories: what is accepted, and the one line for each mistake."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from visgrpo.errors import UserError
from visgrpo.reporting import read_run, series
from visgrpo.reporting.run import metric_keys


def test_a_run_is_read_as_it_was_written(make_run):
    path = make_run("first", steps=20, seed=3)
    run = read_run(path)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert run.metrics == lines
    assert run.summary == json.loads((path / "summary.json").read_text())
    assert run.config["optimizer"] == {"learning_rate": 1e-5, "schedule": "linear"}
    assert (run.name, run.recipe, run.method, run.steps) == ("first", "clip", "grpo", 20)
    assert run.finished
    assert len(run.samples) == 30


def test_series_holds_the_values_of_the_lines_that_have_the_metric(make_run):
    path = make_run()
    lines = [{"step": 0, "eval/kl": 0.0}, {"step": 1, "kl": 0.5}, {"step": 2, "kl": None}]
    lines += [{"step": 4, "kl": 0.25}, {"step": 3, "kl": 1}, {"step": 4, "kl": 0.75, "note": "x"}]
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    run = read_run(path)
    # Step 4 was logged again after a resume: the later line counts. null is left out.
    assert series(run, "kl") == ([1, 3, 4], [0.5, 1.0, 0.75])
    assert metric_keys(run) == ["eval/kl", "kl"]


def test_an_unknown_metric_names_the_nearest(make_run):
    run = read_run(make_run(steps=2))
    with pytest.raises(UserError, match=r'no metric "rewrad"\. Did you mean "reward"\?'):
        series(run, "rewrad")


def test_a_metric_of_a_run_without_metrics_is_an_error(make_run):
    path = make_run()
    (path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="logged no metrics yet"):
        series(read_run(path), "kl")


def test_an_unfinished_run_is_readable_and_its_half_written_line_is_left(make_run):
    path = make_run(steps=10, finished=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "rew')
    run = read_run(path)
    assert not run.finished
    assert run.steps == 10
    assert run.before["accuracy"] == pytest.approx(0.55)
    assert run.after["accuracy"] == pytest.approx(0.82 - 0.27 * math.exp(-4))


def test_before_the_second_evaluation_there_is_no_after(make_run):
    path = make_run(finished=False)
    (path / "metrics.jsonl").write_text('{"step": 0, "eval/accuracy": 0.5}\n{"step": 1, "kl": 0}\n')
    run = read_run(path)
    assert (run.before, run.after) == ({"accuracy": 0.5}, {})


def test_samples_are_optional(make_run):
    assert read_run(make_run(samples=False)).samples == []


def test_a_missing_folder_names_the_nearest(make_run):
    path = make_run("digits-grpo")
    with pytest.raises(UserError, match=r'does not exist\. Did you mean "digits-grpo"\?'):
        read_run(path.with_name("digits-gpro"))


def test_a_missing_parent_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r'nowhere/run" does not exist\.$'):
        read_run(tmp_path / "nowhere" / "run")


@pytest.mark.parametrize("needed", ["config.yaml", "metrics.jsonl"])
def test_a_folder_that_is_not_a_run_says_what_is_missing(make_run, needed):
    path = make_run()
    (path / needed).unlink()
    with pytest.raises(UserError, match=f"is not a run: it has no {needed}"):
        read_run(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"step": 2, "kl": ', "Expecting value"),
        (b'{"step": 2, "kl": NaN}', "NaN is not JSON"),
        (b'{"step": 2, "kl": -Infinity}', "-Infinity is not JSON"),
        (b'{"step": 2, "kl": 1e999}', "1e999 is too large"),
        (b"[1, 2]", "not one object"),
        (b'{"kl": 1}', '"step" must be a whole number'),
        (b'{"step": -1}', '"step" must be a whole number'),
        (b'{"step": 2, "note": "\xff"}', "invalid start byte"),
    ],
)
def test_a_damaged_metrics_line_is_named_by_number(make_run, line, reason):
    path = make_run()
    (path / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"step": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3 is damaged") as error:
        read_run(path)
    assert reason in str(error.value)


def test_the_torn_last_line_of_a_finished_run_is_damage(make_run):
    path = make_run()
    (path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "k')
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_run(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": 1}', '"outputs" must be a list'),
        ('{"outputs": []}', '"step" must be'),
        ('{"step": 1, "outputs": ["a", "b"], "rewards": [1.0]}', '"rewards" must be a list as'),
        ('{"step": 1, "outputs": ["a"], "advantages": 1.0}', '"advantages" must be a list as'),
    ],
)
def test_a_damaged_sample_is_named_by_number(make_run, line, reason):
    path = make_run()
    (path / "samples.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"samples\.jsonl, line 1 is damaged") as error:
        read_run(path)
    assert reason in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"seconds": NaN}'])
def test_a_damaged_summary_is_an_error(make_run, text):
    path = make_run()
    (path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        read_run(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [1", "not readable YAML"), ("- a", "valid dictionary"), ("", "valid dictionary")],
)
def test_a_damaged_config_is_an_error_in_one_line(make_run, text, reason):
    path = make_run()
    (path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        read_run(path)
    assert "\n" not in str(error.value)


def test_a_run_can_be_moved(make_run, tmp_path):
    path = make_run("old", steps=3)
    moved = tmp_path / "elsewhere" / "new"
    shutil.copytree(path, moved)
    assert read_run(moved).metrics == read_run(path).metrics
