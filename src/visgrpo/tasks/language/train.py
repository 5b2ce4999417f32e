"""The nano language model, one stage or all of them: `visgrpo language`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from visgrpo.data.batches import CachedInputs
from visgrpo.data.prompts import encode_pairs
from visgrpo.data.read import read
from visgrpo.data.roles import block_table
from visgrpo.data.table import Table
from visgrpo.data.text import token_blocks
from visgrpo.errors import UserError
from visgrpo.measures.texts import HeldOutPrompts, likelihood, pair_accuracy, pair_scores
from visgrpo.methods.supervised import NextToken, PreferredCompletion
from visgrpo.models.language import context_of, critic_of
from visgrpo.models.parts import Parts
from visgrpo.models.reward_model import RewardModel, build_reward_model, with_own_padding
from visgrpo.models.save import save, text_card
from visgrpo.models.small import SIZES, build_language
from visgrpo.models.tokenizers import make_tokenizer
from visgrpo.models.trains import keep_weights
from visgrpo.tasks.language.data import (
    adapted,
    block_of,
    holds_text,
    load_documents,
    load_prompt_job,
    load_start,
    reward_bytes_of,
    rewards_of,
)
from visgrpo.tasks.language.drawing import PAIRS_FILE, best_of_n, make_preferences
from visgrpo.tasks.language.options import (
    OF_NEW_MODELS,
    PRESETS,
    LanguageConfig,
    resolved,
)
from visgrpo.tasks.lineage import divided
from visgrpo.tasks.options import LORA_RATE
from visgrpo.tasks.run import Job, Moment, Seen, Session, train
from visgrpo.tasks.story import StagedTask, Summaries
from visgrpo.tasks.tokens import (
    SPLITS,
    data_of,
    info_of,
    kl_control_of,
    learning,
    memory_of,
    objective_of,
    per_second,
    policy_job,
    rollouts_of,
    save_run,
    training_of,
)

VALIDATION_COMPLETIONS = 2  # of each prompt; of a test prompt there are as many as in training
NORMALISED_ON = 512  # pairs
LEAST_ACCURACY = 0.6  # of a reward model on pairs; below it a policy learns next to nothing


class LanguageTask(StagedTask):
    """SFT, preference pairs, a reward model, then GRPO, PPO and others on what completions earn."""

    name = "language"
    options = LanguageConfig
    shown = ("gold_reward", "reward", "kl", "nll", "accuracy")
    stages: ClassVar[Mapping[str, str]] = {
        "sft": "sft",
        "pairs": "preferences",
        "reward": "reward",
        "best-of-n": "best-of-n",
        "grpo": "grpo",
        "ppo": "ppo",
    }
    compared = ("best-of-n", "grpo", "ppo")
    unit = "prompts"

    def set_up(self, options: LanguageConfig, session: Session) -> Job:
        set_up = {"sft": next_token, "reward": reward_model}.get(options.method, policy)
        return set_up(options, session)

    def train_stage(self, options: LanguageConfig) -> dict[str, Any]:
        drawing = {"preferences": make_preferences, "best-of-n": best_of_n}.get(options.method)
        return drawing(options, self.run_name(options)) if drawing else train(self, options)

    def changes(self, options: LanguageConfig, stage: str, start: str) -> dict[str, Any]:
        if stage == "sft":
            return {"model": None, "steps": options.sft_steps}
        plain = LanguageConfig()
        return {"model": start, **{name: getattr(plain, name) for name in OF_NEW_MODELS}}

    def outcome(self, summaries: Summaries) -> dict[str, Mapping[str, Any]]:
        best = summaries["best-of-n"]
        return {
            "sft (start)": summaries["grpo"]["before"],
            f"best of {best['samples']}": best["after"],
            "grpo": summaries["grpo"]["after"],
            "ppo": summaries["ppo"]["after"],
        }


def next_token(config: LanguageConfig, session: Session) -> Job:
    """Learn a text, token by token: `--method sft`."""
    documents = load_documents(config, session)
    parts = (
        load_start(config, session) if config.model else _new_model(config, documents.train.texts)
    )
    full = resolved(config, parts.info)
    block = block_of(full.context, context_of(parts.model))
    blocks = {
        name: token_blocks(getattr(documents, name).texts, parts.tokenizer, block)
        for name in SPLITS
    }
    training = training_of(full, session)
    model = adapted(config, parts, session)
    rows = {
        name: block_table(getattr(documents, name).name, len(blocks[name].inputs_M))
        for name in SPLITS
    }

    def measures(split: str) -> dict[str, float]:
        return likelihood(model, blocks[split], parts.tokenizer, session.processes)

    return Job(
        model=model,
        method=NextToken(),
        rows=rows["train"],
        inputs=blocks["train"],
        training=training,
        by_default={**vars(full), "context": block},
        tokenizer=parts.tokenizer,
        validate=lambda: measures("validation"),
        look=lambda moment: Seen(measures("test")),
        save=partial(save_run, model, parts, session, info_of(config, parts)),
        data=data_of(config.data, rows, "blocks"),
        start=parts.name,
        chosen_method="sft",
        selection="-nll",
        more=lambda result: {
            "tokens_per_second": per_second(result.examples * block, result.seconds),
            "memory": memory_of(model),
        },
        inputs_are="blocks",
    )


def reward_model(config: LanguageConfig, session: Session) -> Job:
    """Learn which completions are preferred: `--method reward`."""
    parts = load_start(config, session)
    full = resolved(config, parts.info)
    training = training_of(full, session)
    of_pairs = replace(config, data=_pairs_of(config, session))
    spec, division = of_pairs.data, divided(of_pairs, config.model, session)
    fraction, seed = division.validation_fraction, division.seed
    splits = read(spec, "pairs", validation_fraction=fraction, seed=seed)
    session.note(*splits.notes)
    tokenizer = with_own_padding(parts.tokenizer)
    pairs = {
        name: encode_pairs(getattr(splits, name), tokenizer, max_tokens=context_of(parts.model))
        for name in SPLITS
    }
    model = build_reward_model(parts, config.seed)
    keep_weights(model, config.weights)
    model = model.to(session.processes.device)

    def measures(split: str) -> dict[str, float]:
        return pair_accuracy(model, pairs[split], getattr(splits, split), session.processes)

    def look(moment: Moment) -> Seen:
        if moment == "before":
            return Seen(measures("test"))
        normalising = _normalising(model, splits.train, pairs["train"], session)
        found = measures("test")
        if found["accuracy"] < LEAST_ACCURACY:
            session.say(
                f"warning: the reward model orders {found['accuracy']:.0%} of held-out pairs as "
                "they were chosen, and chance 50%: what learns from it follows noise. Give it more "
                "--pairs or --steps, or a larger --preset."
            )
        more = {**normalising, **_ceiling(splits.test), "memory": memory_of(model)}
        return Seen(found, more=more)

    def keep(summary: Mapping[str, Any]) -> None:
        scale = {name: summary[name] for name in ("reward_mean", "reward_std")}
        info = {**info_of(of_pairs, parts), **scale}
        folder = session.run.path / "model"
        card = text_card(summary, "AutoModelForSequenceClassification")
        save(model, parts, folder, card, info)

    return Job(
        model=model,
        method=PreferredCompletion(),
        rows=splits.train,
        inputs=pairs["train"],
        training=training,
        tokenizer=tokenizer,
        validate=lambda: measures("validation"),
        look=look,
        save=keep,
        data=data_of(spec, vars(splits), "pairs"),
        start=str(config.model),
        chosen_method="reward",
        selection="-nll",
        inputs_are="pairs",
    )


def policy(config: LanguageConfig, session: Session) -> Job:
    """Learn from rewards: `--method grpo`, `ppo` and the others."""
    parts = load_start(config, session)
    full = resolved(config, parts.info)
    objective_of(full)  # refuses what cannot be taken, before more is loaded
    training = training_of(full, session)
    _check_warmup(full, training.steps)
    control = kl_control_of(full, training)
    job = load_prompt_job(full, parts, session)
    rewards = rewards_of(full, parts, job, session)
    critic = critic_of(parts.model, config.critic) if config.method == "ppo" else None
    model = adapted(config, parts, session, critic)
    prompts = job.splits.train.prompts
    rollouts = rollouts_of(full, parts, rewards, prompts, config.seed, judge=job.judge)
    rollouts = learning(rollouts, model, full, control, session)
    # A critic is no adapter: it trains whole, at a rate for whole models.
    critic_rate = config.critic_rate / (LORA_RATE if config.lora else 1.0)

    def held_out(split: str, completions: int) -> HeldOutPrompts:
        dataset = getattr(job.splits, split)
        apart = rollouts.apart(dataset.prompts, completions)
        return HeldOutPrompts(apart, dataset, job.inputs[split], session.processes)

    validation = held_out("validation", VALIDATION_COMPLETIONS)
    test = held_out("test", rollouts.group_size)
    return policy_job(
        full,
        rollouts,
        model=model,
        training=training,
        reward_bytes=reward_bytes_of(rewards),
        rows=job.splits.train,
        inputs=job.inputs["train"],
        tokenizer=parts.tokenizer,
        validate=lambda: validation.measures(model),
        look=lambda moment: Seen(test.measures(model)),
        save=partial(save_run, model, parts, session, info_of(config, parts)),
        data=job.summary(config.data),
        start=str(config.model),
        inputs_are="prompts",
        rate_of=lambda name: critic_rate if name.startswith("critic.") else 1.0,
    )


def _check_warmup(config: LanguageConfig, steps: int) -> None:
    if config.method == "ppo" and config.critic_warmup >= steps:
        more = "a larger --token-budget" if config.token_budget else "more --steps"
        raise UserError(
            f"--critic-warmup {config.critic_warmup} leaves none of {steps} steps to the policy: "
            f"take {more}, or a shorter warm-up."
        )


def _new_model(config: LanguageConfig, documents: Sequence[str]) -> Parts:
    """Build a tokenizer of the training text, and a model with random weights for it."""
    tokenizer = make_tokenizer(config.tokenizer, documents, vocabulary=config.vocabulary)
    layers, width, heads = SIZES[config.preset]
    model = build_language(
        tokenizer,
        architecture=config.architecture,
        layers=layers,
        width=width,
        heads=heads,
        context=config.context or PRESETS[config.preset].context,
        seed=config.seed,
    )
    name = f"{config.architecture} {config.preset}"
    return Parts(name, model, tokenizer, info={"preset": config.preset})


def _pairs_of(config: LanguageConfig, session: Session) -> str:
    """Return the table of pairs that is named, or the one that was made beside the start."""
    spec = config.data
    if holds_text(config):
        beside = Path(str(config.model)).parent / "pairs" / PAIRS_FILE
        if not beside.exists():
            raise UserError(
                f"--method reward learns from preference pairs: name a table of them with --data; "
                f"there is no {beside} beside --model."
            )
        spec = str(beside)
        session.note(f"the pairs are {spec}.")
    return spec


def _normalising(
    model: RewardModel, pairs: Table, encoded: CachedInputs, session: Session
) -> dict[str, float]:
    """Return mean and standard deviation of the scores of pairs that the model learned from.

    The scale of its scores is no measure of the model: the pairs it learned from tell it best.
    """
    some = np.arange(min(len(pairs), NORMALISED_ON))
    scores = torch.cat(
        pair_scores(model, encoded.take(some), pairs.subset(some), session.processes)
    )
    return {"reward_mean": float(scores.mean()), "reward_std": float(scores.std())}


def _ceiling(test: Table) -> dict[str, float]:
    """How often the true scores, where they are known, order the pairs as they were chosen."""
    if "gold_chosen" not in test.columns:
        return {}
    golds = zip(test.columns["gold_chosen"], test.columns["gold_rejected"], strict=True)
    right = [chosen > rejected for chosen, rejected in golds]
    return {"judge_accuracy": sum(right) / len(right)}
