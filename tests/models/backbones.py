"""Tiny encoders of every family, from random weights, for the tests of the models room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WIDTH = 16
_VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_MLP = {"intermediate_size": 32}
_CONV = {"hidden_sizes": [8, WIDTH], "depths": [1, 1]}
# Class name without "Config" and "Model", settings, pixels of a cell.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "dinov2": ("Dinov2", {**_VIT, "mlp_ratio": 2}, 8),
    "dinov2_with_registers": (
        "Dinov2WithRegisters",
        {**_VIT, "mlp_ratio": 2, "num_register_tokens": 3},
        8,
    ),
    "vit": ("ViT", {**_VIT, **_MLP}, 8),
    "dinov3_vit": ("DINOv3ViT", {**_VIT, **_MLP, "num_register_tokens": 2}, 8),
    "dinov3_convnext": (
        "DINOv3ConvNext",
        {"hidden_sizes": [8, 8, WIDTH], "depths": [1, 1, 1]},
        16,
    ),
    "clip_vision_model": ("CLIPVision", {**_VIT, **_MLP}, 8),
    "siglip_vision_model": ("SiglipVision", {**_VIT, **_MLP}, 8),
    "resnet": ("ResNet", {**_CONV, "embedding_size": 8, "layer_type": "basic"}, 8),
    "convnext": ("ConvNext", {**_CONV, "num_stages": 2}, 8),
}
KINDS = tuple(FAMILIES)


def encoder_of(kind: str, **settings: Any) -> Any:
    """A plain transformers model whose every weight is random: no zero, no one."""
    import transformers

    name, config, _ = FAMILIES[kind]
    config_class = getattr(transformers, f"{name}Config")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}Model")(config_class(**{**config, **settings}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            for buffer_name, buffer in model.named_buffers():
                if buffer_name.endswith(("running_mean", "running_var")):
                    buffer.add_(torch.rand_like(buffer))
    return model.eval()


def picture(height: int = 16, width: int = 16, n: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))
