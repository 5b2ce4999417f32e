"""Contrastive pre-training of a backbone: its method, sizes and memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from visgrpo.data.batches import Batch
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.models.backbone import Backbone
from visgrpo.models.small import SmallBackbone, build_small_backbone
from visgrpo.tasks.options import PretrainBackboneConfig
from visgrpo.tasks.pretrain import (
    ContrastiveViews,
    ProjectedBackbone,
    memory_of,
    sizes_of,
)

SIZES = SmallBackbone(image_size=16, patch_size=8, width=16, layers=1, heads=2)


@pytest.fixture
def model() -> ProjectedBackbone:
    torch.manual_seed(0)
    return ProjectedBackbone(Backbone(build_small_backbone(SIZES, seed=0).model), projection=8)


@pytest.fixture
def batch() -> Batch:
    pixels = torch.randn(4, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(torch.tensor([7, 2, 9, 4]), pixels, torch.tensor([0, 1, 0, 1]), {})


def test_vectors_come_from_class_token_and_mean_patch(
    model: ProjectedBackbone, batch: Batch
) -> None:
    vectors_VE = model(batch.inputs.flatten(0, 1))
    assert vectors_VE.shape == (8, 8)
    vectors_VE.square().sum().backward()
    first = next(model.projection.parameters()).grad
    assert first is not None
    assert bool((first.abs().sum(dim=0) > 0).all())
    assert all(p.grad is not None for p in model.backbone.encoder.layernorm.parameters())


def test_views_attract_without_labels(model: ProjectedBackbone, batch: Batch) -> None:
    method = ContrastiveViews(temperature=0.5, by_class=False)
    result = method.loss(model, batch, None, step=0)
    other = method.loss(model, replace(batch, labels_N=torch.tensor([1, 1, 1, 1])), None, step=0)
    assert torch.equal(result.loss, other.loss)
    # By hand: of the seven other views, choose the one of the same image.
    unit = torch.nn.functional.normalize(model(batch.inputs.flatten(0, 1)), dim=1)
    shares = (unit @ unit.T / 0.5).exp().fill_diagonal_(0)
    partner = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    chosen = shares[torch.arange(8), partner] / shares.sum(dim=1)
    torch.testing.assert_close(result.loss, -chosen.log().mean())
    nearest = (shares.argmax(dim=1) == partner).float().mean()
    torch.testing.assert_close(result.metrics["match_rate"], nearest)


def test_classes_attract_whichever_their_rows(model: ProjectedBackbone, batch: Batch) -> None:
    method = ContrastiveViews(temperature=0.5, by_class=True)
    loss = method.loss(model, batch, None, step=0).loss
    elsewhere = replace(batch, indices_N=torch.tensor([0, 1, 2, 3]))
    assert torch.equal(loss, method.loss(model, elsewhere, None, step=0).loss)
    by_view = ContrastiveViews(temperature=0.5, by_class=False).loss(model, batch, None, step=0)
    assert not torch.equal(loss, by_view.loss)


def test_there_are_no_groups(model: ProjectedBackbone, batch: Batch) -> None:
    method = ContrastiveViews(temperature=0.5, by_class=False)
    method.rollout(model, batch, 0, chunk=4)
    result = method.loss(model, batch, None, step=0)
    assert result.groups is None
    assert method.samples(None, 4) == []


def test_sizes_have_defaults_for_each_family() -> None:
    vit = sizes_of(PretrainBackboneConfig(family="dinov2"))
    assert vit == SmallBackbone("dinov2", patch_size=4, width=128, layers=4)
    resnet = sizes_of(PretrainBackboneConfig(family="resnet", width=64, patch_size=8))
    assert resnet == SmallBackbone("resnet", patch_size=8, width=64, layers=1)


def test_memory_is_at_most_5000_rows_drawn_by_the_seed(tiny_dataset: Table) -> None:
    assert memory_of(tiny_dataset, seed=0) is tiny_dataset
    image = Image.new("RGB", (2, 2))
    numbers = np.arange(6000)
    large = image_table("large", ("a", "b"), numbers % 2, [image] * 6000, {"row": numbers.tolist()})
    rows = list(memory_of(large, seed=0).columns["row"])
    assert len(rows) == len(set(rows)) == 5000
    assert rows == list(memory_of(large, seed=0).columns["row"])
    assert rows != list(memory_of(large, seed=1).columns["row"])
