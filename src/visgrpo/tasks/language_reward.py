"""A reward model learns which completions are preferred: `visgrpo language --stage reward`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visgrpo.data.batches import CachedInputs
from visgrpo.data.pairs import PairDataset, encode_pairs, load_pairs
from visgrpo.errors import UserError
from visgrpo.measures.text import pair_accuracy, pair_scores
from visgrpo.methods.supervised import PreferredCompletion
from visgrpo.models.card import reward_card
from visgrpo.models.language_loading import context_of
from visgrpo.models.reward_model import (
    RewardModel,
    build_reward_model,
    save_reward_model,
    with_own_padding,
)
from visgrpo.tasks.ending import finish
from visgrpo.tasks.language_config import LanguageConfig, resolved
from visgrpo.tasks.language_pairs import PAIRS_FILE
from visgrpo.tasks.language_setup import (
    SPLITS,
    data_of,
    holds_text,
    info_of,
    load_start,
    memory_of,
    run_name,
)
from visgrpo.tasks.session import Session, open_session
from visgrpo.tasks.token_training import learn, loader_of, options_of

NORMALISED_ON = 512  # pairs


def train_reward(config: LanguageConfig) -> dict[str, Any]:
    """Run the stage and return its summary, which is also in OUTPUT/summary.json."""
    session = open_session(config, run_name(config))
    parts = load_start(config, session)
    full = resolved(config, parts.info)
    options = options_of(full, session)
    spec = _pairs_of(config, session)
    splits = load_pairs(spec, validation_fraction=config.validation_fraction, seed=config.seed)
    session.note(*splits.notes)
    tokenizer = with_own_padding(parts.tokenizer)
    pairs = {
        name: encode_pairs(getattr(splits, name), tokenizer, max_tokens=context_of(parts.model))
        for name in SPLITS
    }
    model = build_reward_model(parts, config.seed).to(session.processes.device)

    def measures(split: str) -> dict[str, float]:
        return pair_accuracy(model, pairs[split], getattr(splits, split), session.processes)

    before, result = learn(
        model,
        PreferredCompletion(),
        loader_of(full, splits.train, pairs["train"], session),
        options,
        session,
        measures=measures,
        recipe="language",
        title="reward",
        inputs_are="pairs",
    )
    model.eval()
    normalising = _normalising(model, splits.train, pairs["train"], session)

    def save(summary: Mapping[str, Any]) -> None:
        info = {**info_of(config, parts), **normalising, "data": spec}
        folder = session.run.path / "model"
        save_reward_model(model, tokenizer, folder, reward_card(summary), info)

    return finish(
        session,
        result,
        recipe="language",
        method="reward",
        model=str(config.init),
        data=data_of(spec, vars(splits), "pairs"),
        before=before,
        after=measures("test"),
        save=save,
        more={**normalising, **_ceiling(splits.test), "memory": memory_of(model)},
    )


def _pairs_of(config: LanguageConfig, session: Session) -> str:
    """Return the table of pairs that is named, or the one that was made beside the start."""
    spec = config.data
    if holds_text(config):
        beside = Path(str(config.init)).parent / "pairs" / PAIRS_FILE
        if not beside.exists():
            raise UserError(
                f"--stage reward learns from preference pairs: name a table of them with --data; "
                f"there is no {beside} beside --init."
            )
        spec = str(beside)
        session.note(f"the pairs are {spec}.")
    return spec


def _normalising(
    model: RewardModel, pairs: PairDataset, encoded: CachedInputs, session: Session
) -> dict[str, float]:
    """Return mean and standard deviation of the scores of pairs that the model learned from.

    The scale of its scores is no measure of the model: the pairs it learned from tell it best.
    """
    some = np.arange(min(len(pairs), NORMALISED_ON))
    scores = torch.cat(
        pair_scores(model, encoded.take(some), pairs.subset(some), session.processes)
    )
    return {"reward_mean": float(scores.mean()), "reward_std": float(scores.std())}


def _ceiling(test: PairDataset) -> dict[str, float]:
    """How often the true scores, where they are known, order the pairs as they were chosen."""
    if "gold_chosen" not in test.columns:
        return {}
    golds = zip(test.columns["gold_chosen"], test.columns["gold_rejected"], strict=True)
    right = [chosen > rejected for chosen, rejected in golds]
    return {"judge_accuracy": sum(right) / len(right)}
