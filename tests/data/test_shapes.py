"""The world of shapes: pictures against geometry, captions and counts against hand-made scenes."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from visgrpo.data.worlds import shapes
from visgrpo.data.worlds.shapes import (
    CLASSES,
    COLOURS,
    MASK_CLASSES,
    SHAPES,
    STYLES,
    Background,
    Scene,
    SceneObject,
    caption,
    count,
    draw,
    sample_scene,
    shapes_splits,
)
from visgrpo.errors import UserError

GREY = Background("plain", ((90, 90, 90), (90, 90, 90)), period=0.2, angle=0)

EIGHT_NEIGHBOURS = np.ones((3, 3))


def thing(shape: str, colour: str = "red", **changes: Any) -> SceneObject:
    values = {"x": 0.5, "y": 0.5, "radius": 0.3, "rotation": 0.0, "fill": "solid"} | changes
    return SceneObject(shape, colour, COLOURS[colour], **values)


def scene(*objects: SceneObject, size: int = 100) -> Scene:
    return Scene(size, GREY, objects, noise=0.0, noise_seed=0)


def pixels(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


# Pictures and masks


def test_a_circle_has_its_place_and_area() -> None:
    image, mask = draw(scene(thing("circle", x=0.3, y=0.6, radius=0.2)))
    assert (image.mode, image.size) == ("RGB", (100, 100))
    assert (mask.dtype, mask.shape) == (np.uint8, (100, 100))
    assert set(np.unique(mask)) == {0, MASK_CLASSES.index("circle")}
    # The circle is drawn at 0.88 of its bounding radius, to look as large as the other shapes.
    assert (mask > 0).sum() == pytest.approx(math.pi * (0.88 * 20) ** 2, rel=0.03)
    rows, columns = np.nonzero(mask)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((30, 60), abs=0.5)
    assert image.getpixel((30, 60)) == COLOURS["red"]
    assert image.getpixel((80, 20)) == (90, 90, 90)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_stays_within_its_radius(shape: str) -> None:
    _, mask = draw(scene(thing(shape, radius=0.4)))
    rows, columns = np.nonzero(mask)
    farthest = np.hypot(columns - 49.5, rows - 49.5).max()
    assert 34 < farthest <= 40.5  # pixels


def test_rotation_is_clockwise() -> None:
    def middle_of_extent(rotation: float) -> tuple[float, float]:
        _, mask = draw(scene(thing("triangle", rotation=rotation)))
        rows, columns = np.nonzero(mask)
        return (columns.min() + columns.max()) / 2 - 49.5, (rows.min() + rows.max()) / 2 - 49.5

    # From the centre, the apex is 30 pixels away and the base 15: the middle lies 7.5 towards the
    # apex, which points up and then to the right.
    assert middle_of_extent(0) == pytest.approx((0, -7.5), abs=1)
    assert middle_of_extent(90) == pytest.approx((7.5, 0), abs=1)


def test_edges_are_antialiased_but_the_mask_is_not() -> None:
    image, mask = draw(scene(thing("circle")))
    colours = {colour for _, colour in image.getcolors(10_000)}
    assert len(colours) > 5
    assert len(np.unique(mask)) == 2


@pytest.mark.parametrize("style", STYLES)
def test_masks_agree_with_the_picture(style: str) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        one = sample_scene(rng, objects=1, style=style, size=64, noise=0)
        image, mask = draw(one)
        item = one.objects[0]
        assert set(np.unique(mask)) == {0, SHAPES.index(item.shape) + 1}
        hues, saturations = hue_and_saturation(image)
        target = colorsys.rgb_to_hsv(*(channel / 255 for channel in item.rgb))[0]
        turn = np.abs((hues - target + 0.5) % 1 - 0.5) * 360
        coloured = (turn < 20) & (saturations > 0.25)
        inside = ndimage.binary_erosion(mask > 0)
        outside = ~ndimage.binary_dilation(mask > 0, EIGHT_NEIGHBOURS)
        assert coloured[inside].mean() > 0.9
        assert coloured[outside].mean() == 0


def hue_and_saturation(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in np.asarray(image).reshape(-1, 3) / 255]
    hues, saturations, _ = np.array(hsv).T.reshape(3, image.height, image.width)
    return hues, saturations


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("number", [0, 1, 3, 9])
def test_objects_are_whole_and_apart(style: str, number: int) -> None:
    for seed in range(5):
        many = sample_scene(np.random.default_rng(seed), objects=number, style=style, size=192)
        _, mask = draw(many)
        assert count(many) == number
        assert ndimage.label(mask, EIGHT_NEIGHBOURS)[1] == number
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not edge.any()


def test_noise_has_its_standard_deviation() -> None:
    noisy = Scene(100, GREY, (), noise=0.05, noise_seed=3)
    values = np.asarray(draw(noisy)[0], dtype=float) - 90
    assert values.std() == pytest.approx(0.05 * 255, rel=0.02)
    assert values.mean() == pytest.approx(0, abs=0.3)


def test_the_styles_share_no_fill_texture_or_hue_shift() -> None:
    inside, outside = STYLES["in"], STYLES["out"]
    assert not set(inside.fills) & set(outside.fills)
    assert not set(inside.textures) & set(outside.textures)
    assert inside.hue_shift[1] < outside.hue_shift[0]


def test_no_colour_can_be_shifted_into_another() -> None:
    hues = sorted(
        360 * colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))[0]
        for rgb in COLOURS.values()
    )
    gaps = np.diff([*hues, hues[0] + 360])
    assert gaps.min() > 2 * max(style.hue_shift[1] for style in STYLES.values()) + 5


@pytest.mark.parametrize("fill", ["stripes", "outline", "gradient"])
@pytest.mark.parametrize("texture", ["gradient", "stripes", "checks", "dots"])
def test_every_fill_and_texture_is_drawn(fill: str, texture: str) -> None:
    tones = ((40, 40, 40), (200, 200, 200))
    item = thing("square", "blue", fill=fill)
    one = Scene(64, Background(texture, tones, 0.25, 30), (item,), noise=0, noise_seed=0)
    array = np.asarray(draw(one)[0]).astype(int)
    corners = array[:8, :].max() - array[:8, :].min()
    assert corners > 60  # both tones are seen
    middle = array[24:40, 24:40].reshape(-1, 3)
    assert len(np.unique(middle, axis=0)) > 1 or fill == "outline"
    assert (middle[:, 2] > middle[:, 0] + 30).all()  # bluer than red everywhere inside


# Words and numbers


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([], "a photo of an empty background"),
        ([("red", "circle")], "a photo of a red circle"),
        ([("orange", "star")], "a photo of an orange star"),
        ([("red", "circle"), ("blue", "star")], "a photo of a red circle and a blue star"),
        (
            [("red", "cross"), ("blue", "star"), ("red", "cross"), ("orange", "heart")],
            "a photo of two red crosses, a blue star and an orange heart",
        ),
        ([("green", "square")] * 12, "a photo of twelve green squares"),
        ([("green", "square")] * 21, "a photo of 21 green squares"),
    ],
)
def test_captions(objects: list[tuple[str, str]], expected: str) -> None:
    assert caption(scene(*(thing(shape, colour) for colour, shape in objects))) == expected


def test_counts() -> None:
    three = scene(thing("circle"), thing("circle", "blue"), thing("star", "blue"))
    assert count(three) == 3
    assert count(three, colour="blue") == 2
    assert count(three, shape="circle") == 2
    assert count(three, colour="blue", shape="circle") == 1
    assert count(three, colour="green") == 0


def test_a_range_gives_each_of_its_numbers() -> None:
    rng = np.random.default_rng(0)
    numbers = {count(sample_scene(rng, objects=range(2, 5))) for _ in range(40)}
    assert numbers == {2, 3, 4}


def test_scenes_keep_to_the_shapes_and_colours_asked_for() -> None:
    rng = np.random.default_rng(0)
    some = sample_scene(rng, objects=8, shapes=("star", "heart"), colours=("purple",))
    assert count(some, colour="purple") == 8
    assert count(some, shape="star") + count(some, shape="heart") == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "inn"}, 'Unknown style "inn".*Did you mean "in"'),
        ({"shapes": ("sqare",)}, 'Unknown shape "sqare".*"square"'),
        ({"colours": ("rad",)}, 'Unknown colour "rad".*"red"'),
        ({"shapes": ()}, "name at least one"),
        ({"objects": -1}, "objects is -1"),
        ({"objects": range(3, 3)}, "not empty"),
        ({"objects": 60, "size": 24}, "60 objects do not fit into 24 × 24"),
        ({"size": 4}, "8 pixels or more"),
        ({"noise": -0.1}, "noise from 0"),
    ],
)
def test_scene_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_scene(np.random.default_rng(0), **{"objects": 1} | arguments)


def test_count_mistakes_are_named() -> None:
    with pytest.raises(UserError, match='"blue"'):
        count(scene(), colour="bleu")
    with pytest.raises(UserError, match='"star"'):
        count(scene(), shape="stars")


def test_mistakes_in_hand_made_scenes_are_named() -> None:
    with pytest.raises(UserError, match=r'Unknown fill "stripe".*"stripes"'):
        thing("star", fill="stripe")
    with pytest.raises(UserError, match=r'Unknown shape "hart".*"heart"'):
        thing("hart")
    with pytest.raises(UserError, match=r'Unknown texture "dot".*"dots"'):
        Background("dot", GREY.tones, 0.2, 0)


# The classification set


@pytest.mark.parametrize("style", STYLES)
def test_the_same_seed_gives_the_same_bytes(style: str) -> None:
    sizes = {"train": 30, "validation": 24, "test": 24, "style": style}
    one, again, other = (shapes_splits(seed, **sizes) for seed in (7, 7, 8))
    assert pixels(one.train.images) == pixels(again.train.images)
    assert np.array_equal(one.train.labels, again.train.labels)
    assert pixels(one.train.images) != pixels(other.train.images)


def test_image_i_depends_on_neither_length_nor_order() -> None:
    long = shapes_splits(train=60, validation=10, test=10).train
    short = shapes_splits(train=29, validation=99, test=99).train
    backwards = [short.images[i].tobytes() for i in reversed(range(29))]
    assert pixels(long.images)[:29] == backwards[::-1]
    assert np.array_equal(long.labels[:29], short.labels)


def test_splits_are_disjoint_balanced_and_complete() -> None:
    made = shapes_splits(train=100, validation=48, test=50)
    parts = [made.train, made.validation, made.test]
    everything = [image for part in parts for image in pixels(part.images)]
    assert len(set(everything)) == len(everything) == 198
    assert len(CLASSES) == 24
    for part in parts:
        counts = np.bincount(part.labels, minlength=24)
        assert counts.min() >= 1
        assert counts.max() - counts.min() <= 1
    names = [part.name for part in parts]
    assert names == ["shapes/train", "shapes/validation", "shapes/test"]


def test_columns_tell_what_is_drawn() -> None:
    test = shapes_splits(train=1, validation=1, test=40, style="out", size=48).test
    assert test.name == "shapes-out/test"
    for row in range(len(test)):
        colour, shape = test.classes[test.labels[row]].split()
        columns = {name: column[row] for name, column in test.columns.items()}
        assert (columns["color"], columns["shape"], columns["count"]) == (colour, shape, 1)
        assert columns["caption"] == f"a photo of a {colour} {shape}"
        mask = columns["mask"]
        assert mask.shape == (48, 48)
        assert set(np.unique(mask)) == {0, MASK_CLASSES.index(shape)}


def test_pictures_are_drawn_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw_and_note(scene: Scene) -> tuple[Image.Image, np.ndarray]:
        drawn.append(scene)
        return draw(scene)

    monkeypatch.setattr(shapes, "draw", draw_and_note)
    made = shapes_splits(train=500, validation=500, test=500)
    assert len(drawn) <= 3
    drawn.clear()
    first = made.train.images[17]
    assert made.train.columns["mask"][17].shape == (32, 32)
    assert made.train.subset([3, 17]).images[1] is first
    assert len(drawn) == 1


def test_split_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="shapes/test: 0 images"):
        shapes_splits(test=0)
    with pytest.raises(UserError, match="Unknown style"):
        shapes_splits(style="outside")
