"""A backbone and a head over K classes: one answer for an image, or one for every patch of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone, Pool


class Head(nn.Module):
    """Features to logits: Linear → GELU → Linear, or a single Linear where `hidden` is 0.

    Weights start from torch's global generator: seed it before.
    """

    def __init__(self, width: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.projection = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU()) if hidden else nn.Identity()
        )
        self.output = nn.Linear(hidden or width, classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (…, K) in float32, and what the last layer sees (…, hidden)."""
        hidden = self.projection(features.to(self.output.weight.dtype))
        return self.output(hidden).float(), hidden


class RepresentationClassifier(nn.Module):
    """A distribution over K classes for each image, from a backbone's pooled features.

    Args:
        pool: class token, mean of the patches, or both side by side.
        hidden: width of the projection head; 0 for a linear one.

    Attributes:
        inputs_are_features: `forward` takes features (N, P) that were pooled before.

    Raises:
        UserError: for a pool that the backbone does not have.
    """

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], *, pool: Pool = "cls", hidden: int = 256
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = tuple(classes)
        self.pool: Pool = pool
        self.hidden = hidden
        self.head = Head(backbone.pooled_width(pool), len(classes), hidden)
        self.inputs_are_features = False

    @property
    def device(self) -> torch.device:
        return self.head.output.weight.device

    def features(self, pixels: Tensor) -> Tensor:
        """Return the backbone's pooled features (N, P) of pixels (N, 3, H, W)."""
        return self.backbone.pooled(pixels, self.pool)

    @overload
    def forward(self, inputs: Tensor, with_features: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, inputs: Tensor, with_features: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, inputs: Tensor, with_features: bool = False) -> Tensor | tuple[Tensor, ...]:
        """Return logits (N, K) in float32; and, where asked for, what the last layer sees."""
        features_NP = inputs if self.inputs_are_features else self.features(inputs)
        logits_NK, hidden_NH = self.head(features_NP)
        return (logits_NK, hidden_NH) if with_features else logits_NK


class Segmenter(nn.Module):
    """A distribution over K classes for each patch; `upsample` brings it to every pixel.

    Args:
        hidden: width of the decoder's hidden layer, the same for every patch; 0 for a linear one.

    Attributes:
        inputs_are_features: `forward` takes dense features (N, H, W, D) that were made before.
    """

    def __init__(self, backbone: Backbone, classes: Sequence[str], *, hidden: int = 64) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = tuple(classes)
        self.hidden = hidden
        self.head = Head(backbone.width, len(classes), hidden)
        self.inputs_are_features = False

    @property
    def device(self) -> torch.device:
        return self.head.output.weight.device

    def features(self, pixels: Tensor) -> Tensor:
        """Return dense features (N, H, W, D) of pixels, padding included.

        Raises:
            UserError: where an image is a single patch.
        """
        return self.backbone.dense(pixels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, H, W, K) of the patches in float32, padding included."""
        logits_NHWK, _ = self.head(inputs if self.inputs_are_features else self.features(inputs))
        return logits_NHWK

    def upsample(self, logits_NHWK: Tensor, size: Sequence[int]) -> Tensor:
        """Return logits (N, *size, K) of every pixel: bilinear, and the padding cut off.

        Args:
            size: height and width of the images that the logits were made of.

        Raises:
            UserError: for a size that these patches cannot have come from.
        """
        stride, grid = self.backbone.stride, logits_NHWK.shape[1:3]
        if [-(-side // stride) for side in size] != list(grid):
            raise UserError(
                f"{grid[0]} × {grid[1]} patches of {stride} pixels do not belong to an image of "
                f"{size[0]} × {size[1]} pixels: give the size that the model saw."
            )
        padded = [cells * stride for cells in grid]
        logits_NKHW = F.interpolate(
            logits_NHWK.permute(0, 3, 1, 2), size=padded, mode="bilinear", align_corners=False
        )
        return logits_NKHW[..., : size[0], : size[1]].permute(0, 2, 3, 1)
