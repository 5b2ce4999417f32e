"""What is saved loads with plain transformers and peft, and is the model that was measured."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import CLASSES, TEMPLATES, classifier_from, frozen_copy, logits_of, pixels, train
from peft import PeftModel
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPProcessor,
)

from visgrpo.errors import UserError
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.models.save import label_card, merged, save, save_adapter

TEXTS = ["a photo of a cat.", "a photo of a dog.", "a photo of an apple."]
CHOICES = [
    ("full",),
    ("image", "last:1"),
    ("full", "lora"),
    ("full", "last:1", "lora"),
]


def tuned(folder: Path, choice: Sequence[str], logit_scale: Any = "trainable") -> ClipClassifier:
    classifier = classifier_from(folder, choice, logit_scale=logit_scale)
    train(classifier, steps=2, rate=0.05)
    return classifier


def saved(classifier: ClipClassifier, start: Path, folder: Path, **info: Any) -> None:
    save(classifier, load_clip(str(start)), folder, "# a card\n", info)


def saved_adapter(classifier: ClipClassifier, start: Path, folder: Path) -> None:
    save_adapter(classifier, folder)


@pytest.mark.parametrize("size", [0, 1000])  # of a file: the settings' or the weights' is larger
@pytest.mark.parametrize("write", [saved, saved_adapter])
def test_no_room_is_said_in_one_line(
    tiny_clip_folder: Path, tmp_path: Path, write: Callable[..., None], size: int
) -> None:
    classifier = classifier_from(tiny_clip_folder, ("full", "lora"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match=r"/m cannot be written: the disk .* are needed\."):
            write(classifier, tiny_clip_folder, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@torch.no_grad()
def clip_logits(model: Any, folder: Path) -> torch.Tensor:
    """logits_per_image of plain transformers, with the tokenizer from the same folder."""
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    return model.eval()(pixel_values=pixels(), **encoded).logits_per_image


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_plain_transformers_loads_the_tuned_model(
    tiny_clip_folder: Path, tmp_path: Path, choice: Sequence[str]
) -> None:
    classifier = tuned(tiny_clip_folder, choice)
    expected = logits_of(classifier)
    saved(classifier, tiny_clip_folder, tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    torch.testing.assert_close(clip_logits(model, tmp_path), expected, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(logits_of(classifier_from(tmp_path)), expected, rtol=1e-4, atol=1e-4)


def test_siglip_too(tiny_siglip_folder: Path, tmp_path: Path) -> None:
    classifier = tuned(tiny_siglip_folder, ("full", "lora"))
    saved(classifier, tiny_siglip_folder, tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "SiglipModel"
    expected = logits_of(classifier)
    torch.testing.assert_close(logits_of(classifier_from(tmp_path)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last_blocks", [0, 1])
def test_peft_puts_the_adapter_on_the_start(
    tiny_clip_folder: Path, tmp_path: Path, last_blocks: int
) -> None:
    choice = ["full", "lora", *(["last:1"] if last_blocks else [])]
    classifier = tuned(tiny_clip_folder, choice, "frozen")
    save_adapter(classifier, tmp_path)
    start = CLIPModel.from_pretrained(tiny_clip_folder)
    model = PeftModel.from_pretrained(start, str(tmp_path))
    torch.testing.assert_close(clip_logits(model, tiny_clip_folder), logits_of(classifier))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_saving_leaves_the_classifier_as_it_is(
    tiny_clip_folder: Path, tmp_path: Path, choice: Sequence[str]
) -> None:
    classifier = tuned(tiny_clip_folder, choice)
    expected, weights = logits_of(classifier), frozen_copy(classifier)
    flags = [p.requires_grad for p in classifier.parameters()]
    saved(classifier, tiny_clip_folder, tmp_path)
    assert torch.equal(logits_of(classifier), expected)
    assert [p.requires_grad for p in classifier.parameters()] == flags
    now = frozen_copy(classifier)
    assert list(now) == list(weights)
    assert all(torch.equal(now[name], weights[name]) for name in weights)
    train(classifier)  # and it still trains


def test_merged_model_shares_no_weight_with_the_classifier(tiny_clip_folder: Path) -> None:
    classifier = tuned(tiny_clip_folder, ("image", "lora"))
    expected = logits_of(classifier)
    with torch.no_grad():
        for parameter in merged(classifier.encoder).parameters():
            parameter.zero_()
    assert torch.equal(logits_of(classifier), expected)


def test_clamped_scale_is_saved_clamped(tiny_clip_folder: Path, tmp_path: Path) -> None:
    classifier = classifier_from(tiny_clip_folder, ("image",), logit_scale="clamped")
    with torch.no_grad():
        classifier.backbone.logit_scale.fill_(math.log(110.0))
    expected = logits_of(classifier)
    saved(classifier, tiny_clip_folder, tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    torch.testing.assert_close(clip_logits(model, tmp_path), expected, rtol=1e-4, atol=1e-4)


def test_tokenizer_and_processors_load_from_the_folder(
    tiny_clip_folder: Path, tmp_path: Path
) -> None:
    start = load_clip(str(tiny_clip_folder))
    saved(tuned(tiny_clip_folder, ("image",)), tiny_clip_folder, tmp_path)
    expected = start.tokenizer(TEXTS)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"] == expected
    both = CLIPProcessor.from_pretrained(tmp_path)
    assert both.tokenizer(TEXTS)["input_ids"] == expected
    settings = start.processor.to_dict()
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").to_dict() == settings


def test_card_and_info_lie_beside_the_weights(tiny_clip_folder: Path, tmp_path: Path) -> None:
    saved(classifier_from(tiny_clip_folder), tiny_clip_folder, tmp_path, data="cifar10", method="é")
    assert (tmp_path / "README.md").read_text() == "# a card\n"
    assert json.loads((tmp_path / "visgrpo.json").read_text(encoding="utf-8")) == {
        "classes": list(CLASSES),
        "templates": list(TEMPLATES),
        "data": "cifar10",
        "method": "é",
    }
    assert load_clip(str(tmp_path)).info["classes"] == list(CLASSES)


def test_model_card_has_the_measured_numbers() -> None:
    card = label_card(
        {
            "recipe": "clip",
            "model": "openai/clip",
            "method": "grpo",
            "steps": 200,
            "best_step": 150,
            "kept_step": 150,
            "data": {"name": "cifar10", "test": 1000, "classes": 10},
            "before": {"accuracy": 0.5, "ece": 0.25, "nll": 1.5},
            "after": {"accuracy": 0.75, "ece": 0.125, "nll": 1.25},
            "retention": {"digits": {"before": 0.5, "after": 0.375}},
        }
    )
    assert "# openai/clip tuned on cifar10 with grpo" in card
    assert "| accuracy | 0.5000 | 0.7500 |" in card
    assert "| NLL (nats) | 1.5000 | 1.2500 |" in card
    assert "| accuracy on digits, not tuned on | 0.5000 | 0.3750 |" in card
    assert "200 steps, weights of step 150" in card
    assert "| KL" not in card  # not measured
    assert "tags: [visgrpo, clip, grpo]" in card
    assert "prompts are in `visgrpo.json`" in card


def test_card_of_a_model_with_a_head_says_how_to_load_both() -> None:
    card = label_card(
        {
            "recipe": "segmentation",
            "model": "facebook/dinov2-small",
            "method": "grpo-rm",
            "steps": 200,
            "best_step": 150,
            "kept_step": 200,
            "data": {"name": "photos", "test": 10, "classes": 3},
            "before": {"miou": 0.25, "per_class_iou": {}},
            "after": {"miou": 0.5, "per_class_iou": {}},
        }
    )
    assert "tags: [visgrpo, segmentation, grpo-rm]" in card
    assert "| mIoU | 0.2500 | 0.5000 |" in card
    assert "weights of step 200" in card
    assert "load_representation(" in card
    assert "AutoModel.from_pretrained(" in card
    assert "prompts" not in card
