"""What the stages of `visgrpo language` share: data, start, sampling, what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from visgrpo.data.batches import CachedInputs
from visgrpo.data.prompts import PromptSplits, encode_prompts, load_prompts, prompts_from_text
from visgrpo.data.text import TextSplits
from visgrpo.data.text_sources import is_text, load_text
from visgrpo.errors import UserError
from visgrpo.methods.generate import Sampling
from visgrpo.models.language_loading import LanguageParts, context_of, load_language, stop_tokens
from visgrpo.models.token_reference import TokenReference
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.rewards.judge import GoldJudge
from visgrpo.tasks.language_config import LanguageConfig
from visgrpo.tasks.session import Session
from visgrpo.tasks.token_config import SamplingConfig

SPLITS = ("train", "validation", "test")
LONGEST_BLOCK = 1024  # by default, of models that can see more


@dataclass(frozen=True)
class PromptJob:
    """Prompts in three splits with their tokens, and the judge of the text they were cut from.

    Attributes:
        judge: None where the prompts come from a table: there is no text to know how it looks.
    """

    splits: PromptSplits
    inputs: Mapping[str, CachedInputs]
    judge: GoldJudge | None


def run_name(config: LanguageConfig) -> str:
    """Return the default name of a stage's run."""
    stem = Path(config.data.rstrip("/")).stem
    return f"language-{stem}" + ("" if config.stage == "all" else f"-{config.stage}")


def load_writer(name: str) -> LanguageParts:
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


def load_start(config: LanguageConfig, session: Session) -> LanguageParts:
    """Load the model that a stage starts from; say what was decided about it."""
    assert config.init is not None
    parts = load_writer(config.init)
    session.note(*parts.notes)
    learned = parts.info.get("data")
    if config.stage != "reward" and learned not in (None, config.data):
        session.note(f"{config.init} learned from {learned}; --data is {config.data}.")
    return parts


def load_documents(config: LanguageConfig, session: Session) -> TextSplits:
    """Load text in three splits; say what was decided about it."""
    splits = load_text(
        config.data, validation_fraction=config.validation_fraction, text_column=config.text_column
    )
    session.note(*splits.notes)
    return splits


def holds_text(config: LanguageConfig) -> bool:
    """Whether the data is text, by itself or in a column of a table."""
    return config.text_column is not None or is_text(config.data)


def load_prompt_job(config: LanguageConfig, parts: LanguageParts, session: Session) -> PromptJob:
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
        whole = (*documents.train, *documents.validation, *documents.test)
        judge = GoldJudge.from_documents(whole) if config.gold else None
    else:
        splits = load_prompts(
            config.data,
            prompt_column=config.prompt_column,
            validation_fraction=config.validation_fraction,
            seed=config.seed,
        )
    session.note(*splits.notes)
    most = range(config.eval_prompts)
    splits = PromptSplits(
        splits.train,
        splits.validation.subset(most[: len(splits.validation)]),
        splits.test.subset(most[: len(splits.test)]),
    )
    room = prompt_room(config, parts)
    inputs = {
        name: encode_prompts(getattr(splits, name), parts.tokenizer, max_tokens=room)
        for name in SPLITS
    }
    return PromptJob(splits, inputs, judge)


def prompt_room(config: SamplingConfig, parts: LanguageParts) -> int:
    """Return how many tokens a prompt may have beside the longest completion."""
    assert config.max_new_tokens is not None
    room = context_of(parts.model) - config.max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens {config.max_new_tokens} leaves no room for a prompt: the model sees "
            f"{context_of(parts.model)} tokens at once."
        )
    return room


def sampling_of(
    config: SamplingConfig, parts: LanguageParts, never: tuple[int, ...] = ()
) -> Sampling:
    """Return how completions are drawn; padding never is, unless it ends them too.

    Args:
        never: further tokens that are never drawn.
    """
    assert config.max_new_tokens is not None
    stop, pad = stop_tokens(parts), parts.tokenizer.pad_token_id
    forbidden = tuple(sorted({*never, pad} - set(stop)))
    distribution = TokenDistribution(config.temperature, config.top_k, config.top_p, forbidden)
    return Sampling(distribution, config.max_new_tokens, stop, pad)


def decoder_of(parts: LanguageParts) -> Callable[[list[list[int]]], list[str]]:
    """Return what makes text of token ids, without special tokens."""
    tokenizer = parts.tokenizer
    return lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True)


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


def data_of(name: str, sizes: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Return what the summary says of the data.

    Args:
        name: as the user wrote it.
        sizes: something with a length by split.
        unit: what the splits are measured in.
    """
    return {
        "name": name,
        **{split: len(sizes[split]) for split in SPLITS},
        "unit": unit,
    }


def info_of(config: LanguageConfig, parts: LanguageParts) -> dict[str, Any]:
    """Return what a saved model says of how it was made."""
    return {
        "start": config.init,
        "method": config.stage,
        "data": config.data,
        "seed": config.seed,
        "validation_fraction": config.validation_fraction,
        "preset": parts.info.get("preset"),
    }


def memory_of(
    model: nn.Module, reference: TokenReference | None = None, reward_bytes: int = 0
) -> dict[str, int]:
    """Return the bytes that weights and the optimiser's two moments take, by what they are for."""
    critic = getattr(model, "critic", None)
    of_critic = 0 if critic is None else bytes_of(critic)
    found = {
        "policy_bytes": bytes_of(model) - of_critic,
        "critic_bytes": of_critic,
        "reference_bytes": 0 if reference is None else reference.own_bytes,
        "reward_model_bytes": reward_bytes,
        "optimizer_bytes": 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad),
    }
    return {name: size for name, size in found.items() if size}


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's weights; those that two layers share count once."""
    return sum(parameter.nbytes for parameter in module.parameters())
