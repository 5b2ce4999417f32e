"""The cells of token_step.py in which the model sees: small Qwen2.5-VLs, one image a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from token_sides import Task

from visgrpo.data.batch import Batch
from visgrpo.data.text_sources import load_text
from visgrpo.data.visual import VisualDataset
from visgrpo.data.visual_prompts import VisualInputs, seeing_prompt, visual_prompts
from visgrpo.models.small_vision_language import (
    SIZES,
    SmallVisionLanguage,
    build_vision_language,
)
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.models.vision_processor import VisionProcessor

PROMPTS = 2
WORDS = 96  # tokens of a prompt beside its image's: chat, question, how to answer

MODELS: Mapping[str, SmallVisionLanguage] = {
    "tiny": replace(SIZES["tiny"], layers=4, width=128, heads=4, vocabulary=2048),
    "small": replace(SIZES["small"], vision_width=256, vision_heads=4),
}


@dataclass(frozen=True)
class ImageCell:
    """A small vision-language model, and how much it sees and says.

    Attributes:
        size: of the model, a name in MODELS.
        pixels: side of its square images; a token sees 28 × 28.
        group: completions of a prompt; each has ``new`` tokens.
    """

    size: str
    pixels: int
    group: int = 8
    new: int = 32
    goals: tuple[float, float | None] = (1.0, None)

    @property
    def image(self) -> int:
        """Tokens of an image."""
        return (self.pixels // 28) ** 2

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return WORDS + self.image

    @property
    def name(self) -> str:
        many = f"image {self.image}, prompt {self.prompt}, new {self.new}, group {self.group}"
        return f"{self.size}, {many}"

    def task(self) -> Task:
        """Build the model and its prompts; the same in every process."""
        text = load_text("topics").train
        parts = build_vision_language(text, MODELS[self.size], seed=0)
        processor = parts.processor
        dataset = _questions(text, processor, self)
        inputs = VisualInputs(dataset, "direct", processor, max_tokens=self.prompt, budget_bytes=0)
        prompts = visual_prompts(dataset, "direct")
        never = {parts.tokenizer.eos_token_id, parts.tokenizer.pad_token_id}

        def batch() -> Batch:
            rows = range(PROMPTS)
            made = inputs.collate([inputs(row) for row in rows])
            assert made.labels_N is not None
            return Batch(
                torch.arange(PROMPTS),
                made.inputs,
                made.labels_N,
                {"answer": list(dataset.answers)},
                pictures=made.pictures,
            )

        return Task(
            model=parts.model,
            tokenizer=parts.tokenizer,
            policy=VisionLanguageModel,
            batch=batch,
            prompts=prompts,
            rows=[
                {"prompt": list(prompt), "image": dataset.images[row][0], "answer": answer}
                for row, (prompt, answer) in enumerate(zip(prompts, dataset.answers, strict=True))
            ],
            processing=_processing(processor),
            never=tuple(sorted(never | set(processor.placeholder_ids))),
            group=self.group,
            new=self.new,
        )


def _questions(text: Any, processor: VisionProcessor, cell: ImageCell) -> VisualDataset:
    """Return images of noise with questions as long as prompts of one length need."""
    rng = np.random.default_rng(0)
    shape = (cell.pixels, cell.pixels, 3)
    images = [
        (Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)),) for _ in range(PROMPTS)
    ]
    words = " ".join(text[:100]).split()
    questions = tuple(
        _question(words[1000 * row :], processor, image, cell.prompt)
        for row, image in enumerate(images)
    )
    return VisualDataset("noise", images, questions, ("3",) * PROMPTS)


def _question(
    words: list[str], processor: VisionProcessor, images: tuple[Image.Image, ...], tokens: int
) -> str:
    """Return the first words of a text that make a prompt of so many tokens."""
    pictures = [processor.picture(image) for image in images]
    text = " ".join(words)
    for end in range(len(text)):
        made = processor.prompt_ids(seeing_prompt(text[:end], 1, "direct"), pictures)
        if len(made) == tokens:
            return text[:end]
    raise SystemExit(f"No question makes a prompt of {tokens} tokens.")


def _processing(processor: VisionProcessor) -> Any:
    """Return transformers' own processor of the same parts, without one for videos."""
    from transformers import Qwen2_5_VLProcessor
    from transformers.processing_utils import ProcessorMixin

    class ImageProcessing(Qwen2_5_VLProcessor):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
            self.image_token = "<|image_pad|>"
            self.video_token = "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return ImageProcessing(
        processor.images, processor.tokenizer, chat_template=processor.tokenizer.chat_template
    )
