"""Which weights a run ends with, when the labels are not the point."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from running import clip, read_lines

from visgrpo.data.read import read
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.tasks.clip.options import ClipConfig


def test_what_decides_the_best_step() -> None:
    assert ClipConfig().resolved_select() == "accuracy"
    assert ClipConfig(reward=("cost:prices.csv",)).resolved_select() == "reward"
    assert ClipConfig(reward=("hard", "soft")).resolved_select() == "reward"
    assert ClipConfig(reward=("f.py:g",), method="supervised").resolved_select() == "accuracy"
    assert ClipConfig(reward=("f.py:g",), select="accuracy").resolved_select() == "accuracy"


def test_held_out_numbers_are_those_of_the_policy_at_its_temperature(
    start: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    """Reward, entropy, KL and the objective; NLL is that of the model, whatever it was drawn at."""
    options = ["--temperature", "3", "--entropy-weight", "0.5", "--beta", "0.1", "--keep", "last"]
    run = clip(start, pictures, tmp_path / "run", *options)
    data = read(str(pictures)).test
    labels_M, logits = torch.from_numpy(data.labels), {}
    for name, folder in (("start", start), ("tuned", run / "model")):
        parts = load_clip(str(folder))
        prompts = ["a photo of a {}."]
        model = ClipClassifier(parts.model, parts.tokenizer, data.classes, prompts).eval()
        with torch.no_grad():
            images_M = torch.stack([parts.preprocess(image) for image in data.images])
            logits[name] = model(images_M).double()
    log_p_MK, log_q_MK = ((logits[name] / 3).log_softmax(-1) for name in ("tuned", "start"))
    after = json.loads((run / "summary.json").read_text())["after"]
    nll = torch.nn.functional.cross_entropy(logits["tuned"], labels_M).item()
    assert after["nll"] == pytest.approx(nll, abs=1e-5)
    rewards_M = log_p_MK.exp().gather(1, labels_M[:, None])
    assert after["reward"] == pytest.approx(rewards_M.mean().item(), abs=1e-5)
    entropy = -(log_p_MK.exp() * log_p_MK).sum(-1).mean().item()
    assert after["entropy"] == pytest.approx(entropy, abs=1e-5)
    assert after["entropy_normalized"] == pytest.approx(entropy / math.log(3), abs=1e-5)
    kl = (log_p_MK.exp() * (log_p_MK - log_q_MK)).sum(-1).mean().item()
    assert after["kl"] == pytest.approx(kl, abs=1e-6)
    for line in read_lines(run / "metrics.jsonl"):
        if "eval/objective" in line:
            regular = 0.5 * line["eval/entropy"] - 0.1 * line["eval/kl"]
            assert line["eval/objective"] == pytest.approx(line["eval/reward"] + regular)


def test_a_run_ends_with_what_its_own_reward_prefers(
    start: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    """A reward for the class after the label: accuracy falls, and that is what was asked for."""
    file = tmp_path / "mine.py"
    file.write_text(
        "def following(outputs, label, **columns):\n"
        "    return (outputs == (label[:, None] + 1) % 3).float()\n"
    )
    words = ["--reward", f"{file}:following", "--estimator", "exact", "--keep", "best"]
    run = clip(start, pictures, tmp_path / "run", *words, "--beta", "0")
    rewards = {
        line["step"]: line["eval/reward"]
        for line in read_lines(run / "metrics.jsonl")
        if "eval/reward" in line
    }
    best = max(rewards, key=lambda step: (rewards[step], step))
    assert best > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_step"] == best
    assert summary["after"]["reward"] > summary["before"]["reward"]
