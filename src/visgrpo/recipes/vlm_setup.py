"""What the stages of `visgrpo vlm` share: questions, the start, what trains, how it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from visgrpo.data.visual import VisualDataset, VisualSplits, require_answers
from visgrpo.data.visual_prompts import Style, VisualInputs, answer_targets, asked, visual_prompts
from visgrpo.data.visual_sources import load_visual, load_visual_test
from visgrpo.evaluation.counting import confusion
from visgrpo.evaluation.visual import HeldOutAnswers, SeenAnswers
from visgrpo.models.adapt_vision import TrainedPart, adapt_vision_language
from visgrpo.models.card import vlm_card
from visgrpo.models.small_vision_language import SIZES, build_vision_language
from visgrpo.models.token_reference import adapters_alone
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.models.vision_loading import VisionParts, load_vision_language
from visgrpo.models.vision_saving import save_vision_language, save_vision_language_adapter
from visgrpo.policies.token_groups import TokenMemory, TokenRollouts
from visgrpo.recipes.language_setup import decoder_of, prompt_room, sampling_of
from visgrpo.recipes.session import Session, print_notes
from visgrpo.recipes.token_config import SamplingConfig
from visgrpo.recipes.vlm_config import VlmConfig
from visgrpo.rewards.answers import ANSWER_REWARDS, whole_number
from visgrpo.rewards.text import TextRewards, parse_text_rewards
from visgrpo.training.kl_controller import FixedKL
from visgrpo.training.processes import Processes

SPLITS = ("train", "validation", "test")
LOOKED_AT = 32  # images of a data set that are opened to say whether they are made smaller
TOKENIZED = 2000  # training rows that the tokenizer of a new model is made from
GIBIBYTE = 2**30


def run_name(config: VlmConfig) -> str:
    """Return the default name of a stage's run."""
    stem = Path(config.data.rstrip("/")).stem
    return f"vlm-{stem}" + ("" if config.stage == "all" else f"-{config.stage}")


def load_questions(config: VlmConfig, session: Session) -> VisualSplits:
    """Load questions in three splits and out of distribution; say what was decided about them.

    What is held out is cut to ``eval_images``.
    """
    splits = load_visual(
        config.data,
        image_column=config.image_column,
        question_column=config.question_column,
        answer_column=config.answer_column,
        trace_column=config.trace_column,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        skip_bad_images=config.skip_bad_images,
    )
    shifts = dict(splits.shifts)
    if config.ood is not None:
        elsewhere = load_visual_test(
            config.ood, seed=config.seed, skip_bad_images=config.skip_bad_images
        )
        require_answers(elsewhere)
        shifts = {"out": elsewhere}
    session.note(*splits.notes)
    for part in (splits.train, splits.validation, splits.test, *shifts.values()):
        say_left_out(part, session.processes)
    return replace(
        splits,
        validation=first_rows(splits.validation, config.eval_images),
        test=first_rows(splits.test, config.eval_images),
        shifts={name: first_rows(rows, config.eval_images) for name, rows in shifts.items()},
    )


def say_left_out(dataset: VisualDataset, processes: Processes) -> None:
    """Say which rows were left out, and what was decided about a data set."""
    print_notes(dataset.notes, processes)
    if dataset.skipped:
        listed = "".join(f"\n  {reason}" for reason in dataset.skipped)
        count = len(dataset.skipped)
        print_notes([f"{dataset.name}: left out {count} unreadable image(s):{listed}"], processes)


def first_rows(dataset: VisualDataset, most: int) -> VisualDataset:
    """Return the first rows of a data set, at most so many."""
    return dataset.subset(range(most)) if most < len(dataset) else dataset


def load_start(config: VlmConfig, questions: VisualSplits, session: Session) -> VisionParts:
    """Load the model that a stage starts from, or build a new one; say what was decided."""
    if config.model is None:
        parts = _new_model(config, questions.train)
    else:
        parts = load_vision_language(config.model, max_pixels=config.max_pixels)
        session.note(*parts.notes)
        style = parts.info.get("style", config.style)
        if style != config.style:
            session.note(f"{config.model} learned to answer in --style {style}.")
    say_resized((questions.train, *questions.shifts.values()), parts, session.processes)
    return parts


def say_resized(
    datasets: Sequence[VisualDataset], parts: VisionParts, processes: Processes
) -> None:
    """Say once that images are larger than the model takes, where the first ones are."""
    for dataset in datasets:
        for row in range(min(len(dataset), LOOKED_AT)):
            large = [image for image in dataset.images[row] if parts.processor.resizes(image)]
            if large:
                size = f"{large[0].width} × {large[0].height}"
                note = (
                    f"{dataset.where(row)}: an image of {size} pixels is made smaller for the model"
                )
                print_notes([f"{note}, as others may be; see --max-pixels."], processes)
                return


def adapted(config: VlmConfig, parts: VisionParts, session: Session) -> VisionLanguageModel:
    """Return the start with what trains of it chosen, on the device; print what that is."""
    torch.manual_seed(config.seed)  # the adapters' start
    lm, rows = adapt_vision_language(
        parts.model, train=config.train, rank=config.lora_rank, alpha=config.lora_alpha
    )
    if session.processes.is_main:
        _print_trained(rows)
    if config.gradient_checkpointing:
        parts.model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = "plain" if config.stage == "sft" else config.engine  # one answer shares nothing
    budget = round(config.vision_cache * GIBIBYTE)
    model = VisionLanguageModel(lm, engine=engine, feature_bytes=budget)
    return model.to(session.processes.device)


def rewards_of(config: VlmConfig, train: VisualDataset) -> TextRewards:
    """Return the rewards of a resolved config.

    Raises:
        UserError: for a reward that is not there, or needs a column that the data lacks.
    """
    rewards = parse_text_rewards(config.reward, config.reward_weights, ANSWER_REWARDS)
    rewards.validate(train.columns)
    return rewards


def rollouts_of(
    config: SamplingConfig,
    parts: VisionParts,
    rewards: TextRewards,
    dataset: VisualDataset,
    style: Style,
    seed: int,
    **more: Any,
) -> TokenRollouts:
    """Return what draws completions of a data set's prompts; one of each, without a reference."""
    settings: dict[str, Any] = {
        "group_size": 1,
        "memory": TokenMemory(FixedKL(0.0)),
        **more,
    }
    return TokenRollouts(
        rewards=rewards,
        sampling=sampling_of(config, parts, parts.processor.placeholder_ids),
        prompts=visual_prompts(dataset, style),
        decode=decoder_of(parts),
        seed=seed,
        **settings,
    )


def held_out_of(
    config: SamplingConfig,
    parts: VisionParts,
    rollouts: TokenRollouts,
    dataset: VisualDataset,
    style: Style,
    processes: Processes,
) -> HeldOutAnswers:
    """Return what measures a model on a data set, as these rollouts draw and reward.

    Raises:
        UserError: where --max-new-tokens leaves no room for a prompt.
    """
    apart = rollouts.apart(visual_prompts(dataset, style), group_size=1)
    inputs = VisualInputs(dataset, style, parts.processor, prompt_room(config, parts))
    return HeldOutAnswers(apart, dataset, inputs, style == "direct", processes)


def confusions(
    datasets: Mapping[str, VisualDataset], seen: Mapping[str, SeenAnswers]
) -> dict[str, Any]:
    """Return which numbers were answered for each true count, where all answers are counts."""
    tables = {
        "in" if name == "test" else name: confusion(seen[name].texts, dataset.answers)
        for name, dataset in datasets.items()
        if all(map(_is_count, dataset.answers))
    }
    found = {name: table for name, table in tables.items() if table is not None}
    return {"confusion": found} if found else {}


def info_of(config: VlmConfig, parts: VisionParts) -> dict[str, Any]:
    """Return what a saved model says of how it was made."""
    return {
        "start": config.model,
        "method": config.stage,
        "data": config.data,
        "seed": config.seed,
        "validation_fraction": config.validation_fraction,
        "preset": parts.info.get("preset"),
        "style": config.style,
    }


def save_seer(
    model: VisionLanguageModel,
    parts: VisionParts,
    config: VlmConfig,
    session: Session,
    summary: Mapping[str, Any],
) -> None:
    """Save the model of a finished run, and its adapter where that is all that trained."""
    folder, info = session.run.path / "model", info_of(config, parts)
    save_vision_language(model.lm, parts.processor, folder, vlm_card(summary), info)
    if adapters_alone(model):
        save_vision_language_adapter(model.lm, session.run.path / "adapter")


def _is_count(answer: str) -> bool:
    number = whole_number(answer)
    return number is not None and number >= 0


def _new_model(config: VlmConfig, train: VisualDataset) -> VisionParts:
    """Build a tokenizer of the training rows' words, and a model with random weights for it."""
    sizes = SIZES[config.preset]
    if config.max_pixels is not None:
        sizes = replace(sizes, max_pixels=config.max_pixels)
    rows = first_rows(train, TOKENIZED)
    questions = (asked(question, config.style) for question in rows.questions)
    if rows.traces is None or config.style == "direct":
        answers = answer_targets(rows, "direct")
    else:
        answers = answer_targets(rows, "reasoning")
    parts = build_vision_language([*questions, *answers], sizes, seed=config.seed)
    return replace(parts, name=f"{config.preset} Qwen2.5-VL", info={"preset": config.preset})


def _print_trained(rows: Sequence[TrainedPart]) -> None:
    """Print on stderr how much of each part trains."""
    table = Table("part", *(("tensors", "parameters that train", "of", "share")))
    whole = TrainedPart("all", *(sum(row[i] for row in rows) for i in range(1, 4)))  # type: ignore[misc]
    for row in (*rows, whole):
        numbers = (str(row.tensors), f"{row.parameters:,}", f"{row.total:,}")
        table.add_row(row.part, *numbers, f"{row.parameters / row.total:.1%}")
    Console(stderr=True, width=None if Console(stderr=True).is_terminal else 100).print(table)
