"""Complete a prompt with a language model: `visgrpo generate`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from visgrpo.data.prompts import Prompt, PromptDataset, encode_prompts
from visgrpo.methods.generate import generate, token_uniforms
from visgrpo.models.language import LanguageModel
from visgrpo.tasks.language_config import GenerateConfig
from visgrpo.tasks.language_data import load_writer
from visgrpo.tasks.language_defaults import FOREIGN, PRESETS
from visgrpo.tasks.tokens import decoder_of, prompt_room, sampling_of
from visgrpo.training.processes import Processes


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
    dataset = PromptDataset("the prompt", (prompt,))
    encoded = encode_prompts(dataset, parts.tokenizer, max_tokens=prompt_room(config, parts))
    assert encoded.labels_M is not None
    assert config.max_new_tokens is not None
    model = LanguageModel(parts.model).to(processes.device).eval()
    uniforms = token_uniforms(
        config.seed, 0, torch.arange(1), 1, config.samples, config.max_new_tokens
    )
    drawn = generate(
        model,
        encoded.inputs_M.to(processes.device),
        encoded.labels_M.to(processes.device),
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
    if config.json:
        print(json.dumps({"prompt": config.prompt, "completions": completions}, indent=1))
        return completions
    for number, each in enumerate(completions, start=1):
        if config.samples > 1:
            print(f"--- {number} of {config.samples}")
        print(config.prompt + each["completion"] + ("" if each["ended"] else " …"))
    return completions
