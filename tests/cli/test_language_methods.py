"""`visgrpo language` one stage at a time: every method and option, and what a run leaves behind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from running import (
    language_words,
    read_json,
    read_lines,
    speak,
    training_lines,
    weights,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from visgrpo.cli import main

METHODS = (
    *("grpo", "dr-grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "reinforce", "rejection"),
    "ppo",
)
LOGGED = {
    *("loss", "reward", "reward_std", "frac_reward_zero_std", "rewards/gold/mean", "gold_reward"),
    *("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
    *("ratio_mean", "advantage_abs", "completions/mean_length", "completions/clipped_ratio"),
    *("grad_norm", "learning_rate", "sampled_tokens", "kl_coefficient"),
}
LOGGED_BY_PPO = {"value_loss", "explained_variance", "value_clip_ratio"}
MEASURED = {"reward", "gold_reward", "kl", "kl_per_token", "entropy", "length", "ended"}


@pytest.fixture(scope="module")
def plain(stages: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of GRPO with nothing special about them; the run ends with its last weights."""
    output = tmp_path_factory.mktemp("plain") / "run"
    return speak("grpo", stages / "sft", short_text, output, "--keep", "last")


def _changed(run: Path, other: Path) -> bool:
    """Whether two runs ended with different weights."""
    return weights(run) != weights(other)


# Stages


def test_sft_learns(stages: Path) -> None:
    run = stages / "sft"
    summary = read_json(run / "summary.json")
    assert summary["after"]["nll"] < summary["before"]["nll"] - 0.5
    assert summary["after"]["perplexity"] == pytest.approx(math.exp(summary["after"]["nll"]))
    assert {"nll", "perplexity", "accuracy"} <= summary["after"].keys()
    assert summary["memory"]["optimizer_bytes"] == 2 * summary["memory"]["policy_bytes"]
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer("string", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, 6, len(tokenizer))
    assert summary["memory"]["policy_bytes"] == 4 * sum(p.numel() for p in model.parameters())


def test_pairs_say_what_the_judge_said(stages: Path) -> None:
    rows = read_lines(stages / "pairs" / "pairs.jsonl")
    assert len(rows) == 40
    for row in rows:
        assert row["chosen"] != row["rejected"]
        assert row["gold_chosen"] != row["gold_rejected"]
    right = sum(row["gold_chosen"] > row["gold_rejected"] for row in rows) / len(rows)
    assert read_json(stages / "pairs" / "summary.json")["judge_accuracy"] == pytest.approx(right)


def test_the_reward_model_reads_pairs(stages: Path) -> None:
    run = stages / "reward"
    summary = read_json(run / "summary.json")
    assert {"accuracy", "nll", "ece"} <= summary["after"].keys()
    assert summary["reward_std"] > 0
    assert read_json(run / "model" / "visgrpo.json")["reward_mean"] == summary["reward_mean"]
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    assert model.config.num_labels == 1


def test_best_of_n_is_better_than_one_and_writes_no_model(
    stages: Path, short_text: Path, tmp_path: Path
) -> None:
    run = speak("best-of-n", stages / "sft", short_text, tmp_path / "run", "--samples", 6)
    summary = read_json(run / "summary.json")
    assert [row["n"] for row in summary["best_of_n"]] == [1, 2, 4, 6]
    rewards = [row["reward"] for row in summary["best_of_n"]]
    assert rewards == sorted(rewards)
    assert summary["best_of_n"][-1]["kl"] == pytest.approx(math.log(6) - 5 / 6)
    assert 0 < summary["sampled_tokens"] <= 4 * 6 * 8
    assert "optimizer_bytes" not in summary["memory"]  # nothing trains
    assert not (run / "model").exists()


@pytest.mark.parametrize("stage", METHODS)
def test_methods(stage: str, stages: Path, short_text: Path, tmp_path: Path) -> None:
    run = speak(stage, stages / "sft", short_text, tmp_path / "run", "--keep", "last")
    assert _changed(run, stages / "sft")
    lines = training_lines(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    wanted = LOGGED | LOGGED_BY_PPO if stage == "ppo" else LOGGED
    assert wanted <= lines[-1].keys()
    drawn = [line["sampled_tokens"] for line in lines]
    assert drawn == sorted(drawn)
    assert 0 < drawn[-1] <= 4 * 4 * 4 * 8  # steps × prompts × completions × tokens
    summary = read_json(run / "summary.json")
    assert summary["method"] == stage
    assert summary["sampled_tokens"] == drawn[-1]
    assert MEASURED <= summary["after"].keys() == summary["before"].keys()
    assert summary["before"]["kl"] == pytest.approx(0, abs=1e-4)
    memory = summary["memory"]
    assert memory["reference_bytes"] == memory["policy_bytes"]
    assert ("critic_bytes" in memory) == (stage == "ppo")
    assert "reward_model_bytes" not in memory


def test_a_run_of_a_policy_has_what_is_promised(plain: Path) -> None:
    names = {path.name for path in plain.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json"} < names
    assert {"checkpoints", "model"} < names
    for sample in read_lines(plain / "samples.jsonl"):
        assert {"step", "index", "prompt"} < sample.keys()
        for column in ("outputs", "rewards", "advantages", "gold", "ended"):
            assert len(sample[column]) == 4
        assert sample["rewards"] == sample["gold"]  # here the judge is the reward
        assert sum(sample["advantages"]) == pytest.approx(0, abs=1e-4)
    evaluations = [line for line in read_lines(plain / "metrics.jsonl") if "eval/reward" in line]
    assert {f"eval/{name}" for name in MEASURED} < evaluations[-1].keys()
    AutoModelForCausalLM.from_pretrained(plain / "model")


def test_another_seed_is_another_run(
    plain: Path, stages: Path, short_text: Path, tmp_path: Path
) -> None:
    start = stages / "sft"
    other = speak("grpo", start, short_text, tmp_path / "other", "--keep", "last", "--seed", 1)
    assert _changed(other, plain)


# Options

CHANGING = {
    "kl in the reward": "--kl-in reward --beta 0.5",
    "kl estimator": "--kl-estimator k2 --beta 0.5",
    "entropy": "--entropy-weight 0.1",
    "truncated left out": "--mask-truncated",
    "few tokens": "--top-k 5",
    "nucleus": "--top-p 0.5",
    "temperature": "--temperature 0.5",
    "advantages": "--scope batch --advantage-baseline leave_one_out --scale none",
    "no reference": "--beta 0 --no-track-kl",
    "no judge": "--no-gold --reward {mine}",
}


@pytest.mark.parametrize("name", CHANGING)
def test_options_change_the_run(
    name: str, plain: Path, stages: Path, short_text: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def spaces(completions):\n    return [c.count(' ') for c in completions]\n")
    options = CHANGING[name].format(mine=f"{mine}:spaces").split()
    run = speak("grpo", stages / "sft", short_text, tmp_path / "run", "--keep", "last", *options)
    assert _changed(run, plain)
    assert _changed(run, stages / "sft")
    line = training_lines(run)[-1]
    assert ("kl" in line) == (name != "no reference")
    assert ("gold_reward" in line) == (name != "no judge")


def test_several_updates_on_old_groups(stages: Path, short_text: Path, tmp_path: Path) -> None:
    old = ["--inner-passes", "2", "--minibatches", "2", "--refresh-every", "2"]
    options = [*old, "--learning-rate", "1e-2"]
    run = speak("grpo", stages / "sft", short_text, tmp_path / "run", *options)
    lines = training_lines(run)
    assert all(line["ratio_mean"] != 1.0 for line in lines)
    assert lines[-1]["clip_ratio/region_mean"] > 0


def test_accumulation_only_saves_memory(
    plain: Path, stages: Path, short_text: Path, tmp_path: Path
) -> None:
    options = ("--keep", "last", "--accumulation", 2)
    run = speak("grpo", stages / "sft", short_text, tmp_path / "run", *options)
    ours, theirs = (load_file(each / "model" / "model.safetensors") for each in (run, plain))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=1e-3)


def test_a_critic_may_be_a_head_alone(stages: Path, short_text: Path, tmp_path: Path) -> None:
    sizes = {}
    for critic in ("head", "separate"):
        output = tmp_path / critic
        run = speak("ppo", stages / "sft", short_text, output, "--critic", critic)
        sizes[critic] = read_json(run / "summary.json")["memory"]
    assert sizes["head"]["critic_bytes"] == 4 * (64 + 1)  # a weight for each feature, and a bias
    assert sizes["separate"]["critic_bytes"] > sizes["separate"]["policy_bytes"] / 2
    model = load_file(tmp_path / "head" / "model" / "model.safetensors")
    assert not any("critic" in name for name in model)


@pytest.mark.parametrize("stage", ["ppo", "reinforce"])
def test_what_compares_no_outputs_needs_no_groups(
    stage: str, stages: Path, short_text: Path, tmp_path: Path
) -> None:
    options = ["--group-size", "1", "--silent-steps", "2", "--keep", "last"]
    run = speak(stage, stages / "sft", short_text, tmp_path / "run", *options)
    assert _changed(run, stages / "sft")


def test_a_token_budget_counts_steps(stages: Path, short_text: Path, tmp_path: Path) -> None:
    run = speak("grpo", stages / "sft", short_text, tmp_path / "run", "--token-budget", 300)
    summary = read_json(run / "summary.json")
    assert summary["steps"] == 2  # of at most 4 × 4 × 8 tokens
    assert summary["sampled_tokens"] <= 300


def test_kl_is_steered(stages: Path, short_text: Path, tmp_path: Path) -> None:
    options = ["--kl-target", "0.01", "--kl-horizon", "32", "--learning-rate", "1e-2"]
    run = speak("grpo", stages / "sft", short_text, tmp_path / "run", *options)
    coefficients = [line["kl_coefficient"] for line in training_lines(run)]
    assert coefficients[-1] > coefficients[0]


def test_several_rewards_of_which_one_is_mine(
    stages: Path, short_text: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def brief(prompts, completions, completion_ids, **columns):\n"
        "    assert len(prompts) == len(completions) == len(completion_ids)\n"
        "    return [-len(text) / 10 for text in completions]\n"
    )
    specs = [f"model:{stages / 'reward'}", "gold", f"{mine}:brief"]
    options: list[Any] = ["--reward", *specs, "--reward-weights", "1", "2", "0.5"]
    run = speak("grpo", stages / "sft", short_text, tmp_path / "run", *options)
    for line in training_lines(run):
        parts = [line[f"rewards/{name}/mean"] for name in ("model", "gold", "brief")]
        assert line["reward"] == pytest.approx(parts[0] + 2 * parts[1] + 0.5 * parts[2], abs=1e-5)
    memory = read_json(run / "summary.json")["memory"]
    assert (
        memory["reward_model_bytes"]
        == read_json(stages / "reward" / "summary.json")["memory"]["policy_bytes"]
    )


def test_the_reward_model_beside_the_start_is_the_reward(
    stages: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = language_words("grpo", stages / "sft", short_text, tmp_path / "run")
    at = words.index("--reward")
    main([*words[:at], *words[at + 2 :]])
    assert f"note: the reward is model:{stages / 'reward'}." in capsys.readouterr().err
    assert "rewards/model/mean" in training_lines(tmp_path / "run")[-1]
