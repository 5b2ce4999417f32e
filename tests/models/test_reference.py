"""The frozen reference: three ways to have it, one answer, and nothing leaks in or out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import batch_of, classifier_from, frozen_copy, logits_of, pixels, train

from visgrpo.models.clip import ClipClassifier
from visgrpo.models.reference import (
    AdapterOffReference,
    CachedReference,
    CopyReference,
    Reference,
    live_reference,
)
from visgrpo.models.save import save_adapter
from visgrpo.objectives import categorical_kl

FULL = ("full",)
LORA = ("full", "lora")
CHOICES = [FULL, LORA, ("full", "last:1", "lora"), ("image", "lora")]
BATCH = batch_of(pixels())


def references(classifier: ClipClassifier) -> list[Reference]:
    """Every kind that is valid for a classifier."""
    found: list[Reference] = [CachedReference(logits_of(classifier)), CopyReference(classifier)]
    if classifier.has_adapter:
        found.append(AdapterOffReference(classifier))
    return found


@pytest.mark.parametrize("family", ["tiny_clip_folder", "tiny_siglip_folder"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_all_kinds_are_the_start_and_stay_it(
    family: str, choice: Sequence[str], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    start = logits_of(classifier_from(folder)).log_softmax(-1)
    classifier = classifier_from(folder, choice, logit_scale="trainable")
    kinds = references(classifier)
    for reference in kinds:
        torch.testing.assert_close(reference.log_probs(BATCH), start)
    train(classifier, steps=2, rate=0.1)
    moved = logits_of(classifier).log_softmax(-1)
    assert not torch.allclose(moved, start, atol=1e-2)
    for mode in (True, False):
        classifier.train(mode)
        for reference in kinds:
            torch.testing.assert_close(reference.log_probs(BATCH), start)


@pytest.mark.parametrize(("choice", "kind"), [(FULL, "copy"), (LORA, "adapter_off")], ids=str)
def test_live_reference_is_the_cheapest_valid(
    tiny_clip_folder: Path, choice: Sequence[str], kind: str
) -> None:
    assert live_reference(classifier_from(tiny_clip_folder, choice)).kind == kind


def test_cached_reference_looks_rows_up(tiny_clip_folder: Path) -> None:
    table_MK = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]])
    found = CachedReference(table_MK).log_probs(batch_of(pixels(3)).select([2, 0]))
    torch.testing.assert_close(
        found.exp(), torch.tensor([[0.880797, 0.119203], [0.268941, 0.731059]])
    )


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_kl_gradient_is_the_policys_alone(tiny_clip_folder: Path, choice: Sequence[str]) -> None:
    """Whatever the kind, asked between forward and backward or before both."""
    classifier = classifier_from(tiny_clip_folder, choice, logit_scale="trainable")
    kinds = references(classifier)
    train(classifier, rate=0.1)
    flags = {name: p.requires_grad for name, p in classifier.named_parameters()}
    classifier.train()
    gradients = []
    for reference in kinds:
        classifier.zero_grad(set_to_none=True)
        policy = classifier(BATCH.inputs).log_softmax(-1)
        answer = reference.log_probs(BATCH)
        assert not answer.requires_grad
        categorical_kl(policy, answer).mean().backward()
        gradients.append({n: p.grad for n, p in classifier.named_parameters() if p.requires_grad})
        assert classifier.training
        assert {name: p.requires_grad for name, p in classifier.named_parameters()} == flags
        assert all(p.grad is None for n, p in classifier.named_parameters() if not flags[n])
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("choice", [*CHOICES, ("text", "lora")], ids=str)
def test_asking_the_reference_does_not_change_the_policy(
    tiny_clip_folder: Path, choice: Sequence[str]
) -> None:
    classifier = classifier_from(tiny_clip_folder, choice)
    kinds = references(classifier)
    train(classifier, rate=0.1)
    expected, weights = logits_of(classifier), frozen_copy(classifier)
    for reference in kinds:
        reference.log_probs(BATCH)
        assert not classifier.training
        assert torch.equal(classifier(BATCH.inputs), expected)
    for name, parameter in classifier.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_start_with_an_adapter_is_the_reference_of_a_new_one(
    tiny_clip_folder: Path, tmp_path: Path
) -> None:
    first = classifier_from(tiny_clip_folder, LORA)
    train(first, rate=0.1)
    save_adapter(first, tmp_path / "adapter")
    start = logits_of(first).log_softmax(-1)
    second = classifier_from(tmp_path / "adapter", LORA)
    reference = AdapterOffReference(second)
    train(second, rate=0.1)
    torch.testing.assert_close(reference.log_probs(BATCH), start, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "choice",
    [
        ("text",),
        ("projections",),
        ("text", "lora"),
    ],
    ids=str,
)
def test_pooled_inputs(tiny_clip_folder: Path, choice: Sequence[str]) -> None:
    start = logits_of(classifier_from(tiny_clip_folder)).log_softmax(-1)
    classifier = classifier_from(tiny_clip_folder, choice)
    with torch.no_grad():
        pooled: Any = classifier.features(pixels())
    classifier.inputs_are_features = True
    reference = live_reference(classifier)
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    classifier.train()(pooled)[:, 0].sum().backward()
    optimizer.step()
    torch.testing.assert_close(reference.log_probs(batch_of(pooled)), start)


@pytest.mark.parametrize("choice", [FULL, LORA], ids=str)
def test_dropout_of_the_checkpoint_stays_off(tiny_clip_folder: Path, choice: Sequence[str]) -> None:
    start = logits_of(classifier_from(tiny_clip_folder)).log_softmax(-1)
    classifier = classifier_from(tiny_clip_folder, choice)
    for layer in classifier.backbone.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.5  # what "attention_dropout" of a config sets
    reference = live_reference(classifier)
    torch.testing.assert_close(reference.log_probs(BATCH), start)
    classifier.train()
    torch.testing.assert_close(reference.log_probs(BATCH), start)


@pytest.mark.parametrize("choice", [FULL, LORA], ids=str)
def test_making_the_reference_leaves_the_next_step_its_text_gradient(
    tiny_clip_folder: Path, choice: Sequence[str]
) -> None:
    classifier = classifier_from(tiny_clip_folder, choice).train()
    live_reference(classifier)
    classifier(BATCH.inputs)[:, 0].sum().backward()
    trained = [p for p in classifier.backbone.text_model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)
