"""Shifted copies: known strengths, lazy, repeatable, and only the images change."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from visgrpo.data.inputs import SHIFTS, shifted
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.errors import UserError


def dataset(images: Sequence[Image.Image], identity: str = "source") -> Table:
    rows = len(images)
    columns = {"caption": [f"picture {row}" for row in range(rows)]}
    return image_table("some", ("a", "b"), np.arange(rows) % 2, images, columns, identity=identity)


def colourful(side: int, rows: int = 3) -> Table:
    rng = np.random.default_rng(side)
    pixels = rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
    return dataset([Image.fromarray(image) for image in pixels])


def plain_grey(side: int, rows: int = 1) -> Table:
    return dataset([Image.new("RGB", (side, side), (128, 128, 128))] * rows)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


# ---- each shift ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "sigmas"), [(32, (0.04, 0.06, 0.08, 0.09, 0.10)), (224, (0.08, 0.12, 0.18))]
)
def test_noise_has_the_published_deviation(side: int, sigmas: tuple[float, ...]) -> None:
    """On mid-grey nothing is clipped below 0.2 of white; rounding adds a variance of 1/12."""
    for severity, sigma in enumerate(sigmas, start=1):
        noisy = pixels(shifted(plain_grey(side), "noise", severity).images[0])
        assert noisy.mean() == pytest.approx(128, abs=1.5)
        assert noisy.std() == pytest.approx(np.hypot(255 * sigma, 12**-0.5), rel=0.05)


def test_noise_between_the_published_sides_is_interpolated() -> None:
    """Halfway in log(side), √(32 · 224) ≈ 85 px: severity 1 is √(0.04 · 0.08)."""
    noisy = pixels(shifted(plain_grey(85), "noise", 1).images[0])
    assert noisy.std() == pytest.approx(255 * np.sqrt(0.04 * 0.08), rel=0.02)


@pytest.mark.parametrize(
    ("side", "severity", "sigma"),
    [(32, 5, 1.0), (16, 5, 1.0), (224, 1, 1.0), (224, 3, 3.0), (300, 5, 6.0)],
)
def test_blur_spreads_a_line_by_the_published_deviation(
    side: int, severity: int, sigma: float
) -> None:
    """A white column becomes a bell whose second moment is σ²; pillow's comes from three boxes."""
    middle = side // 2
    line = np.zeros((side, side, 3), np.uint8)
    line[:, middle] = 255
    blurred = pixels(shifted(dataset([Image.fromarray(line)]), "blur", severity).images[0])
    profile = blurred[middle, :, 0] / blurred[middle, :, 0].sum()
    moment = (profile * (np.arange(side) - middle) ** 2).sum()
    assert np.sqrt(moment) == pytest.approx(sigma, rel=0.12)


@pytest.mark.parametrize(("side", "severity", "quality"), [(32, 1, 80), (32, 3, 58), (224, 3, 15)])
def test_jpeg_is_pillows_of_the_published_quality(side: int, severity: int, quality: int) -> None:
    source = colourful(side)
    buffer = io.BytesIO()
    source.images[1].save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(np.asarray(shifted(source, "jpeg", severity).images[1]), expected)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_grey_is_the_luma_in_all_channels(severity: int) -> None:
    """Rec. 601: 0.299 R + 0.587 G + 0.114 B."""
    source = colourful(32)
    grey = pixels(shifted(source, "grey", severity).images[0])
    luma = pixels(source.images[0]) @ [0.299, 0.587, 0.114]
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("name", ["blur", "noise", "jpeg"])
@pytest.mark.parametrize("side", [32, 100, 224])
def test_a_higher_severity_changes_more(name: str, side: int) -> None:
    smooth = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    rough = colourful(side).images[0]
    source = dataset([Image.blend(smooth, rough, 0.3)])
    original = pixels(source.images[0])
    changes = [
        np.abs(pixels(shifted(source, name, severity).images[0]) - original).mean()
        for severity in range(1, 6)
    ]
    assert changes == sorted(changes)
    assert len(set(changes)) == 5


# ---- what all share -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIFTS)
def test_only_images_change_and_their_size_and_mode_do_not(name: str) -> None:
    source = dataset([Image.new("RGB", (20, 9), (200, 30, 60))] * 4)
    copy = shifted(source, name)
    assert len(copy) == 4
    assert (copy.images[3].size, copy.images[3].mode) == ((20, 9), "RGB")
    assert copy.labels.tolist() == source.labels.tolist()
    assert copy.columns == source.columns
    assert copy.classes == source.classes
    assert name in copy.name


@pytest.mark.parametrize("name", SHIFTS)
def test_equal_for_equal_seeds_on_every_access_and_after_pickling(name: str) -> None:
    copy = shifted(colourful(16), name, seed=3)
    again = pickle.loads(pickle.dumps(copy))
    for row in (2, 0, 2):
        assert copy.images[row].tobytes() == again.images[row].tobytes()


def test_noise_depends_on_seed_and_row_alone() -> None:
    source = plain_grey(16, rows=4)
    copy = shifted(source, "noise", seed=1)
    images = [image.tobytes() for image in copy.images]
    assert len(set(images)) == 4
    assert [image.tobytes() for image in copy.subset([3, 1]).images] == [images[3], images[1]]
    assert shifted(source, "noise", seed=2).images[0].tobytes() != images[0]


def test_shifts_compose_and_take_subsets() -> None:
    source = colourful(16)
    both = shifted(shifted(source.subset([2, 1]), "grey"), "blur", 2)
    by_hand = shifted(dataset([shifted(source, "grey").images[2]]), "blur", 2)
    assert both.images[0].tobytes() == by_hand.images[0].tobytes()


def test_images_are_shifted_when_asked_for() -> None:
    class Unread(Sequence[Image.Image]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: object) -> Image.Image:  # type: ignore[override]
            raise UserError("image 0 cannot be read")

    copy = shifted(dataset(Unread()), "blur")
    with pytest.raises(UserError, match="image 0 cannot be read"):
        copy.images[0]


def test_identities() -> None:
    source = plain_grey(16)
    copies = [
        shifted(source, *settings)
        for settings in (("blur",), ("blur", 4), ("noise",), ("noise", 3, 1), ("jpeg",), ("grey",))
    ]
    names = {copy.identity for copy in copies}
    assert len(names | {source.identity}) == 7
    assert shifted(source, "blur", 3, seed=5).identity in names  # nothing random in a blur
    assert shifted(dataset([], identity=""), "blur").identity == ""


def test_unknown_names_and_severities() -> None:
    with pytest.raises(UserError, match=r'Unknown shift "blurr"\. Did you mean "blur"\?'):
        shifted(plain_grey(8), "blurr")
    for severity in (0, 6):
        with pytest.raises(UserError, match=f"severity of a shift is {severity}: choose 1 to 5"):
            shifted(plain_grey(8), "blur", severity)
    with pytest.raises(UserError, match="seed must be 0 or more, not -1"):
        shifted(plain_grey(8), "noise", seed=-1)
