"""The options of `visgrpo join`. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visgrpo.tasks.checks import named, not_negative, positive
from visgrpo.tasks.configs import Config


@dataclass(frozen=True)
class JoinConfig(Config):
    """Join a vision tower and a language model to one model that sees."""

    vision: str = ""
    """Folder or Hub name of a Qwen2.5-VL, whose vision tower is taken."""
    language: str = ""
    """Run, folder or Hub name of a Qwen2 or Qwen2.5 language model."""
    output: str = ""
    """Folder to save the joined model in."""
    merger: Literal["slice", "new"] = "slice"
    """The merger's last layer: the tower's own rows, as many as the language model is wide, or a
    new one from random weights."""
    max_pixels: int | None = None
    """Images with more are made smaller; by default as the vision tower's settings say."""
    seed: int = 0
    """Of a new layer, and of embeddings of special tokens that have to be added."""

    def check(self) -> None:
        named(self.vision, "the model whose vision tower to take: --vision NAME.")
        named(self.language, "the language model: --language NAME.")
        named(self.output, "the folder to save in: --output FOLDER.")
        positive(self, "max_pixels", optional=True)
        not_negative(self, "seed")
