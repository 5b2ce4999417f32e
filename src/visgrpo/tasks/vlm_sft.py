"""A vision-language model imitates answers: `visgrpo vlm --stage sft`."""

from __future__ import annotations

from typing import Any

from visgrpo.data.visual_prompts import VisualInputs, answer_targets
from visgrpo.measures.visual import answer_likelihood
from visgrpo.methods.supervised import AnswerTokens
from visgrpo.models.language_loading import context_of
from visgrpo.tasks.ending import finish
from visgrpo.tasks.language_setup import data_of, memory_of
from visgrpo.tasks.session import open_session
from visgrpo.tasks.token_training import learn, loader_of, options_of
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


def train_sft(config: VlmConfig) -> dict[str, Any]:
    """Run the stage and return its summary, which is also in OUTPUT/summary.json."""
    session = open_session(config, run_name(config))
    questions = load_questions(config, session)
    rows = {name: getattr(questions, name) for name in SPLITS}
    targets = {name: answer_targets(dataset, config.style) for name, dataset in rows.items()}
    parts = load_start(config, questions, session)
    full = resolved(config, parts.info)
    options = options_of(full, session)
    sees = context_of(parts.model)
    inputs = {
        name: VisualInputs(dataset, config.style, parts.processor, sees, targets[name])
        for name, dataset in rows.items()
    }
    rewards = rewards_of(full, questions.train)
    rollouts = rollouts_of(full, parts, rewards, questions.train, config.style, config.seed)
    measured = {**{name: rows[name] for name in SPLITS[1:]}, **questions.shifts}
    held_out = {
        name: held_out_of(full, parts, rollouts, dataset, config.style, session.processes)
        for name, dataset in measured.items()
    }
    model = adapted(full, parts, session)

    def measures(split: str) -> dict[str, float]:
        nll = answer_likelihood(model, rows[split], inputs[split], session.processes)
        return {**nll, **held_out[split].measures(model)}

    shifts_before = {name: held_out[name].measures(model) for name in questions.shifts}
    before, result = learn(
        model,
        AnswerTokens(session.processes),
        loader_of(full, rows["train"], inputs["train"], session, workers=config.workers),
        options,
        session,
        measures=measures,
        recipe="vlm",
        title="sft",
        inputs_are="rows",
        rolls_out=True,
    )
    tested = {"test": questions.test, **questions.shifts}
    seen = {name: held_out[name].look(model) for name in tested}
    nll = answer_likelihood(model, questions.test, inputs["test"], session.processes)
    return finish(
        session,
        result,
        recipe="vlm",
        method="sft",
        model=parts.name,
        data=data_of(config.data, rows, "images"),
        before=before,
        after={**nll, **seen["test"].measures},
        save=lambda summary: save_seer(model, parts, config, session, summary),
        shifts={
            name: {"before": shifts_before[name], "after": seen[name].measures}
            for name in questions.shifts
        },
        more={"memory": memory_of(model), **confusions(tested, seen)},
    )
