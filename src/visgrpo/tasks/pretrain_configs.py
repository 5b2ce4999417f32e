"""The options of the pre-training commands. Light to import, as those of all commands are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visgrpo.errors import UserError
from visgrpo.tasks.checks import positive
from visgrpo.tasks.configs import RunConfig


@dataclass(frozen=True)
class PretrainClipConfig(RunConfig):
    """Pre-train a small CLIP from random weights on captions, or on class names as captions."""

    caption_column: str = "caption"
    """Column of the captions; without it class names are put into the templates."""
    templates: tuple[str, ...] = ("a photo of a {}.", "a picture of a {}.", "{}")
    """Captions for class names: one is drawn for every image and step."""
    more_data: tuple[str, ...] = ()
    """Further data sets to learn from; NAME@:2000 takes the first 2,000 training images."""
    image_size: int = 32
    """Pixels on a side."""
    patch_size: int = 4
    """Pixels of a patch on a side."""
    width: int = 128
    """Of both towers."""
    layers: int = 4
    """Blocks of both towers."""
    heads: int = 4
    """Attention heads of both towers."""
    features: int = 64
    """Length of the image and text features."""
    vocabulary: int = 1000
    """Entries of the tokenizer, which is made from the captions."""

    def check(self) -> None:
        super().check()
        positive(self, "image_size", "patch_size", "width", "layers", "heads", "features")
        positive(self, "vocabulary")
        if self.accumulation != 1:
            raise UserError(
                "--accumulation would change the contrastive loss, which compares a whole batch: "
                "take a smaller --batch-size."
            )

    def resolved_learning_rate(self) -> float:
        """The learning rate, or its default for training from scratch."""
        return self.learning_rate or 1e-3


@dataclass(frozen=True)
class PretrainBackboneConfig(RunConfig):
    """Pre-train a small vision encoder from random weights on pairs of changed images."""

    batch_size: int = 256
    """Images of a step, two views of each; what is not a view of the same image, or class, is a
    negative."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only."""
    augment: tuple[Literal["crop", "flip", "color"], ...] = ("crop", "flip", "color")
    """What makes two views of an image: features forget what it changes, so leave out color where
    colours tell classes apart."""
    keep: Literal["best", "last"] = "last"
    """Which weights the run ends with: the last, since more steps make better features than a noisy
    kNN accuracy can tell, or the best on validation data."""
    more_data: tuple[str, ...] = ()
    """Further data sets to learn from; NAME@:2000 takes the first 2,000 training images."""
    positives: Literal["classes", "views"] = "classes"
    """What is pulled together: all views of a class (supervised contrastive learning), or the two
    views of an image alone (SimCLR, which uses no label)."""
    family: Literal["dinov2", "resnet"] = "resnet"
    """A ViT in the layout of DINOv2, or a ResNet of basic blocks, the faster one on a CPU."""
    image_size: int = 32
    """Pixels on a side."""
    patch_size: int | None = None
    """Pixels of a patch on a side, by default 4; of a ResNet its total stride, by default 16."""
    width: int | None = None
    """Of the features; by default 128, or 256 of a ResNet."""
    layers: int | None = None
    """Blocks, by default 4; of a ResNet in each of its stages, by default 1."""
    heads: int = 4
    """Attention heads; a ResNet has none."""
    projection: int = 128
    """Length of the vectors that are compared: of a small MLP, which is thrown away afterwards."""
    temperature: float = 0.2
    """Similarities are divided by this: the smaller, the more the nearest negatives count."""

    def check(self) -> None:
        super().check()
        positive(self, "image_size", "heads", "projection", "temperature")
        positive(self, "patch_size", "width", "layers", optional=True)
        if self.accumulation != 1:
            raise UserError(
                "--accumulation would change the contrastive loss, which compares a whole batch: "
                "take a smaller --batch-size."
            )
        if not self.augment:
            raise UserError(
                "--augment makes the two views of an image differ: give crop, flip or color."
            )

    def resolved_learning_rate(self) -> float:
        """The learning rate, or its default for training from scratch."""
        return self.learning_rate or 1e-3
