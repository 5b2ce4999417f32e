"""The built-in worlds of boxes: where one object is, and where all of them are.

Objects of several sizes lie anywhere in a picture and do not overlap. `boxes` asks for one of them,
"Where is the red circle?"; `detection` for all, and what they are.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from visgrpo.boxes import Labelled, written
from visgrpo.data.roles import question_table
from visgrpo.data.table import LazySequence, Splits, Table, of_bytes
from visgrpo.data.worlds.counting import ASKED_COLOURS, ASKED_SHAPES, TEST_SEED
from visgrpo.data.worlds.drawing import box_of, draw
from visgrpo.data.worlds.scenes import Scene, SceneObject, pick, sample_scene
from visgrpo.errors import UserError

World = Literal["boxes", "detection"]

SIZE = 112  # pixels a side, as of the counting world
MOST = 4
CELLS = 4  # a side, as tokens of an image
EVERYTHING = "Where are all the objects?"
_SPLIT_KEYS = {"train": 0, "validation": 1, "test": 2, "out": 3}


class BoxRow(NamedTuple):
    """A scene with the objects that are asked for, from left to right."""

    scene: Scene
    question: str
    asked: tuple[SceneObject, ...]

    def answer(self) -> str:
        """Return the true boxes as text, in pixels; what each is where all are asked for."""
        one = self.question != EVERYTHING
        return written(
            [Labelled(box_of(each, SIZE), "" if one else name_of(each)) for each in self.asked], 2
        )


def reasoning(row: BoxRow) -> str:
    """Return what is looked for, and in which of 4 × 4 cells its middle lies: the coarse answer."""
    (item,) = row.asked
    down, across = (1 + min(CELLS - 1, int(CELLS * place)) for place in (item.y, item.x))
    return f"{name_of(item)} row {down} column {across}"


def name_of(item: SceneObject) -> str:
    """Return what an object is called."""
    return f"{item.colour} {item.shape}"


def box_splits(
    seed: int = 0,
    world: World = "boxes",
    *,
    train: int = 6000,
    validation: int = 200,
    test: int = 1000,
) -> Splits:
    """Return questions about where things are, with images and boxes as answers.

    Row i of a split depends on (seed, split, i) alone, so a larger split begins with the smaller
    one; test rows are the same for every seed. Images are drawn on access, and have 1 to 4 objects
    of four colours and three shapes. Columns: `answer` and `objects`, how many there are. The shift
    "out" has as many rows as `test`: the same questions about other fills, backgrounds, hues,
    sizes and angles.

    Args:
        seed: 0 or more.
        world: "boxes" asks for one object that no other looks like, "detection" for all of them.
        train: number of training rows; likewise `validation` and `test`.

    Raises:
        UserError: if a split has no row.
    """
    sizes = {"train": train, "validation": validation, "test": test, "out": test}
    for split, length in sizes.items():
        if length < 1:
            raise UserError(f"{world}/{split}: {length} rows asked for; ask for at least one.")

    def made(split: str) -> Table:
        return _dataset(world, TEST_SEED if split in ("test", "out") else seed, split, sizes[split])

    return Splits(made("train"), made("validation"), made("test"), {"out": made("out")})


def box_row(rng: np.random.Generator, world: World = "boxes", style: str = "in") -> BoxRow:
    """Return a random scene with a question; every number of objects is as likely."""
    while True:
        scene = sample_scene(
            rng,
            objects=range(1, MOST + 1),
            style=style,
            size=SIZE,
            shapes=ASKED_SHAPES,
            colours=ASKED_COLOURS,
        )
        if world == "detection":
            in_order = tuple(sorted(scene.objects, key=lambda item: item.x))
            return BoxRow(scene, EVERYTHING, in_order)
        names = Counter(map(name_of, scene.objects))
        alone = [item for item in scene.objects if names[name_of(item)] == 1]
        if alone:
            asked = pick(rng, alone)
            return BoxRow(scene, f"Where is the {name_of(asked)}?", (asked,))


def _dataset(world: World, seed: int, split: str, length: int) -> Table:
    style = "out" if split == "out" else "in"
    name = f"{world}-out/test" if split == "out" else f"{world}/{split}"
    rows = _Rows(seed, _SPLIT_KEYS[split], style, world)
    each = [rows(index) for index in range(length)]
    identity = of_bytes(f"{name} seed {seed}, {length} rows", [rows.image(0)[0].tobytes()])
    return question_table(
        name=name,
        images=LazySequence(rows.image, np.arange(length)),
        questions=tuple(row.question for row in each),
        answers=tuple(row.answer() for row in each),
        traces=tuple(map(reasoning, each)) if world == "boxes" else None,
        columns={
            "objects": [len(row.scene.objects) for row in each],
            "width": [SIZE] * length,
            "height": [SIZE] * length,
        },
        identity=identity,
    )


class _Rows(NamedTuple):
    """The rows of one split, made on demand; picklable."""

    seed: int
    key: int
    style: str
    world: World

    def __call__(self, index: int) -> BoxRow:
        rng = np.random.default_rng((self.seed, self.key, index))
        return box_row(rng, self.world, self.style)

    def image(self, index: int) -> tuple[Image.Image, ...]:
        return (draw(self(index).scene)[0],)
