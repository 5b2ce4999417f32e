"""Evaluate a language model on text, and a reward model on pairs: part of `visgrpo evaluate`."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from visgrpo.data.pairs import encode_pairs, load_pairs
from visgrpo.data.splitting import parse_split
from visgrpo.data.text import Documents
from visgrpo.data.text_sources import is_text, load_text
from visgrpo.data.token_blocks import token_blocks
from visgrpo.errors import UserError
from visgrpo.evaluation.text import likelihood, pair_accuracy
from visgrpo.models.language import LanguageModel
from visgrpo.models.language_loading import LanguageParts, context_of, load_language
from visgrpo.models.reward_model import load_reward_model
from visgrpo.recipes.evaluate_shared import Division, division_of, models_of, show
from visgrpo.recipes.language_config import LanguageConfig
from visgrpo.recipes.language_sft import LONGEST_BLOCK
from visgrpo.recipes.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes

Splits = TypeVar("Splits", bound=Any)


def evaluate_language(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    """Measure how well a language model predicts a text.

    Model and start are given blocks of the same length: a longer one would flatter.

    Returns:
        The measures of `text_measures` under ``model`` and, with a start, under ``start``.

    Raises:
        UserError: for text that cannot be used, and a model that sees less than --context.
    """
    documents = _documents(config)
    models = {row: load_language(name) for row, name in models_of(config)}
    block = _block(config, models)
    results = {}
    for row, parts in models.items():
        blocks = token_blocks(documents, parts.tokenizer, block)
        model = LanguageModel(parts.model).to(processes.device).eval()
        results[row] = likelihood(model, blocks, parts.tokenizer, processes)
    title = f"{config.data}, {len(documents)} documents in blocks of {block} tokens"
    show(results, config, title)
    return results


def evaluate_reward(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    """Measure how well a reward model tells preferred completions from rejected ones.

    Returns:
        The measures of `pair_measures` under ``model`` and, with a start, under ``start``.

    Raises:
        UserError: for pairs that cannot be used.
    """
    if is_text(config.data):
        raise UserError(
            f"--data {config.data} is text: a reward model is measured on preference pairs, a "
            "table with the columns prompt, chosen and rejected, such as RUN/pairs/pairs.jsonl."
        )
    division = _division(config)
    splits = load_pairs(
        config.data, validation_fraction=division.validation_fraction, seed=division.seed
    )
    _say(splits, processes)
    name, chosen = parse_split(config.split)
    pairs = getattr(splits, name)
    pairs = pairs.subset(range(len(pairs))[chosen])
    results = {}
    for row, folder in models_of(config):
        parts = load_reward_model(folder)
        longest = context_of(parts.model.scorer)
        encoded = encode_pairs(pairs, parts.tokenizer, max_tokens=longest)
        model = parts.model.to(processes.device)
        results[row] = pair_accuracy(model, encoded, pairs, processes)
    show(results, config, f"{pairs.name}, {len(pairs)} pairs")
    return results


def _documents(config: EvaluateConfig) -> Documents:
    splits = load_text(
        config.data,
        validation_fraction=_division(config).validation_fraction,
        text_column=config.text_column,
    )
