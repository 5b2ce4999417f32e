"""How the output of a model asks for decisions: one for each image, or one for each pixel.

A view turns logits and labels into *rows*, each of which has its own group of classes. The policy
and the supervised baseline see rows alone, so images and pixels share both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from visgrpo.data.preprocess import majority_labels

DecideAt = Literal["patch", "pixel"]
Upsample = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Rows:
    """R decisions of N inputs.

    Attributes:
        logits_RK: with the gradient of the logits they were made from.
        labels_R: true class ids, int64.
        inputs_R: which of the N inputs a row belongs to, int64.
        weights_R: how much each row counts, so that the mean over rows of value × weight is the
            mean over inputs of their own means; None where that is the plain mean.
        one_per_input: whether row n is input n.
    """

    logits_RK: Tensor
    labels_R: Tensor
    inputs_R: Tensor
    weights_R: Tensor | None
    one_per_input: bool = False

    def weights(self, these: slice) -> Tensor | None:
        return None if self.weights_R is None else self.weights_R[these]


class View(Protocol):
    """What a decision is about."""

    def rows(self, logits: Tensor, labels: Tensor) -> Rows:
        """Return the rows of some inputs."""

    def numbers_of_one(self, logits: Tensor, labels: Tensor) -> int:
        """Return how many logits the rows of one input hold."""


@dataclass(frozen=True)
class ImageView:
    """One class for each image: logits (N, K), labels (N,)."""

    def rows(self, logits: Tensor, labels: Tensor) -> Rows:
        inputs_R = torch.arange(len(labels), device=labels.device)
        return Rows(logits, labels, inputs_R, None, one_per_input=True)

    def numbers_of_one(self, logits: Tensor, labels: Tensor) -> int:
        return logits.shape[1]


@dataclass(frozen=True)
class PixelView:
    """One class for each labelled pixel, or for each patch: logits (N, h, w, K), masks (N, H, W).

    Every *image* counts the same, however many of its pixels have labels: the loss is the mean over
    images of the mean over their pixels, and so does not depend on how a batch is cut into pieces.

    Attributes:
        stride: pixels of a patch on a side; h = ⌈H / stride⌉, and so for w.
        ignore_index: the mask's value of pixels without a label.
        upsample: brings logits of the patches to pixels of the given height and width.
        decide_at: ``patch``, where the most frequent label of its pixels is the truth; or
            ``pixel``, on upsampled logits.
    """

    stride: int
    ignore_index: int
    upsample: Upsample
    decide_at: DecideAt = "patch"

    def rows(self, logits: Tensor, labels: Tensor) -> Rows:
        n_inputs, n_classes = len(logits), logits.shape[-1]
        if self.decide_at == "patch":
            labels = majority_labels(labels, self.stride, self.ignore_index, n_classes)
        else:
            logits = self.upsample(logits, labels.shape[1:])
        labelled = labels != self.ignore_index
        counts_N = labelled.flatten(1).sum(dim=1)
        inputs_R = torch.repeat_interleave(counts_N)
        total = len(inputs_R)
        equal = bool((counts_N == counts_N[0]).all()) and total > 0
        weights_N = total / (n_inputs * counts_N.clamp(min=1).float())
        whole = total == labels.numel()
        return Rows(
            logits.reshape(-1, n_classes) if whole else logits[labelled],
            labels.flatten() if whole else labels[labelled],
            inputs_R,
            None if equal else weights_N[inputs_R],
        )

    def numbers_of_one(self, logits: Tensor, labels: Tensor) -> int:
        places = logits[0, ..., 0] if self.decide_at == "patch" else labels[0]
        return places.numel() * logits.shape[-1]
