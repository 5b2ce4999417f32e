"""The cells of token_step.py in which the model sees: small Qwen2.5-VLs, one image to a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from image_operations import Step, plain, shared, sizes_of
from PIL import Image
from token_sides import GROUP, PROMPTS, Goal, Task

from visgrpo.data.batches import Batch
from visgrpo.data.prompts import VisualInputs, seeing_prompt, visual_prompts
from visgrpo.data.read import read
from visgrpo.data.roles import question_table
from visgrpo.data.table import Table
from visgrpo.models.small_vision import SmallVisionLanguage, build_vision_language
from visgrpo.models.vision_language import VisionLanguageModel, VisionProcessor

STYLE = "direct"
WORDS = 96  # tokens of a prompt beside its image's: of the chat, the question, how to answer
SEEN = 28  # pixels a side that become one token

MODELS: Mapping[str, SmallVisionLanguage] = {
    "tiny": SmallVisionLanguage(
        layers=4, width=128, heads=4, vision_layers=2, vision_width=96, vocabulary=2048
    ),
    "small": SmallVisionLanguage(
        layers=8,
        width=384,
        heads=6,
        vision_layers=4,
        vision_width=256,
        vision_heads=4,
        vocabulary=2048,
    ),
}
GOALS = {("tiny", 8): Goal(2.5, 0.33), ("small", 8): Goal(3.5, 0.33), ("small", 32): Goal(7, 0.25)}
ONE_THREAD = {("small", 8): Goal(4.0, 0.33)}


@dataclass(frozen=True)
class ImageCell:
    """A small vision-language model, and how much it sees and says.

    Attributes:
        size: of the model, a name in MODELS.
        pixels: side of its square images.
        group: completions of a prompt, of ``new`` tokens each.
        frozen: whether the vision tower does not train.
    """

    size: str
    pixels: int
    group: int = GROUP
    new: int = 32
    frozen: bool = False

    @property
    def image(self) -> int:
        """Tokens of an image."""
        return (self.pixels // SEEN) ** 2

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return WORDS + self.image

    @property
    def name(self) -> str:
        tower = ", frozen tower" if self.frozen else ""
        return (
            f"{self.size}{tower}, image {self.image}, prompt {self.prompt}, new {self.new}, "
            f"group {self.group}"
        )

    def goal(self, threads: int) -> Goal:
        key = self.size, self.group
        if self.frozen:
            return Goal(1.0)
        return (ONE_THREAD if threads == 1 and key in ONE_THREAD else GOALS).get(key, Goal(1.0))

    def bounds(self, task: Task) -> dict[str, float]:
        """Return how many times less there is to do, by tokens read and by operations."""
        step = Step(self.prompt, self.new, self.group, self.frozen)
        sizes = sizes_of(task.model, self.pixels)
        tokens = self.group * (self.prompt + self.new) / (self.prompt + self.group * self.new)
        return {"by tokens": tokens, "by operations": plain(sizes, step) / shared(sizes, step)}

    def task(self) -> Task:
        """Build the model, the images and the questions; the same in every process."""
        text = read("topics", "text").train.texts
        parts = build_vision_language(text, MODELS[self.size], seed=0)
        if self.frozen:
            parts.model.model.visual.requires_grad_(False)
        processor, tokenizer = parts.processor, parts.tokenizer
        dataset = _questions(text, processor, self)
        prompts = visual_prompts(dataset, STYLE)
        inputs = VisualInputs(dataset, STYLE, processor, max_tokens=self.prompt, budget_bytes=0)

        def batch() -> Batch:
            made = inputs.collate([inputs(row) for row in range(PROMPTS)])
            assert made.lengths_N is not None
            rows = torch.arange(PROMPTS)
            return Batch(rows, made.inputs, lengths_N=made.lengths_N, pictures=made.pictures)

        return Task(
            model=parts.model,
            tokenizer=tokenizer,
            policy=VisionLanguageModel,
            batch=batch,
            prompts=prompts,
            rows=[
                {"prompt": list(prompt), "images": list(images)}
                for prompt, images in zip(prompts, dataset.images, strict=True)
            ],
            processing=_processing(processor),
            never=(tokenizer.eos_token_id, tokenizer.pad_token_id, *processor.placeholder_ids),
            group=self.group,
            new=self.new,
        )


IMAGES = (
    ImageCell("tiny", 112),
    ImageCell("small", 224),
    ImageCell("small", 224, frozen=True),
    ImageCell("small", 224, group=32),
)
QUICK_IMAGES = (ImageCell("tiny", 112, new=8),)


def _questions(text: Sequence[str], processor: VisionProcessor, cell: ImageCell) -> Table:
    """Return images of noise, with questions as long as prompts of one length need."""
    rng = np.random.default_rng(0)
    shape = (PROMPTS, cell.pixels, cell.pixels, 3)
    images = [(Image.fromarray(pixels),) for pixels in rng.integers(0, 256, shape, dtype=np.uint8)]
    words = " ".join(text).split()
    questions = tuple(
        _question(words[1000 * row :], processor, images[row][0], cell.prompt)
        for row in range(PROMPTS)
    )
    return question_table("noise", images, questions, ("",) * PROMPTS)


def _question(
    words: Sequence[str], processor: VisionProcessor, image: Image.Image, tokens: int
) -> str:
    """Return the letters that a text begins with and that make a prompt of so many tokens."""
    pictures, text = [processor.picture(image)], " ".join(words[:tokens])
    for end in range(len(text)):
        asked = text[:end]
        if len(processor.prompt_ids(seeing_prompt(asked, 1, STYLE), pictures)) == tokens:
            return asked
    raise SystemExit(f"No beginning of the text makes a prompt of {tokens} tokens.")


def _processing(processor: VisionProcessor) -> Any:
    """Return transformers' own processor of the same parts, without the one of videos."""
    from transformers import Qwen2_5_VLProcessor
    from transformers.processing_utils import ProcessorMixin

    class WithoutVideos(Qwen2_5_VLProcessor):
        def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            # Not by way of the class between, which asks for a video processor.
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    tokenizer = processor.tokenizer
    return WithoutVideos(processor.images, tokenizer, tokenizer.chat_template)
