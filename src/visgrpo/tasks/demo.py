"""The whole story on built-in data, in minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from visgrpo.errors import Interrupted, UserError
from visgrpo.locks import FolderLock
from visgrpo.reporting import compare_runs, ended, print_measures
from visgrpo.tasks.clip.options import ClipConfig
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


def demo(config: DemoConfig) -> dict[str, Any]:
    """Pre-train a tiny CLIP badly on purpose; tune it with GRPO and, beside it, supervised.

    Same start, data, steps and learning rate for both. A folder in which it was stopped is gone on
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
    tuned = {
        method: _trained(
            ClipConfig(
                model=str(folder / "start" / "model"),
                data="digits",
                output=str(folder / method),
                method=method,
                seed=config.seed,
                epochs=15,
                batch_size=64,
                learning_rate=1e-3,
                logit_scale="clamped",
            )
        )
        for method in ("supervised", "grpo")
    }
    page = compare_runs([folder / name for name in tuned], METRICS, folder / "compare.html")
    outcomes = {name: summary["after"] for name, summary in tuned.items()}
    print_measures(
        f"digits, {tuned['grpo']['data']['test']} held-out images, seed {config.seed}",
        {"start": tuned["grpo"]["before"], **outcomes},
    )
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
