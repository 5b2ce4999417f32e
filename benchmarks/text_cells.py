"""The cells of token_step.py over text: nano models, prompts cut from the built-in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import torch
from token_sides import GROUP, PROMPTS, Goal, Task

from visgrpo.data.batches import Batch
from visgrpo.data.prompts import encode_prompts, prompts_from_text
from visgrpo.data.read import read
from visgrpo.data.roles import text_table
from visgrpo.models.language import LanguageModel
from visgrpo.models.small import SIZES, Architecture, build_language
from visgrpo.models.tokenizers import make_tokenizer

GOALS = {(512, 32): Goal(3.5, 0.4), (128, 128): Goal(1.5)}


@dataclass(frozen=True)
class TextCell:
    """A nano model, and how many tokens its prompts and completions have."""

    architecture: Architecture
    prompt: int
    new: int

    @property
    def name(self) -> str:
        return f"{self.architecture}, prompt {self.prompt}, new {self.new}"

    def goal(self, threads: int) -> Goal:
        return GOALS.get((self.prompt, self.new), Goal(1.0))

    def bounds(self, task: Task) -> dict[str, float]:
        return {}

    def task(self) -> Task:
        """Build the model and find the prompts; the same in every process."""
        splits, tokenizer = _text()
        layers, width, heads = SIZES["nano"]
        model = build_language(
            tokenizer,
            architecture=self.architecture,
            layers=layers,
            width=width,
            heads=heads,
            context=self.prompt + self.new,
            seed=0,
        )
        dataset = prompts_from_text(splits, tokenizer, self.prompt).train
        dataset = dataset.subset(torch.arange(PROMPTS))
        prompts = tuple(str(prompt) for prompt in dataset.prompts)

        def batch() -> Batch:
            made = encode_prompts(dataset, tokenizer, max_tokens=self.prompt)
            return Batch(torch.arange(PROMPTS), made.inputs_M, lengths_N=made.lengths_M)

        return Task(
            model=model,
            tokenizer=tokenizer,
            policy=LanguageModel,
            batch=batch,
            prompts=prompts,
            rows=[{"prompt": prompt} for prompt in prompts],
            processing=tokenizer,
            never=(tokenizer.eos_token_id, tokenizer.pad_token_id),
            group=GROUP,
            new=self.new,
        )


TEXT = tuple(
    TextCell(architecture, prompt, new)
    for architecture in get_args(Architecture)
    for prompt in (128, 512)
    for new in (32, 128)
)
QUICK_TEXT = (TextCell("gpt2", 32, 8), TextCell("qwen2", 32, 8))


@lru_cache
def _text() -> tuple[Any, Any]:
    splits = read("topics", "text")
    pages = splits.map(lambda part: text_table(part.name, _pages(part.texts)))
    return pages, make_tokenizer("bpe", splits.train.texts)


def _pages(paragraphs: Sequence[str]) -> tuple[str, ...]:
    """Join a hundred paragraphs at a time: one alone is too short to begin a long prompt."""
    starts = range(0, len(paragraphs), 100)
    return tuple("\n\n".join(paragraphs[start : start + 100]) for start in starts)
