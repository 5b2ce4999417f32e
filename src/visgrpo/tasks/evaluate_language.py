"""Evaluate a language model on text, and a reward model on pairs: part of `visgrpo evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visgrpo.data.pairs import PairDataset, encode_pairs, load_pairs
from visgrpo.data.splitting import parse_split
from visgrpo.data.text import Documents
from visgrpo.data.text_sources import is_text, load_text
from visgrpo.data.token_blocks import token_blocks
from visgrpo.errors import UserError
from visgrpo.measures.text import likelihood, pair_accuracy
from visgrpo.models.language import LanguageModel
from visgrpo.models.language_loading import context_of, load_language
from visgrpo.models.reward_model import load_reward_model
from visgrpo.tasks.evaluate_shared import Division, division_of, models_of, show
from visgrpo.tasks.language_config import LanguageConfig
from visgrpo.tasks.language_setup import block_of
from visgrpo.tasks.model_kinds import IN_WORDS, Kind, kind_of
from visgrpo.tasks.session import print_notes
from visgrpo.tasks.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes

_DATA: Mapping[Kind, str] = {
    "language": "a text, such as topics or a .txt file,",
    "reward": "a table of preference pairs, such as RUN/pairs/pairs.jsonl,",
}


def evaluate_language(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    """Measure how well a language model predicts a text.

    Returns:
        The measures of `text_measures` under ``model`` and, with a start, under ``start``.

    Raises:
        UserError: for text that cannot be used, and a --context that is more than a model sees.
    """
    _check(config, "language")
    text, documents = _documents(config, processes)
    models = {row: load_language(name) for row, name in models_of(config)}
    # The same for all models, since what comes late in a block is easier.
    sees = min(context_of(parts.model) for parts in models.values())
    block = block_of(config.context, sees)
    results = {}
    for row, parts in models.items():
        print_notes(parts.notes, processes)
        blocks = token_blocks(documents, parts.tokenizer, block)
        model = LanguageModel(parts.model).to(processes.device).eval()
        results[row] = likelihood(model, blocks, parts.tokenizer, processes)
    show(results, config, f"{text}, {len(documents)} documents in blocks of {block} tokens")
    return results


def evaluate_reward(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    """Measure how well a reward model tells preferred completions from rejected ones.

    Returns:
        The measures of `pair_measures` under ``model`` and, with a start, under ``start``.

    Raises:
        UserError: for pairs that cannot be used.
    """
    _check(config, "reward")
    pairs = _pairs(config, processes)
    results = {}
    for row, name in models_of(config):
        parts = load_reward_model(name)
        most = context_of(parts.model.scorer)
        encoded = encode_pairs(pairs, parts.tokenizer, max_tokens=most)
        model = parts.model.to(processes.device)
        results[row] = pair_accuracy(model, encoded, pairs, processes)
    show(results, config, f"{pairs.name}, {len(pairs)} pairs")
    return results


def _check(config: EvaluateConfig, kind: Kind) -> None:
    if config.data == EvaluateConfig.data:
        raise UserError(f'"{config.model}" is {IN_WORDS[kind]}: name {_DATA[kind]} with --data.')
    other = kind_of(config.start) if config.start else kind
    if other != kind:
        raise UserError(
            f'--start "{config.start}" is {IN_WORDS[other]}: give {IN_WORDS[kind]}, or leave '
            "--start out."
        )


def _documents(config: EvaluateConfig, processes: Processes) -> tuple[str, Documents]:
    """Return the documents to evaluate on, after what they are called."""
    split, rows = _split_of(config)
    splits = load_text(
        config.data,
        validation_fraction=_division(config).validation_fraction,
        text_column=config.text_column,
    )
    print_notes(splits.notes, processes)
    documents: Documents = getattr(splits, split)
    return f"{splits.name}/{split}", documents[rows]


def _pairs(config: EvaluateConfig, processes: Processes) -> PairDataset:
    split, rows = _split_of(config)
    if is_text(config.data):
        raise UserError(
            f"--data {config.data} is text and holds no pairs: name {_DATA['reward']} with --data."
        )
    division = _division(config)
    splits = load_pairs(
        config.data, validation_fraction=division.validation_fraction, seed=division.seed
    )
    print_notes(splits.notes, processes)
    pairs: PairDataset = getattr(splits, split)
    return pairs.subset(range(len(pairs))[rows])


def _split_of(config: EvaluateConfig) -> tuple[str, slice]:
    split, rows = parse_split(config.split)
    if split == "all":
        raise UserError(f"--split {config.split}: name train, validation or test.")
    return split, rows


def _division(config: EvaluateConfig) -> Division:
    """Return how rows are divided: as `visgrpo language` does it where nothing else is known."""
    return division_of(config, validation_fraction=LanguageConfig.validation_fraction)
