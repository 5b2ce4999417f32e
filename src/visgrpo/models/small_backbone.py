"""A small vision encoder from random weights: everything about backbones works offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from visgrpo.errors import UserError
from visgrpo.models.parts import Parts

_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]
_STEM_STRIDE = 4  # a ResNet's first convolution and its pooling


@dataclass(frozen=True)
class SmallBackbone:
    """Sizes of a small backbone.

    Attributes:
        family: ``dinov2``, a ViT; or ``resnet``, of basic blocks.
        patch_size: pixels of a patch; of a ResNet its total stride, 4 and doubled by every stage
            after the first.
        width: of the features; a ResNet's earlier stages have half of the next one's.
        layers: blocks; of a ResNet in each stage.
        heads: of attention; a ResNet has none.
    """

    family: Literal["dinov2", "resnet"] = "dinov2"
    image_size: int = 32
    patch_size: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4


def build_small_backbone(sizes: SmallBackbone, seed: int) -> Parts:
    """Build the transformers classes themselves, so that everything that loads them loads it.

    Raises:
        UserError: for sizes that do not divide.
    """
    from transformers import BitImageProcessorPil

    if sizes.image_size % sizes.patch_size:
        raise UserError(
            f"--patch-size {sizes.patch_size} does not divide --image-size {sizes.image_size}."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _resnet(sizes) if sizes.family == "resnet" else _dinov2(sizes)
    processor = BitImageProcessorPil(
        size={"shortest_edge": sizes.image_size},
        crop_size={"height": sizes.image_size, "width": sizes.image_size},
        image_mean=_IMAGENET_MEAN,
        image_std=_IMAGENET_STD,
    )
    return Parts(f"small-{sizes.family}", model, processor=processor)


def _dinov2(sizes: SmallBackbone) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    if sizes.width % sizes.heads:
        raise UserError(f"--heads {sizes.heads} does not divide --width {sizes.width}.")
    return Dinov2Model(
        Dinov2Config(
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            mlp_ratio=4,
            layerscale_value=1.0,
            drop_path_rate=0.0,
        )
    )


def _resnet(sizes: SmallBackbone) -> Any:
    from transformers import ResNetConfig, ResNetModel

    doublings = (sizes.patch_size // _STEM_STRIDE).bit_length() - 1
    if sizes.patch_size != _STEM_STRIDE << max(doublings, 0):
        raise UserError(
            f"--patch-size {sizes.patch_size}: a resnet's total stride is 4, 8, 16, 32 and so on."
        )
    if sizes.width % 2**doublings:
        raise UserError(
            f"--width {sizes.width} is halved {doublings} times by this resnet: give a multiple "
            f"of {2**doublings}."
        )
    widths = [sizes.width >> halvings for halvings in range(doublings, -1, -1)]
    return ResNetModel(
        ResNetConfig(
            embedding_size=widths[0],
            hidden_sizes=widths,
            depths=[sizes.layers] * len(widths),
            layer_type="basic",
        )
    )
