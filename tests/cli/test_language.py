"""`visgrpo language` as a new user tries it: all stages, the comparing page, and completions."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from running import blank_plots, read_json
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from visgrpo.cli import main
from visgrpo.tasks.language.options import PRESETS
from visgrpo.tasks.options import Budget

pytestmark = pytest.mark.slow
COMPARE = "--metric reward --metric kl --metric entropy --metric loss --metric gold_reward"
POLICIES = ("grpo", "ppo")
TRAINED = ("sft", "reward", *POLICIES)


class Story(NamedTuple):
    """The runs of `--method all`, and what was printed while nobody watched a terminal."""

    runs: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    runs = tmp_path_factory.mktemp("story") / "all"
    out, err = io.StringIO(), io.StringIO()
    short = {
        "pairs": 400,
        "sft": Budget(150, 16, 3e-3),
        "reward": Budget(40, 16, 1e-3),
        "policy": Budget(15, 8, 1e-3),
    }
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        blank_plots(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setitem(PRESETS, "tiny", PRESETS["tiny"]._replace(**short))
        main(["language", "--preset", "tiny", "--output", str(runs), "--device", "cpu"])
    return Story(runs, out.getvalue(), err.getvalue())


def test_all_stages_leave_their_runs(story: Story) -> None:
    for name in ("sft", "pairs", "reward", "best-of-n", "grpo", "ppo"):
        summary = read_json(story.runs / name / "summary.json")
        assert summary["recipe"] == "language"
        assert summary["seconds"] > 0
        assert (story.runs / name / "config.yaml").exists()
    for name in TRAINED:
        files = {path.name for path in (story.runs / name).iterdir()}
        assert {"metrics.jsonl", "checkpoints", "model", "plots", "report.html"} < files
    for name in POLICIES:
        assert (story.runs / name / "samples.jsonl").exists()
        summary = read_json(story.runs / name / "summary.json")
        assert summary["sampled_tokens"] > 0
        memory = summary["memory"]
        assert {"policy_bytes", "reference_bytes", "reward_model_bytes"} < memory.keys()
    whole = read_json(story.runs / "summary.json")
    assert list(whole["stages"]) == ["sft", "pairs", "reward", "best-of-n", "grpo", "ppo"]
    assert whole["seconds"] == pytest.approx(
        sum(stage["seconds"] for stage in whole["stages"].values()), abs=0.01
    )


def test_the_models_load_with_plain_transformers(story: Story) -> None:
    for name in TRAINED:
        folder = story.runs / name / "model"
        auto = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
        model, report = auto.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert len(tokenizer) == model.get_input_embeddings().num_embeddings
        assert (folder / "README.md").exists()


def test_the_story_learns(story: Story) -> None:
    sft, grpo, ppo = (
        read_json(story.runs / name / "summary.json") for name in ("sft", "grpo", "ppo")
    )
    assert sft["after"]["nll"] < sft["before"]["nll"] - 1
    for summary in (grpo, ppo):
        assert summary["after"]["reward"] > summary["before"]["reward"]
        assert summary["after"]["kl"] > 0
    assert grpo["before"] == ppo["before"]  # the same start, prompts and random numbers


def test_pages_need_nothing_from_elsewhere(story: Story) -> None:
    pages = [story.runs / name / "report.html" for name in (*TRAINED, "best-of-n")]
    for page in [*pages, story.runs / "compare.html"]:
        text = page.read_text()
        assert "<img" in text
        assert 'src="http' not in text
        assert "<link" not in text


def test_a_pipe_gets_plain_lines(story: Story) -> None:
    for text in (story.out, story.err):
        assert "\x1b" not in text
        assert "\r" not in text
        assert "Warning" not in text
        assert "[transformers]" not in text
    for number, stage in enumerate(("sft", "preferences", "reward"), start=1):
        assert f"[{number}/6] {stage}\n" in story.err
    assert "[6/6] ppo\n" in story.err
    assert story.err.splitlines()[-1] == f"Page: {story.runs / 'compare.html'}"
    assert len(story.err.splitlines()) < 100
    last_table = story.out[story.out.rindex("held-out prompts") :]
    for row in ("sft (start)", "best of 8", "grpo", "ppo"):
        assert f"│ {row} " in last_table


def test_compare_draws_the_metrics_that_are_asked_for(story: Story, tmp_path: Path) -> None:
    runs = [str(story.runs / name) for name in POLICIES]
    page = tmp_path / "compare.html"
    main(["compare", *runs, *COMPARE.split(), "--output", str(page)])
    drawn = re.findall(r'alt="Curve: ([^"]*)"', page.read_text())
    assert drawn[0].startswith("reward that is trained on and gold reward against KL")
    assert drawn[-5:] == ["Reward", "KL to the start", "Entropy", "Loss", "Gold reward"]


# Completions


def test_generate_prints_completions(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(story.runs / "grpo" / "model"), "The string", "--samples", "4"]
    main(words)
    shown = capsys.readouterr()
    assert [f"--- {number} of 4" in shown.out for number in range(1, 6)] == [True] * 4 + [False]
    assert shown.out.count("The string") >= 4
    assert not shown.err
    main(words)
    assert capsys.readouterr().out == shown.out
    main([*words, "--seed", "1"])
    assert capsys.readouterr().out != shown.out


def test_generate_speaks_json(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a run's folder, and with what bounds the draws."""
    words = ["generate", str(story.runs / "ppo"), "The string", "--json", "-", "--samples", "3"]
    main([*words, "--max-new-tokens", "5", "--top-k", "1"])
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"] == "The string"
    assert len(found["completions"]) == 3
    assert len({each["completion"] for each in found["completions"]}) == 1  # no choice is left
    for each in found["completions"]:
        assert 0 < each["tokens"] <= 5
        assert each["log_prob"] == pytest.approx(0, abs=1e-5)
        assert isinstance(each["ended"], bool)
