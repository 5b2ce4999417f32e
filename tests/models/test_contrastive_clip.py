"""Contrastive pre-training: transformers' own loss, and captions that repeat."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from classifiers import pixels

from visgrpo.models.clip import ContrastiveClip
from visgrpo.models.load import load_clip
from visgrpo.objectives.losses import contrastive_loss

TEXTS = ["a cat", "a photo of a dog.", "an apple", "two dogs and a cat"]


def test_loss_and_gradient_are_those_of_clip(tiny_clip_folder: Path) -> None:
    ours, theirs = (load_clip(str(tiny_clip_folder)) for _ in range(2))
    loss = contrastive_loss(
        ContrastiveClip(ours.model, ours.tokenizer)(pixels(4), TEXTS), torch.arange(4)
    )
    loss.backward()
    encoded = theirs.tokenizer(TEXTS, padding=True, return_tensors="pt")
    expected = theirs.model(pixel_values=pixels(4), **encoded, return_loss=True).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    gradients = {name: p.grad for name, p in theirs.model.named_parameters()}
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_captions_may_come_in_any_order() -> None:
    logits_NU = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 3, 1])
    straight = contrastive_loss(logits_NU, torch.arange(4))
    torch.testing.assert_close(contrastive_loss(logits_NU[:, order.argsort()], order), straight)


def test_repeated_captions_by_plain_loops() -> None:
    """Images of one caption are all its positives, and none is another's negative caption."""
    rows = [[1.0, 0.5, -1.0], [0.2, 0.3, 0.0], [2.0, -0.5, 0.7], [0.0, 1.5, 0.1], [0.4, 0.4, 0.9]]
    captions = [0, 1, 0, 2, 0]
    to_text = 0.0
    for row, caption in zip(rows, captions, strict=True):
        to_text -= math.log(math.exp(row[caption]) / sum(math.exp(v) for v in row)) / len(rows)
    to_image = 0.0
    for caption in range(3):
        column = [row[caption] for row in rows]
        total = sum(math.exp(value) for value in column)
        positives = [n for n, c in enumerate(captions) if c == caption]
        to_image -= sum(math.log(math.exp(column[n]) / total) for n in positives) / len(positives)
    expected = (to_text + to_image / 3) / 2
    loss = contrastive_loss(torch.tensor(rows), torch.tensor(captions))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_scale_is_capped_at_100(tiny_clip_folder: Path) -> None:
    parts = load_clip(str(tiny_clip_folder))
    with torch.no_grad():
        parts.model.logit_scale.fill_(math.log(110.0))
        logits = ContrastiveClip(parts.model, parts.tokenizer)(pixels(4), TEXTS)
        encoded = parts.tokenizer(TEXTS, padding=True, return_tensors="pt")
        output = parts.model(pixel_values=pixels(4), **encoded)
    torch.testing.assert_close(logits, 100.0 * output.image_embeds @ output.text_embeds.T)


def test_long_captions_are_cut(tiny_clip_folder: Path) -> None:
    parts = load_clip(str(tiny_clip_folder))
    logits = ContrastiveClip(parts.model, parts.tokenizer)(pixels(2), ["a cat " * 60, "a dog"])
    assert logits.shape == (2, 2)
    assert bool(logits.isfinite().all())
