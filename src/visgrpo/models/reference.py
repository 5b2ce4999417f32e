"""The frozen reference of the KL term: the start's own image features, text and logit scale.

Three ways to have it, cheapest first:

    cached        logits of every training image computed once; needs images that never change
    adapter_off   a second forward pass with the adapter switched off; needs a start without one
    copy          a second forward pass through a frozen copy of the start
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.models.clip import ClipClassifier

ReferenceKind = Literal["cached", "adapter_off", "copy"]


class Reference(Protocol):
    """Whatever answers a batch with the reference's log-probs (N, K), without gradient."""

    kind: ReferenceKind

    def log_probs(self, batch: Batch) -> Tensor: ...


class CachedReference:
    """A table (M, K) of log-probs, looked up by the position of an image in its data set."""

    kind: ReferenceKind = "cached"

    def __init__(self, logits_MK: Tensor) -> None:
        self._log_probs_MK = logits_MK.float().log_softmax(dim=-1)

    def log_probs(self, batch: Batch) -> Tensor:
        rows = batch.indices_N.to(self._log_probs_MK.device)
        return self._log_probs_MK[rows].to(batch.inputs.device)


class AdapterOffReference:
    """The start seen through its own adapted model with the adapter off.

    Text features and scale are kept from the start, so that neither a trained text side nor a
    trained scale leaks in. Call it before the first update.
    """

    kind: ReferenceKind = "adapter_off"

    def __init__(self, classifier: ClipClassifier) -> None:
        self._classifier = classifier
        with torch.no_grad(), self._off():
            self._texts_KD = classifier.embed_classes().clone()
            self._scale = classifier.scale().clone()
        classifier.forget_text()

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> Tensor:
        classifier = self._classifier
        training = classifier.training
        classifier.eval()
        with self._off():
            images_ND = classifier.embed_images(batch.inputs)
        classifier.train(training)
        logits_NK = self._scale * (images_ND @ self._texts_KD.to(images_ND.dtype).T).float()
        return logits_NK.log_softmax(dim=-1)

    def _off(self) -> AbstractContextManager[Any]:
        return self._classifier.encoder.disable_adapter()


class CopyReference:
    """A frozen copy of what trains; costs its memory and one forward pass a step."""

    kind: ReferenceKind = "copy"

    def __init__(self, classifier: ClipClassifier) -> None:
        classifier.forget_text()
        shared = {id(p): p for p in classifier.parameters() if not p.requires_grad}
        self._frozen = copy.deepcopy(classifier, shared).requires_grad_(False).eval()

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> Tensor:
        return self._frozen(batch.inputs).log_softmax(dim=-1)


def live_reference(classifier: ClipClassifier) -> Reference:
    """Return the cheapest reference that can answer for images that change from epoch to epoch."""
    if classifier.has_adapter:
        return AdapterOffReference(classifier)
    return CopyReference(classifier)
