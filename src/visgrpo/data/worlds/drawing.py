"""Draw a scene of coloured shapes with pillow: an RGB image and a mask of shape ids."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from visgrpo.data.worlds.scenes import RGB, SHAPES, Background, Scene, SceneObject

OVERSAMPLING = 4  # drawn this much larger, then averaged: smooth edges
_CIRCLE_POINTS = 48
_WHITE = (255, 255, 255)
_BANDS = 5  # stripes across an object, odd so that both outermost ones are coloured


def draw(scene: Scene) -> tuple[Image.Image, np.ndarray]:
    """Return the scene as an image and a mask.

    The image is antialiased. The mask is uint8 (H, W): 0 is background, i + 1 is `SHAPES[i]`, taken
    at the centre of each pixel; striped and outlined shapes count as a whole.
    """
    side = scene.size * OVERSAMPLING
    canvas = _background(scene.background, side)
    mask = Image.new("L", (side, side))
    for item in scene.objects:
        corners = _to_canvas(item, _outline(item.shape), side)
        _paint(canvas, item, corners)
        ImageDraw.Draw(mask).polygon(corners, fill=SHAPES.index(item.shape) + 1)
    image = canvas.reduce(OVERSAMPLING)
    middle = slice(OVERSAMPLING // 2, None, OVERSAMPLING)
    return _with_noise(image, scene), np.asarray(mask)[middle, middle].copy()


@cache
def _outline(shape: str) -> np.ndarray:
    """Return the shape's corners (P, 2) around the origin, y downwards, within radius 1."""
    if shape == "circle":
        return 0.88 * _on_circle(_CIRCLE_POINTS)
    if shape == "square":
        return 0.7 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if shape == "triangle":
        return _on_circle(3)
    if shape == "star":
        return _on_circle(10) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]
    if shape == "cross":
        arm, half = 0.92, 0.33
        quarter = np.array([(-half, -arm), (half, -arm), (half, -half)])
        turn = np.array([(0, 1), (-1, 0)])
        return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    # Heart: a square on its corner, with a half circle on each upper side.
    angles = np.linspace(np.pi / 4, -3 * np.pi / 4, _CIRCLE_POINTS // 2)
    right = np.stack([0.5 + np.sqrt(0.5) * np.cos(angles), np.sqrt(0.5) * np.sin(angles) - 0.5], 1)
    left = (right * (-1, 1))[::-1]
    corners = np.vstack([(0, 1), right, left])
    return (corners + np.array((0, 0.26))) / 1.27


def box_of(item: SceneObject, side: int) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom edge of an object, in pixels of the image's side."""
    corners_P2 = np.reshape(_to_canvas(item, _outline(item.shape), side), (-1, 2))
    left, top = corners_P2.min(axis=0).tolist()
    right, bottom = corners_P2.max(axis=0).tolist()
    return left, top, right, bottom


def _on_circle(points: int) -> np.ndarray:
    """Return points (P, 2) evenly around the unit circle, clockwise from the top."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _to_canvas(item: SceneObject, points: np.ndarray, side: int) -> list[float]:
    """Rotate, scale and move points (P, 2) from around the origin: x, y, x, y, … on the canvas."""
    angle = np.deg2rad(item.rotation)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    placed: np.ndarray = (points @ turn * item.radius + (item.x, item.y)) * side
    return placed.ravel().tolist()


def _paint(canvas: Image.Image, item: SceneObject, corners: list[float]) -> None:
    pen = ImageDraw.Draw(canvas)
    if item.fill == "solid":
        pen.polygon(corners, fill=item.rgb)
    elif item.fill == "outline":
        width = max(1, round(0.25 * item.radius * canvas.width))
        pen.polygon(corners, fill=_mix(item.rgb, _WHITE, 0.5), outline=item.rgb, width=width)
    else:
        stencil = Image.new("L", canvas.size)
        ImageDraw.Draw(stencil).polygon(corners, fill=255)
        canvas.paste(_bands(item, canvas.width), mask=stencil)


def _bands(item: SceneObject, side: int) -> Image.Image:
    """Return a sheet with the object's stripes, or with its gradient as many thin stripes."""
    striped = item.fill == "stripes"
    number = _BANDS if striped else 16
    sheet = Image.new("RGB", (side, side), item.rgb)
    pen = ImageDraw.Draw(sheet)
    for band in range(number):
        top, bottom = (2 * edge / number - 1 for edge in (band, band + 1))
        corners = np.array([(-1, top), (1, top), (1, bottom), (-1, bottom)])
        share = 0.5 * (band % 2) if striped else 0.45 * band / number
        pen.polygon(_to_canvas(item, corners, side), fill=_mix(item.rgb, _WHITE, share))
    return sheet


def _mix(rgb: RGB, other: RGB, share: float) -> RGB:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(rgb, other, strict=True))
    return red, green, blue


def _background(background: Background, side: int) -> Image.Image:
    if background.texture == "plain":
        return Image.new("RGB", (side, side), background.tones[0])
    points = side // 2  # textures are softer than outlines: half the samples are enough
    steps = (np.arange(points, dtype=np.float32) + 0.5) / points - 0.5
    # Coordinates turned by the angle, in image sides from the middle.
    cosine, sine = (float(f(np.deg2rad(background.angle))) for f in (np.cos, np.sin))
    across = cosine * steps[None, :] + sine * steps[:, None]
    along = cosine * steps[:, None] - sine * steps[None, :]
    share = _texture(background.texture, across, along, background.period)
    first, second = (Image.new("RGB", (points, points), tone) for tone in background.tones)
    mixed = Image.composite(second, first, Image.fromarray((share * 255).astype(np.uint8)))
    return mixed.resize((side, side), Image.Resampling.NEAREST)


def _texture(texture: str, across: np.ndarray, along: np.ndarray, period: float) -> np.ndarray:
    """Return the share of the second tone, 0 to 1, at every point."""
    if texture == "gradient":
        return np.clip(across + 0.5, 0, 1)
    u, v = across / period, along / period
    if texture == "stripes":
        return np.floor(2 * u).astype(np.int32) & 1
    if texture == "checks":
        return (np.floor(2 * u) + np.floor(2 * v)).astype(np.int32) & 1
    # Dots: a disc in the middle of each cell.
    return (u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < 0.09


def _with_noise(image: Image.Image, scene: Scene) -> Image.Image:
    if scene.noise == 0:
        return image
    pixels = np.asarray(image, dtype=np.float32)
    rng = np.random.default_rng(scene.noise_seed)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * (255 * scene.noise)
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))
