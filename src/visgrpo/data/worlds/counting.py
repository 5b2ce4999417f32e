"""The built-in counting world: objects in the cells of a grid, and questions with their reasoning.

Every object lies in a cell of its own: one image token shows it. The reasoning goes through the
cells row by row, says of each what the question looks at (the colour of what is there, for a
question about a colour), and counts on: "none0 red1 blue1 red2 …".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from visgrpo.data.roles import question_table
from visgrpo.data.table import LazySequence, Splits, Table, of_bytes
from visgrpo.data.worlds.drawing import draw
from visgrpo.data.worlds.scenes import (
    COLOURS,
    SHAPES,
    STYLES,
    Scene,
    SceneObject,
    jittered,
    pick,
    plural,
    sample_background,
)
from visgrpo.errors import UserError

GRID, CELL = 4, 28  # cells a side, and pixels a side of each: 2 × 2 patches of 14
SIZE = GRID * CELL
MOST = 10
KINDS = ("items", "colour", "shape")
ASKED_COLOURS = ("red", "yellow", "green", "blue")
ASKED_SHAPES = ("circle", "square", "triangle")
TEST_SEED = 0
_SPLIT_KEYS = {"train": 0, "validation": 1, "test": 2, "out": 3}
# Against the styles of the other world, objects are as large as their cells let them be.
_LOOKS = {
    "in": replace(STYLES["in"], radius=(0.36, 0.44), rotation=15),
    "out": replace(STYLES["out"], radius=(0.32, 0.42), rotation=25, noise=0.04),
}


class Question(NamedTuple):
    """What is asked about a scene.

    Attributes:
        colour: that is counted; None for any. Likewise shape.
    """

    kind: str
    colour: str | None
    shape: str | None

    def text(self) -> str:
        """Return the question in words."""
        if self.kind == "items":
            return "How many items are there in the image?"
        if self.kind == "colour":
            return f"How many {self.colour} items are in the image?"
        assert self.shape is not None
        return f"How many {plural(self.shape)} are there in the image?"

    def matches(self, item: SceneObject) -> bool:
        """Return whether an object is counted."""
        return self.colour in (None, item.colour) and self.shape in (None, item.shape)

    def name(self, item: SceneObject) -> str:
        """Return what the reasoning calls an object: what the question looks at."""
        return {"items": "item", "colour": item.colour, "shape": item.shape}[self.kind]


@dataclass(frozen=True)
class Row:
    """A scene with the objects of its cells, row by row, None for an empty one."""

    scene: Scene
    question: Question
    cells: tuple[SceneObject | None, ...]

    @property
    def count(self) -> int:
        """The true answer."""
        return sum(item is not None and self.question.matches(item) for item in self.cells)


def counting_splits(
    seed: int = 0,
    *,
    train: int = 4000,
    validation: int = 200,
    test: int = 1000,
) -> Splits:
    """Return questions about counts from 0 to 10, with images, answers and reasoning.

    Row i of a split depends on (seed, split, i) alone, so a larger split begins with the smaller
    one; test rows are the same for every seed. Images are drawn on access. Columns: `answer`,
    `kind` ("items", "colour" or "shape") and `count`. The shift "out" has as many rows as `test`:
    the same questions about other fills, backgrounds, hues, sizes and angles, objects of three
    more shapes, crowded together.

    Args:
        seed: 0 or more.
        train: number of training rows; likewise `validation` and `test`.

    Raises:
        UserError: if a split has no row.
    """
    sizes = {"train": train, "validation": validation, "test": test, "out": test}
    for split, length in sizes.items():
        if length < 1:
            raise UserError(f"shapes/{split}: {length} rows asked for; ask for at least one.")

    def made(split: str) -> Table:
        return _dataset(TEST_SEED if split in ("test", "out") else seed, split, sizes[split])

    return Splits(made("train"), made("validation"), made("test"), {"out": made("out")})


def counting_row(rng: np.random.Generator, style: str = "in") -> Row:
    """Return a random scene with a question; every kind and every count is as likely.

    Args:
        rng: where every choice comes from.
        style: "in", or "out" for other looks under the same words.
    """
    kind = pick(rng, KINDS)
    question = Question(
        kind,
        pick(rng, ASKED_COLOURS) if kind == "colour" else None,
        pick(rng, ASKED_SHAPES) if kind == "shape" else None,
    )
    shapes = SHAPES if style == "out" else ASKED_SHAPES
    counted = int(rng.integers(MOST + 1))
    looks = [
        (question.colour or pick(rng, ASKED_COLOURS), question.shape or pick(rng, shapes))
        for _ in range(counted)
    ]
    # Were others rare, to take everything for what is asked would be right too often to unlearn.
    others = 0 if kind == "items" else int(rng.integers(GRID**2 - counted + 1))
    while len(looks) < counted + others:
        look = pick(rng, ASKED_COLOURS), pick(rng, shapes)
        if question.colour != look[0] and question.shape != look[1]:
            looks.append(look)
    cells: list[SceneObject | None] = [None] * GRID**2
    for place, (colour, shape) in zip(_places(rng, style, len(looks)), looks, strict=True):
        cells[place] = _object(rng, style, place, colour, shape)
    scene = Scene(
        size=SIZE,
        background=sample_background(rng, _LOOKS[style]),
        objects=tuple(item for item in cells if item is not None),
        noise=_LOOKS[style].noise,
        noise_seed=int(rng.integers(2**32)),
    )
    return Row(scene, question, tuple(cells))


def reasoning(row: Row) -> str:
    """Return the cells one after the other: what is there, and how many were counted by then."""
    words, counted = [], 0
    for item in row.cells:
        counted += item is not None and row.question.matches(item)
        words.append(f"{'none' if item is None else row.question.name(item)}{counted}")
    return " ".join(words)


def _places(rng: np.random.Generator, style: str, objects: int) -> list[int]:
    """Return the cells of so many objects, in any order."""
    cells = rng.permutation(GRID**2)
    if style == "out":  # crowded around some point
        centres = np.stack([cells // GRID, cells % GRID]) + 0.5
        distances = np.hypot(*(centres - rng.uniform(0, GRID, (2, 1))))
        cells = cells[np.sort(np.argsort(distances)[:objects])]
    return cells[:objects].tolist()


def _object(
    rng: np.random.Generator, style: str, place: int, colour: str, shape: str
) -> SceneObject:
    look = _LOOKS[style]
    row, column = divmod(place, GRID)
    radius = rng.uniform(*look.radius)
    across, down = 0.5 + rng.uniform(-1, 1, 2) * (0.48 - radius)
    return SceneObject(
        shape=shape,
        colour=colour,
        rgb=jittered(rng, COLOURS[colour], look.hue_shift),
        x=(column + across) / GRID,
        y=(row + down) / GRID,
        radius=radius / GRID,
        rotation=rng.uniform(-look.rotation, look.rotation),
        fill=pick(rng, look.fills),
    )


def _dataset(seed: int, split: str, length: int) -> Table:
    style = "out" if split == "out" else "in"
    name = "shapes-out/test" if split == "out" else f"shapes/{split}"
    rows = _Rows(seed, _SPLIT_KEYS[split], style)
    each = [rows(index) for index in range(length)]
    identity = of_bytes(f"counting {name} seed {seed}, {length} rows", [rows.image(0)[0].tobytes()])
    return question_table(
        name=name,
        images=LazySequence(rows.image, np.arange(length)),
        questions=tuple(row.question.text() for row in each),
        answers=tuple(str(row.count) for row in each),
        traces=tuple(map(reasoning, each)),
        columns={
            "kind": [row.question.kind for row in each],
            "count": [row.count for row in each],
        },
        identity=identity,
    )


class _Rows(NamedTuple):
    """The rows of one split, made on demand; picklable."""

    seed: int
    key: int
    style: str

    def __call__(self, index: int) -> Row:
        return counting_row(np.random.default_rng((self.seed, self.key, index)), self.style)

    def image(self, index: int) -> tuple[Image.Image, ...]:
        return (draw(self(index).scene)[0],)
