"""A set of labels as a mask of one row: a place for each label, which is in the set or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visgrpo.methods.class_set import Rows


@dataclass(frozen=True)
class SetView:
    """Yes or no for each of K labels of an image: logits (N, K), sets (N, K) of 0 and 1.

    A label with logit z is in the set with probability sigmoid(z) = softmax(0, z)_1, by itself. So
    what draws masks draws sets, and losses of pixels are losses of labels: cross-entropy is the
    mean binary cross-entropy.
    """

    ignore_index: ClassVar[int] = -1

    def rows(self, logits: Tensor, labels: Tensor, *, whole: bool = False) -> Rows:
        both_NK2 = _no_or_yes(logits)
        inputs_NK = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
        if whole:
            return Rows(both_NK2, labels, inputs_NK, None, len(labels))
        return Rows(
            both_NK2.flatten(0, 1), labels.flatten(), inputs_NK.flatten(), None, len(labels)
        )

    def places(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, 1, K, 2) and sets (N, 1, K)."""
        return _no_or_yes(logits)[:, None], labels[:, None]

    def numbers_of_one(self, logits: Tensor, labels: Tensor) -> int:
        return 2 * logits.shape[1]


def _no_or_yes(logits_NK: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(logits_NK), logits_NK], dim=-1)
