"""Options of models: what trains, how many weights a new one has. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visgrpo.data.options import Masks
from visgrpo.options import Options, like, option

Weights = Literal["float32", "bfloat16", "all-bfloat16"]


@dataclass(frozen=True)
class Lora(Options):
    """Low-rank adapters."""

    heading = "Low-rank adapters"

    lora_rank: int = option(8, "Rank of the adapters.", within="> 0")
    lora_alpha: float = option(16.0, "Adapters are scaled by this over their rank.", within="> 0")
    lora_kind: Literal["plain", "rslora", "dora"] = option(
        "plain",
        "rslora scales by the root of the rank instead, for large ranks; dora learns the length of "
        "every column beside its direction, more slowly.",
    )
    lora_targets: tuple[str, ...] = option(
        (),
        'Only linear layers of these names, such as q_proj v_proj, or patterns such as "*.mlp.*"; '
        "by default all.",
    )


@dataclass(frozen=True)
class Adapt(Lora):
    """The start, and what of it trains."""

    heading = "Model"

    model: str | None = option("", "Run, folder or Hub name of the start.")
    train: str | tuple[str, ...] = option((), "What trains.")


@dataclass(frozen=True)
class Prompts(Options):
    """Classes as text."""

    heading = "Classes as text"

    templates: tuple[str, ...] = option(
        ("a photo of a {}.",),
        'Prompts with {} for the class name; several are averaged. "a {}" turns into "an apple".',
    )
    classes: tuple[str, ...] = option(
        (), "CLIP: class names; by default those that the model was trained with."
    )


@dataclass(frozen=True)
class Sizes(Options):
    """Size of a new model."""

    image_size: int = like(Masks, 32, "Pixels on a side.", within="> 0")
    patch_size: int = option(4, "Pixels of a patch on a side.", within="> 0")
    width: int = option(128, "Of both towers.", within="> 0")
    layers: int = option(4, "Blocks of both towers.", within="> 0")
    heads: int = option(4, "Attention heads of both towers.", within="> 0")
    vocabulary: int = option(
        1000, "Entries of the tokenizer, which is made from the captions.", within="> 0"
    )
