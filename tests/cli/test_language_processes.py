"""Two processes with half the prompts each train the language model of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import language_words, read_json, read_lines, refused, speak, speechless
from safetensors.torch import load_file

from visgrpo.training.processes import Processes

WAYS = {
    "mean over tokens, accumulated": ("dapo", "--accumulation 2 --kl-target 0.05"),
    "ppo, updates on old groups": ("ppo", "--minibatches 2 --kl-in loss"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_numbers_of_one(
    way: str,
    stages: Path,
    short_text: Path,
    tmp_path: Path,
    on_two_processes: Callable[[list[str]], str],
) -> None:
    stage, options = WAYS[way]
    # An odd number of held-out prompts: the processes' shares of them differ.
    more = [*options.split(), "--keep", "last", "--batch-size", "8", "--eval-prompts", "3"]
    one = speak(stage, stages / "sft", short_text, tmp_path / "one", *more)
    two = tmp_path / "two"
    printed = on_two_processes(language_words(stage, stages / "sft", short_text, two, *more))
    assert printed.count("held-out") == 1  # one process prints
    lines = [speechless(run) for run in (two, one)]
    for our, their in zip(*lines, strict=True):  # one process writes
        assert our["step"] == their["step"]
        for name in their:
            # Shares of tokens are means over the parts of a batch, whose lengths differ.
            close = 5e-3 if name.startswith(("clip_ratio", "ratio_mean")) else 1e-4
            assert our[name] == pytest.approx(their[name], abs=close, rel=1e-3), name
    for name in ("sampled_tokens", "memory"):
        assert read_json(two / "summary.json")[name] == read_json(one / "summary.json")[name]
    _assert_close(two, one)
    # Each run shows the first groups of its first process: where both show one, it is the same.
    ours, theirs = (_drawn(run) for run in (two, one))
    shared = ours.keys() & theirs.keys()
    assert shared
    assert all(ours[group] == theirs[group] for group in shared)


def _drawn(run: Path) -> dict[tuple[int, int], list[str]]:
    """The completions that a run shows, by step and prompt."""
    samples = read_lines(run / "samples.jsonl")
    return {(sample["step"], sample["index"]): sample["outputs"] for sample in samples}


def _assert_close(two: Path, one: Path) -> None:
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (two, one))
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Adam turns rounding noise in a gradient of nothing into steps of up to the learning rate.
        torch.testing.assert_close(ours[name], theirs[name], atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("stage", ["preferences", "all"])
def test_what_runs_in_one_process_says_so(
    stage: str,
    stages: Path,
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Processes, "world_size", 2)
    init = None if stage == "all" else stages / "sft"
    line = refused(capsys, language_words(stage, init, short_text, tmp_path / "run"))
    assert f"--stage {stage} runs in one process" in line
    assert not list(tmp_path.iterdir())
