"""Encoders of families that nothing here was written for: what they make, read by measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from backbones import encoder_of, picture
from PIL import Image

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone, RepresentationClassifier, encodes_images
from visgrpo.models.load import load_backbone
from visgrpo.models.trains import adapt

_VIT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "image_size": 16, "patch_size": 8},
}
_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
_SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32, "window_size": 4}
# Name of the classes, settings, pixels of a cell, tokens before the patches (None: a feature map),
# and where the class token comes from.
KINDS: dict[str, tuple[str, dict[str, Any], int, int | None, str]] = {
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.25}, 32, None, "pooled"),
    "efficientnet": (
        "EfficientNet",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
        32,
        None,
        "pooled",
    ),
    "regnet": ("RegNet", {**_STAGES, "groups_width": 8, "embedding_size": 8}, 32, None, "pooled"),
    "convnextv2": ("ConvNextV2", _STAGES, 32, None, "pooled"),
    "poolformer": ("PoolFormer", _STAGES, 32, None, ""),
    "swin": ("Swin", _SWIN, 8, 0, "pooled"),
    "swinv2": ("Swinv2", _SWIN, 8, 0, "pooled"),
    "focalnet": ("FocalNet", {"embed_dim": 8, "depths": [1, 1]}, 8, 0, "pooled"),
    "deit": ("DeiT", _VIT, 8, 2, "first"),
    "beit": ("Beit", _VIT, 8, 1, "pooled"),
    "vit_msn": ("ViTMSN", _VIT, 8, 1, "first"),
    "ijepa": ("IJepa", _VIT, 8, 0, ""),
}


def model_of(kind: str) -> Any:
    name, settings, *_ = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}Model")(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 4:  # with its own, EfficientNet's image is lost on the way
                torch.nn.init.kaiming_normal_(parameter)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_transformers_makes(kind: str) -> None:
    _, _, stride, first, token = KINDS[kind]
    model = model_of(kind)
    backbone = Backbone(model).eval()
    assert encodes_images(kind)
    assert (backbone.stride, backbone.has_class_token) == (stride, bool(token))
    cells = (6, 8) if "swin" in kind else (2, 3)  # it takes no image smaller than its window
    pixels = picture(cells[0] * stride, cells[1] * stride)
    with torch.no_grad():
        features = backbone(pixels)
        asks = {"interpolate_pos_encoding": True} if kind in ("deit", "beit", "ijepa") else {}
        asks |= {"interpolate_pos_encoding": True} if kind == "vit_msn" else {}
        out = model(pixel_values=pixels, **asks)
    last = out.last_hidden_state
    if first is None:
        assert torch.equal(features.patches_NHWD, last.permute(0, 2, 3, 1))
    else:
        torch.testing.assert_close(features.patches_NHWD.flatten(1, 2), last[:, first:])
    assert features.patches_NHWD.shape == (2, *cells, backbone.width)
    expected = {"pooled": lambda: out.pooler_output.flatten(1), "first": lambda: last[:, 0]}
    if token:
        torch.testing.assert_close(backbone.pooled(pixels, "cls"), expected[token]())
    else:
        with pytest.raises(UserError, match="has no class token"):
            backbone.pooled(pixels, "cls")


@pytest.mark.parametrize("kind", ["swin", "mobilenet_v2", "beit"])
@pytest.mark.parametrize("train", ["full", "last:1"])
def test_they_train(kind: str, train: str) -> None:
    classifier = RepresentationClassifier(Backbone(model_of(kind)), ["a", "b"], hidden=0)
    adapt(classifier, [train])
    side = classifier.backbone.probe_side
    classifier(picture(side, side)).square().sum().backward()
    trained = {name: p.grad for name, p in classifier.named_parameters() if p.requires_grad}
    assert any(name.startswith("backbone.") for name in trained)
    assert all(gradient is not None for gradient in trained.values())


def test_a_pooler_that_says_nothing_is_not_used() -> None:
    """Its weights were not in the checkpoint, and are 0: the first token stands for the image."""
    model = model_of("beit")
    model.pooler = None
    backbone = Backbone(model).eval()
    with torch.no_grad():
        out = model(pixel_values=picture(), interpolate_pos_encoding=True)
    assert torch.equal(backbone.pooled(picture(), "cls"), out.last_hidden_state[:, 0])


def test_models_that_make_no_features_of_pixels_alone() -> None:
    """ViT-MAE shows its encoder some patches only, drawn anew each time; BERT reads text."""
    config = transformers.ViTMAEConfig(**_VIT)
    with pytest.raises(UserError, match="A vit_mae model is no backbone"):
        Backbone(transformers.ViTMAEModel(config))
    text = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(UserError, match="A bert model is no backbone"):
        Backbone(transformers.BertModel(text))
    assert not encodes_images("bert")


@pytest.mark.parametrize(
    ("kind", "processor"),
    [("mobilenet_v2", "MobileNetV2"), ("efficientnet", "EfficientNet"), ("swin", "ViT")],
)
def test_loaded_with_the_pixels_of_their_own_image_processors(
    kind: str, processor: str, tmp_path: Path
) -> None:
    model_of(kind).save_pretrained(tmp_path)
    images = getattr(transformers, f"{processor}ImageProcessorPil")()
    images.save_pretrained(tmp_path)
    parts = load_backbone(str(tmp_path))
    image = Image.effect_noise((90, 50), 80).convert("RGB")
    theirs = images(images=[image], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(parts.preprocess(image), theirs, atol=1e-6, rtol=1e-6)


def test_an_image_processor_that_does_more_than_it_says_is_refused(tmp_path: Path) -> None:
    """LeViT's resizes to 256 of 224 where its settings say 224."""
    encoder_of("vit").save_pretrained(tmp_path)
    transformers.LevitImageProcessorPil().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": 224}
    with pytest.raises(UserError, match="does more to images than its settings say"):
        load_backbone(str(tmp_path))
