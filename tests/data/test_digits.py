"""The digits, against scikit-learn's own arrays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from visgrpo.data.table import Splits, Table
from visgrpo.data.worlds.shapes import digits_splits
from visgrpo.errors import UserError


@pytest.fixture(scope="module")
def splits() -> Splits:
    return digits_splits()


def pixels(dataset: Table) -> list[bytes]:
    return [image.tobytes() for image in dataset.images]


def parts(splits: Splits) -> list[Table]:
    return [splits.train, splits.validation, splits.test]


def test_every_image_is_in_one_split_with_its_label(splits: Splits) -> None:
    digits = load_digits()
    expected = {}
    for values, label in zip(digits.images, digits.target, strict=True):
        small = Image.fromarray(np.round(values / 16 * 255).astype(np.uint8)).convert("RGB")
        expected[small.resize((32, 32), Image.Resampling.BICUBIC).tobytes()] = int(label)
    assert len(expected) == 1797  # no image occurs twice, so bytes name images

    found = [
        (image, int(label))
        for part in parts(splits)
        for image, label in zip(pixels(part), part.labels, strict=True)
    ]
    assert len(found) == 1797
    assert dict(found) == expected


def test_sizes_and_shares(splits: Splits) -> None:
    assert [len(part) for part in parts(splits)] == [1294, 144, 359]  # 20 %, 10 % of the rest
    for part in parts(splits):
        counts = np.bincount(part.labels, minlength=10)
        # Stratified: each digit is within two images of its share of the whole set.
        whole = np.bincount(load_digits().target) * len(part) / 1797
        assert np.abs(counts - whole).max() <= 2


def test_names_images_and_captions(splits: Splits) -> None:
    assert [part.name for part in parts(splits)] == [
        "digits/train",
        "digits/validation",
        "digits/test",
    ]
    assert splits.train.classes[0] == "zero"
    assert splits.train.classes[9] == "nine"
    assert (splits.train.images[0].mode, splits.train.images[0].size) == ("RGB", (32, 32))
    three = int(np.flatnonzero(splits.test.labels == 3)[0])
    assert splits.test.columns["caption"][three] == "a photo of the digit three"


def test_the_same_seed_gives_the_same_bytes(splits: Splits) -> None:
    again = digits_splits()
    for one, other in zip(parts(splits), parts(again), strict=True):
        assert pixels(one) == pixels(other)


def test_the_seed_moves_validation_but_never_the_test_split(splits: Splits) -> None:
    other = digits_splits(seed=1, validation_fraction=0.3)
    assert pixels(other.test) == pixels(splits.test)
    assert np.array_equal(other.test.labels, splits.test.labels)
    assert pixels(digits_splits(seed=1).validation) != pixels(splits.validation)
    assert len(other.validation) == round(0.3 * 1438)


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        digits_splits(validation_fraction=fraction)


def test_importing_the_module_does_not_import_scikit_learn() -> None:
    code = "import sys, visgrpo.data.worlds.shapes; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
