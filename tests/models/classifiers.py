"""Small classifiers for the tests of the models room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgrpo.data.batches import Batch
from visgrpo.models.clip import ClipClassifier, LogitScale
from visgrpo.models.load import load_clip
from visgrpo.models.trains import adapt

CLASSES = ("cat", "dog", "apple")
TEMPLATES = ("a photo of a {}.",)


def classifier_from(
    folder: Path,
    choice: Sequence[str] | None = None,
    *,
    classes: Sequence[str] = CLASSES,
    templates: Sequence[str] = TEMPLATES,
    logit_scale: LogitScale = "frozen",
) -> ClipClassifier:
    """Load a classifier; adapted if there is a choice."""
    parts = load_clip(str(folder))
    classifier = ClipClassifier(
        parts.model, parts.tokenizer, classes, templates, logit_scale=logit_scale
    )
    if choice is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adapt(classifier, choice)
    return classifier


def like(classifier: ClipClassifier, folder: Path) -> ClipClassifier:
    """A classifier that shares another's weights and has computed nothing yet."""
    return ClipClassifier(
        classifier.encoder,
        load_clip(str(folder)).tokenizer,
        classifier.classes,
        classifier.templates,
        logit_scale=classifier.scale_mode,
    )


def pixels(n: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch_of(inputs: Tensor) -> Batch:
    """Rows 0 to N of a data set whose labels go round."""
    rows = torch.arange(len(inputs))
    return Batch(rows, inputs, rows % len(CLASSES), {})


def train(classifier: ClipClassifier, steps: int = 1, rate: float = 0.02) -> None:
    """Some steps of cross-entropy, in training mode, on what trains; evaluation mode after."""
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=rate)
    classifier.train()
    batch = batch_of(pixels())
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(classifier(batch.inputs), batch.labels_N).backward()
        optimizer.step()
    classifier.eval()


@torch.no_grad()
def logits_of(classifier: ClipClassifier, inputs: Tensor | None = None) -> Tensor:
    """Logits in evaluation mode."""
    return classifier.eval()(pixels() if inputs is None else inputs)


def frozen_copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}
