"""The classifier's logits, its text cache and its scale, against transformers' own forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from classifiers import CLASSES, batch_of, classifier_from, like, logits_of, pixels, train
from torch import Tensor

from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip

TEXTS = ["a photo of a cat.", "a photo of a dog.", "a photo of an apple."]
ENSEMBLE = ("a photo of a {}.", "a drawing of a {}.", "{}")
TEXT_SIDES = [
    ("text",),
    ("full",),
    ("projections",),
    ("text", "lora"),
    ("full", "last:1", "lora"),
]


def clip_forward(folder: Path, texts: list[str] = TEXTS) -> Any:
    parts = load_clip(str(folder))
    encoded = parts.tokenizer(texts, padding=True, return_tensors="pt")
    return parts.model.eval()(pixel_values=pixels(), **encoded)


def count_text_passes(classifier: ClipClassifier) -> list[int]:
    passes: list[int] = []
    classifier.backbone.text_model.register_forward_hook(lambda *_: passes.append(1))
    return passes


def test_logits_are_those_of_clip(tiny_clip_folder: Path) -> None:
    with torch.no_grad():
        expected = clip_forward(tiny_clip_folder).logits_per_image
    torch.testing.assert_close(logits_of(classifier_from(tiny_clip_folder)), expected)


def test_logits_are_those_of_siglip_but_for_its_constant_bias(tiny_siglip_folder: Path) -> None:
    parts = load_clip(str(tiny_siglip_folder))
    encoded = parts.tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = parts.model.eval()(
            pixel_values=pixels(), input_ids=encoded["input_ids"]
        ).logits_per_image
    logits = logits_of(classifier_from(tiny_siglip_folder))
    torch.testing.assert_close(logits, expected + 5.0)
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1))


def test_templates_are_averaged_as_unit_vectors(tiny_clip_folder: Path) -> None:
    per_class = [
        [text, text.replace("photo", "drawing"), name]
        for text, name in zip(TEXTS, CLASSES, strict=True)
    ]
    with torch.no_grad():
        # transformers returns both embeddings at length 1
        output = clip_forward(tiny_clip_folder, [t for ts in per_class for t in ts])
    texts_KPD = output.text_embeds.numpy().reshape(3, 3, -1).astype(np.float64)
    mean_KD = texts_KPD.mean(axis=1)
    mean_KD /= np.linalg.norm(mean_KD, axis=1, keepdims=True)
    expected = output.image_embeds.numpy() @ mean_KD.T / 0.07  # CLIP starts at ln(1/0.07)
    logits = logits_of(classifier_from(tiny_clip_folder, templates=ENSEMBLE))
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_frozen_text_is_encoded_once(tiny_clip_folder: Path) -> None:
    classifier = classifier_from(tiny_clip_folder, ("image",))
    passes = count_text_passes(classifier)
    train(classifier, steps=3)
    logits_of(classifier)
    assert len(passes) == 1
    classifier.forget_text()
    logits_of(classifier)
    assert len(passes) == 2


def test_trained_text_is_encoded_in_every_step_and_once_per_evaluation(
    tiny_clip_folder: Path,
) -> None:
    classifier = classifier_from(tiny_clip_folder, ("text",))
    passes = count_text_passes(classifier)
    train(classifier, steps=3)
    assert len(passes) == 3
    classifier(pixels(2))
    classifier(pixels(3))
    assert len(passes) == 4


@pytest.mark.parametrize("side", ["text", "full", "projections"])
def test_gradient_is_that_of_clip(tiny_clip_folder: Path, side: Any) -> None:
    classifier = classifier_from(tiny_clip_folder, (side,))
    labels = batch_of(pixels()).labels_N
    logits_of(classifier)  # an evaluation before must leave nothing behind
    F.cross_entropy(classifier.train()(pixels()), labels).backward()
    parts = load_clip(str(tiny_clip_folder))
    encoded = parts.tokenizer(TEXTS, padding=True, return_tensors="pt")
    own = parts.model.train()(pixel_values=pixels(), **encoded).logits_per_image
    F.cross_entropy(own, labels).backward()
    expected = dict(parts.model.named_parameters())
    found = [(n, p) for n, p in classifier.backbone.named_parameters() if p.requires_grad]
    assert any(name.startswith("text_") for name, _ in found)
    for name, parameter in found:
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("choice", TEXT_SIDES, ids=str)
def test_evaluation_sees_the_text_weights_of_now(
    tiny_clip_folder: Path, choice: Sequence[str]
) -> None:
    classifier = classifier_from(tiny_clip_folder, choice)
    before = logits_of(classifier)
    for _ in range(2):
        train(classifier, rate=0.5)
        after = logits_of(classifier)
        assert not torch.allclose(after, before, atol=1e-3)
        torch.testing.assert_close(after, logits_of(like(classifier, tiny_clip_folder)))
        before = after


def test_two_classifiers_of_one_encoder_each_see_the_weights_of_now(
    tiny_clip_folder: Path,
) -> None:
    classifier = classifier_from(tiny_clip_folder, ("text",))
    other = like(classifier, tiny_clip_folder)
    logits_of(other)
    train(classifier, rate=0.5)
    torch.testing.assert_close(logits_of(other), logits_of(classifier))


@pytest.mark.parametrize("family", ["tiny_clip_folder", "tiny_siglip_folder"])
def test_pooled_features_give_the_logits_of_their_pixels(
    family: str, request: pytest.FixtureRequest
) -> None:
    classifier = classifier_from(request.getfixturevalue(family), ("text",))
    expected = logits_of(classifier)
    with torch.no_grad():
        pooled = classifier.features(pixels())
    classifier.inputs_are_features = True
    assert pooled.shape == (6, 32)
    torch.testing.assert_close(logits_of(classifier, pooled), expected)


def scale_of(classifier: ClipClassifier) -> Tensor:
    return classifier.backbone.logit_scale


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("mode", ["frozen", "trainable", "clamped"])
@pytest.mark.parametrize("family", ["tiny_clip_folder", "tiny_siglip_folder"])
def test_scale_trains_unless_frozen(
    family: str, mode: Any, lora: bool, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    classifier = classifier_from(folder, ("image", *(["lora"] if lora else [])), logit_scale=mode)
    start = scale_of(classifier).item()
    train(classifier)
    assert (scale_of(classifier).item() == start) == (mode == "frozen")
    assert classifier.scale().item() == pytest.approx(math.exp(scale_of(classifier).item()))


@pytest.mark.parametrize(("mode", "expected"), [("trainable", 110.0), ("clamped", 100.0)])
def test_clamped_scale_ends_at_100(tiny_clip_folder: Path, mode: Any, expected: float) -> None:
    classifier = classifier_from(tiny_clip_folder, ("image",), logit_scale=mode)
    with torch.no_grad():
        scale_of(classifier).fill_(math.log(110.0))
    assert classifier.scale().item() == pytest.approx(expected, rel=1e-5)


def test_scale_that_overshot_the_ceiling_comes_back(tiny_clip_folder: Path) -> None:
    """A clamp in the graph alone has no gradient above 100, and would hold the scale for ever."""
    classifier = classifier_from(tiny_clip_folder, ("image",), logit_scale="clamped")
    with torch.no_grad():
        scale_of(classifier).fill_(math.log(110.0))
    optimizer = torch.optim.SGD([scale_of(classifier)], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        classifier.scale().backward()
        optimizer.step()
    assert classifier.scale().item() < 95.0


def test_logits_are_float32_with_bfloat16_towers(tiny_clip_folder: Path) -> None:
    classifier = classifier_from(tiny_clip_folder).to(torch.bfloat16)
    assert logits_of(classifier, pixels().bfloat16()).dtype == torch.float32
