"""A vision-language model, SFT or GRPO or both: `visgrpo vlm`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from PIL import Image

from visgrpo.data.prompts import VisualInputs, answer_targets, visual_prompts
from visgrpo.data.table import LazySequence, Table
from visgrpo.measures.answers import answer_likelihood
from visgrpo.methods.supervised import AnswerTokens
from visgrpo.models.language import context_of
from visgrpo.tasks.images import save_picture
from visgrpo.tasks.run import Job, Moment, Seen, Session
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
from visgrpo.tasks.vlm.data import (
    adapted,
    confusions,
    held_out_of,
    load_questions,
    load_start,
    rewards_of,
    usable,
)
from visgrpo.tasks.vlm.options import VlmConfig, resolved

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
        """Imitate answers with sft, and learn from rewards with the others."""
        imitates, style = options.method == "sft", options.style
        if not imitates:
            objective_of(options)  # refuses what cannot be taken, before anything is loaded
        questions = load_questions(options, session)
        rows = {name: getattr(questions, name) for name in SPLITS}
        targets = {name: answer_targets(part, style) for name, part in rows.items() if imitates}
        parts = load_start(options, questions, session)
        full = resolved(options, parts.info)
        training = training_of(full, session)
        control = kl_control_of(full, training)
        longest = context_of(parts.model) if imitates else prompt_room(full, parts)
        questions = usable(full, questions, parts, longest, session)
        rows = {name: getattr(questions, name) for name in SPLITS}
        targets = {name: answer_targets(part, style) for name, part in rows.items() if imitates}
        rewards = rewards_of(full, questions.train)
        inputs = {
            name: VisualInputs(part, style, parts.processor, longest, targets.get(name))
            for name, part in rows.items()
        }
        model = adapted(full, parts, session)
        prompts, truths = visual_prompts(questions.train, style), questions.train.answers
        rollouts = rollouts_of(full, parts, rewards, prompts, options.seed, truths=truths)
        if not imitates:
            rollouts = learning(rollouts, model, full, control, session)
        tested = {"test": questions.test, **questions.shifts}
        held_out = {
            name: held_out_of(full, parts, rollouts, part, style, session.processes)
            for name, part in {**tested, "validation": questions.validation}.items()
        }
        pictures = side_by_side(questions.train)

        def nll(split: str) -> dict[str, float]:
            if not imitates:
                return {}
            return answer_likelihood(model, rows[split], inputs[split], session.processes)

        def look(moment: Moment) -> Seen:
            seen = {name: held_out[name].look(model) for name in tested}
            measures = {name: each.measures for name, each in seen.items()}
            test = {**nll("test"), **measures.pop("test")}
            if moment == "after":
                return Seen(test, shifts=measures, more=confusions(tested, seen))
            if not imitates:
                warn_of_a_weak_start(test, session)
            return Seen(test, shifts=measures)

        info = {**info_of(options, parts), "style": style}
        job: dict[str, Any] = {
            "model": model,
            "training": training,
            "rows": questions.train,
            "inputs": inputs["train"],
            "validate": lambda: {**nll("validation"), **held_out["validation"].measures(model)},
            "look": look,
            "save": partial(save_run, model, parts, session, info),
            "data": data_of(options.data, rows, "images"),
            "start": parts.name,
            "inputs_are": "rows",
            "image_of": lambda index: save_picture(session, pictures, index),
        }
        if not imitates:
            return policy_job(full, rollouts, **job)
        return Job(
            method=AnswerTokens(session.processes),
            chosen_method="sft",
            selection="-nll",
            more=lambda result: {"memory": memory_of(model)},
            draws_sequences=True,  # whole batches are looked at first
            **job,
        )

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
