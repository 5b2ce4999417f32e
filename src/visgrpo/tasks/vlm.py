"""A vision-language model, SFT or GRPO or both: `visgrpo vlm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from visgrpo.tasks.ending import print_measures
from visgrpo.tasks.story import Summaries, tell_story
from visgrpo.tasks.vlm_config import VlmConfig
from visgrpo.tasks.vlm_data import run_name
from visgrpo.tasks.vlm_policy import train_policy
from visgrpo.tasks.vlm_sft import train_sft
from visgrpo.tasks.vlm_stages import OPTIONS

STORY: Mapping[str, str] = {"sft": "sft", "grpo": "grpo"}  # folders and stages of "all"


def train_vlm(config: VlmConfig) -> dict[str, Any]:
    """Run the stage, or both, that the config asks for; return its summary.

    Raises:
        UserError: for settings, data, models or rewards that cannot work.
        Interrupted: when asked to stop; the run can be resumed.
    """
    config.check()
    if config.stage != "all":
        return _train(config)
    return tell_story(
        config,
        run_name(config),
        recipe="vlm",
        stages=STORY,
        train=lambda stage, run: _train(_stage_config(config, stage, run)),
        show=lambda summaries: _print_story(config, summaries),
        compared=tuple(STORY),
    )


def _train(config: VlmConfig) -> dict[str, Any]:
    return train_sft(config) if config.stage == "sft" else train_policy(config)


def _stage_config(config: VlmConfig, stage: str, run: Path) -> VlmConfig:
    """Return the options of one stage: the whole's that go with it, the others at rest."""
    changes: dict[str, Any] = {
        each.name: each.default for each in fields(config) if not OPTIONS.use(stage, each.name)
    }
    if stage == "sft":
        changes |= {
            "data": config.sft_data or config.data,
            "steps": config.sft_steps,
            "batch_size": config.sft_batch_size,
            "learning_rate": config.sft_learning_rate,
        }
    else:
        changes |= {"model": str(run.parent / "sft"), "preset": VlmConfig.preset}
    resume = (run / "config.yaml").exists()
    return replace(config, **{**changes, "stage": stage, "output": str(run), "resume": resume})


def _print_story(config: VlmConfig, summaries: Summaries) -> None:
    sft, grpo = summaries["sft"], summaries["grpo"]
    rows = {"start": sft["before"], "sft": sft["after"], "grpo": grpo["after"]}
    for name in grpo.get("shifts", {}):
        moments = {"start": (sft, "before"), "sft": (sft, "after"), "grpo": (grpo, "after")}
        for row, (summary, when) in moments.items():
            rows[f"{row}, {name}"] = summary["shifts"][name][when]
    print_measures(f"{config.data}, {grpo['data']['test']} held-out images", rows)
