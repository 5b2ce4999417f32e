"""The options of `visgrpo join`. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visgrpo.options import Options, option


@dataclass(frozen=True)
class JoinConfig(Options):
    """Join a vision tower and a language model to one model that sees."""

    vision: str = option(
        "",
        "Folder or Hub name of a Qwen2.5-VL, whose vision tower is taken.",
        required="the model whose vision tower to take: --vision NAME.",
    )
    language: str = option(
        "",
        "Run, folder or Hub name of a Qwen2 or Qwen2.5 language model.",
        required="the language model: --language NAME.",
    )
    output: str = option(
        "",
        "Folder to save the joined model in.",
        required="the folder to save in: --output FOLDER.",
    )
    merger: Literal["slice", "new"] = option(
        "slice",
        "The merger's last layer: the tower's own rows, as many as the language model is "
        "wide, or a new one from random weights.",
    )
    max_pixels: int | None = option(
        None,
        "Images with more are made smaller; by default as the vision tower's settings say.",
        within="> 0",
    )
    seed: int = option(
        0,
        "Of a new layer, and of embeddings of special tokens that have to be added.",
        within=">= 0",
    )
