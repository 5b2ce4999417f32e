"""Evaluate a vision-language model on questions: part of `visgrpo evaluate`."""

from __future__ import annotations

from typing import Any

from visgrpo.data.splitting import parse_split
from visgrpo.data.visual import VisualDataset, require_answers, require_counts
from visgrpo.data.visual_prompts import Style
from visgrpo.data.visual_sources import load_visual, load_visual_test
from visgrpo.errors import UserError
from visgrpo.models.loading import read_info
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.models.vision_loading import VisionParts, load_vision_language
from visgrpo.rewards.answers import ANSWER_REWARDS
from visgrpo.rewards.text import parse_text_rewards
from visgrpo.tasks.evaluate_shared import models_of, show
from visgrpo.tasks.model_kinds import IN_WORDS, kind_of
from visgrpo.tasks.session import print_notes
from visgrpo.tasks.token_config import SamplingConfig
from visgrpo.tasks.use_configs import EvaluateConfig
from visgrpo.tasks.vlm_config import VlmConfig, defaults_of
from visgrpo.tasks.vlm_data import say_left_out, say_resized
from visgrpo.tasks.vlm_lineage import Learned, learned_from
from visgrpo.tasks.vlm_setup import (
    confusions,
    held_out_of,
    rollouts_of,
)
from visgrpo.training.processes import Processes


def evaluate_vlm(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    """Measure greedy and sampled answers to questions about images.

    Returns:
        Measures and the confusion of counts under ``model`` and, with a start, under ``start``;
        with two styles also under ``model, direct`` and so on.

    Raises:
        UserError: for questions that cannot be used.
    """
    _check(config)
    dataset = _questions(config, processes)
    learned = read_info(config.model).get("style", "reasoning")
    styles: tuple[Style, ...] = config.styles or (learned,)
    results: dict[str, Any] = {}
    for row, name in models_of(config):
        parts = load_vision_language(name, max_pixels=config.max_pixels)
        print_notes(parts.notes, processes)
        say_resized([dataset], parts.processor, processes)
        for style in styles:
            key = row if style == styles[0] else f"{row}, {style}"
            results[key] = _measures(config, parts, dataset, style, processes)
    show(results, config, f"{dataset.name}, {len(dataset)} questions, --style {styles[0]}")
    return results


def _measures(
    config: EvaluateConfig,
    parts: VisionParts,
    dataset: VisualDataset,
    style: Style,
    processes: Processes,
) -> dict[str, Any]:
    longest = config.max_new_tokens or defaults_of(parts.info).max_new_tokens
    sampling = SamplingConfig(max_new_tokens=longest)
    rewards = parse_text_rewards(["exact"], None, ANSWER_REWARDS)
    rollouts = rollouts_of(sampling, parts, rewards, dataset, style, config.seed or 0)
    model = VisionLanguageModel(parts.model).requires_grad_(False).to(processes.device).eval()
    seen = held_out_of(sampling, parts, rollouts, dataset, style, processes).look(model)
    # What an answer earns is its accuracy here, which has a name of its own.
    measures = {name: value for name, value in seen.measures.items() if "reward" not in name}
    confusion = confusions({"test": dataset}, {"test": seen}).get("confusion", {})
    return {**measures, **({"confusion": confusion["in"]} if confusion else {})}


def _check(config: EvaluateConfig) -> None:
    if config.data == EvaluateConfig.data:
        raise UserError(
            f'"{config.model}" is {IN_WORDS["vision-language"]}: name questions about images, such '
            "as shapes or a .jsonl file, with --data."
        )
    if config.start and kind_of(config.start) != "vision-language":
        raise UserError(
            f'--start "{config.start}" is {IN_WORDS[kind_of(config.start)]}: give '
            f"{IN_WORDS['vision-language']}, or leave --start out."
        )


def _questions(config: EvaluateConfig, processes: Processes) -> VisualDataset:
    """Return the rows to evaluate on; of what a model was trained on, a split that it held out."""
    split, rows = parse_split(config.split)
    if split == "all":
        raise UserError(f"--split {config.split}: name train, validation or test.")
    known = [learned_from(name, config.data) for name in (config.model, config.start)]
    learned = next(filter(None, known), None)
    division = learned or Learned(config.data, 0, VlmConfig.validation_fraction)
    seed = division.seed if config.seed is None else config.seed
    columns = {
        "image_column": config.image_column,
        "question_column": config.question_column,
        "answer_column": config.answer_column,
        "skip_bad_images": config.skip_bad_images,
        "seed": seed,
    }
    if split == "test" and learned is None:
        dataset = load_visual_test(config.data, **columns)  # type: ignore[arg-type]
    else:
        splits = load_visual(
            config.data,
            validation_fraction=config.validation_fraction or division.validation_fraction,
            **columns,  # type: ignore[arg-type]
        )
        print_notes(splits.notes, processes)
        dataset = getattr(splits, split)
    dataset = dataset.subset(range(len(dataset))[rows])
    say_left_out(dataset, processes)
    require = require_counts if config.task == "counting" else require_answers
    require(dataset)
    return dataset
