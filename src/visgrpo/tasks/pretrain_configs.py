"""The options of the pre-training commands. Light to import, as those of all commands are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.methods.options import SamplingOptions
from visgrpo.models.options import Prompts, Sizes
from visgrpo.options import like, option, override
from visgrpo.tasks.configs import RunConfig


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """What both ways of pre-training have in common."""

    inner_passes = minibatches = refresh_every = override(hidden=True)
    more_data: tuple[str, ...] = option(
        (), "Further data sets to learn from; NAME@:2000 takes the first 2,000 training images."
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.accumulation != 1:
            yield (
                "--accumulation would change the contrastive loss, which compares a whole batch: "
                "take a smaller --batch-size."
            )

    def resolved_learning_rate(self) -> float:
        """The learning rate, or its default for training from scratch."""
        return self.learning_rate or 1e-3


@dataclass(frozen=True)
class PretrainClipConfig(Sizes, PretrainConfig):
    """Pre-train a small CLIP from random weights on captions, or on class names as captions."""

    caption_column: str = option(
        "caption", "Column of the captions; without it class names are put into the templates."
    )
    templates: tuple[str, ...] = like(
        Prompts,
        ("a photo of a {}.", "a picture of a {}.", "{}"),
        "Captions for class names: one is drawn for every image and step.",
    )
    features: int = option(64, "Length of the image and text features.", within="> 0")


@dataclass(frozen=True)
class PretrainBackboneConfig(Sizes, PretrainConfig):
    """Pre-train a small vision encoder from random weights on pairs of changed images."""

    vocabulary = override(hidden=True)

    batch_size = override(
        256,
        "Images of a step, two views of each; what is not a view of the same image, or class, "
        "is a negative.",
    )
    weight_decay = override(0.05, "AdamW's, on matrices only.")
    augment = override(
        ("crop", "flip", "color"),
        "What makes two views of an image: features forget what it changes, so leave out "
        "color where colours tell classes apart.",
    )
    keep = override(
        "last",
        "Which weights the run ends with: the last, since more steps make better features "
        "than a noisy kNN accuracy can tell, or the best on validation data.",
    )
    positives: Literal["classes", "views"] = option(
        "classes",
        "What is pulled together: all views of a class (supervised contrastive learning), or "
        "the two views of an image alone (SimCLR, which uses no label).",
    )
    family: Literal["dinov2", "resnet"] = option(
        "resnet",
        "A ViT in the layout of DINOv2, or a ResNet of basic blocks, the faster one on a CPU.",
    )
    patch_size = override(
        None,
        "Pixels of a patch on a side, by default 4; of a ResNet its total stride, by default 16.",
    )
    width = override(None, "Of the features; by default 128, or 256 of a ResNet.")
    layers = override(
        None, "Blocks, by default 4; of a ResNet in each of its stages, by default 1."
    )
    heads = override(help="Attention heads; a ResNet has none.")
    projection: int = option(
        128,
        "Length of the vectors that are compared: of a small MLP, which is thrown away afterwards.",
        within="> 0",
    )
    temperature = like(
        SamplingOptions,
        0.2,
        "Similarities are divided by this: the smaller, the more the nearest negatives count.",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if not self.augment:
            yield "--augment makes the two views of an image differ: give crop, flip or color."
