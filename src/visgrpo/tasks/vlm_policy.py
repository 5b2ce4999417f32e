"""A vision-language model learns from rewards: `visgrpo vlm --stage grpo` and the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from visgrpo.data.dataset import LazySequence
from visgrpo.data.visual import VisualDataset
from visgrpo.data.visual_prompts import VisualInputs
from visgrpo.methods.token_groups import TokenMemory
from visgrpo.methods.tokens import TokenGRPO
from visgrpo.models.token_reference import reference_of
from visgrpo.objectives import check_objective
from visgrpo.tasks.ending import finish
from visgrpo.tasks.language_setup import data_of, memory_of, prompt_room
from visgrpo.tasks.session import Session, begin, open_session, save_picture
from visgrpo.tasks.token_training import (
    kl_control_of,
    loader_of,
    objective_of,
    options_of,
    terms_of,
)
from visgrpo.tasks.vlm_config import VlmConfig, resolved
from visgrpo.tasks.vlm_data import SPLITS, load_questions, run_name
from visgrpo.tasks.vlm_setup import (
    adapted,
    confusions,
    held_out_of,
    load_start,
    rewards_of,
    rollouts_of,
    save_seer,
)
from visgrpo.training.trainer import Trainer

# Below these a start was seen to get worse instead of better: of eight completions too few are
# right, and what is learned first is to write in the form that is paid for.
LEAST_SAMPLED_ACCURACY = 0.3
LEAST_FORMAT = 0.9


def train_policy(config: VlmConfig) -> dict[str, Any]:
    """Run the stage and return its summary, which is also in OUTPUT/summary.json."""
    session = open_session(config, run_name(config))
    objective = objective_of(config, config.stage)
    check_objective(objective, "sampled", config.group_size)
    questions = load_questions(config, session)
    parts = load_start(config, questions, session)
    full = resolved(config, parts.info)
    options = options_of(full, session)
    rewards = rewards_of(full, questions.train)
    inputs = VisualInputs(questions.train, config.style, parts.processor, prompt_room(full, parts))
    model = adapted(full, parts, session)
    reference = reference_of(model) if config.beta or config.track_kl else None
    memory = TokenMemory(kl_control_of(config, options.batch_size * config.group_size))
    rollouts = rollouts_of(
        full,
        parts,
        rewards,
        questions.train,
        config.style,
        config.seed,
        group_size=config.group_size,
        memory=memory,
        reference=reference,
        shards=session.processes,
    )
    tested = {"test": questions.test, **questions.shifts}
    held_out = {
        name: held_out_of(full, parts, rollouts, dataset, config.style, session.processes)
        for name, dataset in {**tested, "validation": questions.validation}.items()
    }
    terms = terms_of(full, on_policy=options.updates_per_rollout == 1)
    pictures = side_by_side(questions.train)
    trainer = Trainer(
        model,
        TokenGRPO(rollouts, objective, terms, config.combination, read_once=terms.on_policy),
        loader_of(full, questions.train, inputs, session, workers=config.workers),
        options,
        processes=session.processes,
        run=session.run,
        evaluate=lambda: held_out["validation"].measures(model),
        selection="reward",
        title=config.stage,
        image_of=lambda index: save_picture(session, pictures, index),
        draws_sequences=True,
        memory=memory,
        inputs_are="rows",
    )
    before = {name: held_out[name].measures(model) for name in tested}
    warn_of_a_weak_start(before["test"], session)
    begin(session, "vlm")
    session.start_trackers()
    result = trainer.train(session.checkpoint)
    seen = {name: held_out[name].look(model) for name in tested}
    return finish(
        session,
        result,
        recipe="vlm",
        method=config.stage,
        model=parts.name,
        data=data_of(config.data, {name: getattr(questions, name) for name in SPLITS}, "images"),
        before=before["test"],
        after=seen["test"].measures,
        save=lambda summary: save_seer(model, parts, config, session, summary),
        shifts={
            name: {"before": before[name], "after": seen[name].measures}
            for name in questions.shifts
        },
        more={
            "sampled_tokens": memory.sampled_tokens,
            "tokens_per_second": round(memory.sampled_tokens / max(result.seconds, 1e-9), 1),
            "memory": memory_of(model, reference),
            **confusions(tested, seen),
        },
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


def side_by_side(dataset: VisualDataset) -> LazySequence[Image.Image]:
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
