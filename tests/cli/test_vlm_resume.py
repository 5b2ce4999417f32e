"""`visgrpo vlm` goes on from a checkpoint, and in two processes, with the numbers of one run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import metric_lines, read_json, read_lines, see, vlm_words, weights

from visgrpo.cli import main

SIX = ["--steps", "6", "--save-every", "2", "--eval-every", "3", "--learning-rate", "1e-2"]
RANDOM = ["--reward", "random", *SIX]
CASES = {
    "sft": ("sft", SIX),
    "grpo": ("grpo", [*RANDOM, "--kl-target", "0.05", "--kl-horizon", "64"]),
    "adapters": ("grpo", [*RANDOM, "--train", "lora", "--minibatches", "2", "--keep", "last"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_bit(
    case: str, seer: Path, counts: Path, tmp_path: Path
) -> None:
    stage, options = CASES[case]
    whole = see(stage, seer, counts, tmp_path / "whole", *options)
    run = _cut_after_four_steps(whole, tmp_path / "run")
    main(["vlm", "--resume", "--output", str(run)])
    assert weights(run) == weights(whole)
    assert _speechless(run) == _speechless(whole)
    ours, theirs = (read_json(each / "summary.json") for each in (run, whole))
    for part in ("before", "after", "shifts", "confusion", "sampled_tokens", "best_step"):
        assert ours.get(part) == theirs.get(part), part
    if stage == "grpo":
        assert read_lines(run / "samples.jsonl") == read_lines(whole / "samples.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo"])
def test_two_processes_give_the_numbers_of_one(
    stage: str,
    seer: Path,
    counts: Path,
    tmp_path: Path,
    on_two_processes: Callable[[list[str]], str],
) -> None:
    # An odd number of held-out rows: the processes' shares of them differ.
    options = ["--keep", "last", "--eval-images", "5", "--learning-rate", "1e-2"]
    options += ["--accumulation", "2"] if stage == "sft" else ["--reward", "length:3", "exact"]
    one = see(stage, seer, counts, tmp_path / "one", *options)
    two = tmp_path / "two"
    printed = on_two_processes(vlm_words(stage, seer, counts, two, *options))
    assert printed.count("held-out") == 1  # one process prints
    for our, their in zip(_speechless(two), _speechless(one), strict=True):
        assert our["step"] == their["step"]
        for name in their:
            assert our[name] == pytest.approx(their[name], rel=1e-3, abs=1e-5), name
    ours, theirs = (read_json(run / "summary.json") for run in (two, one))
    for when in ("before", "after"):
        assert ours[when] == pytest.approx(theirs[when], rel=1e-3, abs=1e-5)
    assert ours["confusion"] == theirs["confusion"]


def _cut_after_four_steps(whole: Path, run: Path) -> Path:
    """Return a copy of a run as it was when its checkpoint of step 4 had been written."""
    shutil.copytree(whole, run)
    for part in ("checkpoints/step-000006", "model", "adapter"):
        shutil.rmtree(run / part, ignore_errors=True)
    (run / "summary.json").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(whole), str(run)))
    return run


def _speechless(run: Path) -> list[dict[str, object]]:
    """metrics.jsonl without what a clock says."""
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in metric_lines(run)
    ]
