"""The nano language model, one stage or all of them: `visgrpo language`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from visgrpo.tasks.ending import print_measures
from visgrpo.tasks.language_best_of_n import best_of_n
from visgrpo.tasks.language_config import OF_NEW_MODELS, LanguageConfig
from visgrpo.tasks.language_pairs import make_preferences
from visgrpo.tasks.language_policy import train_policy
from visgrpo.tasks.language_reward import train_reward
from visgrpo.tasks.language_setup import run_name
from visgrpo.tasks.language_sft import train_sft
from visgrpo.tasks.language_stages import OPTIONS
from visgrpo.tasks.story import Summaries, tell_story

Train = Callable[[LanguageConfig], dict[str, Any]]
# In the order of "all": the name of the run's folder, and the stage.
STORY: Mapping[str, str] = {
    "sft": "sft",
    "pairs": "preferences",
    "reward": "reward",
    "best-of-n": "best-of-n",
    "grpo": "grpo",
    "ppo": "ppo",
}
COMPARED = ("best-of-n", "grpo", "ppo")


def train_language(config: LanguageConfig) -> dict[str, Any]:
    """Run the stage, or all of them, that the config asks for; return its summary.

    Raises:
        UserError: for settings, data, models or rewards that cannot work.
        Interrupted: when asked to stop; the run can be resumed.
    """
    config.check()
    return _train_all(config) if config.stage == "all" else _train_of(config.stage)(config)


def _train_of(stage: str) -> Train:
    special: Mapping[str, Train] = {
        "sft": train_sft,
        "preferences": make_preferences,
        "reward": train_reward,
        "best-of-n": best_of_n,
    }
    return special.get(stage, train_policy)


def _train_all(config: LanguageConfig) -> dict[str, Any]:
    """Train each stage in a folder of its own, and put the last ones on one page."""
    return tell_story(
        config,
        run_name(config),
        recipe="language",
        stages=STORY,
        train=lambda stage, run: _train_of(stage)(_stage_config(config, stage, run)),
        show=lambda summaries: _print_story(config, summaries),
        compared=COMPARED,
    )


def _stage_config(config: LanguageConfig, stage: str, run: Path) -> LanguageConfig:
    """Return the options of one stage: the whole's that go with it, the others at rest."""
    start = None if stage == "sft" else str(run.parent / "sft")
    resting: dict[str, Any] = {
        field.name: field.default
        for field in fields(config)
        if not OPTIONS.use(stage, field.name) or (start and field.name in OF_NEW_MODELS)
    }
    changes: dict[str, Any] = {"stage": stage, "init": start, "output": str(run)}
    return replace(config, **{**resting, **changes, "resume": (run / "config.yaml").exists()})


def _print_story(config: LanguageConfig, summaries: Summaries) -> None:
    rows = {"sft (start)": summaries["grpo"]["before"]}
    best = summaries["best-of-n"]["after"]
    rows[f"best of {summaries['best-of-n']['samples']}"] = best
    rows |= {name: summaries[name]["after"] for name in ("grpo", "ppo")}
    prompts = summaries["grpo"]["data"]["test"]
    print_measures(f"{config.data}, {prompts} held-out prompts", rows)
