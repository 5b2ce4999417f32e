"""The small backbones: sizes, seeds, and what does not divide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone
from visgrpo.models.small import SmallBackbone, build_small_backbone

DINOV2 = SmallBackbone("dinov2", image_size=16, patch_size=8, width=16, layers=2, heads=2)
RESNET = SmallBackbone("resnet", image_size=16, patch_size=8, width=16, layers=2)


@pytest.mark.parametrize("sizes", [DINOV2, RESNET], ids=lambda sizes: sizes.family)
def test_sizes_are_those_asked_for(sizes: SmallBackbone) -> None:
    parts = build_small_backbone(sizes, seed=0)
    backbone = Backbone(parts.model).eval()
    pixels = parts.preprocess(Image.new("RGB", (40, 20), "red"))
    assert (backbone.stride, backbone.width) == (8, 16)
    assert pixels.shape == (3, 16, 16)
    assert backbone(pixels[None]).patches_NHWD.shape == (1, 2, 2, 16)
    assert parts.model.config.model_type == sizes.family


def test_layers_and_stages() -> None:
    assert len(build_small_backbone(DINOV2, 0).model.encoder.layer) == 2
    stages = build_small_backbone(RESNET, 0).model.encoder.stages
    assert [len(stage.layers) for stage in stages] == [2, 2]
    one = SmallBackbone("resnet", image_size=16, patch_size=4, width=8, layers=1)
    assert len(build_small_backbone(one, 0).model.encoder.stages) == 1


def test_preprocessing_is_that_of_the_processor() -> None:
    parts = build_small_backbone(DINOV2, 0)
    noise = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = parts.processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(parts.preprocess(image), expected)


@pytest.mark.parametrize("sizes", [DINOV2, RESNET], ids=lambda sizes: sizes.family)
def test_weights_are_a_function_of_the_seed(sizes: SmallBackbone) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        torch.cat([p.flatten() for p in build_small_backbone(sizes, seed).model.parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SmallBackbone(image_size=30), "--patch-size 4 does not divide --image-size 30"),
        (SmallBackbone(width=30, heads=4), "--heads 4 does not divide --width 30"),
        (SmallBackbone("resnet", 24, 12), "--patch-size 12: a resnet's total stride is 4, 8"),
        (SmallBackbone("resnet", 32, 2), "--patch-size 2: a resnet's total stride is 4, 8"),
        (SmallBackbone("resnet", 32, 16, width=18), "--width 18 is halved 2 times"),
    ],
)
def test_sizes_that_do_not_divide(sizes: SmallBackbone, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_small_backbone(sizes, seed=0)
