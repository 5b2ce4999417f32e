"""The whole story on built-in data: `visgrpo demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visgrpo.reporting import compare_runs, print_measures
from visgrpo.tasks.configs import ClipConfig, DemoConfig
from visgrpo.tasks.pretrain_configs import PretrainClipConfig
from visgrpo.tasks.task import train
from visgrpo.training.run_directory import FolderLock, check_free, check_place, free_name

METRICS = ("eval/accuracy", "eval/ece", "reward", "kl", "entropy")


def demo(config: DemoConfig) -> dict[str, Any]:
    """Pre-train a tiny CLIP badly on purpose; tune it with GRPO and, beside it, supervised.

    Same start, data, steps and learning rate for both. Returns the summaries by run.
    """
    config.check()
    folder = Path(config.output) if config.output else free_name(Path("runs/demo"))
    check_place(folder)
    with FolderLock(folder):
        return _demo(config, folder)


def _demo(config: DemoConfig, folder: Path) -> dict[str, Any]:
    check_free(folder)
    start = train(
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
        method: train(
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
    print(f"Compare the runs: {page}\nGRPO's own page: {folder / 'grpo' / 'report.html'}")
    return {"start": start, **tuned}
