"""A vision-language model, SFT or GRPO or both: `visgrpo vlm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from PIL import Image

from visgrpo.data.table import LazySequence, Table
from visgrpo.data.visual_prompts import VisualInputs, answer_targets, visual_prompts
from visgrpo.measures.answers import HeldOutAnswers, answer_likelihood
from visgrpo.methods.supervised import AnswerTokens
from visgrpo.models.language import context_of
from visgrpo.models.parts import Parts
from visgrpo.models.vision_language.model import VisionLanguageModel
from visgrpo.tasks.images import save_picture
from visgrpo.tasks.run import Job, Moment, Seen
from visgrpo.tasks.session import Session
from visgrpo.tasks.story import StagedTask, Summaries
from visgrpo.tasks.tokens import (
    SPLITS,
    data_of,
    info_of,
    kl_control_of,
    learning,
    memory_of,
    objective_of,
    policy_job,
    prompt_room,
    rollouts_of,
    save_run,
    training_of,
)
from visgrpo.tasks.vlm.config import VlmConfig, resolved
from visgrpo.tasks.vlm.data import load_questions, with_stage
from visgrpo.tasks.vlm.model import (
    adapted,
    confusions,
    held_out_of,
    load_start,
    rewards_of,
)

# Below these a start was seen to get worse instead of better: of eight completions too few are
# right, and what is learned first is to write in the form that is paid for.
LEAST_SAMPLED_ACCURACY = 0.3
LEAST_FORMAT = 0.9


class VlmTask(StagedTask):
    """SFT on answers, then GRPO and its kin on what a model's own answers earn."""

    name = "vlm"
    options = VlmConfig
    shown = ("accuracy", "sampled_accuracy", "shifts.out.after.accuracy", "mean_absolute_error")
    stages: ClassVar[Mapping[str, str]] = {"sft": "sft", "grpo": "grpo"}
    compared = ("sft", "grpo")
    unit = "images"
    shifts_in_table = True

    def set_up(self, options: VlmConfig, session: Session) -> Job:
        return (imitation if options.method == "sft" else policy)(options, session)

    def changes(self, options: VlmConfig, stage: str, start: str) -> dict[str, Any]:
        if stage == "grpo":
            return {"model": start, "preset": VlmConfig().preset}
        return {
            "data": options.sft_data or options.data,
            "steps": options.sft_steps,
            "batch_size": options.sft_batch_size,
            "learning_rate": options.sft_learning_rate,
        }

    def outcome(self, summaries: Summaries) -> dict[str, Mapping[str, Any]]:
        sft, grpo = summaries["sft"], summaries["grpo"]
        moments = {"start": (sft, "before"), "sft": (sft, "after"), "grpo": (grpo, "after")}
        rows = {row: summary[when] for row, (summary, when) in moments.items()}
        for name in grpo.get("shifts", {}):
            for row, (summary, when) in moments.items():
                rows[f"{row}, {name}"] = summary["shifts"][name][when]
        return rows


def policy(config: VlmConfig, session: Session) -> Job:
    """Learn from rewards: `--method grpo` and the others."""
    objective = objective_of(config)
    questions = load_questions(config, session)
    parts = load_start(config, questions, session)
    full = resolved(config, parts.info)
    training = training_of(full, session)
    control = kl_control_of(full, training)
    rewards = rewards_of(full, questions.train)
    inputs = VisualInputs(questions.train, config.style, parts.processor, prompt_room(full, parts))
    model = adapted(full, parts, session)
    prompts = visual_prompts(questions.train, config.style)
    truths = questions.train.answers
    rollouts = rollouts_of(full, parts, rewards, prompts, config.seed, truths=truths)
    rollouts = learning(rollouts, model, full, control, session)
    tested = {"test": questions.test, **questions.shifts}
    held_out = {
        name: held_out_of(full, parts, rollouts, dataset, config.style, session.processes)
        for name, dataset in {**tested, "validation": questions.validation}.items()
    }
    pictures = side_by_side(questions.train)

    def look(moment: Moment) -> Seen:
        seen = _seen(model, {name: held_out[name] for name in tested}, moment)
        if moment == "before":
            warn_of_a_weak_start(seen.measures, session)
        return seen

    return policy_job(
        full,
        rollouts,
        objective,
        training,
        model=model,
        rows=questions.train,
        inputs=inputs,
        validate=lambda: held_out["validation"].measures(model),
        look=look,
        save=partial(save_run, model, parts, session, _info(config, parts)),
        data=data_of(config.data, {name: getattr(questions, name) for name in SPLITS}, "images"),
        start=parts.name,
        inputs_are="rows",
        image_of=lambda index: save_picture(session, pictures, index),
    )


def imitation(config: VlmConfig, session: Session) -> Job:
    """Imitate answers: `--method sft`."""
    questions = load_questions(config, session)
    rows = {name: getattr(questions, name) for name in SPLITS}
    targets = {name: answer_targets(dataset, config.style) for name, dataset in rows.items()}
    parts = load_start(config, questions, session)
    full = resolved(config, parts.info)
    training = training_of(full, session)
    sees = context_of(parts.model)
    inputs = {
        name: VisualInputs(dataset, config.style, parts.processor, sees, targets[name])
        for name, dataset in rows.items()
    }
    rewards = rewards_of(full, questions.train)
    prompts = visual_prompts(questions.train, config.style)
    rollouts = rollouts_of(full, parts, rewards, prompts, config.seed)
    tested = {"test": questions.test, **questions.shifts}
    held_out = {
        name: held_out_of(full, parts, rollouts, dataset, config.style, session.processes)
        for name, dataset in {**tested, "validation": questions.validation}.items()
    }
    model = adapted(full, parts, session)

    def nll(split: str) -> dict[str, float]:
        return answer_likelihood(model, rows[split], inputs[split], session.processes)

    def look(moment: Moment) -> Seen:
        seen = _seen(model, {name: held_out[name] for name in tested}, moment)
        return replace(seen, measures={**nll("test"), **seen.measures})

    return Job(
        model=model,
        method=AnswerTokens(session.processes),
        rows=rows["train"],
        inputs=inputs["train"],
        training=training,
        validate=lambda: {**nll("validation"), **held_out["validation"].measures(model)},
        look=look,
        save=partial(save_run, model, parts, session, _info(config, parts)),
        data=data_of(config.data, rows, "images"),
        start=parts.name,
        chosen_method="sft",
        selection="-nll",
        more=lambda result: {"memory": memory_of(model)},
        inputs_are="rows",
        draws_sequences=True,  # whole batches are looked at first
    )


def _info(config: VlmConfig, parts: Parts) -> dict[str, Any]:
    learned = with_stage(parts.info, config)
    info = info_of(config, parts, config.model, learned=learned)
    return {**info, "style": config.style}


def _seen(
    model: VisionLanguageModel, held_out: Mapping[str, HeldOutAnswers], moment: Moment
) -> Seen:
    """Let the model answer all questions that it is tested on."""
    seen = {name: each.look(model) for name, each in held_out.items()}
    measures = {name: each.measures for name, each in seen.items()}
    datasets = {name: each.dataset for name, each in held_out.items()}
    return Seen(
        measures.pop("test"),
        shifts=measures,
        more=confusions(datasets, seen) if moment == "after" else {},
    )


def warn_of_a_weak_start(measures: Mapping[str, float], session: Session) -> None:
    """Say that there is too little to learn from, where few of a group's answers are right."""
    if "sampled_accuracy" not in measures:
        return
    accuracy, form = measures["sampled_accuracy"], measures["sampled_format"]
    if accuracy >= LEAST_SAMPLED_ACCURACY and form >= LEAST_FORMAT:
        return
    session.say(
        f"warning: of sampled answers {accuracy:.0%} are right and {form:.0%} in the format; below "
        f"{LEAST_SAMPLED_ACCURACY:.0%} or {LEAST_FORMAT:.0%} starts often get worse: train SFT "
        "longer first."
    )


def side_by_side(dataset: Table) -> LazySequence[Image.Image]:
    """Return one picture for every row: its images in a line."""

    def line(row: int) -> Image.Image:
        images = dataset.images[row]
        if len(images) == 1:
            return images[0]
        height = max(image.height for image in images)
        whole = Image.new("RGB", (sum(image.width for image in images), height), "white")
        left = 0
        for image in images:
            whole.paste(image, (left, 0))
            left += image.width
        return whole

    return LazySequence(line, range(len(dataset)))
