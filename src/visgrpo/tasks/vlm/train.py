"""A vision-language model, SFT or GRPO or both: `visgrpo vlm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from visgrpo.data.prompts import VisualInputs, answer_targets, visual_prompts
from visgrpo.data.table import LazySequence, Table
from visgrpo.errors import UserError
from visgrpo.measures.answers import answer_likelihood
from visgrpo.methods.supervised import AnswerTokens
from visgrpo.models.language import context_of
from visgrpo.models.parts import model_folder, read_info
from visgrpo.rewards.answers import Exact, Ordinal
from visgrpo.rewards.boxes import BoxReward
from visgrpo.rewards.texts import TextRewards
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
from visgrpo.tasks.vlm.answering import Asking
from visgrpo.tasks.vlm.data import (
    adapted,
    confusions,
    held_out_of,
    load_questions,
    load_start,
    require_rows_left,
    rewards_of,
    style_of,
    units_of,
    usable,
    with_reasoning_of,
)
from visgrpo.tasks.vlm.options import VlmConfig, coordinates_of, resolved
from visgrpo.tasks.vlm.pictures import write_pictures

# Below these a start was seen to get worse instead of better: of eight completions too few are
# right, and what is learned first is to write in the form that is paid for.
LEAST_EARNED = 0.3
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
        imitates = options.method == "sft"
        if not imitates:
            objective_of(options)  # refuses what cannot be taken, before anything is loaded
        start = read_info(model_folder(options.model)) if options.model else {}
        new, asked = options.model is None, options.coordinates
        coordinates = coordinates_of(options.task, asked, start, new=new)
        units = units_of(options.task, coordinates)
        questions = load_questions(options, units, session)
        style = style_of(options, start, questions.train)
        if imitates and options.sft_rows:
            train = with_reasoning_of(questions.train, options.sft_rows)
            questions = replace(questions, train=train)
        alone = imitates and options.answer_weight is not None
        asking = Asking.of(
            options.task, style, units, prompt=options.prompt, learned=start, alone=alone
        )
        options = replace(options, style=style)
        template = asking.template
        rows = {name: getattr(questions, name) for name in SPLITS}
        if imitates:
            targets_of(rows, asking)  # refuses what cannot be imitated
        elif options.insert_truth:
            targets_of({"train": questions.train}, asking)
        parts = load_start(options, questions, asking, session)
        full = resolved(options, parts.info)
        training = training_of(full, session)
        control = kl_control_of(full, training)
        longest = context_of(parts.model) if imitates else prompt_room(full, parts)
        questions = usable(full, questions, asking, parts, longest, session)
        rows = {name: getattr(questions, name) for name in SPLITS}
        written = rows if imitates else {"train": questions.train} if full.insert_truth else {}
        targets = targets_of(written, asking)
        rewards = rewards_of(full, questions.train)
        inputs = {
            name: VisualInputs(
                part,
                style,
                parts.processor,
                context_of(parts.model) if name in targets else longest,
                targets.get(name),
                template=template,
                alone=asking.alone,
            )
            for name, part in rows.items()
        }
        model = adapted(full, parts, session)
        prompts = visual_prompts(questions.train, style, template)
        truths = questions.train.answers
        rollouts = rollouts_of(full, parts, rewards, prompts, options.seed, truths=truths)
        if not imitates:
            rollouts = learning(rollouts, model, full, control, session)
        tested = {"test": questions.test, **questions.shifts}
        held_out = {
            name: held_out_of(full, parts, rollouts, part, asking, session.processes)
            for name, part in {**tested, "validation": questions.validation}.items()
        }
        pictures = side_by_side(questions.train)

        def nll(split: str) -> dict[str, float]:
            if not imitates:
                return {}
            return answer_likelihood(model, rows[split], inputs[split], session.processes)

        answers: dict[Moment, list[str]] = {}

        def look(moment: Moment) -> Seen:
            seen = {name: held_out[name].look(model) for name in tested}
            answers[moment] = seen["test"].texts
            measures = {name: each.measures for name, each in seen.items()}
            test = {**nll("test"), **measures.pop("test")}
            if moment == "after":
                return Seen(test, shifts=measures, more=confusions(tested, seen))
            if not imitates:
                warn_of_a_weak_start(test, rewards, session)
            return Seen(test, shifts=measures)

        def keep(summary: Mapping[str, Any]) -> None:
            save_run(model, parts, session, info, summary)
            if asking.units is not None:
                before, after = answers["before"], answers["after"]
                write_pictures(session.run, questions.test, asking.units, before, after)

        info = {
            **info_of(options, parts),
            "answers": options.task,
            "style": style,
            "prompt": template,
            **({"coordinates": coordinates} if coordinates else {}),
        }
        job: dict[str, Any] = {
            "model": model,
            "training": training,
            "rows": questions.train,
            "inputs": inputs["train"],
            "validate": lambda: {**nll("validation"), **held_out["validation"].measures(model)},
            "look": look,
            "save": keep,
            "data": data_of(options.data, rows, "images"),
            "start": parts.name,
            "inputs_are": "rows",
            "tokenizer": parts.tokenizer,
            "image_of": lambda index: save_picture(session, pictures, index),
        }
        if not imitates:
            return policy_job(full, rollouts, **job)
        return Job(
            method=AnswerTokens(session.processes, answer_weights(questions.train, options)),
            chosen_method="sft",
            by_default=vars(full),
            selection="-nll",
            more=lambda result: {"memory": memory_of(model)},
            draws_sequences=True,  # whole batches are looked at first
            **job,
        )

    def train(self, options: VlmConfig) -> dict[str, Any]:
        if options.sft_rows:
            options.check()
            require_rows_left(options)
        return super().train(options)

    def changes(self, options: VlmConfig, stage: str, start: str) -> dict[str, Any]:
        rows = options.sft_rows
        if stage == "grpo":
            rest = {"train_slice": f"{rows}:"} if rows else {}
            return {"model": start, "preset": VlmConfig().preset, **rest}
        some = {} if options.answer_weight else {"sft_rows": None, "train_slice": f":{rows}"}
        return {
            **(some if rows else {}),
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


def targets_of(rows: Mapping[str, Table], asking: Asking) -> dict[str, tuple[str, ...]]:
    """Return what is to be written to every row of each split."""
    alone = bool(asking.alone)
    return {
        name: answer_targets(part, asking.style, asking.write, alone=alone)
        for name, part in rows.items()
    }


def answer_weights(train: Table, options: VlmConfig) -> Tensor | None:
    """Return what a token of each row counts, (M,); None for 1.

    Raises:
        UserError: none of the rows has reasoning, or all have.
    """
    if options.answer_weight is None:
        return None
    traced_M = torch.tensor([bool(trace) for trace in train.traces or [""] * len(train)])
    if traced_M.all() or not traced_M.any():
        which, mend = (
            ("every row", "leave it out") if traced_M.all() else ("no row", "take --style direct")
        )
        raise UserError(
            f"--answer-weight is of rows without reasoning beside others: {which} of {train.name} "
            f"has some; {mend}."
        )
    return torch.where(traced_M, 1.0, options.answer_weight)


def warn_of_a_weak_start(
    measures: Mapping[str, float], rewards: TextRewards, session: Session
) -> None:
    """Say that there is too little to learn from, where a group's answers earn little.

    What counts are the built-in rewards of right answers that are trained.
    """
    if "sampled_format" not in measures:
        return
    form = measures["sampled_format"]
    earned = {
        name: measures[f"rewards/{name}"]
        for name, function in zip(rewards.names, rewards.functions, strict=True)
        if isinstance(function, Exact | Ordinal | BoxReward)
    }
    best = max(earned, key=lambda name: earned[name], default="")
    if form >= LEAST_FORMAT and earned.get(best, LEAST_EARNED) >= LEAST_EARNED:
        return
    right = {
        "": "",
        "exact": f"{earned.get(best, 0.0):.0%} are right and ",
    }.get(best, f"{earned.get(best, 0.0):.0%} of {best} are earned and ")
    least = f"{LEAST_EARNED:.0%} or " if best else ""
    session.say(
        f"warning: of sampled answers {right}{form:.0%} in the format; below "
        f"{least}{LEAST_FORMAT:.0%} starts often get worse: train SFT longer first."
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
