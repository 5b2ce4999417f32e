"""Which weights a run ends with, when the labels are not the point."""

from __future__ import annotations

import json
from pathlib import Path

from running import clip, read_lines

from visgrpo.tasks.clip.options import ClipConfig


def test_what_decides_the_best_step() -> None:
    assert ClipConfig().resolved_select() == "accuracy"
    assert ClipConfig(reward=("cost:prices.csv",)).resolved_select() == "reward"
    assert ClipConfig(reward=("hard", "soft")).resolved_select() == "reward"
    assert ClipConfig(reward=("f.py:g",), method="supervised").resolved_select() == "accuracy"
    assert ClipConfig(reward=("f.py:g",), select="accuracy").resolved_select() == "accuracy"


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
