"""What every job keeps: runs go on to the bit, on two processes too, and their models are used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from running import (
    Words,
    blank_plots,
    read_json,
    read_lines,
    refused,
    training_lines,
)
from safetensors.torch import load_file

from record import differences, exactly, record_of
from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
EIGHT = "--steps 8 --save-every 2 --eval-every 2 --keep last"
SIX = "--steps 6 --save-every 2 --eval-every 3"
RANDOM = f"{SIX} --learning-rate 1e-2 --reward random"


class Killed(NamedTuple):
    """A run that is killed within a step, or before a file of that step's checkpoint."""

    job: str
    options: str
    step: int
    file: str | None = None


KILLED = {
    "clip: augmented": Killed("clip", f"{EIGHT} --augment crop flip color", 5),
    "clip: lora": Killed("clip", f"{EIGHT} --train lora", 4, "optimizer"),
    "clip: stale groups": Killed(
        "clip", f"{EIGHT} --minibatches 2 --inner-passes 2 --refresh-every 3", 5
    ),
    "clip: logged between saves": Killed(
        "clip", f"{EIGHT} --log-every 3 --eval-every 4 --keep best", 5
    ),
    "clip: text tower, batch scope": Killed(
        "clip", f"{EIGHT} --method reinforce --train text --keep best", 6, "old_policy"
    ),
    "clip: before the first checkpoint": Killed(
        "clip", f"{EIGHT} --save-every 8 --eval-every 8", 1
    ),
    "representation: frozen": Killed(
        "representation", f"{EIGHT} --class-subset 2 --shifts grey", 5
    ),
    "representation: old model of an epoch": Killed(
        "representation", f"{EIGHT} --refresh-every epoch --inner-passes 2 --minibatches 2", 7
    ),
    "representation: old model with batch norm": Killed(
        "representation resnet",
        f"{EIGHT} --train full --refresh-every epoch --inner-passes 2",
        5,
    ),
    "representation: batch norm, augmented": Killed(
        "representation resnet", f"{EIGHT} --train full --augment crop flip", 4, "optimizer"
    ),
    "clip: halves": Killed("clip", f"{EIGHT} --train full --weights all-bfloat16", 4, "masters"),
    "representation: frozen halves": Killed(
        "representation", f"{EIGHT} --train last-blocks --weights bfloat16", 5
    ),
    "representation: adapters": Killed("representation", f"{EIGHT} --train lora", 4, "optimizer"),
    "representation: drawn classes, best kept": Killed(
        "representation",
        f"{EIGHT} --train last-blocks --estimator sampled --log-every 3 --eval-every 4 --keep best",
        7,
    ),
    "representation: before the first checkpoint": Killed(
        "representation", f"{EIGHT} --save-every 8", 1
    ),
    "segmentation": Killed("segmentation", f"{EIGHT} --refresh-every epoch --inner-passes 2", 5),
    "segmentation: batch norm, augmented": Killed(
        "segmentation resnet", f"{EIGHT} --train full --augment flip --image-size 24 24", 5
    ),
    "language: sft": Killed("language sft", f"{SIX} --log-every 4", 5),
    "language: reward": Killed("language reward", f"{SIX} --keep last", 4, "optimizer"),
    "language: grpo, kl steered, old groups": Killed(
        "language grpo",
        f"{SIX} --kl-target 0.05 --kl-horizon 64 --refresh-every 3 --inner-passes 2",
        5,
    ),
    "language: grpo, adapters": Killed(
        "language grpo", f"{SIX} --train lora --minibatches 2 --keep last", 4, "model"
    ),
    "language: masters": Killed(
        "language grpo", f"{SIX} --weights all-bfloat16 --keep last", 4, "masters"
    ),
    "language: ppo": Killed(
        "language ppo", f"{SIX} --minibatches 2 --kl-target 0.05 --keep last --log-every 4", 5
    ),
    "language: ppo, head": Killed("language ppo", f"{SIX} --critic head --critic-warmup 4", 3),
    "vlm: sft": Killed("vlm sft", f"{SIX} --learning-rate 1e-2", 5),
    "vlm: grpo": Killed("vlm grpo", f"{RANDOM} --kl-target 0.05 --kl-horizon 64", 5),
    "vlm: frozen halves": Killed("vlm grpo", f"{RANDOM} --train lora merger --weights bfloat16", 4),
    "vlm: adapters": Killed(
        "vlm grpo", f"{RANDOM} --train lora --minibatches 2 --keep last", 4, "model"
    ),
}
# An odd number of held-out rows: the processes' shares of them differ.
PROCESSES = {
    "clip: started as users start it": ("clip", ""),
    "clip: minibatches, batch scope, old policy, text side": (
        "clip",
        "--method reinforce --train full --minibatches 2 --inner-passes 2 --refresh-every 2",
    ),
    "representation: frozen": (
        "representation",
        "--minibatches 2 --inner-passes 2 --refresh-every 2 --probe knn --shifts grey",
    ),
    "representation: full, drawn classes": (
        "representation",
        "--train full --estimator sampled --minibatches 2",
    ),
    "segmentation: frozen": (
        "segmentation",
        "--minibatches 2 --inner-passes 2 --refresh-every 2",
    ),
    "segmentation: full": ("segmentation", "--train full --decide-at pixel --augment flip"),
    "language: mean over tokens, accumulated": (
        "language dapo",
        "--accumulation 2 --kl-target 0.05 --batch-size 8 --eval-prompts 3",
    ),
    "language: ppo, updates on old groups": (
        "language ppo",
        "--minibatches 2 --kl-in loss --batch-size 8 --eval-prompts 3",
    ),
    "vlm: grpo": ("vlm grpo", "--eval-images 5 --learning-rate 1e-2 --reward length:3 exact"),
}
# A job, a setting that is changed, and what the refusal says.
FINISHED = {
    "clip": ("--beta 0.5 --seed 3", "beta was 0.02, now 0.5", "seed was 0, now 3"),
    "representation": ("--hidden 4", "hidden was 8, now 4"),
    "segmentation": ("--background apple", "background was", "now 'apple'"),
    "language sft": ("--learning-rate 1", "learning_rate was 0.001, now 1"),
    "language grpo": ("--beta 0.5", "beta was 0.02, now 0.5"),
    "language ppo": ("--gamma 0.5", "gamma was 1.0, now 0.5"),
    "vlm sft": ("--style direct", "style was 'reasoning', now 'direct'"),
    "pretrain clip": ("--width 8", "width was 32, now 8"),
    "pretrain backbone": ("--projection 4", "projection was 8, now 4"),
}
# Jobs that measure the same of all their held-out rows as `visgrpo evaluate` does.
HEADLESS = ("pretrain backbone",)
WHOLE = ("clip", "representation", "segmentation", "language sft", "pretrain clip")


def command(job: str) -> list[str]:
    """The words that a job is called by."""
    return job.split() if job.startswith("pretrain") else job.split()[:1]


# Killed, and gone on with


@pytest.fixture(scope="module")
def killed(
    words_of: Words,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    kill_runs: Callable[[list[dict[str, Any]]], None],
) -> Path:
    """The folder of the killed runs that were asked for."""
    folder = tmp_path_factory.mktemp("killed")
    asked = {item.callspec.params.get("case") for item in request.session.items if _has_case(item)}
    kill_runs(
        [
            {"words": words_of(job, folder / name, options), "step": step, "file": file}
            for name, (job, options, step, file) in KILLED.items()
            if name in asked
        ]
    )
    return folder


def _has_case(item: Any) -> bool:
    return item.fspath == __file__ and "killed" in item.fixturenames


@pytest.mark.slow
@pytest.mark.parametrize("case", KILLED)
def test_a_killed_run_goes_on_to_the_bit(
    case: str, killed: Path, words_of: Words, tmp_path: Path
) -> None:
    job, options, *_ = KILLED[case]
    run, whole = killed / case, tmp_path / "whole"
    assert not (run / "summary.json").exists()
    assert 0 < len(read_lines(run / "metrics.jsonl")) < 16
    main(words_of(job, whole, options))
    main([*command(job), "--resume", "--output", str(run)])
    assert exactly(run) == exactly(whole)


# On two processes


@pytest.mark.slow
@pytest.mark.parametrize("case", PROCESSES)
def test_two_processes_give_the_numbers_of_one(
    case: str,
    words_of: Words,
    tmp_path: Path,
    environment: dict[str, str],
    on_two_processes: Callable[[list[str]], str],
) -> None:
    job, way = PROCESSES[case]
    options = f"--keep last {way}"
    one, two = tmp_path / "one", tmp_path / "two"
    if job == "representation":
        options += f" --cache {tmp_path / 'cache'}"
    main(words_of(job, one, options))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    given = words_of(job, two, options)
    if "users" in case:
        done = subprocess.run(
            [*TORCHRUN, "-m", "visgrpo", *given],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        printed = done.stdout
    else:
        printed = on_two_processes(given)
    assert printed.count("held-out") == 1  # one process prints
    steps = [[line["step"] for line in read_lines(run / "metrics.jsonl")] for run in (two, one)]
    assert steps[0] == steps[1]  # one process writes
    speaks = job.startswith("language")
    for our, their in zip(training_lines(two), training_lines(one), strict=True):
        for name in their.keys() - {"tokens_per_second"}:
            # Shares of tokens are means over the parts of a batch, whose lengths differ.
            share = speaks and name.startswith(("clip_ratio", "ratio_mean"))
            close = 5e-3 if share else 1e-4 if speaks else 2e-5
            relative = 1e-4 if job == "clip" else 1e-3
            assert our[name] == pytest.approx(their[name], abs=close, rel=relative), name
    ours, theirs = (_summary(run) for run in (two, one))
    assert not differences(ours, theirs, exactly=False, absolute=1e-4)
    _assert_close(two, one, 5e-4 if speaks else 1e-4)
    if speaks:
        _assert_same_groups(two, one)


def _summary(run: Path) -> dict[str, Any]:
    found = record_of(run, "")
    return {"summary": found["summary.json"], "exact": {}}


def _assert_close(two: Path, one: Path, close: float) -> None:
    for file in (one / "model").glob("*.safetensors"):
        ours, theirs = load_file(two / "model" / file.name), load_file(file)
        assert ours.keys() == theirs.keys()
        for name in ours:
            # Attention ignores it: its gradient is rounding noise, which Adam scales up.
            if not name.endswith(("k_proj.bias", "attention.key.bias")):
                torch.testing.assert_close(ours[name], theirs[name], atol=close, rtol=1e-3)


def _assert_same_groups(two: Path, one: Path) -> None:
    """Each run shows the first groups of its first process: where both show one, it is the same."""
    ours, theirs = (
        {
            (line["step"], line["index"]): line["outputs"]
            for line in read_lines(run / "samples.jsonl")
        }
        for run in (two, one)
    )
    shared = ours.keys() & theirs.keys()
    assert shared
    assert all(ours[group] == theirs[group] for group in shared)


# Finished


@pytest.fixture(scope="module")
def finished(words_of: Words, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of a job, made once."""
    folder = tmp_path_factory.mktemp("finished")

    def of(job: str) -> Path:
        run = folder / job.replace(" ", "-")
        if not run.exists():
            main(words_of(job, run))
        return run

    return of


def moved(run: Path, place: Path) -> Path:
    """A copy of a run whose settings name their new place, as if it had been made there."""
    shutil.copytree(run, place)
    config = place / "config.yaml"
    config.write_text(config.read_text().replace(str(run), str(place)))
    return place


@pytest.mark.parametrize("job", FINISHED)
def test_resuming_a_finished_run_repeats_its_ending(
    job: str, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    run = moved(finished(job), tmp_path / "run")
    (run / "summary.json").unlink()
    main([*command(job), "--resume", "--output", str(run)])
    assert exactly(run) == exactly(finished(job))


@pytest.mark.parametrize("job", FINISHED)
def test_its_settings_repeat_a_run(
    job: str, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    config = str(finished(job) / "config.yaml")
    main([*command(job), "--config", config, "--output", str(tmp_path / "again")])
    assert exactly(tmp_path / "again") == exactly(finished(job))
    ours, theirs = (
        yaml.safe_load((run / "config.yaml").read_text())
        for run in (tmp_path / "again", finished(job))
    )
    assert ours == theirs | {"output": str(tmp_path / "again")}


@pytest.mark.parametrize("job", FINISHED)
def test_a_run_does_not_go_on_with_other_settings(
    job: str, finished: Callable[[str], Path], capsys: Capture
) -> None:
    run = finished(job)
    before = (run / "metrics.jsonl").read_bytes()
    options, *said = FINISHED[job]
    line = refused(capsys, [*command(job), "--resume", "--output", run, *options.split()])
    assert all(part in line for part in said), line
    assert "batch_size" not in line
    assert (run / "metrics.jsonl").read_bytes() == before


def test_what_nobody_set_may_be_said_when_a_run_goes_on(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    run = moved(finished("vlm sft"), tmp_path / "run")
    main(["vlm", "--resume", "--output", str(run), "--style", "reasoning"])
    assert exactly(run) == exactly(finished("vlm sft"))


@pytest.mark.parametrize("job", FINISHED)
def test_a_run_is_not_written_over(
    job: str, finished: Callable[[str], Path], words_of: Words, capsys: Capture
) -> None:
    run = finished(job)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = refused(capsys, words_of(job, run))
    assert "already holds a run: --resume to go on with it" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "job", [job for job in FINISHED if job != "pretrain backbone"]
)  # has no head
def test_a_model_is_evaluated_as_its_run_was(
    job: str, finished: Callable[[str], Path], words_of: Words, capsys: Capture
) -> None:
    run = finished(job)
    given = words_of(job, run)
    data = given[given.index("--data") + 1]
    more = ["--max-new-tokens", "6"] if job.startswith("vlm") else []
    capsys.readouterr()
    main(["evaluate", str(run), "--data", data, "--device", "cpu", "--json", "-", *more])
    out = capsys.readouterr().out
    measured = json.loads(out[out.index("{") :])["model"]
    after = read_json(run / "summary.json")["after"]
    names = (measured.keys() & after.keys()) - {"kl"}  # to the start, which is not named here
    if job in WHOLE:
        assert len(names) > 3
        ours, theirs = ({n: each[n] for n in names} | {"exact": {}} for each in (measured, after))
        assert not differences(ours, theirs, exactly=False, absolute=1e-6)


@pytest.mark.parametrize("job", ["clip", "representation", "segmentation", "vlm sft"])
def test_a_model_answers_about_an_image(
    job: str, finished: Callable[[str], Path], pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    image = pictures / "test" / "sky" / "000.png"
    ask = ["--ask", "How many?", "--max-new-tokens", "4"] if job == "vlm sft" else []
    drawn = ["--output", str(tmp_path / "masks")] if job == "segmentation" else []
    capsys.readouterr()
    main(["predict", str(finished(job)), str(image), "--device", "cpu", *ask, *drawn])
    assert capsys.readouterr().out.strip()
    assert (tmp_path / "masks").exists() == (job == "segmentation")


@pytest.mark.parametrize("job", FINISHED)
def test_runs_are_reported_and_compared(
    job: str, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    run = moved(finished(job), tmp_path / "run")
    with blank_plots():
        main(["report", str(run)])
        page = tmp_path / "compare.html"
        main(["compare", str(run), str(finished(job)), "--output", str(page)])
    assert "<html" in (run / "report.html").read_text()
    assert "<html" in page.read_text()
