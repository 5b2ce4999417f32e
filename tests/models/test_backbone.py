"""Class token and patches of every family, against plain transformers read by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backbones import FAMILIES, KINDS, WIDTH, encoder_of, picture
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone, Features, pad_to_multiple

NO_HEAD = {"vision_use_head": False}


@torch.no_grad()
def features_of(backbone: Backbone, pixels: Tensor) -> Features:
    return backbone.eval()(pixels)


def by_hand(kind: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Class token and patches in reading order (N, cells, D), from parts of the plain model."""
    model = encoder_of(kind)
    if kind in ("resnet", "convnext"):
        cells_NDHW = model(pixels).last_hidden_state
        mean_ND = cells_NDHW.mean(dim=(2, 3))
        pooled = mean_ND if kind == "resnet" else model.layernorm(mean_ND)
        return pooled, cells_NDHW.flatten(2).transpose(1, 2)
    if kind == "dinov3_convnext":
        cells = model.model(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        return model.layer_norm(cells.mean(dim=1)), model.layer_norm(cells)
    asked = kind in ("vit", "clip_vision_model", "siglip_vision_model")
    settings = {"interpolate_pos_encoding": True} if asked else {}
    hidden = model(pixels, output_hidden_states=True, **settings).hidden_states[-1]
    if kind == "clip_vision_model":
        return model.post_layernorm(hidden[:, 0]), hidden[:, 1:]
    if kind == "siglip_vision_model":
        normed = model.post_layernorm(hidden)
        return model.head(normed), normed
    normed = (model.norm if kind == "dinov3_vit" else model.layernorm)(hidden)
    registers = {"dinov2_with_registers": 3, "dinov3_vit": 2}.get(kind, 0)
    return normed[:, 0], normed[:, 1 + registers :]


@pytest.mark.parametrize("size", [(16, 16), (32, 48)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers(kind: str, size: tuple[int, int]) -> None:
    pixels = picture(*size)
    backbone = Backbone(encoder_of(kind))
    stride = FAMILIES[kind][2]
    assert (backbone.width, backbone.stride) == (WIDTH, stride)
    found = features_of(backbone, pixels)
    with torch.no_grad():
        class_token_ND, cells = by_hand(kind, pixels)
    rows, columns = size[0] // stride, size[1] // stride
    torch.testing.assert_close(found.class_token_ND, class_token_ND)
    torch.testing.assert_close(found.patches_NHWD, cells.reshape(2, rows, columns, WIDTH))


@pytest.mark.parametrize("kind", ["dinov2_with_registers", "vit", "clip_vision_model"])
def test_a_patch_stands_where_its_pixels_are(kind: str) -> None:
    """Without blocks nothing mixes: a changed pixel changes its own patch alone."""
    backbone = Backbone(encoder_of(kind, num_hidden_layers=0))
    pixels = picture(16, 24, n=1)
    before = features_of(backbone, pixels).patches_NHWD
    pixels[0, :, 9, 17] += 1
    after = features_of(backbone, pixels).patches_NHWD
    assert (before != after).any(dim=-1)[0].tolist() == [[False] * 3, [False, False, True]]


@pytest.mark.parametrize("kind", KINDS)
def test_other_sides_are_padded_right_and_below_with_zeros(kind: str) -> None:
    pixels = picture(20, 33)
    sides = {8: (24, 40), 16: (32, 48)}[FAMILIES[kind][2]]
    padded = torch.zeros(2, 3, *sides)
    padded[:, :, :20, :33] = pixels
    backbone = Backbone(encoder_of(kind))
    found, expected = features_of(backbone, pixels), features_of(backbone, padded)
    torch.testing.assert_close(found.patches_NHWD, expected.patches_NHWD)
    assert found.class_token_ND is not None
    torch.testing.assert_close(found.class_token_ND, expected.class_token_ND)


def test_padding_leaves_multiples_alone() -> None:
    pixels = picture(16, 24)
    assert pad_to_multiple(pixels, 8) is pixels


@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
@torch.no_grad()
def test_pools(kind: str) -> None:
    backbone, pixels = Backbone(encoder_of(kind)).eval(), picture(16, 24)
    class_token_ND, cells = by_hand(kind, pixels)
    torch.testing.assert_close(backbone.pooled(pixels, "cls"), class_token_ND)
    torch.testing.assert_close(backbone.pooled(pixels, "mean"), cells.mean(dim=1))
    both = backbone.pooled(pixels, "both")
    torch.testing.assert_close(both, torch.cat([class_token_ND, cells.mean(dim=1)], dim=1))
    assert [backbone.pooled_width(pool) for pool in ("cls", "mean", "both")] == [16, 16, 32]


@pytest.mark.parametrize("pool", ["cls", "both"])
def test_a_tower_without_pooling_head_has_no_class_token(pool: Any) -> None:
    backbone = Backbone(encoder_of("siglip_vision_model", **NO_HEAD))
    assert features_of(backbone, picture()).class_token_ND is None
    with pytest.raises(UserError, match=rf"--pool {pool}: this siglip_.* choose --pool mean"):
        backbone.pooled(picture(), pool)
    assert backbone.pooled(picture(), "mean").shape == (2, WIDTH)


def test_dense_features_need_more_than_one_patch() -> None:
    backbone = Backbone(encoder_of("resnet"))
    assert backbone.dense(picture(8, 16)).shape == (2, 1, 2, WIDTH)
    with pytest.raises(UserError, match=r"8 × 6 pixels is a single patch .*--image-size"):
        backbone.dense(picture(8, 6))


def test_another_kind_of_model_is_refused() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(
        UserError, match=r"A bert model is no backbone: it makes no tokens of square patches"
    ):
        Backbone(BertModel(config))


def test_patches_must_be_square() -> None:
    with pytest.raises(UserError, match=r"\[8, 4\] pixels are not square"):
        Backbone(encoder_of("vit", patch_size=[8, 4]))


@pytest.mark.parametrize(("first", "stride"), [(False, 8), (True, 16)])
def test_stride_of_a_resnet(first: bool, stride: int) -> None:
    backbone = Backbone(encoder_of("resnet", downsample_in_first_stage=first))
    assert backbone.stride == stride
    assert features_of(backbone, picture(32, 64)).patches_NHWD.shape[1:3] == (
        32 // stride,
        64 // stride,
    )


def test_a_frozen_backbone_stays_in_evaluation_mode() -> None:
    backbone = Backbone(encoder_of("resnet").requires_grad_(False))
    weights = copy.deepcopy(backbone.state_dict())
    expected = features_of(backbone, picture()).patches_NHWD
    backbone.train()
    torch.testing.assert_close(backbone(picture()).patches_NHWD, expected)
    backbone(picture(seed=1))
    now = backbone.state_dict()
    assert all(torch.equal(now[name], weights[name]) for name in weights)


def test_dropout_of_a_frozen_backbone_stays_off() -> None:
    settings = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    backbone = Backbone(encoder_of("vit", **settings).requires_grad_(False))
    expected = features_of(backbone, picture()).patches_NHWD
    torch.testing.assert_close(backbone.train()(picture()).patches_NHWD, expected)


def test_training_mode_of_what_trains_comes_and_goes() -> None:
    backbone = Backbone(encoder_of("resnet"))
    assert all(module.training for module in backbone.train().modules())
    assert not any(module.training for module in backbone.eval().modules())
    statistics = backbone.plain.embedder.embedder.normalization.running_mean.clone()
    backbone.train()(picture())
    assert not torch.equal(backbone.plain.embedder.embedder.normalization.running_mean, statistics)


def test_dinov3_positions_are_not_augmented_in_training() -> None:
    backbone = Backbone(encoder_of("dinov3_vit"))
    expected = features_of(backbone, picture()).patches_NHWD
    torch.testing.assert_close(backbone.train()(picture()).patches_NHWD, expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_copy_rests_as_the_original(frozen: bool) -> None:
    backbone = copy.deepcopy(Backbone(encoder_of("resnet").requires_grad_(not frozen)))
    backbone.train()
    assert backbone.plain.embedder.embedder.normalization.training == (not frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_detached_weights_in_its_place_are_an_old_policy(kind: str) -> None:
    backbone = Backbone(encoder_of(kind)).eval()
    old = {name: t.detach().clone() for name, t in backbone.state_dict().items()}
    expected = features_of(backbone, picture()).patches_NHWD
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.5)
        found = torch.func.functional_call(backbone, old, (picture(),)).patches_NHWD
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(backbone(picture()).patches_NHWD, expected)
