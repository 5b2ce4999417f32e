"""Vision encoders behind one face: a class token, and a grid of patch features.

| family | class token | patches |
|---|---|---|
| dinov2 (with registers, too), dinov3_vit, vit | first token, normed | the rest, normed |
| clip | pooled output: first token, normed | the rest, before the norm |
| siglip | pooled output of an attention head, if any | every token, normed |
| dinov3_convnext | pooled output: mean of the cells, normed | cells, normed |
| convnext | pooled output: mean of the cells, normed | cells, before the norm |
| resnet | pooled output: mean of the cells | cells |

Register tokens are left out. A ViT's tanh pooler, made for its own pre-training, is not used.
Of any other encoder a pass with noise tells which of these it is like: a feature map, or tokens
whose last ones are a square of patches; its pooled output stands for a class token, if it says
anything.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgrpo.errors import UserError
from visgrpo.models.parts import without_dropout

Pool = Literal["cls", "mean", "both"]


@dataclass(frozen=True)
class Features:
    """What an encoder makes of N images.

    Attributes:
        class_token_ND: None for a SigLIP tower without a pooling head.
        patches_NHWD: dense features, class and register tokens left out.
    """

    class_token_ND: Tensor | None
    patches_NHWD: Tensor


@dataclass(frozen=True)
class _Family:
    """How to call an encoder and read its output.

    Attributes:
        first_tokens: tokens before the patches, registers not counted; None where the output is a
            feature map (N, D, H, W).
        class_token_is_pooled: it is the pooler's output, not the first token.
    """

    first_tokens: int | None
    class_token_is_pooled: bool = True


FAMILIES = {
    "clip_vision_model": _Family(1),
    "convnext": _Family(None),
    "deit": _Family(2, class_token_is_pooled=False),
    "dinov2": _Family(1, class_token_is_pooled=False),
    "dinov2_with_registers": _Family(1, class_token_is_pooled=False),
    "dinov3_convnext": _Family(1),
    "dinov3_vit": _Family(1, class_token_is_pooled=False),
    "resnet": _Family(None),
    "siglip_vision_model": _Family(0),
    "vit": _Family(1, class_token_is_pooled=False),
}


def encodes_images(kind: str) -> bool:
    """Whether models of a kind, by `model_type`, are vision encoders, as far as is known here."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_BACKBONE_MAPPING_NAMES,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )

    others = {*MODEL_FOR_BACKBONE_MAPPING_NAMES, *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES}
    return kind in FAMILIES or kind in others - {"clip", "siglip", "siglip2", "timm_backbone"}


class Backbone(nn.Module):
    """A transformers vision encoder, perhaps inside a peft model.

    Images whose sides are no multiples of the stride are padded on the right and at the bottom
    with zeros, which after normalising is the mean colour. The grid of patches covers the padding;
    `Segmenter.upsample` cuts it off again.

    Args:
        encoder: of one of `FAMILIES`, or another that makes tokens or a feature map of pixels.

    Raises:
        UserError: for a model that makes neither.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder
        config = self.plain.config
        # Positions of some families fit other image sizes only when asked to.
        asks = "interpolate_pos_encoding" in inspect.signature(self.plain.forward).parameters
        self._interpolate = {"interpolate_pos_encoding": True} if asks else {}
        known = FAMILIES.get(config.model_type)
        self.width: int
        self.stride: int
        self.probe_side: int
        if known is None:
            self.probe_side = _usual_side(config)  # Swin takes none smaller than its window
            known, self.width, self.stride, self._class_width = self._measured()
        else:
            self.width, self.stride = _width(config), _stride(config)
            self.probe_side = 2 * self.stride
            pools = getattr(config, "vision_use_head", True) is not False
            self._class_width = self.width if pools else 0
        self._family = known
        self._resting: list[nn.Module] = []
        self.note_what_trains()

    @property
    def plain(self) -> Any:
        """The transformers model itself, out of its adapter wrapper if it has one."""
        return self.encoder.get_base_model() if self.has_adapter else self.encoder

    @property
    def has_adapter(self) -> bool:
        """Whether the encoder is a transformers model inside a peft one."""
        return hasattr(self.encoder, "get_base_model")

    @property
    def has_class_token(self) -> bool:
        """Whether there is a class token, or a pooled output that stands for it."""
        return self._class_width > 0

    def forward(self, pixels: Tensor) -> Features:
        """Return the features of pixels (N, 3, H, W), padded to multiples of the stride."""
        padded = pad_to_multiple(pixels, self.stride)
        output = self.plain(pixel_values=padded, **self._interpolate)
        last = output.last_hidden_state
        pooled = output.get("pooler_output") if self._family.class_token_is_pooled else last[:, 0]
        if pooled is not None:
            pooled = pooled.flatten(1)
        if self._family.first_tokens is None:
            return Features(pooled, last.permute(0, 2, 3, 1))
        first = self._family.first_tokens + getattr(self.plain.config, "num_register_tokens", 0)
        rows, columns = (side // self.stride for side in padded.shape[-2:])
        patches_NHWD = last[:, first:].unflatten(1, (rows, columns))
        return Features(pooled, patches_NHWD)

    def pooled(self, pixels: Tensor, pool: Pool) -> Tensor:
        """Return the class token (N, D), the mean of the patches (N, D), or both (N, 2D).

        Raises:
            UserError: where there is no class token.
        """
        self.pooled_width(pool)
        features = self(pixels)
        mean_ND = features.patches_NHWD.flatten(1, 2).mean(dim=1)
        if pool == "mean" or features.class_token_ND is None:
            return mean_ND
        if pool == "cls":
            return features.class_token_ND
        return torch.cat([features.class_token_ND, mean_ND], dim=-1)

    def pooled_width(self, pool: Pool) -> int:
        """Return the width of pooled features.

        Raises:
            UserError: where there is no class token.
        """
        if pool != "mean" and not self.has_class_token:
            raise UserError(
                f"--pool {pool}: this {self.plain.config.model_type} has no class token and no "
                "pooling head; choose --pool mean."
            )
        return {"cls": 0, "mean": self.width, "both": self.width}[pool] + (
            0 if pool == "mean" else self._class_width
        )

    def dense(self, pixels: Tensor) -> Tensor:
        """Return patch features (N, H, W, D), padding included.

        Raises:
            UserError: where the image is one patch, which leaves no feature map.
        """
        patches_NHWD = self(pixels).patches_NHWD
        if patches_NHWD.shape[1:3].numel() == 1:
            height, width = pixels.shape[-2:]
            raise UserError(
                f"An image of {height} × {width} pixels is a single patch to this backbone, whose "
                f"patches have {self.stride} pixels: it leaves no feature map. Use larger images "
                "(--image-size) or a backbone with smaller patches."
            )
        return patches_NHWD

    @torch.no_grad()
    def _measured(self) -> tuple[_Family, int, int, int]:
        """Return what an encoder of no known family is like, its width and stride.

        The last number is the class token's width: 0 where there is none, and where the pooler says
        the same of two images, because its weights are not those of a checkpoint.
        """
        training = self.plain.training
        side = self.probe_side
        noise = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        weight = next(self.plain.parameters())
        try:
            self.plain.eval()
            output, again = (
                self.plain(pixel_values=noise.to(weight), **self._interpolate) for _ in range(2)
            )
            last, pooled = output.last_hidden_state, output.get("pooler_output")
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise self._no_backbone() from error
        finally:
            self.plain.train(training)
        if last.ndim == 4:
            first, (width, rows) = None, last.shape[1:3]
        else:
            rows, width = math.isqrt(last.shape[1]), last.shape[2]
            first = last.shape[1] - rows**2
        if side % rows or not torch.equal(last, again.last_hidden_state):  # ViT-MAE draws patches
            raise self._no_backbone()
        says = pooled is not None and not torch.equal(pooled[0], pooled[1])
        if says:
            return _Family(first), width, side // rows, pooled.flatten(1).shape[1]
        return _Family(first, not first), width, side // rows, width if first else 0

    def _no_backbone(self) -> UserError:
        return UserError(
            f"A {self.plain.config.model_type} model is no backbone: it makes no tokens of square "
            f"patches and no feature map of pixels alone. Take one such as {', '.join(FAMILIES)}."
        )

    def note_what_trains(self) -> None:
        """Decide which parts stay in evaluation mode; call it after changing what trains.

        Those are the parts with weights none of which trains: their batch statistics may not move.
        Decided once and not from the parameters of the moment: the trainer runs an old policy by
        putting detached weights in their place. Dropout is switched off everywhere: what is drawn
        is scored as it was drawn.
        """
        without_dropout(self)
        self._resting = [module for name, module in self.named_modules() if _rests(name, module)]
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._resting:
            # One by one: of nn.Module's own eval(), this module's would come back here.
            for part in module.modules():
                part.training = False
        return self


def pad_to_multiple(pixels: Tensor, stride: int) -> Tensor:
    """Pad (N, 3, H, W) with zeros on the right and at the bottom to multiples of `stride`."""
    bottom, right = (-side % stride for side in pixels.shape[-2:])
    return F.pad(pixels, (0, right, 0, bottom)) if bottom or right else pixels


def _rests(name: str, module: nn.Module) -> bool:
    # In training mode DINOv3 rescales its positions at random, an augmentation of its own
    # pre-training: an old policy would see other positions than the new one.
    if name.endswith("rope_embeddings"):
        return True
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)


def _usual_side(config: Any) -> int:
    """Return the pixels on a side of an image that an encoder surely takes."""
    side = getattr(config, "image_size", None) or 224
    side = side if isinstance(side, int) else side[0]
    # EfficientNet's 600 pixels make 19 cells of 32.
    return side - side % 32 if config.model_type == "efficientnet" else side


def _width(config: Any) -> int:
    sizes = getattr(config, "hidden_sizes", None)
    return sizes[-1] if sizes else config.hidden_size


def _stride(config: Any) -> int:
    """Return how many pixels a cell of the feature map is wide and high."""
    if config.model_type == "resnet":  # the stem divides by 4
        first = 2 if config.downsample_in_first_stage else 1
        return 4 * first * 2 ** (len(config.hidden_sizes) - 1)
    if config.model_type == "dinov3_convnext":
        return 4 * 2 ** (len(config.hidden_sizes) - 1)
    if config.model_type == "convnext":
        return config.patch_size * 2 ** (len(config.hidden_sizes) - 1)
    patch = config.patch_size
    if isinstance(patch, int):
        return patch
    if len(set(patch)) > 1:
        raise UserError(f"Patches of {patch} pixels are not square; use another backbone.")
    return patch[0]


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


class _Headed(nn.Module):
    """A backbone with a head over K classes."""

    def __init__(self, backbone: Backbone, classes: Sequence[str], width: int, hidden: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = tuple(classes)
        self.hidden = hidden
        self.head = Head(width, len(classes), hidden)
        self.inputs_are_features = False

    @property
    def device(self) -> torch.device:
        return self.head.output.weight.device


class RepresentationClassifier(_Headed):
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
        super().__init__(backbone, classes, backbone.pooled_width(pool), hidden)
        self.pool: Pool = pool

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


class Segmenter(_Headed):
    """A distribution over K classes for each patch; `upsample` brings it to every pixel.

    Args:
        hidden: width of the decoder's hidden layer, the same for every patch; 0 for a linear one.

    Attributes:
        inputs_are_features: `forward` takes dense features (N, H, W, D) that were made before.
    """

    def __init__(self, backbone: Backbone, classes: Sequence[str], *, hidden: int = 64) -> None:
        super().__init__(backbone, classes, backbone.width, hidden)

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
