"""Checkpoints with dropout: rollout and update see one policy, in pieces or whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from visgrpo.data.batches import Batch
from visgrpo.methods.labels import LabelGRPO
from visgrpo.models.backbone import Backbone, RepresentationClassifier
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.reference import live_reference
from visgrpo.models.trains import adapt
from visgrpo.objectives import preset
from visgrpo.rewards.sets import parse_rewards

CLASSES = ("a", "b", "c", "d")
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_IMAGES: dict[str, Any] = {"image_size": 16, "patch_size": 4}
_BLOCKS: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}


def tokenizer(texts: list[str], **settings: Any) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[98, row + 1, 99] for row, _ in enumerate(texts)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def dual(name: str) -> nn.Module:
    text = {**_SIZES, "vocab_size": 100, "max_position_embeddings": 16, "attention_dropout": 0.3}
    text |= {"bos_token_id": 98, "eos_token_id": 99}
    vision = {**_SIZES, **_IMAGES, "attention_dropout": 0.3}
    if name == "clip":
        settings = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        return CLIPModel(settings)
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision))


def encoder(name: str) -> nn.Module:
    sizes = {**_SIZES, **_IMAGES}
    if name == "vit":
        probabilities = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
        return ViTModel(ViTConfig(**sizes, **probabilities), add_pooling_layer=False)
    if name == "dinov2":
        return Dinov2Model(Dinov2Config(**sizes, drop_path_rate=0.3, hidden_dropout_prob=0.3))
    return ConvNextModel(ConvNextConfig(**_BLOCKS, patch_size=2, drop_path_rate=0.3))


def policy(name: str, train: str) -> nn.Module:
    torch.manual_seed(0)
    if name in ("clip", "siglip"):
        model: Any = ClipClassifier(dual(name), tokenizer, CLASSES, ("a {}",))
    else:
        model = RepresentationClassifier(Backbone(encoder(name)), CLASSES, pool="mean")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
    adapt(model, train.split())
    return model.train()


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("clip", "full"),
        ("clip", "full lora"),
        ("siglip", "full"),
        ("vit", "full"),
        ("vit", "lora"),
        ("dinov2", "full"),
        ("convnext", "full"),
    ],
)
def test_at_equal_weights_every_ratio_is_1(name: str, train: str) -> None:
    model = policy(name, train)
    labels = torch.arange(8) % 4
    batch = Batch(torch.arange(8), torch.randn(8, 3, 16, 16), labels)
    rewards = parse_rewards(["hard"], None, CLASSES)
    method = LabelGRPO(rewards, preset("grpo"), CLASSES, group_size=8)
    groups = method.rollout(model, batch, 0, chunk=4)
    whole = method.loss(model, batch, groups, 0)
    assert whole.metrics["ratio_mean"].item() == pytest.approx(1, abs=1e-5)
    assert whole.metrics["clip_ratio/region_mean"] == 0
    halves = [
        method.loss(model, batch.select(rows), groups.select(rows), 0).loss
        for rows in (torch.arange(4), torch.arange(4, 8))
    ]
    assert (sum(halves) / 2).item() == pytest.approx(whole.loss.item(), abs=1e-5)
    if isinstance(model, ClipClassifier):
        reference = live_reference(model).log_probs(batch)
        torch.testing.assert_close(method.log_probs(model(batch.inputs)), reference)
