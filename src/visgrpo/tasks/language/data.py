"""What the stages of `visgrpo language` are given: a start, prompts or text, rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visgrpo.data.batches import CachedInputs, batch_columns
from visgrpo.data.prompts import encode_prompts, prompts_from_text
from visgrpo.data.read import is_text, read
from visgrpo.data.table import Splits
from visgrpo.errors import UserError
from visgrpo.models.language import Critic, LanguageModel, stop_tokens
from visgrpo.models.load import load_language, load_reward_model
from visgrpo.models.options import Lora
from visgrpo.models.parts import Parts
from visgrpo.models.reward_model import LearnedReward
from visgrpo.models.trains import ALL, LORA, adapt, keep_weights
from visgrpo.rewards.answers import TOKEN_REWARDS
from visgrpo.rewards.judge import GoldJudge
from visgrpo.rewards.texts import TextReward, TextRewards, parse_text_rewards
from visgrpo.tasks.language.options import LanguageConfig
from visgrpo.tasks.lineage import divided, lineage_of, place_of
from visgrpo.tasks.run import Session
from visgrpo.tasks.tokens import SPLITS, bytes_of, compiled, data_of, prompt_room

LONGEST_BLOCK = 1024  # by default, of models that can see more


@dataclass(frozen=True)
class PromptJob:
    """Prompts in three splits with their tokens, and the judge of the text they were cut from.

    Attributes:
        judge: None where the prompts come from a table: there is no text to know how it looks.
    """

    splits: Splits
    inputs: Mapping[str, CachedInputs]
    judge: GoldJudge | None

    def summary(self, name: str) -> dict[str, Any]:
        """Return what the summary of a run says of the prompts."""
        return data_of(name, {split: self.inputs[split].inputs_M for split in SPLITS}, "prompts")


def load_writer(name: str) -> Parts:
    """Load a language model; refuse what visgrpo trained from one to score text.

    Raises:
        UserError: for a model that is not there, or that writes no text.
    """
    parts = load_language(name)
    if parts.info.get("task") == "reward":
        raise UserError(
            f'"{name}" is a reward model, which scores text and writes none: name the model that '
            f"it started from, {parts.info.get('start')}."
        )
    return parts


def load_start(config: LanguageConfig, session: Session) -> Parts:
    """Load the model that a stage starts from; say what was decided about it."""
    assert config.model is not None
    parts = load_writer(config.model)
    session.note(*parts.notes)
    learned = lineage_of(parts.info)
    if config.method != "reward" and learned and learned[-1].data != place_of(config.data):
        session.note(f"{config.model} learned from {learned[-1].data}; --data is {config.data}.")
    return parts


def load_documents(config: LanguageConfig, session: Session) -> Splits:
    """Load text in three splits; say what was decided about it."""
    config = divided(config, config.model, session)
    splits = read(
        config.data,
        "text",
        columns={"text": config.text_column},
        train_slice=config.train_slice,
        validation_fraction=config.validation_fraction,
    )
    session.note(*splits.notes)
    return splits


def holds_text(config: LanguageConfig) -> bool:
    """Whether the data is text, by itself or in a column of a table."""
    return config.text_column is not None or is_text(config.data)


def load_prompt_job(config: LanguageConfig, parts: Parts, session: Session) -> PromptJob:
    """Load a table's prompts, or cut them from text; ``config`` is resolved.

    Held-out prompts are cut to ``eval_prompts``.

    Raises:
        UserError: for data without prompts, and a prompt that leaves no room for a completion.
    """
    judge = None
    if holds_text(config):
        documents = load_documents(config, session)
        splits = prompts_from_text(documents, parts.tokenizer, config.prompt_tokens)
        # The judge stands for the truth and learns nothing of a run: it may know the whole text.
        parts_of_text = (documents.train, documents.validation, documents.test)
        whole = [text for part in parts_of_text for text in part.texts]
        judge = GoldJudge.from_documents(whole) if config.gold else None
    else:
        division = divided(config, config.model, session)
        splits = read(
            config.data,
            "prompts",
            columns={"prompt": config.prompt_column},
            train_slice=config.train_slice,
            validation_fraction=division.validation_fraction,
            seed=division.seed,
        )
    session.note(*splits.notes)
    most = config.eval_prompts
    splits = Splits(splits.train, splits.validation.first(most), splits.test.first(most))
    room = prompt_room(config, parts)
    inputs = {
        name: encode_prompts(getattr(splits, name), parts.tokenizer, max_tokens=room)
        for name in SPLITS
    }
    return PromptJob(splits, inputs, judge)


def rewards_of(
    config: LanguageConfig, parts: Parts, job: PromptJob, session: Session
) -> TextRewards:
    """Return the rewards that were asked for, or the reward model beside the start.

    Raises:
        UserError: for a reward that is not there or cannot be used.
    """
    specs = config.reward
    if not specs:
        beside = Path(str(config.model)).parent / "reward"
        if not (beside / "config.yaml").exists():
            raise UserError(
                f"Name a --reward (model:RUN, gold, file.py:function): there is no run {beside} "
                "beside --model."
            )
        specs = (f"model:{beside}",)
        session.note(f"the reward is model:{beside}.")

    def gold(argument: str) -> GoldJudge:
        if job.judge is None:
            raise UserError(
                "--reward gold judges by the text that the prompts come from: take --data with "
                "text, and leave --gold on."
            )
        return job.judge

    def learned(path: str) -> LearnedReward:
        learned = load_reward_model(path)
        keep_weights(learned.model.requires_grad_(False), config.weights)
        return LearnedReward(
            learned,
            device=session.processes.device,
            stop_tokens=stop_tokens(parts),
            policy_tokenizer=parts.tokenizer,
        )

    built_in: Mapping[str, Callable[[str], TextReward]] = {
        "gold": gold,
        "model": learned,
        **TOKEN_REWARDS,
    }
    rewards = parse_text_rewards(specs, config.reward_weights, built_in)
    rewards.validate(batch_columns(job.splits.train))
    return rewards


def reward_bytes_of(rewards: TextRewards) -> int:
    """Return the bytes of the reward models' weights."""
    learned = [f for f in rewards.functions if isinstance(f, LearnedReward)]
    return sum(bytes_of(function.model) for function in learned)


def block_of(context: int | None, sees: int) -> int:
    """Return the tokens that are predicted in a block of text.

    Args:
        context: how many were asked for.
        sees: tokens that the model sees at once.

    Raises:
        UserError: for more than it sees.
    """
    if context and context > sees:
        raise UserError(f"--context {context}: the model sees {sees} tokens at once.")
    return context or min(sees, LONGEST_BLOCK)


def adapted(
    config: LanguageConfig, parts: Parts, session: Session, critic: Critic | None = None
) -> LanguageModel:
    """Return the start with what trains of it chosen, on the device."""
    torch.manual_seed(config.seed)  # the adapters' start
    lm = adapt(parts.model, [LORA if config.lora else ALL], config.part(Lora))
    model = LanguageModel(lm, critic)
    keep_weights(model, config.weights)
    model = model.to(session.processes.device)
    model.compiled, model.recompute = compiled(config, model), config.gradient_checkpointing
    return model
