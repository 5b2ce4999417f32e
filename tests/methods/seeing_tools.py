"""A tiny model that sees, and questions about images, for the tests of the token policies."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from visgrpo.data.batches import Batch
from visgrpo.data.pictures import Picture, Pictures
from visgrpo.data.text import lengths, padded
from visgrpo.methods.generate import Sampling
from visgrpo.models.language import Engine
from visgrpo.models.parts import Parts
from visgrpo.models.small_vision import SmallVisionLanguage, build_vision_language
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.objectives.token_distribution import TokenDistribution

IMAGES = (((16, 24),), ((16, 16), (8, 16)), (), ((16, 24),))  # width and height, prompt by prompt
ANSWERS = ("3", "seventeen", "0", "12")
ROOM = 5


@functools.cache
def parts() -> Parts:
    """A token sees 8 × 8 pixels; weights are so large that logits differ."""
    sizes = SmallVisionLanguage(
        layers=2, width=16, heads=2, vision_layers=2, vision_width=16, vision_heads=2, patch=4,
        vocabulary=258,
    )  # fmt: skip
    made = build_vision_language(["How many?"], sizes, seed=0)
    generator = torch.Generator().manual_seed(0)
    for weight in made.model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.3, generator=generator)
    return made


def seeing(*frozen: str, engine: Engine = "shared") -> VisionLanguageModel:
    """A policy of its own weights, of which some parts do not train."""
    lm = copy.deepcopy(parts().model)
    for name in frozen:
        lm.get_submodule(name).requires_grad_(False)
    return VisionLanguageModel(lm, engine=engine)


@functools.cache
def pictures() -> tuple[tuple[Picture, ...], ...]:
    rng = np.random.default_rng(0)

    def noise(width: int, height: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    return tuple(tuple(parts().processor.picture(noise(*size)) for size in row) for row in IMAGES)


def prompt(row: int) -> np.ndarray:
    words = {"type": "text", "text": "How many?" + "!" * row}
    content = [*({"type": "image"} for _ in IMAGES[row]), words]
    return parts().processor.prompt_ids([{"role": "user", "content": content}], pictures()[row])


def answer(row: int) -> list[int]:
    tokenizer = parts().tokenizer
    ids: list[int] = tokenizer(ANSWERS[row], add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def questions() -> Batch:
    """Four questions with images and answers; `Batch.select` takes some of them."""
    prompts = [prompt(row) for row in range(4)]
    answers = [np.array(answer(row)) for row in range(4)]
    keys = [[f"{row}/{i}" for i in range(len(sizes))] for row, sizes in enumerate(IMAGES)]
    return Batch(
        torch.arange(4),
        padded(prompts, parts().tokenizer.pad_token_id, "left"),
        positions_N=torch.arange(4),
        pictures=Pictures.of(pictures(), keys),
        answers_NT=padded(answers, -1, "right"),
        lengths_N=lengths(prompts),
    )


def sampling(length: int = ROOM, **cut: Any) -> Sampling:
    """A third of the tokens end a completion; the processor's placeholders are never drawn."""
    forbidden = (parts().tokenizer.pad_token_id, *parts().processor.placeholder_ids)
    distribution = TokenDistribution(**{"forbidden": forbidden, **cut})
    return Sampling(distribution, length, tuple(range(30, 110)), parts().tokenizer.pad_token_id)
