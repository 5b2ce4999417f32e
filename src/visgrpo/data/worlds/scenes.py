"""Scenes of coloured shapes as plain values, and how they are sampled in two styles."""

from __future__ import annotations

import colorsys
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

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


T = TypeVar("T")

_SMALLEST_RADIUS = 2.0  # pixels; below it a star and a circle look the same
_TRIES = 60  # places tried for one object before all objects are made smaller


@dataclass(frozen=True)
class Style:
    """Ranges that scenes are sampled from; see `STYLES`."""

    fills: tuple[str, ...]
    textures: tuple[str, ...]
    radius: tuple[float, float]  # of a lone object; several objects are smaller
    gap: float  # between two objects, as a fraction of the image side
    rotation: float  # degrees either way
    hue_shift: tuple[float, float]  # degrees on the colour wheel, either way
    noise: float


STYLES = {
    "in": Style(
        fills=("solid",),
        textures=("plain", "gradient"),
        radius=(0.24, 0.40),
        gap=0.04,
        rotation=30,
        hue_shift=(0, 5),
        noise=0.02,
    ),
    # The same words for other pictures: no fill, texture or hue of the style above, smaller and
    # more crowded objects at any angle, more noise.
    "out": Style(
        fills=("stripes", "outline", "gradient"),
        textures=("stripes", "checks", "dots"),
        radius=(0.20, 0.30),
        gap=0.01,
        rotation=180,
        hue_shift=(6, 10),  # red, orange and yellow still do not meet
        noise=0.05,
    ),
}


def sample_scene(
    rng: np.random.Generator,
    *,
    objects: int | range,
    style: str = "in",
    size: int = 64,
    shapes: Sequence[str] = SHAPES,
    colours: Sequence[str] = tuple(COLOURS),
    noise: float | None = None,
) -> Scene:
    """Return a random scene; it depends on nothing but `rng` and the arguments.

    Args:
        rng: where every choice comes from.
        objects: how many, or a range to choose the number from.
        style: "in" for the training distribution, "out" for other fills, backgrounds, sizes,
            crowding, hues and noise under the same names.
        size: side of the image in pixels.
        shapes: the shapes to choose from.
        colours: the colours to choose from.
        noise: standard deviation of the pixel noise as a fraction of full brightness; by default
            the style's.

    Raises:
        UserError: if a name is unknown, a number is out of range or the objects do not fit.
    """
    look = STYLES[known("style", style, STYLES)]
    if not shapes or not colours:
        raise UserError("No shapes or no colours to choose from; name at least one of each.")
    for shape in shapes:
        known("shape", shape, SHAPES)
    for colour in colours:
        known("colour", colour, COLOURS)
    count = _number_of_objects(rng, objects)
    noise = look.noise if noise is None else noise
    if size < 8 or noise < 0:
        raise UserError(f"size {size} and noise {noise}: use 8 pixels or more and noise from 0.")
    background = sample_background(rng, look)
    placed = _place(rng, look, count, size)
    return Scene(
        size=size,
        background=background,
        objects=tuple(
            _sample_object(rng, look, shapes, colours, x, y, radius) for x, y, radius in placed
        ),
        noise=noise,
        noise_seed=int(rng.integers(2**32)),
    )


def _number_of_objects(rng: np.random.Generator, objects: int | range) -> int:
    choices = objects if isinstance(objects, range) else range(objects, objects + 1)
    if not choices or min(choices) < 0:
        raise UserError(f"objects is {objects}; give a number from 0 or a range that is not empty.")
    return pick(rng, choices)


def _sample_object(
    rng: np.random.Generator,
    look: Style,
    shapes: Sequence[str],
    colours: Sequence[str],
    x: float,
    y: float,
    radius: float,
) -> SceneObject:
    colour = pick(rng, colours)
    return SceneObject(
        shape=pick(rng, shapes),
        colour=colour,
        rgb=jittered(rng, COLOURS[colour], look.hue_shift),
        x=x,
        y=y,
        radius=radius,
        rotation=rng.uniform(-look.rotation, look.rotation),
        fill=pick(rng, look.fills),
    )


def sample_background(rng: np.random.Generator, look: Style) -> Background:
    """Return a random background of a style."""
    # Tones are nearly grey, so that colour always tells an object from what is behind it.
    hue = rng.uniform()
    brightness = rng.uniform(0.2, 1.0)
    # Far enough apart to be seen, and never outside 0 … 1.
    other = brightness + rng.uniform(0.12, 0.22) * (-1 if brightness > 0.6 else 1)
    tones = (_hsv(hue, rng.uniform(0, 0.2), brightness), _hsv(hue, rng.uniform(0, 0.2), other))
    return Background(
        texture=pick(rng, look.textures),
        tones=tones,
        period=rng.uniform(0.15, 0.35),
        angle=rng.uniform(0, 360),
    )


def _place(
    rng: np.random.Generator, look: Style, count: int, size: int
) -> list[tuple[float, float, float]]:
    """Return (x, y, radius) of circles that do not overlap, smaller where there are many."""
    # A quarter off the even share of the area leaves room for random places.
    radii = rng.uniform(*look.radius, size=count) / max(1.0, 0.75 * count**0.5)
    while count and radii.min() * size >= _SMALLEST_RADIUS:
        centres: list[tuple[float, float]] = []
        for radius in radii:
            spot = _free_spot(rng, radius, centres, radii, look.gap)
            if spot is None:
                break
            centres.append(spot)
        if len(centres) == count:
            return [(x, y, float(r)) for (x, y), r in zip(centres, radii, strict=True)]
        radii = radii * 0.9
    if count:
        raise UserError(
            f"{count} objects do not fit into {size} × {size} pixels; "
            "ask for fewer objects or a larger size."
        )
    return []


def _free_spot(
    rng: np.random.Generator,
    radius: float,
    centres: Sequence[tuple[float, float]],
    radii: np.ndarray,
    gap: float,
) -> tuple[float, float] | None:
    edge = radius + 0.02
    for _ in range(_TRIES):
        x, y = rng.uniform(edge, 1 - edge, size=2)
        if all(
            np.hypot(x - cx, y - cy) >= radius + other + gap
            for (cx, cy), other in zip(centres, radii, strict=False)
        ):
            return float(x), float(y)
    return None


def jittered(rng: np.random.Generator, rgb: RGB, hue_shift: tuple[float, float]) -> RGB:
    """Return a colour with its hue turned by some degrees, a little duller and darker."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    shift = rng.uniform(*hue_shift) * pick(rng, (-1, 1)) / 360
    return _hsv((hue + shift) % 1, saturation * rng.uniform(0.88, 1), value * rng.uniform(0.85, 1))


def _hsv(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """Return one of the choices, each as likely."""
    return choices[int(rng.integers(len(choices)))]


NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)

# Letters whose *names* begin with a vowel sound: an MRI scan, an X-ray; but a UFO.
_VOWEL_NAMED_LETTERS = "AEFHILMNORSX"
_ACRONYMS_READ_AS_WORDS = frozenset({"NASA", "NATO", "FIFA", "RAM", "ROM", "SIM", "HUD", "LAN"})
# Longer capitals are words that somebody shouts ("HORSE"), not letters to spell.
_LONGEST_ABBREVIATION = 4
_ABBREVIATION = re.compile(rf"[A-Z][A-Z0-9]{{1,{_LONGEST_ABBREVIATION - 1}}}")

# Spelled with a vowel, spoken with a consonant: "you" (unicorn, user, eucalyptus) and "won" (one).
_CONSONANT_SOUND = re.compile(
    r"eu|ewe|on(e|es|ce|esie)$|ouija"
    r"|uni(?!n|m[^o]|d[^i])|una(nim|ry)|u[bcfghjkqrstv][aeiou]|ukr"
)
# Spelled with a consonant, spoken with a vowel.
_VOWEL_SOUND = re.compile(r"hour|honest|hono(u?r)|heir|hors$|y[^aeiou]|[aeiou]")
# Eight, eighty, eight hundred …; eleven and eighteen, alone or before whole groups of thousands.
_VOWEL_NUMBER = re.compile(r"8|1[18](\d{3})*(?!\d)")


def with_article(noun: str) -> str:
    """Return `noun` after "a" or "an", chosen by how its first word sounds.

    Examples: "an apple", "a unicorn", "an hour", "an MRI scan", "a one-way street", "an 8-ball".

    Raises:
        UserError: if the noun is empty.
    """
    noun = noun.strip()
    if not noun:
        raise UserError("An empty name cannot take an article; give every class a name.")
    first_word = re.search(r"[^\W_]+", noun)
    vowel = first_word is not None and _starts_with_vowel_sound(first_word[0])
    return f"{'an' if vowel else 'a'} {noun}"


def _starts_with_vowel_sound(word: str) -> bool:
    # Without accents, so that "épée" begins with a plain e.
    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    if plain[:1].isdigit():
        return _VOWEL_NUMBER.match(plain) is not None
    spelled_out = _ABBREVIATION.fullmatch(plain) and plain not in _ACRONYMS_READ_AS_WORDS
    if len(plain) == 1 or spelled_out:
        return plain[0].upper() in _VOWEL_NAMED_LETTERS
    lower = plain.lower()
    return _CONSONANT_SOUND.match(lower) is None and _VOWEL_SOUND.match(lower) is not None
