"""Language runs that were killed or stopped go on as if nothing had happened."""

from __future__ import annotations

import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from running import (
    language_words,
    read_json,
    same_language_run,
    speak,
    training_lines,
)

from record import exactly
from visgrpo.cli import main
from visgrpo.training.trainer import Trainer


@pytest.fixture(scope="module")
def whole_story(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("story") / "all"
    return speak("all", None, short_text, output, "--silent-steps", 9)


@pytest.mark.slow
def test_all_goes_on_in_the_middle_of_a_stage(
    whole_story: Path, short_text: Path, tmp_path: Path, kill_runs: Callable[..., None]
) -> None:
    run = tmp_path / "all"
    words = language_words("all", None, short_text, run, "--silent-steps", 9)
    kill_runs([{"words": words, "step": 3, "file": None, "title": "grpo"}])
    done = (run / "sft" / "metrics.jsonl").stat().st_mtime_ns
    assert not (run / "grpo" / "summary.json").exists()
    assert not (run / "ppo").exists()
    main(["language", "--resume", "--output", str(run)])
    assert (run / "sft" / "metrics.jsonl").stat().st_mtime_ns == done  # not trained again
    for stage in ("sft", "reward", "grpo", "ppo"):
        assert exactly(run / stage) == exactly(whole_story / stage)
    assert (
        read_json(run / "summary.json")["stages"].keys()
        == read_json(whole_story / "summary.json")["stages"].keys()
    )


@pytest.mark.slow
def test_all_makes_the_rest_of_its_pairs_again(whole_story: Path, tmp_path: Path) -> None:
    """A kill while pairs are drawn leaves their folder without a file."""
    run = shutil.copytree(whole_story, tmp_path / "all")  # stages name each other
    pairs = (run / "pairs" / "pairs.jsonl").read_bytes()
    for file in ("pairs/summary.json", "pairs/pairs.jsonl", "summary.json"):
        (run / file).unlink()
    main(["language", "--resume", "--output", str(run)])
    assert (run / "pairs" / "pairs.jsonl").read_bytes() == pairs
    assert (run / "summary.json").exists()


@pytest.mark.slow
def test_a_finished_story_is_not_told_again(whole_story: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole_story, tmp_path / "all")  # stages name each other
    times = {file: file.stat().st_mtime_ns for file in run.glob("*/*.json*")}
    main(["language", "--resume", "--output", str(run)])
    assert {file: file.stat().st_mtime_ns for file in run.glob("*/*.json*")} == times


@pytest.mark.slow
def test_one_stage_is_what_it_is_in_all(
    whole_story: Path, short_text: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load((whole_story / "grpo" / "config.yaml").read_text())
    words = ["language", "--method", "grpo", "--device", "cpu", "--no-report"]
    words += ["--validation-fraction", "0.1"]
    for name in ("max_new_tokens", "prompt_tokens", "eval_prompts", "group_size", "silent_steps"):
        words += [f"--{name.replace('_', '-')}", str(settings[name])]
    paths = ["--model", whole_story / "sft", "--data", short_text, "--output", tmp_path / "run"]
    main([*words, *map(str, paths)])
    assert same_language_run(tmp_path / "run", whole_story / "grpo")


def test_ctrl_c_in_a_stage_of_all_says_how_all_goes_on(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, update = tmp_path / "run", Trainer._update

    def interrupted(self: Trainer, *arguments: object) -> object:
        if self._step == 2:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(language_words("all", None, short_text, run))
    assert caught.value.code == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("visgrpo: stopped after step 3, which is saved")
    command = shlex.split(line.partition("Go on with: ")[2])
    assert command == ["visgrpo", "language", "--output", str(run), "--resume"]
    assert [line["step"] for line in training_lines(run / "sft")] == []
    assert (run / "sft" / "checkpoints" / "step-000003").exists()


def test_a_reference_that_moves_is_where_it_was(
    stages: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--sync-reference", 2, "--sync-mix", 0.5, "--learning-rate", "1e-2"]
    whole = speak("grpo", stages / "sft", short_text, tmp_path / "whole", *options)
    still = speak("grpo", stages / "sft", short_text, tmp_path / "still", *options[4:])
    kl, still_kl = ([line["kl"] for line in training_lines(run)] for run in (whole, still))
    assert kl[:2] == still_kl[:2]
    assert kl[2:] != still_kl[2:]
    update = Trainer._update

    def interrupted(self: Trainer, *arguments: object) -> object:
        if self._step == 2:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", interrupted)
    with pytest.raises(SystemExit):
        speak("grpo", stages / "sft", short_text, tmp_path / "cut", *options)
    monkeypatch.undo()
    main(["language", "--resume", "--output", str(tmp_path / "cut")])
    assert exactly(tmp_path / "cut") == exactly(whole)
