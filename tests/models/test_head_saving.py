"""What is saved is the model that was measured, and its backbone loads with transformers alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import KINDS, encoder_of, picture
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone, RepresentationClassifier, Segmenter
from visgrpo.models.load import load_backbone, load_representation
from visgrpo.models.parts import Parts
from visgrpo.models.save import save
from visgrpo.models.small import SmallBackbone, build_small_backbone
from visgrpo.models.trains import adapt

CLASSES = ("cat", "dog", "äpple")
SMALL = SmallBackbone("dinov2", image_size=16, patch_size=8, width=16, layers=2, heads=2)


def tuned(kind: str, choice: Sequence[str], *, dense: bool = False) -> tuple[Any, Any]:
    """A model that has been trained for two steps, and the parts that belong to it."""
    small = build_small_backbone(SMALL, 0)
    parts = Parts(kind, encoder_of(kind), processor=small.processor)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(parts.model)
        model: Any = (
            Segmenter(backbone, CLASSES, hidden=0)
            if dense
            else RepresentationClassifier(backbone, CLASSES, pool="both", hidden=8)
        )
        adapt(model, choice)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(picture(32, 32)).log_softmax(-1)[..., 0].mean().neg().backward()
        optimizer.step()
    return model.eval(), parts


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model.eval()(picture(32, 32))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_what_was_saved(kind: str, dense: bool, tmp_path: Path) -> None:
    model, parts = tuned(kind, ("full",), dense=dense)
    save(model, parts, tmp_path, "# a card\n", {})
    loaded, its_parts = load_representation(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.classes == CLASSES
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    torch.testing.assert_close(logits_of(loaded), logits_of(model))
    assert its_parts.preprocess == parts.preprocess
    plain = Backbone(AutoModel.from_pretrained(tmp_path)).eval()
    with torch.no_grad():
        found, expected = plain(picture()), model.backbone(picture())
    torch.testing.assert_close(found.patches_NHWD, expected.patches_NHWD)


@pytest.mark.parametrize("dense", [False, True])
def test_adapters_are_merged(dense: bool, tmp_path: Path) -> None:
    model, parts = tuned("dinov2", ("lora",), dense=dense)
    expected = logits_of(model)
    save(model, parts, tmp_path)
    loaded, _ = load_representation(tmp_path)
    assert not loaded.backbone.has_adapter
    torch.testing.assert_close(logits_of(loaded), expected, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))
    assert model.backbone.has_adapter  # the model itself stays as it was
    torch.testing.assert_close(logits_of(model), expected)


def test_files_in_the_folder(tmp_path: Path) -> None:
    model, parts = tuned("dinov2", ("frozen",))
    save(model, parts, tmp_path, "# a card\n", {"method": "grpo-rm"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "head.safetensors",
        "model.safetensors",
        "preprocessor_config.json",
        "visgrpo.json",
    ]
    assert json.loads((tmp_path / "visgrpo.json").read_text(encoding="utf-8")) == {
        "task": "classification",
        "classes": list(CLASSES),
        "hidden": 8,
        "pool": "both",
        "method": "grpo-rm",
    }
    settings = parts.processor.to_dict()
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").to_dict() == settings


def test_info_of_a_segmenter(tmp_path: Path) -> None:
    model, parts = tuned("dinov2", ("frozen",), dense=True)
    save(model, parts, tmp_path, "", {"ignore_index": 255})
    info = load_backbone(str(tmp_path)).info
    assert info == {
        "task": "segmentation",
        "classes": list(CLASSES),
        "hidden": 0,
        "ignore_index": 255,
    }


@pytest.mark.parametrize("family", ["dinov2", "resnet"])
def test_a_backbone_alone(family: Any, tmp_path: Path) -> None:
    sizes = SmallBackbone(family, image_size=16, patch_size=8, width=16, layers=2, heads=2)
    parts = build_small_backbone(sizes, 0)
    save(parts.model, parts, tmp_path, "# a card\n", {"pretrained_on": "digits"})
    loaded = load_backbone(str(tmp_path))
    assert loaded.info == {"pretrained_on": "digits"}
    assert loaded.preprocess == parts.preprocess
    with torch.no_grad():
        found = Backbone(loaded.model).eval()(picture())
        expected = Backbone(parts.model).eval()(picture())
    torch.testing.assert_close(found.patches_NHWD, expected.patches_NHWD)
    with pytest.raises(UserError, match=r"has no head: visgrpo\.json does not say its task"):
        load_representation(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good folder, for a test to spoil."""
    model, parts = tuned("dinov2", ("frozen",))
    save(model, parts, tmp_path)
    return tmp_path


def one_line(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_representation(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_head_of_other_classes(saved: Path) -> None:
    info = json.loads((saved / "visgrpo.json").read_text())
    (saved / "visgrpo.json").write_text(json.dumps({**info, "classes": ["one", "two"]}))
    assert one_line(saved) == (
        f'The head "{saved / "head.safetensors"}" does not belong to this model: output.bias has '
        "shape (3,), visgrpo.json and the backbone ask for (2,)."
    )


def test_a_head_of_another_backbone(saved: Path) -> None:
    other = build_small_backbone(SmallBackbone(image_size=16, width=32, layers=1), 0)
    other.model.save_pretrained(saved)
    assert "projection.0.weight has shape (8, 32), " in one_line(saved)


def test_a_head_with_a_layer_too_few(saved: Path) -> None:
    tensors = load_file(saved / "head.safetensors")
    del tensors["output.bias"]
    save_file(tensors, saved / "head.safetensors")
    assert "output.bias has shape None" in one_line(saved)


def test_a_missing_or_damaged_head(saved: Path) -> None:
    (saved / "head.safetensors").write_bytes(b"broken")
    assert f"{saved / 'head.safetensors'} is damaged" in one_line(saved)
    (saved / "head.safetensors").unlink()
    assert one_line(saved).startswith(f'Cannot read the head "{saved / "head.safetensors"}":')


@pytest.mark.parametrize("key", ["task", "classes", "hidden", "pool"])
def test_info_that_lacks_something(saved: Path, key: str) -> None:
    info = json.loads((saved / "visgrpo.json").read_text())
    del info[key]
    (saved / "visgrpo.json").write_text(json.dumps(info))
    assert f"has no head: visgrpo.json does not say its {key}." in one_line(saved)


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    state = torch.get_rng_state()
    load_representation(saved)
    assert torch.equal(torch.get_rng_state(), state)
