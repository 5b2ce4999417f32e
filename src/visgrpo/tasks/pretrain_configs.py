"""The options of the pre-training commands. Light to import, as those of all commands are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.options import option, override
from visgrpo.tasks.configs import RunConfig


@dataclass(frozen=True)
class PretrainClipConfig(RunConfig):
    """Pre-train a small CLIP from random weights on captions, or on class names as captions."""

    caption_column: str = option(
        "caption", "Column of the captions; without it class names are put into the templates."
    )
    templates: tuple[str, ...] = option(
        ("a photo of a {}.", "a picture of a {}.", "{}"),
        "Captions for class names: one is drawn for every image and step.",
    )
    more_data: tuple[str, ...] = option(
        (), "Further data sets to learn from; NAME@:2000 takes the first 2,000 training images."
    )
    image_size: int = option(32, "Pixels on a side.", within="> 0")
    patch_size: int = option(4, "Pixels of a patch on a side.", within="> 0")
    width: int = option(128, "Of both towers.", within="> 0")
    layers: int = option(4, "Blocks of both towers.", within="> 0")
    heads: int = option(4, "Attention heads of both towers.", within="> 0")
    features: int = option(64, "Length of the image and text features.", within="> 0")
    vocabulary: int = option(
        1000, "Entries of the tokenizer, which is made from the captions.", within="> 0"
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
class PretrainBackboneConfig(RunConfig):
    """Pre-train a small vision encoder from random weights on pairs of changed images."""

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
    more_data: tuple[str, ...] = option(
        (), "Further data sets to learn from; NAME@:2000 takes the first 2,000 training images."
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
    image_size: int = option(32, "Pixels on a side.", within="> 0")
    patch_size: int | None = option(
        None,
        "Pixels of a patch on a side, by default 4; of a ResNet its total stride, by default 16.",
        within="> 0",
    )
    width: int | None = option(
        None, "Of the features; by default 128, or 256 of a ResNet.", within="> 0"
    )
    layers: int | None = option(
        None, "Blocks, by default 4; of a ResNet in each of its stages, by default 1.", within="> 0"
    )
    heads: int = option(4, "Attention heads; a ResNet has none.", within="> 0")
    projection: int = option(
        128,
        "Length of the vectors that are compared: of a small MLP, which is thrown away afterwards.",
        within="> 0",
    )
    temperature: float = option(
        0.2,
        "Similarities are divided by this: the smaller, the more the nearest negatives count.",
        within="> 0",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.accumulation != 1:
            yield (
                "--accumulation would change the contrastive loss, which compares a whole batch: "
                "take a smaller --batch-size."
            )
        if not self.augment:
            yield "--augment makes the two views of an image differ: give crop, flip or color."

    def resolved_learning_rate(self) -> float:
        """The learning rate, or its default for training from scratch."""
        return self.learning_rate or 1e-3
