"""Heads on a backbone: logits by hand, cached features, and the way from patches to pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from backbones import WIDTH, encoder_of, picture

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone, Pool, RepresentationClassifier, Segmenter

CLASSES = ("cat", "dog", "apple")


def classifier(kind: str = "dinov2", **settings: Any) -> RepresentationClassifier:
    torch.manual_seed(0)
    return RepresentationClassifier(Backbone(encoder_of(kind)), CLASSES, **settings).eval()


def segmenter(kind: str = "dinov2", **settings: Any) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(Backbone(encoder_of(kind)), CLASSES, **settings).eval()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def linear(model: Any, name: str, x: np.ndarray) -> np.ndarray:
    layer = model.get_submodule(name)
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
@torch.no_grad()
def test_logits_by_hand(pool: Pool) -> None:
    model = classifier(pool=pool, hidden=8)
    tokens = encoder_of("dinov2")(picture()).last_hidden_state.numpy()
    features = {"cls": [tokens[:, 0]], "mean": [tokens[:, 1:].mean(1)]}
    features["both"] = features["cls"] + features["mean"]
    pooled = np.concatenate(features[pool], axis=1)
    hidden = gelu(linear(model, "head.projection.0", pooled))
    logits_NK, hidden_NH = model(picture(), with_features=True)
    np.testing.assert_allclose(model.features(picture()), pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hidden_NH, hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits_NK, linear(model, "head.output", hidden), atol=1e-5)
    torch.testing.assert_close(model(picture()), logits_NK)


@torch.no_grad()
def test_without_hidden_layer_the_head_is_linear() -> None:
    model = classifier(hidden=0)
    assert [tuple(p.shape) for p in model.head.parameters()] == [(3, WIDTH), (3,)]
    logits_NK, hidden = model(picture(), with_features=True)
    features = model.features(picture())
    torch.testing.assert_close(hidden, features)
    np.testing.assert_allclose(logits_NK, linear(model, "head.output", features.numpy()), atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "both"])
@torch.no_grad()
def test_cached_features_give_the_logits_of_their_pixels(pool: Pool) -> None:
    model = classifier(pool=pool)
    expected, features_NP = model(picture()), model.features(picture())
    model.inputs_are_features = True
    torch.testing.assert_close(model(features_NP), expected)


def test_head_starts_from_the_callers_seed() -> None:
    first, again = (classifier().head.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_pool_that_is_not_there_is_refused_at_once() -> None:
    backbone = Backbone(encoder_of("siglip_vision_model", vision_use_head=False))
    with pytest.raises(UserError, match="choose --pool mean"):
        RepresentationClassifier(backbone, CLASSES, pool="cls")


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_logits_are_float32_with_a_bfloat16_model(make: Any) -> None:
    model = make().to(torch.bfloat16)
    assert model(picture().bfloat16()).dtype == torch.float32
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("make", [classifier, segmenter])
@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
def test_a_head_on_a_frozen_backbone_trains_in_training_mode(make: Any, kind: str) -> None:
    model = make(kind)
    model.backbone.requires_grad_(False)
    model.backbone.note_what_trains()
    expected = model(picture(32, 32))
    found = model.train()(picture(32, 32))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert all(p.grad is not None for p in model.head.parameters())


@pytest.mark.parametrize("hidden", [0, 8])
@torch.no_grad()
def test_each_patch_is_classified_alone(hidden: int) -> None:
    model = segmenter(hidden=hidden)
    pixels = picture(20, 24)
    logits_NHWK, dense_NHWD = model(pixels), model.features(pixels)
    assert logits_NHWK.shape == (2, 3, 3, 3)
    one = dense_NHWD[1, 2, 0].numpy()
    if hidden:
        one = gelu(linear(model, "head.projection.0", one))
    np.testing.assert_allclose(
        logits_NHWK[1, 2, 0], linear(model, "head.output", one), rtol=1e-4, atol=1e-5
    )
    model.inputs_are_features = True
    torch.testing.assert_close(model(dense_NHWD), logits_NHWK)


def bilinear(grid: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """A loop over pixels: their centres among the cells' centres, clamped at the border."""
    rows, columns, classes = grid.shape
    answer = np.zeros((*size, classes))
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) / stride - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) / stride - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            a, b = v - top, u - left
            answer[y, x] = (1 - a) * ((1 - b) * grid[top, left] + b * grid[top, right]) + a * (
                (1 - b) * grid[below, left] + b * grid[below, right]
            )
    return answer


@pytest.mark.parametrize("size", [(24, 40), (20, 33), (17, 40)])
def test_upsampling_is_bilinear_with_the_padding_cut_off(size: tuple[int, int]) -> None:
    model = segmenter()
    logits_NHWK = torch.randn(2, 3, 5, 3, generator=torch.Generator().manual_seed(0))
    found = model.upsample(logits_NHWK, size)
    assert found.shape == (2, *size, 3)
    np.testing.assert_allclose(found[1], bilinear(logits_NHWK[1].numpy(), 8, size), atol=1e-5)


@pytest.mark.parametrize("size", [(16, 40), (24, 41), (25, 40)])
def test_upsampling_to_another_image_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"3 × 5 patches of 8 pixels do not belong to an image of"):
        segmenter().upsample(torch.zeros(2, 3, 5, 3), size)


def test_an_image_of_one_patch_cannot_be_segmented() -> None:
    with pytest.raises(UserError, match="single patch"):
        segmenter()(picture(8, 8))


@pytest.mark.parametrize("make", [classifier, segmenter])
@torch.no_grad()
def test_an_old_policy_runs_in_the_models_place(make: Any) -> None:
    model = make()
    expected = model(picture())
    old = {name: t.clone() for name, t in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.add_(0.1)
    torch.testing.assert_close(torch.func.functional_call(model, old, (picture(),)), expected)
