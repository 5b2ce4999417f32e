"""The world of coloured shapes as plain values: what is in a scene, before anything is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from visgrpo.data.articles import NUMBER_WORDS, with_article
from visgrpo.errors import UserError, nearest

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS: dict[str, RGB] = {
    "red": (222, 32, 38),
    "orange": (240, 120, 20),
    "yellow": (245, 230, 30),
    "green": (34, 160, 64),
    "blue": (36, 92, 220),
    "purple": (142, 52, 190),
}
FILLS = ("solid", "stripes", "outline", "gradient")
TEXTURES = ("plain", "gradient", "stripes", "checks", "dots")
_PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}


@dataclass(frozen=True)
class SceneObject:
    """One shape. Lengths are fractions of the image side.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`, the name that captions and counts use.
        rgb: the jittered colour that is drawn.
        x, y: centre, from the left and the top.
        radius: of the circle around the shape.
        rotation: degrees, clockwise.
        fill: one of `FILLS`.

    Raises:
        UserError: if the shape, colour or fill is unknown.
    """

    shape: str
    colour: str
    rgb: RGB
    x: float
    y: float
    radius: float
    rotation: float
    fill: str

    def __post_init__(self) -> None:
        known("shape", self.shape, SHAPES)
        known("colour", self.colour, COLOURS)
        known("fill", self.fill, FILLS)


@dataclass(frozen=True)
class Background:
    """Two tones mixed by a texture, one of `TEXTURES`.

    `period` is the texture's repeat as a fraction of the image side, `angle` is in degrees.

    Raises:
        UserError: if the texture is unknown.
    """

    texture: str
    tones: tuple[RGB, RGB]
    period: float
    angle: float

    def __post_init__(self) -> None:
        known("texture", self.texture, TEXTURES)


@dataclass(frozen=True)
class Scene:
    """Everything that decides an image, so that a scene is always drawn the same way.

    Attributes:
        size: side of the square image in pixels.
        background: what lies behind the objects.
        objects: the shapes; they do not overlap, so each is wholly visible.
        noise: standard deviation of the pixel noise, as a fraction of full brightness.
        noise_seed: what the noise is drawn from.
    """

    size: int
    background: Background
    objects: tuple[SceneObject, ...]
    noise: float
    noise_seed: int


def count(scene: Scene, colour: str | None = None, shape: str | None = None) -> int:
    """Return how many objects have this colour and this shape; None stands for any.

    Raises:
        UserError: if the colour or shape is not one of the world's.
    """
    if colour is not None:
        known("colour", colour, COLOURS)
    if shape is not None:
        known("shape", shape, SHAPES)
    return sum(colour in (None, o.colour) and shape in (None, o.shape) for o in scene.objects)


def caption(scene: Scene) -> str:
    """Return the scene in words: "a photo of two red circles, a blue star and an orange cross"."""
    kinds = Counter((o.colour, o.shape) for o in scene.objects)  # in order of appearance
    phrases = [_phrase(colour, shape, number) for (colour, shape), number in kinds.items()]
    if not phrases:
        return "a photo of an empty background"
    *first, last = phrases
    return "a photo of " + (f"{', '.join(first)} and {last}" if first else last)


def plural(shape: str) -> str:
    """Return the name of several of a shape."""
    return _PLURALS[known("shape", shape, SHAPES)]


def _phrase(colour: str, shape: str, number: int) -> str:
    if number == 1:
        return with_article(f"{colour} {shape}")
    in_words = NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else str(number)
    return f"{in_words} {colour} {_PLURALS[shape]}"


def known(kind: str, name: str, choices: Collection[str]) -> str:
    """Return `name`, or raise the `UserError` that says what it could have been."""
    if name not in choices:
        raise UserError(f'Unknown {kind} "{name}". {nearest(name, choices)}')
    return name
