"""A language model learns a text, token by token: `visgrpo language --stage sft`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from visgrpo.data.token_blocks import BlockDataset, token_blocks
from visgrpo.errors import UserError
from visgrpo.evaluation.text import likelihood
from visgrpo.models.adapt_language import adapt_language
from visgrpo.models.card import language_card
from visgrpo.models.language import LanguageModel
from visgrpo.models.language_loading import LanguageParts, context_of
from visgrpo.models.language_saving import save_language, save_language_adapter
from visgrpo.models.small_language import SIZES, build_language
from visgrpo.models.tokenizers import make_tokenizer
from visgrpo.policies.text import NextToken
from visgrpo.recipes.ending import finish
from visgrpo.recipes.language_config import PRESETS, LanguageConfig, resolved
from visgrpo.recipes.language_setup import (
    SPLITS,
    data_of,
    info_of,
    load_documents,
    load_start,
    loader_of,
    memory_of,
    options_of,
    run_name,
)
from visgrpo.recipes.session import begin, open_session
from visgrpo.training.trainer import Trainer

LONGEST_BLOCK = 1024  # by default, of models that can see more


def train_sft(config: LanguageConfig) -> dict[str, Any]:
    """Run the stage and return its summary, which is also in OUTPUT/summary.json."""
    session = open_session(config, run_name(config))
    documents = load_documents(config, session)
    parts = load_start(config, session) if config.init else _new_model(config, documents.train)
    full = resolved(config, parts.info)
    block = _block(full, parts)
    blocks = {
        name: token_blocks(getattr(documents, name), parts.tokenizer, block) for name in SPLITS
    }
    options = options_of(full, session)
    torch.manual_seed(config.seed)  # the adapters' start
    lm = adapt_language(
        parts.model, lora=config.lora, rank=config.lora_rank, alpha=config.lora_alpha, dropout=0.0
    )
    model = LanguageModel(lm).to(session.processes.device)
    rows = {
        name: BlockDataset(f"{documents.name}/{name}", len(blocks[name].inputs_M))
        for name in SPLITS
    }

    def measures(split: str) -> dict[str, float]:
        return likelihood(model, blocks[split], parts.tokenizer, session.processes)

    trainer = Trainer(
        model,
        NextToken(),
        loader_of(full, rows["train"], blocks["train"], session),
        options,
        processes=session.processes,
        run=session.run,
        evaluate=lambda: measures("validation"),
        selection="-nll",
        title="sft",
        inputs_are="blocks",
    )
    before = measures("test")
    begin(session, "language")
    session.start_trackers()
    result = trainer.train(session.checkpoint)

    def save(summary: Any) -> None:
        folder = session.run.path / "model"
        info = info_of(config, parts)
        save_language(model.lm, parts.tokenizer, folder, language_card(summary), info)
        if model.has_adapter:
            save_language_adapter(model.lm, session.run.path / "adapter")

    return finish(
        session,
        result,
        recipe="language",
        method="sft",
        model=parts.name,
        data=data_of(config, rows, "blocks"),
        before=before,
        after=measures("test"),
        save=save,
        more={
            "tokens_per_second": round(result.examples * block / max(result.seconds, 1e-9), 1),
            "memory": memory_of(model),
        },
    )


def _new_model(config: LanguageConfig, documents: Sequence[str]) -> LanguageParts:
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
    return LanguageParts(name, model, tokenizer, {"preset": config.preset})


def _block(config: LanguageConfig, parts: LanguageParts) -> int:
    """Return the tokens that are predicted in a block."""
    sees = context_of(parts.model)
    if config.context and config.context > sees:
        raise UserError(f"--context {config.context}: the model sees {sees} tokens at once.")
    return config.context or min(sees, LONGEST_BLOCK)
