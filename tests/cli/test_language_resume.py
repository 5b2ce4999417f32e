"""Language runs that were killed or stopped go on as if nothing had happened."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from running import (
    language_words,
    read_json,
    read_lines,
    refused,
    same_language_run,
    speak,
    training_lines,
)

from visgrpo.cli import main
from visgrpo.training.trainer import Trainer

SIX = ["--steps", "6", "--save-every", "2", "--eval-every", "3"]
COMMON = ("before", "after", "best_step", "validation", "sampled_tokens", "memory")


class Killed(NamedTuple):
    """A run that is killed within a step of a stage, or before a file of that step's checkpoint."""

    stage: str
    options: str
    step: int
    file: str | None = None


KILLED = {
    "sft": Killed("sft", "--log-every 4", 5),
    "reward": Killed("reward", "--keep last", 4, "optimizer"),
    "grpo, kl steered, old groups": Killed(
        "grpo", "--kl-target 0.05 --kl-horizon 64 --refresh-every 3 --inner-passes 2", 5
    ),
    "grpo, adapters": Killed("grpo", "--lora --minibatches 2 --keep last", 4, "model"),
    "ppo": Killed("ppo", "--minibatches 2 --kl-target 0.05 --keep last --log-every 4", 5),
    "ppo, head": Killed("ppo", "--critic head --critic-warmup 4", 3),
}
IN_ALL = Killed("all", "--silent-steps 9", 3)


@pytest.fixture(scope="module")
def killed(
    stages: Path,
    short_text: Path,
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
) -> Path:
    """The folder that holds all killed runs."""
    folder = tmp_path_factory.mktemp("killed")
    runs = [
        {
            "words": _words(case, stages, short_text, folder / name),
            "step": case.step,
            "file": case.file,
            "title": "grpo" if case.stage == "all" else case.stage,
        }
        for name, case in [*KILLED.items(), ("all", IN_ALL)]
    ]
    (folder / "runs.json").write_text(json.dumps(runs))
    script = Path(__file__).with_name("killed_runs.py")
    subprocess.run(
        [sys.executable, str(script), str(folder / "runs.json")], env=environment, check=True
    )
    return folder


def _words(case: Killed, stages: Path, text: Path, output: Path) -> list[str]:
    steps = [] if case.stage == "all" else SIX
    data = stages / "pairs" / "pairs.jsonl" if case.stage == "reward" else text
    init = None if case.stage in ("sft", "all") else stages / "sft"
    return language_words(case.stage, init, data, output, *steps, *case.options.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_stage_goes_on_to_the_bit(
    name: str, killed: Path, stages: Path, short_text: Path, tmp_path: Path
) -> None:
    run, whole = killed / name, tmp_path / "whole"
    assert not (run / "summary.json").exists()
    assert len(read_lines(run / "metrics.jsonl")) > 1
    main(_words(KILLED[name], stages, short_text, whole))
    main(["language", "--resume", "--output", str(run)])
    assert _same(run, whole)


def _same(run: Path, whole: Path) -> bool:
    """Whether two runs agree in everything but the time they took."""
    ours, theirs = (read_json(each / "summary.json") for each in (run, whole))
    if any(ours.get(part) != theirs.get(part) for part in COMMON):
        return False
    if (whole / "samples.jsonl").exists():
        assert read_lines(run / "samples.jsonl") == read_lines(whole / "samples.jsonl")
    if (whole / "adapter").exists():
        adapters = [each / "adapter" / "adapter_model.safetensors" for each in (run, whole)]
        assert adapters[0].read_bytes() == adapters[1].read_bytes()
    return same_language_run(run, whole)


@pytest.fixture(scope="module")
def whole_story(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("story") / "all"
    return speak("all", None, short_text, output, *IN_ALL.options.split())


@pytest.mark.slow
def test_all_goes_on_in_the_middle_of_a_stage(killed: Path, whole_story: Path) -> None:
    run = killed / "all"
    done = (run / "sft" / "metrics.jsonl").stat().st_mtime_ns
    assert not (run / "grpo" / "summary.json").exists()
    assert not (run / "ppo").exists()
    main(["language", "--resume", "--output", str(run)])
    assert (run / "sft" / "metrics.jsonl").stat().st_mtime_ns == done  # not trained again
    for stage in ("sft", "reward", "grpo", "ppo"):
        assert _same(run / stage, whole_story / stage)
    assert (
        read_json(run / "summary.json")["stages"].keys()
        == read_json(whole_story / "summary.json")["stages"].keys()
    )


@pytest.mark.slow
def test_all_makes_the_rest_of_its_pairs_again(whole_story: Path, tmp_path: Path) -> None:
    """A kill while pairs are drawn leaves their folder without a file."""
    run = _moved(whole_story, tmp_path / "all")
    pairs = (run / "pairs" / "pairs.jsonl").read_bytes()
    for file in ("pairs/summary.json", "pairs/pairs.jsonl", "summary.json"):
        (run / file).unlink()
    main(["language", "--resume", "--output", str(run)])
    assert (run / "pairs" / "pairs.jsonl").read_bytes() == pairs
    assert (run / "summary.json").exists()


@pytest.mark.slow
def test_a_finished_story_is_not_told_again(whole_story: Path, tmp_path: Path) -> None:
    run = _moved(whole_story, tmp_path / "all")
    times = {file: file.stat().st_mtime_ns for file in run.glob("*/*.json*")}
    main(["language", "--resume", "--output", str(run)])
    assert {file: file.stat().st_mtime_ns for file in run.glob("*/*.json*")} == times


@pytest.mark.slow
def test_one_stage_is_what_it_is_in_all(
    whole_story: Path, short_text: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load((whole_story / "grpo" / "config.yaml").read_text())
    words = ["language", "--stage", "grpo", "--device", "cpu", "--no-report"]
    words += ["--validation-fraction", "0.1"]
    for name in ("max_new_tokens", "prompt_tokens", "eval_prompts", "group_size", "silent_steps"):
        words += [f"--{name.replace('_', '-')}", str(settings[name])]
    paths = ["--init", whole_story / "sft", "--data", short_text, "--output", tmp_path / "run"]
    main([*words, *map(str, paths)])
    assert same_language_run(tmp_path / "run", whole_story / "grpo")


def _moved(run: Path, place: Path) -> Path:
    """A copy of a run whose settings name their new place, as if it had been made there."""
    shutil.copytree(run, place)
    for config in place.rglob("config.yaml"):
        config.write_text(config.read_text().replace(str(run), str(place)))
    return place


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


def test_other_settings_are_refused(
    killed: Path, short_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["language", "--resume", "--output", killed / "ppo", "--beta", "0.5"]
    assert "beta was 0.02, now 0.5" in refused(capsys, words)
