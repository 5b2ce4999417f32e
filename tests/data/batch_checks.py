"""Comparisons of batches that several tests make."""

from __future__ import annotations

import torch

from visgrpo.data.batches import Batch


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.indices_N, b.indices_N)
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels_N, b.labels_N)
        assert a.columns == b.columns
