"""What `visgrpo vlm` is given: questions, a start, what trains of it, what it is measured by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from visgrpo.data.boxed import BoxFormat, Units, boxed_questions, check_boxes, in_units
from visgrpo.data.kept import default_folder
from visgrpo.data.prompts import (
    Style,
    VisualInputs,
    all_made,
    answer_targets,
    asked,
    visual_prompts,
)
from visgrpo.data.read import DataKind, read, read_test
from visgrpo.data.roles import require_answers
from visgrpo.data.table import Splits, Table, derived
from visgrpo.errors import UserError
from visgrpo.measures.answers import HeldOutAnswers, SeenAnswers, confusion
from visgrpo.methods.options import SamplingOptions
from visgrpo.methods.token_groups import TokenRollouts
from visgrpo.models.load import load_vision_language
from visgrpo.models.options import Lora
from visgrpo.models.parts import Parts
from visgrpo.models.small_vision import PLACING_SIZES, SIZES, build_vision_language
from visgrpo.models.trains import TrainedPart, adapt, keep_weights, trained_parts
from visgrpo.models.vision_language import VisionLanguageModel, VisionProcessor
from visgrpo.rewards.answers import Exact, Ordinal, whole_number
from visgrpo.rewards.boxes import BoxReward
from visgrpo.rewards.texts import TextRewards, parse_text_rewards
from visgrpo.tasks.images import columns_of
from visgrpo.tasks.lineage import divided
from visgrpo.tasks.run import Session, print_notes
from visgrpo.tasks.tokens import compiled, prompt_room
from visgrpo.tasks.vlm.answering import REWARDS, Asking
from visgrpo.tasks.vlm.options import PLACING, VlmConfig
from visgrpo.terminal import show_table
from visgrpo.training.processes import Processes

TOKENIZED = 2000  # training rows that the tokenizer of a new model is made from
GIBIBYTE = 2**30

LOOKED_AT = 32  # rows of a data set whose images are opened to say whether they are made smaller


def load_questions(config: VlmConfig, units: Units | None, session: Session) -> Splits:
    """Load questions in three splits and out of distribution; say what was decided about them.

    What is held out is cut to ``eval_images``. Data that the start has learned from are divided as
    they were then: by another seed, most of what is held out would be rows that it knows.
    """
    division = divided(config, config.model, session)
    kind = kind_of(units, config.box_format)
    splits = read(
        config.data,
        kind,
        columns=columns_of(config),
        train_slice=config.train_slice,
        validation_fraction=division.validation_fraction,
        seed=division.seed,
        skip_bad_images=config.skip_bad_images,
    )
    shifts = dict(splits.shifts)
    if config.shifts is not None:
        elsewhere = read_test(
            config.shifts, kind, seed=config.seed, skip_bad_images=config.skip_bad_images
        )
        require_answers(elsewhere)
        shifts = {"out": elsewhere}
    session.note(*splits.notes)
    for part in (splits.train, splits.validation, splits.test, *shifts.values()):
        say_left_out(part, session.processes)
    most, skip, noise = config.eval_images, config.skip_bad_images, config.box_noise
    return replace(
        splits,
        train=with_boxes(splits.train, units, skip=skip, noise=noise, seed=config.seed),
        validation=with_boxes(
            splits.validation.first(most), units, skip=skip, noise=noise, seed=config.seed
        ),
        test=with_boxes(splits.test.first(most), units, skip=skip),
        shifts={
            name: with_boxes(rows.first(most), units, skip=skip) for name, rows in shifts.items()
        },
    )


def with_reasoning_of(table: Table, first: int) -> Table:
    """Return rows of which only the first ones, as they are stored, have their reasoning."""
    if table.traces is None:
        return table
    assert table.places is not None
    shown = table.places < first
    traces = [trace if show else "" for trace, show in zip(table.traces, shown, strict=True)]
    identity = derived(table.identity, f"reasoning of {first}")
    return replace(table, values={**table.values, "traces": traces}, identity=identity)


def require_rows_left(config: VlmConfig) -> None:
    """Refuse more rows of SFT than leave one to learn from by reward, before SFT has trained.

    Raises:
        UserError: naming how many rows there are.
    """
    units = (
        units_of(config.task, config.coordinates or "pixels") if config.task in PLACING else None
    )
    asked = {"columns": columns_of(config), "validation_fraction": config.validation_fraction}
    rows = len(
        read(config.data, kind_of(units, config.box_format), seed=config.seed, **asked).train
    )
    if config.sft_rows is not None and config.sft_rows >= rows:
        raise UserError(
            f"--sft-rows {config.sft_rows} leaves GRPO nothing: {config.data} has {rows} rows to "
            "learn from; take fewer."
        )


def units_of(task: str, coordinates: str | None) -> Units | None:
    """Return what answers that are places are counted in; None of other answers.

    Raises:
        UserError: for coordinates that are none.
    """
    return Units.of(coordinates, points=task == "points") if coordinates else None


def kind_of(units: Units | None, form: BoxFormat) -> DataKind | str:
    """Return the kind of data that is asked about."""
    return "questions" if units is None else boxed_questions(form)


def with_boxes(
    table: Table, units: Units | None, *, skip: bool, noise: float = 0.0, seed: int = 0
) -> Table:
    """Return rows with true boxes as the model answers them; others as they are.

    Args:
        skip: leave rows out whose boxes, or images, cannot be used.
        noise: of the boxes, with the seed that it is drawn by.
    """
    if units is None:
        return table
    if skip:
        table = table.without_bad_rows(lambda rows, row: check_boxes(rows, row, units))
    return in_units(table, units, noise=noise, seed=seed)


def style_of(config: VlmConfig, info: Mapping[str, Any], train: Table) -> Style:
    """Return whether reasoning is asked for: as told, as learned, or as the rows have it."""
    told: Style | None = config.style or info.get("style")
    return told or ("reasoning" if config.task == "counting" or train.traces else "direct")


def usable(
    config: VlmConfig,
    questions: Splits,
    asking: Asking,
    parts: Parts,
    longest: int,
    session: Session,
) -> Splits:
    """Return the questions that all can be read, seen and answered by the model; say of others.

    Args:
        longest: tokens of a prompt and its answer, where answers are imitated.
    """
    room, ask = (
        prompt_room(config, parts),
        partial(
            VisualInputs, style=asking.style, processor=parts.processor, template=asking.template
        ),
    )

    def kept(part: Table, *, held_out: bool) -> Table:
        made = []
        if config.method == "sft":
            alone = asking.alone
            targets = answer_targets(part, asking.style, asking.write, alone=bool(alone))
            made.append(ask(part, max_tokens=longest, targets=targets, alone=alone))
        if held_out or not made:
            made.append(ask(part, max_tokens=room))
        rest = all_made(part, made, skip=config.skip_bad_images)
        if rest is not part:
            new = replace(rest, notes=(), skipped=rest.skipped[len(part.skipped) :])
            say_left_out(new, session.processes)
        return rest

    return replace(
        questions,
        train=kept(questions.train, held_out=False),
        validation=kept(questions.validation, held_out=True),
        test=kept(questions.test, held_out=True),
        shifts={name: kept(part, held_out=True) for name, part in questions.shifts.items()},
    )


def say_left_out(dataset: Table, processes: Processes) -> None:
    """Say which rows were left out, and what was decided about a data set."""
    print_notes(dataset.notes, processes)
    if dataset.skipped:
        count = len(dataset.skipped)
        left_out = f"{dataset.name}: left out {count} row(s) that cannot be used:"
        print_notes([left_out, *(f"  {reason}" for reason in dataset.skipped)], processes)


def say_resized(
    datasets: Sequence[Table], processor: VisionProcessor, processes: Processes
) -> None:
    """Say once that images are larger than the model takes, where the first ones are."""
    for dataset in datasets:
        for row in range(min(len(dataset), LOOKED_AT)):
            large = [image for image in dataset.images[row] if processor.resizes(image)]
            if large:
                size = f"{large[0].width} × {large[0].height}"
                note = (
                    f"{dataset.where(row)}: an image of {size} pixels is made smaller for the "
                    "model, as others may be; see --max-pixels."
                )
                print_notes([note], processes)
                return


def load_start(config: VlmConfig, questions: Splits, asking: Asking, session: Session) -> Parts:
    """Load the model that a stage starts from, or build a new one; say what was decided."""
    if config.model is None:
        parts = _new_model(config, questions.train, asking)
        if config.min_pixels is not None:
            parts.processor.enlarge(config.min_pixels)
    else:
        parts = load_vision_language(
            config.model, max_pixels=config.max_pixels, min_pixels=config.min_pixels
        )
        session.note(*parts.notes)
        asked_as = {"style": asking.style, "coordinates": asking.units and asking.units.name}
        for option, now in asked_as.items():
            before = parts.info.get(option) or now
            if before != now:
                session.note(f"{config.model} learned to answer in --{option} {before}.")
    datasets = (questions.train, *questions.shifts.values())
    say_resized(datasets, parts.processor, session.processes)
    return parts


def adapted(config: VlmConfig, parts: Parts, session: Session) -> VisionLanguageModel:
    """Return the start with what trains of it chosen, on the device; print what that is."""
    torch.manual_seed(config.seed)  # the adapters' start
    lm = adapt(parts.model, config.train, config.part(Lora))
    if session.processes.is_main:
        _print_trained(trained_parts(lm))
    budget = round(config.vision_cache * GIBIBYTE)
    model = VisionLanguageModel(
        lm, engine=config.engine, feature_bytes=budget, folder=default_folder()
    )
    # An answer alone shares nothing: of two passes instead of one it gains where features are kept.
    if config.method == "sft" and model.frozen() == "nothing":
        model.engine = "plain"
    model.recompute = config.gradient_checkpointing
    keep_weights(model, config.weights)
    model = model.to(session.processes.device)
    model.compiled = compiled(config, model)
    return model


def rewards_of(config: VlmConfig, train: Table) -> TextRewards:
    """Return the rewards of a resolved config.

    Raises:
        UserError: for a reward that is not there, or needs a column that the data lacks.
    """
    rewards = parse_text_rewards(config.reward, config.reward_weights, REWARDS)
    rewards.validate(train.columns)
    for name, function in zip(rewards.names, rewards.functions, strict=True):
        if isinstance(function, Exact | Ordinal | BoxReward) and not any(train.answers):
            raise UserError(
                f'{train.name}: no row has an answer, so that reward "{name}" is paid to none; '
                f"name the column of the answers with --answer-column ({', '.join(train.columns)})."
            )
    return rewards


def held_out_of(
    config: SamplingOptions,
    parts: Parts,
    rollouts: TokenRollouts,
    dataset: Table,
    asking: Asking,
    processes: Processes,
    samples: int = 1,
) -> HeldOutAnswers:
    """Return what measures a model on a data set, as these rollouts draw and reward.

    Args:
        samples: answers that are drawn to each question beside the likeliest.

    Raises:
        UserError: where --max-new-tokens leaves no room for a prompt.
    """
    prompts = visual_prompts(dataset, asking.style, asking.template)
    room, template = prompt_room(config, parts), asking.template
    inputs = VisualInputs(dataset, asking.style, parts.processor, room, template=template)
    return HeldOutAnswers(
        rollouts.apart(prompts, group_size=samples),
        dataset,
        inputs,
        asking.direct,
        processes,
        asking.answering.measure,
        asking.answering.sampled,
    )


def confusions(datasets: Mapping[str, Table], seen: Mapping[str, SeenAnswers]) -> dict[str, Any]:
    """Return which numbers were answered for each true count, where all answers are counts."""
    tables = {
        "in" if name == "test" else name: confusion(seen[name].texts, dataset.answers)
        for name, dataset in datasets.items()
        if all(map(_is_count, dataset.answers))
    }
    found = {name: table for name, table in tables.items() if table is not None}
    return {"confusion": found} if found else {}


def _is_count(answer: str) -> bool:
    number = whole_number(answer)
    return number is not None and number >= 0


def _new_model(config: VlmConfig, train: Table, asking: Asking) -> Parts:
    """Build a tokenizer of the training rows' words, and a model with random weights for it.

    Where places are answered, whatever number may be in an answer is one token.
    """
    sizes = (SIZES if asking.units is None else PLACING_SIZES)[config.preset]
    if config.max_pixels is not None:
        sizes = replace(sizes, max_pixels=config.max_pixels)
    rows = train.first(TOKENIZED)
    templates = [asking.template, *([asking.alone] if asking.alone else [])]
    questions = (
        asked(question, asking.style, template)
        for question in rows.questions
        for template in templates
    )
    style = "direct" if rows.traces is None else asking.style
    answers = answer_targets(rows, style, asking.write, alone=bool(asking.alone))
    if asking.units is not None:
        most = asking.units.sides or max(map(int, re.findall(r"\d+", " ".join(answers))))
        sizes = replace(sizes, numbers=most + 1)
        answers = tuple(re.sub(r"\d+", "0", answer) for answer in answers)
    parts = build_vision_language([*questions, *answers], sizes, seed=config.seed)
    name = "Qwen2.5-VL" if asking.units is None else "Idefics3"
    return replace(parts, name=f"{config.preset} {name}", info={"preset": config.preset})


def _print_trained(rows: Sequence[TrainedPart]) -> None:
    """Print on stderr how much of each part trains."""
    tensors, parameters, total = (sum(numbers) for numbers in list(zip(*rows, strict=True))[1:])
    whole = TrainedPart("all", tensors, parameters, total)
    lines = [
        [
            each.part,
            str(each.tensors),
            f"{each.parameters:,}",
            f"{each.total:,}",
            f"{each.parameters / each.total:.1%}",
        ]
        for each in (*rows, whole)
    ]
    headings = ["part", "tensors", "parameters that train", "of", "share"]
    show_table(headings, lines, error=True)
