"""Killed runs on a backbone go on as if nothing had happened; two processes do the work of one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from running import PROBES, Job, read_json, read_lines, same_tuned_run, training_lines, tune, words
from safetensors.torch import load_file

from visgrpo.cli import main

EIGHT = ["--steps", "8", "--save-every", "2", "--eval-every", "2", "--keep", "last"]


class Killed(NamedTuple):
    """A run that is killed within a step, or before a file of that step's checkpoint."""

    job: Job
    model: str
    options: str
    step: int
    file: str | None = None


KILLED = {
    "frozen": Killed("representation", "vit", "--class-subset 2 --shifts grey", 5),
    "old model of an epoch": Killed(
        "representation", "vit", "--refresh-every epoch --inner-passes 2 --minibatches 2", 7
    ),
    "old model with batch norm": Killed(
        "representation", "resnet", "--train full --refresh-every epoch --inner-passes 2", 5
    ),
    "batch norm, augmented": Killed(
        "representation", "resnet", "--train full --augment crop flip", 4, "optimizer"
    ),
    "adapters": Killed("representation", "vit", "--train lora --lora-dropout 0.3", 4, "optimizer"),
    "drawn classes, best kept": Killed(
        "representation",
        "vit",
        "--train last-blocks --estimator sampled --log-every 3 --eval-every 4 --keep best",
        7,
    ),
    "before the first checkpoint": Killed("representation", "vit", "--save-every 8", 1),
    "masks": Killed("segmentation", "vit", "--refresh-every epoch --inner-passes 2", 5),
    "masks, batch norm, augmented": Killed(
        "segmentation", "resnet", "--train full --augment flip --image-size 24 24", 5
    ),
}


@pytest.fixture(scope="module")
def start_of(
    vit: Path, resnet: Path, pictures: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The words of a run by its description and output folder."""
    models, data = {"vit": vit, "resnet": resnet}, {"representation": pictures}

    def start(case: Killed, output: Path) -> list[str]:
        probes = PROBES if case.job == "representation" else []
        options = [*EIGHT, *probes, *case.options.split()]
        return words(case.job, models[case.model], data.get(case.job, masks), output, *options)

    return start


@pytest.fixture(scope="module")
def killed(
    start_of: Any, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Path:
    """The folder that holds all killed runs."""
    folder = tmp_path_factory.mktemp("killed")
    runs = [
        {"words": start_of(case, folder / name), "step": case.step, "file": case.file}
        for name, case in KILLED.items()
    ]
    (folder / "runs.json").write_text(json.dumps(runs))
    script = Path(__file__).with_name("killed_runs.py")
    subprocess.run(
        [sys.executable, str(script), str(folder / "runs.json")], env=environment, check=True
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_goes_on_to_the_bit(
    name: str, killed: Path, start_of: Any, tmp_path: Path, no_page: None
) -> None:
    run, whole, job = killed / name, tmp_path / "whole", KILLED[name].job
    assert not (run / "summary.json").exists()
    assert 0 < len(read_lines(run / "metrics.jsonl")) < 16
    main(start_of(KILLED[name], whole))
    main([job, "--resume", "--output", str(run)])
    assert same_tuned_run(run, whole)
    shown = "samples.jsonl" if job == "representation" else "segments.jsonl"
    assert read_lines(run / shown) == read_lines(whole / shown)
    ours, theirs = (read_json(place / "summary.json") for place in (run, whole))
    for part in ("before", "after", "best_step", "shifts"):
        assert ours.get(part) == theirs.get(part)


def test_resuming_a_finished_run_repeats_its_ending(
    vit: Path, masks: Path, tmp_path: Path, no_page: None
) -> None:
    run = tune("segmentation", vit, masks, tmp_path / "run")
    before = {path: path.read_bytes() for path in (run / "samples").iterdir()}
    summary = read_json(run / "summary.json")
    main(["segmentation", "--resume", "--output", str(run)])
    assert read_json(run / "summary.json")["after"] == summary["after"]
    assert {path: path.read_bytes() for path in (run / "samples").iterdir()} == before


# Several processes

PROCESSES: dict[str, tuple[Job, str]] = {
    "frozen": (
        "representation",
        "--minibatches 2 --inner-passes 2 --refresh-every 2 --probe knn --shifts grey",
    ),
    "full, drawn classes": (
        "representation",
        "--train full --estimator sampled --minibatches 2 --probe none",
    ),
    "masks, frozen": ("segmentation", "--minibatches 2 --inner-passes 2 --refresh-every 2"),
    "masks, full": ("segmentation", "--train full --decide-at pixel --augment flip"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_two_processes_give_the_numbers_of_one(
    name: str,
    vit: Path,
    pictures: Path,
    masks: Path,
    tmp_path: Path,
    on_two_processes: Callable[[list[str]], str],
) -> None:
    job, way = PROCESSES[name]
    data = pictures if job == "representation" else masks
    options = ["--keep", "last", "--no-report", *way.split(), "--cache"]
    one = tune(job, vit, data, tmp_path / "one", *options, str(tmp_path / "cache of one"))
    its_cache = str(tmp_path / "cache of two")
    two = tmp_path / "two"
    printed = on_two_processes(words(job, vit, data, two, *options, its_cache))
    assert printed.count("held-out") == 1  # one process prints
    for our, their in zip(training_lines(two), training_lines(one), strict=True):
        assert our == pytest.approx(their, abs=2e-5, rel=1e-3)
    steps = [[line["step"] for line in read_lines(run / "metrics.jsonl")] for run in (two, one)]
    assert steps[0] == steps[1]  # written once
    _assert_same_summary(two, one)
    for file in ("model.safetensors", "head.safetensors"):
        _assert_close(two / "model" / file, one / "model" / file)


def _assert_same_summary(two: Path, one: Path) -> None:
    ours, theirs = (read_json(run / "summary.json") for run in (two, one))
    key = "miou" if ours["recipe"] == "segmentation" else "accuracy"
    for part in ("before", "after"):
        assert ours[part][key] == pytest.approx(theirs[part][key], abs=1e-6)
        assert ours[part]["nll"] == pytest.approx(theirs[part]["nll"], abs=1e-4)
        assert ours[part].get("knn") == theirs[part].get("knn")
    assert ours.get("shifts") == theirs.get("shifts")


def _assert_close(our_file: Path, their_file: Path) -> None:
    ours, theirs = load_file(our_file), load_file(their_file)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("attention.key.bias"):
            continue  # attention ignores it: its gradient is rounding noise, which Adam scales up
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)
