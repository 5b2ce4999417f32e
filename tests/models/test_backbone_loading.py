"""Loading a backbone: every family from its folder, and one line for everything that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import KINDS, encoder_of, picture
from PIL import Image
from safetensors.torch import load_file, save_file

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone
from visgrpo.models.load import load_backbone
from visgrpo.models.parts import preprocess_of

SETTINGS = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


def save(folder: Path, kind: str, settings: dict[str, Any] = SETTINGS) -> Path:
    """A checkpoint as the Hub has it: model and preprocessor_config.json."""
    encoder_of(kind).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def one_line(folder: Path) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(UserError) as caught:
        load_backbone(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    return message


def noise(height: int = 20, width: int = 33) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_goes_through_a_folder(tmp_path: Path, kind: str) -> None:
    parts = load_backbone(str(save(tmp_path, kind)))
    assert parts.name == str(tmp_path)
    assert parts.preprocess.size == (16, 16)
    assert parts.info == {}
    with torch.no_grad():
        found = Backbone(parts.model).eval()(picture())
        expected = Backbone(encoder_of(kind)).eval()(picture())
    torch.testing.assert_close(found.patches_NHWD, expected.patches_NHWD)


def test_half_precision_weights_are_loaded_in_float32(tmp_path: Path) -> None:
    save(tmp_path, "dinov2")
    encoder_of("dinov2").half().save_pretrained(tmp_path)
    model = load_backbone(str(tmp_path)).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_clip_gives_its_image_tower(tiny_clip_folder: Path) -> None:
    from transformers import CLIPModel

    parts = load_backbone(str(tiny_clip_folder))
    with torch.no_grad():
        output = CLIPModel.from_pretrained(tiny_clip_folder).vision_model(picture())
        found = Backbone(parts.model).eval()(picture())
    assert found.class_token_ND is not None
    torch.testing.assert_close(found.class_token_ND, output.pooler_output)
    assert parts.preprocess.crop == (16, 16)


def test_siglip_gives_its_image_tower(tiny_siglip_folder: Path) -> None:
    assert load_backbone(str(tiny_siglip_folder)).model.config.model_type == "siglip_vision_model"


def test_a_vit_may_lack_its_pooler(tmp_path: Path) -> None:
    """Checkpoints of classifiers have none; what is missing must not be random."""
    weights = save(tmp_path, "vit") / "model.safetensors"
    kept = {name: t for name, t in load_file(weights).items() if not name.startswith("pooler.")}
    save_file(kept, weights, {"format": "pt"})
    first, again = (load_backbone(str(tmp_path)).model.state_dict() for _ in range(2))
    assert not first["pooler.dense.weight"].any()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_other_missing_weights_are_refused(tmp_path: Path) -> None:
    weights = save(tmp_path, "vit") / "model.safetensors"
    kept = {name: t for name, t in load_file(weights).items() if name != "layernorm.weight"}
    save_file(kept, weights, {"format": "pt"})
    assert "lacks 1 weight(s), such as layernorm.weight" in one_line(tmp_path)


def test_another_kind_is_refused_with_those_that_are_not(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    message = one_line(tmp_path)
    assert message.startswith(f'"{tmp_path}" is a bert model; this job needs one of: ')
    assert all(kind in message for kind in (*KINDS, "clip", "siglip"))


def test_weights_that_need_pickle(tmp_path: Path) -> None:
    save(tmp_path, "vit")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "pickle" in one_line(tmp_path)


def test_a_hub_name_without_network() -> None:
    assert "network" in one_line(Path("nobody/has-this-backbone"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_damaged_parts(tmp_path: Path, name: str) -> None:
    (save(tmp_path, "vit") / name).write_text("{")
    assert one_line(tmp_path).startswith(f'Cannot load model "{tmp_path}":')


def test_a_missing_image_processor(tmp_path: Path) -> None:
    (save(tmp_path, "vit") / "preprocessor_config.json").unlink()
    assert one_line(tmp_path).startswith(f'Cannot load model "{tmp_path}":')


@pytest.mark.parametrize("name", ["DINOv3ViTImageProcessorFast", "DINOv3ViTImageProcessor"])
def test_a_processor_that_needs_torchvision(tmp_path: Path, name: str) -> None:
    settings = {**SETTINGS, "image_processor_type": name, "disable_grouping": None}
    parts = load_backbone(str(save(tmp_path, "dinov3_vit", settings)))
    image = noise()
    resized = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)) / 255
    expected = (resized - SETTINGS["image_mean"]) / np.array(SETTINGS["image_std"])
    np.testing.assert_allclose(parts.preprocess(image).permute(1, 2, 0), expected, atol=1e-6)
    (tmp_path / "again").mkdir()
    parts.processor.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert saved == settings


@pytest.mark.parametrize("edge", [16, 384])
@pytest.mark.parametrize("legacy", [False, True])
def test_convnext_preprocessing(tmp_path: Path, edge: int, legacy: bool) -> None:
    """As ResNet and ConvNeXt checkpoints on the Hub have it: a fraction that is cropped."""
    settings = {**SETTINGS, "size": {"shortest_edge": edge}, "crop_pct": 0.875, "resample": 3}
    settings["image_processor_type"] = "ConvNextImageProcessor"
    if legacy:
        del settings["image_processor_type"]
        settings.update(size=edge, feature_extractor_type="ConvNextFeatureExtractor")
    parts = load_backbone(str(save(tmp_path, "resnet", settings)))
    for image in (noise(), noise(41, 30)):
        expected = parts.processor(image, return_tensors="pt")["pixel_values"][0]
        found = parts.preprocess(image)
        assert found.shape == (3, edge, edge)
        torch.testing.assert_close(found, expected)


def test_a_setting_that_is_not_understood(tmp_path: Path) -> None:
    settings = {**SETTINGS, "do_pad": True}
    assert '"do_pad"' in one_line(save(tmp_path, "vit", settings))


def test_preprocessing_of_others_is_as_before(tiny_clip_folder: Path) -> None:
    parts = load_backbone(str(tiny_clip_folder))
    assert preprocess_of(parts.processor) == parts.preprocess


def test_a_run_folder_instead_of_its_model(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path / "start", "vit"), tmp_path / "run" / "model")
    assert one_line(tmp_path / "run").endswith(f"Did you mean {tmp_path / 'run' / 'model'}?")
