"""What saved language and reward models are measured by: parts of `visgrpo evaluate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from visgrpo.data.prompts import encode_pairs, encode_prompts
from visgrpo.data.read import is_text
from visgrpo.data.roles import prompt_table
from visgrpo.data.text import Prompt, token_blocks
from visgrpo.errors import UserError
from visgrpo.measures.texts import likelihood, pair_accuracy
from visgrpo.methods.generate import generate
from visgrpo.methods.groups import uniforms_for
from visgrpo.models.language import LanguageModel, context_of
from visgrpo.models.load import load_language, load_reward_model
from visgrpo.tasks.language.data import block_of, load_writer
from visgrpo.tasks.language.options import FOREIGN, PRESETS, GenerateConfig, LanguageConfig
from visgrpo.tasks.run import print_notes
from visgrpo.tasks.task import kinds
from visgrpo.tasks.tokens import decoder_of, prompt_room, sampling_of
from visgrpo.tasks.use import models_of, rows_apart
from visgrpo.tasks.use_options import EvaluateConfig
from visgrpo.terminal import show
from visgrpo.training.processes import Processes

_FRACTION = LanguageConfig.validation_fraction


class TextEvaluation:
    """How well a language model predicts a text, in blocks of tokens."""

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        text = rows_apart(config, "text", _FRACTION, processes)
        self._documents = text.texts
        self._models = {row: load_language(name) for row, name in models_of(config)}
        # The same for all models, since what comes late in a block is easier.
        sees = min(context_of(parts.model) for parts in self._models.values())
        self._block, self._processes = block_of(config.context, sees), processes
        count = len(self._documents)
        self.title = f"{text.name}, {count} documents in blocks of {self._block} tokens"

    def measures(self, row: str, name: str) -> dict[str, Any]:
        parts = self._models[row]
        print_notes(parts.notes, self._processes)
        blocks = token_blocks(self._documents, parts.tokenizer, self._block)
        model = LanguageModel(parts.model).to(self._processes.device).eval()
        return {row: likelihood(model, blocks, parts.tokenizer, self._processes)}


class PairEvaluation:
    """How well a reward model tells preferred completions from rejected ones."""

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        if is_text(config.data):
            raise UserError(
                f"--data {config.data} is text and holds no pairs: name {kinds()['reward'].data} "
                "with --data."
            )
        self._pairs, self._processes = rows_apart(config, "pairs", _FRACTION, processes), processes
        self.title = f"{self._pairs.name}, {len(self._pairs)} pairs"

    def measures(self, row: str, name: str) -> dict[str, Any]:
        parts = load_reward_model(name)
        most = context_of(parts.model.scorer)
        encoded = encode_pairs(self._pairs, parts.tokenizer, max_tokens=most)
        model = parts.model.to(self._processes.device)
        return {row: pair_accuracy(model, encoded, self._pairs, self._processes)}


def generate_text(config: GenerateConfig) -> list[dict[str, Any]]:
    """Print completions of a prompt, and return them with their log-probs, in nats.

    Raises:
        UserError: for a model that writes no text, and a prompt that it cannot read.
    """
    config.check()
    processes = Processes(config.device)
    parts = load_writer(config.model)
    if config.max_new_tokens is None:
        preset = parts.info.get("preset")
        longest = (PRESETS[preset] if preset else FOREIGN).max_new_tokens
        config = replace(config, max_new_tokens=longest)
    prompt: Prompt = config.prompt
    if config.chat:
        prompt = [{"role": "user", "content": config.prompt}]
    dataset = prompt_table("the prompt", (prompt,))
    encoded = encode_prompts(dataset, parts.tokenizer, max_tokens=prompt_room(config, parts))
    assert config.max_new_tokens is not None
    model = LanguageModel(parts.model).to(processes.device).eval()
    uniforms = uniforms_for(
        config.seed, 0, torch.arange(1), 1, config.samples, config.max_new_tokens
    )
    drawn = generate(
        model,
        encoded.inputs_M.to(processes.device),
        encoded.lengths_M.to(processes.device),
        uniforms,
        sampling_of(config, parts),
    )
    completions = [
        {"completion": text, "log_prob": log_prob, "tokens": tokens, "ended": ended}
        for text, log_prob, tokens, ended in zip(
            decoder_of(parts)(drawn.ids()[0]),
            drawn.log_probs_NGT[0].sum(dim=-1).tolist(),
            drawn.mask_NGT[0].sum(dim=-1).tolist(),
            drawn.ended_NG[0].tolist(),
            strict=True,
        )
    ]
    if config.printed({"prompt": config.prompt, "completions": completions}):
        return completions
    for number, each in enumerate(completions, start=1):
        if config.samples > 1:
            show(f"--- {number} of {config.samples}")
        show(f"{config.prompt} ▸{each['completion']}" + ("" if each["ended"] else " …"))
    return completions
