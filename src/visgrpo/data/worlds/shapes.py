"""A seeded world of coloured shapes, with masks; handwritten digits beside it.

`sample_scene` and `draw` make pictures with any number of objects (for segmentation and counting);
`shapes_splits` is the classification set, one object per image.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from visgrpo.data.roles import image_table
from visgrpo.data.split import Source, divide
from visgrpo.data.table import Drawn, LazySequence, Splits, Table, of_bytes
from visgrpo.data.worlds.drawing import draw
from visgrpo.data.worlds.scenes import (
    COLOURS,
    NUMBER_WORDS,
    SHAPES,
    STYLES,
    Background,
    Scene,
    SceneObject,
    caption,
    count,
    sample_scene,
    with_article,
)
from visgrpo.errors import UserError

__all__ = [
    "CLASSES",
    "CLASS_COLOURS",
    "COLOURS",
    "MASK_CLASSES",
    "SHAPES",
    "STYLES",
    "Background",
    "Scene",
    "SceneObject",
    "caption",
    "count",
    "draw",
    "sample_scene",
    "shapes_splits",
]

CLASS_COLOURS = ("red", "yellow", "green", "blue")
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in CLASS_COLOURS)
MASK_CLASSES = ("background", *SHAPES)
TEST_SEED = 0
_SPLIT_KEYS = {"train": 0, "validation": 1, "test": 2}


def shapes_splits(
    seed: int = 0,
    *,
    train: int = 2000,
    validation: int = 200,
    test: int = 1000,
    size: int = 32,
    style: str = "in",
    noise: float | None = None,
) -> Splits:
    """Return pictures of one shape each, in 24 classes ("red circle", …), balanced by class.

    Image i of a split depends on (seed, split, i) alone, so a larger split begins with the smaller
    one. Images are drawn on first access and kept. Columns: `caption`, `shape`, `color`, `count`
    (always 1) and `mask`, uint8 (size, size) with the ids of `MASK_CLASSES`.

    Args:
        seed: 0 or more.
        train: number of training images; likewise `validation` and `test`.
        size: side of an image in pixels.
        style: "in", or "out" for the out-of-distribution pictures of the same classes.
        noise: standard deviation of the pixel noise as a fraction of full brightness; by default
            the style's.

    Raises:
        UserError: if a split has no image, or as `sample_scene`.
    """
    lengths = {"train": train, "validation": validation, "test": test}
    for split, length in lengths.items():
        if length < 1:
            raise UserError(f"shapes/{split}: {length} images asked for; ask for at least one.")

    def drawn(split: str) -> Table:
        # The test pictures are the same for every seed, so that runs can be compared over seeds.
        its_seed = TEST_SEED if split == "test" else seed
        return _Pictures(its_seed, split, lengths[split], size, style, noise).dataset()

    return Splits(drawn("train"), drawn("validation"), drawn("test"))


class _Pictures:
    """The pictures of one split, drawn on demand and kept."""

    def __init__(
        self, seed: int, split: str, length: int, size: int, style: str, noise: float | None
    ) -> None:
        self._key = (seed, _SPLIT_KEYS[split])
        self._size, self._style, self._noise = size, style, noise
        self._name = f"shapes/{split}" if style == "in" else f"shapes-{style}/{split}"
        self._labels = self._balanced_labels(length)
        self._drawn: dict[int, tuple[Image.Image, np.ndarray]] = {}
        first = self.image(0)  # a wrong argument is reported now, not in the middle of a run
        # Settings name every picture; the first one's pixels name the code that draws them.
        settings = f"{self._name} seed {seed}, {length} rows, {size} px, noise {noise}"
        self._identity = of_bytes(settings, [first.tobytes()])

    def dataset(self) -> Table:
        rows = np.arange(len(self._labels))
        names = [CLASSES[label] for label in self._labels]
        return image_table(
            name=self._name,
            classes=CLASSES,
            labels=self._labels,
            images=LazySequence(self.image, rows, contents=self._content),
            columns={
                "caption": [f"a photo of {with_article(name)}" for name in names],
                "shape": [name.split()[1] for name in names],
                "color": [name.split()[0] for name in names],
                "count": [1] * len(names),
                "mask": LazySequence(self.mask, rows),
            },
            identity=self._identity,
        )

    def image(self, index: int) -> Image.Image:
        return self._draw(index)[0]

    def _content(self, index: int) -> list[Drawn]:
        return [Drawn(f"{self._identity} {index}".encode())]

    def mask(self, index: int) -> np.ndarray:
        return self._draw(index)[1]

    def _draw(self, index: int) -> tuple[Image.Image, np.ndarray]:
        if index not in self._drawn:
            colour, shape = CLASSES[self._labels[index]].split()
            scene = sample_scene(
                np.random.default_rng((*self._key, index)),
                objects=1,
                style=self._style,
                size=self._size,
                shapes=(shape,),
                colours=(colour,),
                noise=self._noise,
            )
            self._drawn[index] = draw(scene)
        return self._drawn[index]

    def _balanced_labels(self, length: int) -> np.ndarray:
        """Return (length,) class ids: one shuffled pack of all classes after another.

        Every pack has its own seed, so that label i does not depend on the length.
        """
        # The last 1 keeps the seed of pack b apart from that of image b.
        packs = [
            np.random.default_rng((*self._key, pack, 1)).permutation(len(CLASSES))
            for pack in range(-(-length // len(CLASSES)))
        ]
        return np.concatenate(packs)[:length]


# Handwritten digits that ship inside scikit-learn: 1797 real images, no download.

DIGITS = NUMBER_WORDS[:10]
SIDE = 32  # pixels after upscaling; the originals are 8 × 8


def digits_splits(seed: int = 0, validation_fraction: float = 0.1) -> Splits:
    """Return scikit-learn's digits as 32 × 32 RGB images in three stratified splits.

    The test split (20 %) is always the same; `seed` chooses the validation images from the rest.
    Besides the labels there is a `caption` column ("a photo of the digit three").

    Args:
        seed: 0 or more.
        validation_fraction: share of the images outside the test split, between 0 and 1.

    Raises:
        UserError: if the fraction is not between 0 and 1.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"validation_fraction is {validation_fraction}; choose a share between 0 and 1."
        )
    # Imported here: scikit-learn takes a second to load and other data does not need it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [_image(pixels_HW) for pixels_HW in digits.images]
    everything = image_table(
        name="digits",
        classes=DIGITS,
        labels=digits.target,
        images=images,
        columns={"caption": [f"a photo of the digit {DIGITS[label]}" for label in digits.target]},
        identity=of_bytes("digits", (image.tobytes() for image in images)),
    )
    # `divide` makes the test split the same for every seed.
    return divide(
        Source("digits", {"all": everything}),
        fraction=validation_fraction,
        seed=seed,
    )


def _image(pixels_HW: np.ndarray) -> Image.Image:
    """Return an 8 × 8 array of ink (0 to 16) as an RGB image, white on black."""
    grey = Image.fromarray(np.rint(pixels_HW * (255 / 16)).astype(np.uint8))
    return grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
