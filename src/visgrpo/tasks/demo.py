"""The whole story on built-in data, in minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from visgrpo.errors import Interrupted, UserError
from visgrpo.locks import FolderLock
from visgrpo.reporting import compare_runs, ended, print_measures
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.demo_people import CLICKS_RIGHT, CLICKS_WRONG, OFFERS, ask_people
from visgrpo.tasks.options import DemoConfig, PretrainClipConfig
from visgrpo.tasks.task import train
from visgrpo.terminal import show
from visgrpo.training.options import Loop
from visgrpo.training.run_directory import (
    CONFIG_FILE,
    RunDirectory,
    check_free,
    check_place,
    free_name,
    read_config,
)

METRICS = ("eval/accuracy", "eval/ece", "reward", "kl", "entropy")
MEASURES = ("accuracy", "ece", "nll")
WORDS = {
    "grpo": "GRPO, rewards from the clicks",
    "clicked-labels": "cross-entropy, labels from the clicks",
    "true-labels": "cross-entropy, true labels: the ceiling",
}


def demo(config: DemoConfig) -> dict[str, Any]:
    """Pre-train a tiny CLIP badly on purpose; tune it with what people click, truth hidden.

    GRPO takes the clicks as rewards of labels. Beside it, cross-entropy takes as each picture's
    label the one of the best click rate, and, as a ceiling, the true label. Same start, pictures,
    steps and learning rate for all three. A folder in which it was stopped is gone on
    with. Returns the summaries by run.

    Raises:
        UserError: for a folder that holds something else.
        Interrupted: when asked to stop.
    """
    config.check()
    folder = Path(config.output) if config.output else free_name(Path("runs/demo"))
    check_place(folder)
    with FolderLock(folder):
        return _demo(config, folder)


def _demo(config: DemoConfig, folder: Path) -> dict[str, Any]:
    _begin(config, folder)
    start = _trained(
        PretrainClipConfig(
            data="digits",
            output=str(folder / "start"),
            seed=config.seed,
            steps=80,
            batch_size=64,
            templates=("a photo of a {}.",),
            patch_size=8,
            width=64,
            layers=2,
        )
    )
    people = folder / "people"
    ask_people(folder / "start" / "model", people, config.seed)
    show(
        f"People looked at {OFFERS} labels of each picture, drawn half by the start and half at "
        f"random, and clicked {CLICKS_RIGHT:.0%} of the right ones and {CLICKS_WRONG:.0%} of the "
        "wrong ones."
    )
    learned: dict[str, dict[str, Any]] = {
        "grpo": {
            "data": "pictures",
            "feedback": str(people / "clicks.parquet"),
            "reward": ("clicks",),
            "estimator": "exact",
        },
        "clicked-labels": {"data": "guessed", "method": "supervised"},
        "true-labels": {"data": "pictures", "method": "supervised"},
    }
    tuned = {
        name: _trained(
            ClipConfig(
                model=str(folder / "start" / "model"),
                data=str(people / options.pop("data")),
                output=str(folder / name),
                seed=config.seed,
                steps=300,
                batch_size=64,
                learning_rate=1e-3,
                logit_scale="clamped",
                **options,
            )
        )
        for name, options in learned.items()
    }
    page = compare_runs([folder / name for name in tuned], METRICS, folder / "compare.html")
    test = tuned["grpo"]["data"]["test"]
    rows = {"start": tuned["grpo"]["before"]}
    rows |= {WORDS[name]: summary["after"] for name, summary in tuned.items()}
    measured = {name: {key: row[key] for key in MEASURES} for name, row in rows.items()}
    print_measures(f"digits, {test} held-out images with true labels, seed {config.seed}", measured)
    show(f"Compare the runs: {page}\nGRPO's own page: {folder / 'grpo' / 'report.html'}")
    return {"start": start, **tuned}


def _begin(config: DemoConfig, folder: Path) -> None:
    """Note down what the folder is for, or see that it holds a demo of the same seed."""
    before = read_config(folder) if (folder / CONFIG_FILE).exists() else {}
    if before.keys() != {"demo_seed"}:
        check_free(folder)
        RunDirectory(folder).create("demo", {"demo_seed": config.seed})
    elif before["demo_seed"] != config.seed:
        raise UserError(
            f"--output {folder} holds a demo with --seed {before['demo_seed']}: name another "
            "folder."
        )


def _trained(options: Loop) -> dict[str, Any]:
    """Train, or go on with a run that was stopped; one that has ended is only read."""
    run = Path(str(options.output))
    summary = ended(run, report=options.report)
    if summary is not None:
        return summary
    resume = (run / CONFIG_FILE).exists()
    try:
        return train(replace(options, resume=resume))
    except Interrupted as stopped:  # what goes on is the whole demo
        raise Interrupted(stopped.step, run.parent) from None
