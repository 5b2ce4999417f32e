"""A language model learns a text, token by token: `visgrpo language --stage sft`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visgrpo.data.token_blocks import BlockDataset, token_blocks
from visgrpo.measures.text import likelihood
from visgrpo.methods.supervised import NextToken
from visgrpo.models.language_loading import LanguageParts, context_of
from visgrpo.models.small_language import SIZES, build_language
from visgrpo.models.tokenizers import make_tokenizer
from visgrpo.tasks.ending import finish
from visgrpo.tasks.language_config import LanguageConfig, resolved
from visgrpo.tasks.language_defaults import PRESETS
from visgrpo.tasks.language_setup import (
    SPLITS,
    block_of,
    data_of,
    load_documents,
    load_start,
    memory_of,
    run_name,
)
from visgrpo.tasks.language_training import adapted, save_writer
from visgrpo.tasks.session import open_session
from visgrpo.tasks.token_training import learn, loader_of, options_of


def train_sft(config: LanguageConfig) -> dict[str, Any]:
    """Run the stage and return its summary, which is also in OUTPUT/summary.json."""
    session = open_session(config, run_name(config))
    documents = load_documents(config, session)
    parts = load_start(config, session) if config.init else _new_model(config, documents.train)
    full = resolved(config, parts.info)
    block = block_of(full.context, context_of(parts.model))
    blocks = {
        name: token_blocks(getattr(documents, name), parts.tokenizer, block) for name in SPLITS
    }
    options = options_of(full, session)
    model = adapted(config, parts, session)
    rows = {
        name: BlockDataset(f"{documents.name}/{name}", len(blocks[name].inputs_M))
        for name in SPLITS
    }

    def measures(split: str) -> dict[str, float]:
        return likelihood(model, blocks[split], parts.tokenizer, session.processes)

    before, result = learn(
        model,
        NextToken(),
        loader_of(full, rows["train"], blocks["train"], session),
        options,
        session,
        measures=measures,
        recipe="language",
        title="sft",
        inputs_are="blocks",
    )
    return finish(
        session,
        result,
        recipe="language",
        method="sft",
        model=parts.name,
        data=data_of(config.data, rows, "blocks"),
        before=before,
        after=measures("test"),
        save=lambda summary: save_writer(model, parts, config, session, summary),
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
