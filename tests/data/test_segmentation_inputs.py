"""Image and mask through the same crops, flips and sizes, into batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batch_checks import assert_same
from PIL import Image

from visgrpo.data.batches import BatchLoader, CachedInputs, sequential
from visgrpo.data.inputs import (
    SegmentationInputs,
    augment,
    augment_with_mask,
    preprocessed_masks,
    segmentation_inputs,
)
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.roles import mask_table
from visgrpo.data.table import Table
from visgrpo.errors import UserError

ROWS = 9
BUDGET = ROWS * 8 * 12 * (3 * 4 + 1)  # bytes of the float32 pixels and uint8 masks below


def world(size: tuple[int, int] = (12, 8), rows: int = ROWS, **options: Any) -> Table:
    """Blocks of 4 × 4 pixels in one of two grey tones, and masks that say which."""
    rng = np.random.default_rng(0)
    width, height = size
    coarse = rng.integers(0, 2, (rows, height // 4, width // 4)).astype(np.uint8)
    masks = list(coarse.repeat(4, axis=1).repeat(4, axis=2))
    images = [Image.fromarray(255 * mask).convert("RGB") for mask in masks]
    return mask_table("tones/train", ("dark", "bright"), images, masks, **options)


def tones(pixels: torch.Tensor) -> torch.Tensor:
    """The mask that a picture of the world shows."""
    return (pixels[..., 0, :, :] > 0.5).long()


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        Preprocess(size=(16, 24), resample=Image.Resampling.NEAREST),
        Preprocess(size=(5, 7), resample=Image.Resampling.NEAREST),
        Preprocess(shortest_edge=6, resample=Image.Resampling.NEAREST, crop=(4, 4)),
        Preprocess(crop=(3, 5)),
    ],
)
@pytest.mark.parametrize("ignore_index", [255, -1, 40_000])
def test_a_mask_comes_out_as_its_image(preprocess: Preprocess, ignore_index: int) -> None:
    dataset = world(ignore_index=ignore_index)
    for batch in sequential(dataset, SegmentationInputs(dataset, preprocess), 4):
        assert batch.labels_N.dtype == torch.long
        assert torch.equal(batch.labels_N, tones(batch.inputs))


def test_bilinear_images_keep_their_masks_but_at_the_edges() -> None:
    dataset = world()
    inputs = SegmentationInputs(dataset, Preprocess(size=(40, 60), resample=2))
    for row in range(ROWS):
        pixels, ids = inputs(row, np.random.default_rng(0))
        inside = (pixels[0] < 0.02) | (pixels[0] > 0.98)
        assert inside.float().mean() > 0.3
        assert torch.equal(ids[inside].long(), tones(pixels)[inside])


@pytest.mark.parametrize("size", [(12, 8), (11, 7), (3, 20)])
@pytest.mark.parametrize("crop", [(14, 15), (5, 30), (9, 2)])
def test_padding_becomes_ignored(size: tuple[int, int], crop: tuple[int, int]) -> None:
    # An all-white picture is black exactly where it was padded.
    image, ids = Image.new("RGB", size, (255,) * 3), np.ones(size[::-1], dtype=np.uint8)
    preprocess = Preprocess(crop=crop)
    mask = preprocess.mask(ids, 255)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask, torch.where(preprocess(image)[0] == 1, 1, 255).to(torch.uint8))


def test_dense_settings_keep_the_shape_and_the_normalisation() -> None:
    given = Preprocess(shortest_edge=8, crop=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    image = Image.new("RGB", (12, 20), (51, 102, 153))
    pixels = given.for_dense()(image)
    assert pixels.shape == (3, 20, 12)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([-1.5, 0.0, 3.0]))
    assert given.for_dense((10, 6))(image).shape == (3, 10, 6)
    with pytest.raises(UserError, match="image size 0 × 4 must be 1 × 1 or more"):
        given.for_dense((0, 4))


@pytest.mark.parametrize("names", [["crop"], ["flip"], ["color"], ["color", "crop", "flip"]])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_augmented_images_are_those_without_a_mask(names: list[str], dtype: type) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    ids = np.random.default_rng(2).integers(0, 3, (24, 40)).astype(dtype)
    ids[0] = np.iinfo(dtype).max
    for seed in range(5):
        image, mask = augment_with_mask(
            Image.fromarray(pixels), ids, np.random.default_rng(seed), names
        )
        alone = augment(Image.fromarray(pixels), np.random.default_rng(seed), names)
        assert np.array_equal(np.asarray(image), np.asarray(alone))
        assert (mask.dtype, mask.shape) == (ids.dtype, ids.shape)
        assert set(np.unique(mask)) <= set(np.unique(ids))
        if names == ["color"]:
            assert np.array_equal(mask, ids)


def test_crops_are_the_formula_of_the_documentation() -> None:
    """Written out again, so that a seed gives the same crops in every version."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        area, ratio = 960 * rng.uniform(0.6, 1.0), np.exp(rng.uniform(np.log(0.75), np.log(4 / 3)))
        width, height = min(40, round((area * ratio) ** 0.5)), min(24, round((area / ratio) ** 0.5))
        left, top = rng.integers(40 - width + 1), rng.integers(24 - height + 1)
        box = (left, top, left + width, top + height)
        expected = Image.fromarray(pixels).resize((40, 24), Image.Resampling.BICUBIC, box)
        actual = augment(Image.fromarray(pixels), np.random.default_rng(seed), ["crop"])
        assert np.array_equal(np.asarray(actual), np.asarray(expected))


def test_masks_move_with_their_images() -> None:
    dataset = world((40, 24))
    inputs = SegmentationInputs(dataset, Preprocess(), ("crop", "flip"))
    moved = 0
    for row in range(ROWS):
        pixels, ids = inputs(row, np.random.default_rng(row))
        # Bicubic filtering blurs edges; inside a block the tone and the class agree.
        inside = (pixels[0] < 0.02) | (pixels[0] > 0.98)
        assert inside.float().mean() > 0.3
        assert torch.equal(ids[inside].long(), tones(pixels)[inside])
        moved += not np.array_equal(ids.numpy(), dataset.masks[row])
    assert moved == ROWS


def test_kept_and_fresh_inputs_make_the_same_batches() -> None:
    dataset = world(columns={"place": list("abcdefghi")})
    kept = segmentation_inputs(dataset, Preprocess(), budget_bytes=BUDGET)
    fresh = segmentation_inputs(dataset, Preprocess(), budget_bytes=BUDGET - 1)
    assert isinstance(kept, CachedInputs)
    assert isinstance(fresh, SegmentationInputs)
    assert kept.labels_M is not None
    assert kept.labels_M.dtype == torch.uint8
    batches = [
        list(BatchLoader(dataset, inputs, batch_size=4, seed=3).batches(0, 5))
        for inputs in (kept, fresh)
    ]
    assert_same(*batches)
    assert batches[0][0].labels_N.shape == (4, 8, 12)
    assert batches[0][0].labels_N.dtype == torch.long
    assert torch.equal(preprocessed_masks(dataset, Preprocess()), kept.labels_M)
    assert segmentation_inputs(dataset, Preprocess(), ["flip"]) != kept


def test_workers_make_the_same_pairs() -> None:
    dataset = world()
    inputs = segmentation_inputs(dataset, Preprocess(), ["crop", "color"])
    made = [
        list(BatchLoader(dataset, inputs, batch_size=3, seed=3, workers=workers).batches(1, 4))
        for workers in (0, 1)
    ]
    assert_same(*made)


def test_select_and_to_take_the_masks_along() -> None:
    dataset = world()
    (batch,) = sequential(dataset, segmentation_inputs(dataset, Preprocess()), ROWS)
    part = batch.select([5, 2])
    assert torch.equal(part.labels_N, batch.labels_N[[5, 2]])
    assert part.to("meta").labels_N.shape == (2, 8, 12)


def test_what_a_memory_mapped_file_hands_out_is_a_copy(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")  # changes stay in memory: no warning
    inputs = CachedInputs(torch.from_numpy(mapped), torch.tensor([3, 2, 1, 0], dtype=torch.uint8))
    taken = inputs.take(np.array([2, 0]))
    one, label = inputs(1, np.random.default_rng(0))
    for tensor in (taken.inputs_M, one):
        tensor += 100
    assert mapped.max() == 11
    assert taken.inputs_M[:, 0].tolist() == [106, 100]
    assert taken.labels_M is not None
    assert taken.labels_M.tolist() == [1, 3]
    assert label.item() == 2


def test_images_of_different_sizes() -> None:
    small, large = world((8, 8), 2), world((12, 8), 2)
    images, masks = [*small.images, *large.images], [*small.masks, *large.masks]
    mixed = mask_table("tones", ("dark", "bright"), images, masks)
    message = r"different shapes, such as \(3, 8, 8\) and \(3, 8, 12\); .*--image-size"
    with pytest.raises(UserError, match=f"one data set have {message}"):
        segmentation_inputs(mixed, Preprocess().for_dense())
    inputs = segmentation_inputs(mixed, Preprocess().for_dense(), ["flip"])
    with pytest.raises(UserError, match=f"one batch have {message}"):
        list(sequential(mixed, inputs, 4))
    assert len(list(sequential(mixed, inputs, 2))) == 2
    fitted = segmentation_inputs(mixed, Preprocess().for_dense((8, 8)), ["flip"])
    (batch,) = sequential(mixed, fitted, 4)
    assert batch.labels_N.shape == (4, 8, 8)


def test_an_input_function_without_labels_is_a_mistake() -> None:
    dataset = world()
    with pytest.raises(TypeError, match="tones/train has masks: its input function must return"):
        next(sequential(dataset, CachedInputs(torch.zeros(ROWS, 2)), 2))
