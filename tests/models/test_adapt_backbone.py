"""What of a backbone trains, by literal name, for every choice."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import KINDS, encoder_of, picture

from visgrpo.errors import UserError
from visgrpo.models.adapt import trainable_parameters
from visgrpo.models.adapt_backbone import (
    BackboneAdaptation,
    adapt_backbone,
    backbone_is_frozen,
)
from visgrpo.models.backbone import Backbone, Pool
from visgrpo.models.representation import RepresentationClassifier, Segmenter

CLASSES = ("cat", "dog", "apple")
HEAD = ["head.projection.0.weight", "head.projection.0.bias", "head.output.*"]
LAST = {
    "dinov2": ["encoder.layer.1.*", "layernorm.*"],
    "dinov2_with_registers": ["encoder.layer.1.*", "layernorm.*"],
    "vit": ["layers.1.*", "layernorm.*"],
    "dinov3_vit": ["model.layer.1.*", "norm.*"],
    "dinov3_convnext": ["model.stages.2.*", "layer_norm.*"],
    "clip_vision_model": ["encoder.layers.1.*", "post_layernorm.*"],
    "siglip_vision_model": ["encoder.layers.1.*", "post_layernorm.*", "head.*"],
    "resnet": ["encoder.stages.1.*"],
    "convnext": ["encoder.stages.1.*", "layernorm.*"],
}
TRANSFORMER_LINEAR = {
    "clip": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"],
    "other": ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"],
}


def classifier(kind: str, choice: BackboneAdaptation, pool: Pool = "cls") -> Any:
    return adapted(
        RepresentationClassifier(Backbone(encoder_of(kind)), CLASSES, pool=pool, hidden=8), choice
    )


def adapted(model: Any, choice: BackboneAdaptation) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapt_backbone(model, choice)
    return model


def in_backbone(names: list[str]) -> list[str]:
    return [f"backbone.encoder.{name}" for name in names]


def check_that_exactly_these_move(model: Any, patterns: list[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern) for name in names), pattern
    expected = [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
    assert list(trainable_parameters(model)) == expected
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
    model.train()
    for _ in range(2):  # LoRA's A moves only after its B
        optimizer.zero_grad()
        logits = model(picture())
        F.cross_entropy(
            logits.flatten(0, -2), torch.zeros(logits.shape[:-1].numel()).long()
        ).backward()
        assert [n for n, p in trainable_parameters(model).items() if p.grad is None] == []
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved <= set(expected)
    assert any(name.startswith("head.") for name in moved)
    assert any(name.startswith("backbone.") for name in moved) != backbone_is_frozen(model)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen(kind: str) -> None:
    model = classifier(kind, BackboneAdaptation("frozen"))
    assert backbone_is_frozen(model)
    before = model.backbone.eval()(picture()).patches_NHWD
    check_that_exactly_these_move(model, HEAD)
    torch.testing.assert_close(model.backbone(picture()).patches_NHWD, before)


@pytest.mark.parametrize("kind", KINDS)
def test_last_blocks(kind: str) -> None:
    model = classifier(kind, BackboneAdaptation("last-blocks", last_blocks=1))
    patterns = LAST[kind]
    check_that_exactly_these_move(model, HEAD + in_backbone(patterns))
    blocks = model.backbone.plain.get_submodule(
        patterns[0].removesuffix(".1.*").removesuffix(".2.*")
    )
    assert not blocks[0].training  # its dropout and statistics rest
    assert blocks[-1].training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
def test_full_trains_whatever_takes_part(kind: str, pool: Pool) -> None:
    model = classifier(kind, BackboneAdaptation("full"), pool)
    idle = ["*.mask_token", "*.encoder.pooler.*"]
    if pool == "mean":
        idle += {
            "clip_vision_model": ["*.post_layernorm.*"],
            "siglip_vision_model": ["backbone.encoder.head.*"],
            "convnext": ["backbone.encoder.layernorm.*"],
        }.get(kind, [])
    names = [name for name, _ in model.named_parameters()]
    expected = [name for name in names if not any(fnmatchcase(name, p) for p in idle)]
    check_that_exactly_these_move(model, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_full_segmentation(kind: str) -> None:
    model = Segmenter(Backbone(encoder_of(kind)), CLASSES, hidden=8)
    adapted(model, BackboneAdaptation("full"))
    expected = list(trainable_parameters(model))
    assert "backbone.encoder.post_layernorm.weight" not in expected or kind != "clip_vision_model"
    model.train()(picture(32, 32)).sum().backward()
    assert [n for n, p in trainable_parameters(model).items() if p.grad is None] == []


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "conv" not in kind and kind != "resnet"]
)
def test_lora_of_transformers(kind: str) -> None:
    model = classifier(kind, BackboneAdaptation("lora"))
    prefix = LAST[kind][0].removesuffix(".1.*")
    is_clip = kind in ("clip_vision_model", "siglip_vision_model")
    linear = TRANSFORMER_LINEAR["clip" if is_clip else "other"] + (
        ["mlp.up_proj", "mlp.down_proj"] if kind == "dinov3_vit" else ["mlp.fc1", "mlp.fc2"]
    )
    patterns = [
        f"backbone.encoder.base_model.model.{prefix}.{block}.{name}.lora_{side}.default.weight"
        for block in (0, 1)
        for name in linear
        for side in "AB"
    ]
    check_that_exactly_these_move(model, HEAD + patterns)


@pytest.mark.parametrize("kind", ["convnext", "dinov3_convnext"])
def test_lora_of_convnets_is_on_their_pointwise_layers(kind: str) -> None:
    model = classifier(kind, BackboneAdaptation("lora"))
    layer = "pwconv?" if kind == "convnext" else "pointwise_conv?"
    pattern = f"backbone.encoder.base_model.model.*.stages.*.layers.0.{layer}.lora_?.default.weight"
    check_that_exactly_these_move(model, [*HEAD, pattern])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resnet"])
def test_adapters_start_as_the_base(kind: str) -> None:
    model = classifier(kind, BackboneAdaptation("lora")).eval()
    expected = Backbone(encoder_of(kind)).eval()(picture()).patches_NHWD
    torch.testing.assert_close(model.backbone(picture()).patches_NHWD, expected)


def test_rank_alpha_and_dropout_arrive() -> None:
    choice = BackboneAdaptation("lora", lora_rank=3, lora_alpha=12.0, lora_dropout=0.25)
    layer = classifier("dinov2", choice).backbone.plain.encoder.layer[0].mlp.fc1
    assert layer.lora_A["default"].weight.shape == (3, 16)
    assert layer.scaling["default"] == 4.0
    assert layer.lora_dropout["default"].p == 0.25


def test_a_resnet_has_no_place_for_adapters() -> None:
    with pytest.raises(UserError, match="a resnet has no linear layers for adapters; choose last-"):
        classifier("resnet", BackboneAdaptation("lora"))


@pytest.mark.parametrize("last_blocks", [0, -1, 3])
def test_last_blocks_must_exist(last_blocks: int) -> None:
    with pytest.raises(UserError, match=f"--last-blocks {last_blocks}: this dinov2 has 2 blocks"):
        classifier("dinov2", BackboneAdaptation("last-blocks", last_blocks=last_blocks))


def test_batch_statistics_move_only_where_the_stage_trains() -> None:
    model = classifier("resnet", BackboneAdaptation("last-blocks", last_blocks=1)).train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    model(picture())
    moved = {name for name, b in model.named_buffers() if not torch.equal(b, before[name])}
    assert moved
    assert all(name.startswith("backbone.encoder.encoder.stages.1.") for name in moved)


def test_batch_statistics_of_full_tuning_travel_in_the_state() -> None:
    tuned, other = (classifier("resnet", BackboneAdaptation("full")) for _ in range(2))
    tuned.train()(picture())
    other.load_state_dict(tuned.state_dict())
    start = classifier("resnet", BackboneAdaptation("full"))
    start.load_state_dict(dict(tuned.named_parameters()), strict=False)  # the weights alone
    expected = tuned.eval()(picture())
    torch.testing.assert_close(other.eval()(picture()), expected)
    assert not torch.allclose(start.eval()(picture()), expected)


def test_adapting_leaves_mode_and_gradients_as_they_were() -> None:
    model = classifier("vit", BackboneAdaptation("full"))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
