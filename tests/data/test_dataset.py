"""Decoding images, and what a data set checks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from pictures import picture, png, red, reds, write_folder, write_table
from PIL import Image

from visgrpo.data.read import read, read_split
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.errors import UserError

# ---- images -------------------------------------------------------------------------------------


def test_modes_become_rgb(tmp_path: Path) -> None:
    def only(image: Image.Image, name: str, **options: Any) -> Image.Image:
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            image.save(tmp_path / name / label / name, **options)
        loaded = read_split(str(tmp_path / name), "all").images[0]
        assert loaded.mode == "RGB"
        return loaded

    assert only(Image.new("L", (4, 4), 90), "grey.png").getpixel((0, 0)) == (90, 90, 90)
    grey16 = Image.fromarray(np.full((4, 4), 257 * 90, dtype=np.uint16))
    assert only(grey16, "grey16.png").getpixel((0, 0)) == (90, 90, 90)
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert only(half, "clear.png").getpixel((0, 0)) == (255, 255, 255)
    palette = picture(200).quantize(4)
    assert red(only(palette, "palette.png")) == 200
    assert only(palette, "hole.png", transparency=0).getpixel((0, 0)) == (255, 255, 255)
    cmyk = only(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "cmyk.jpg")
    assert np.abs(np.array(cmyk.getpixel((0, 0))) - (255, 0, 0)).max() < 12
    upright = Image.new("RGB", (6, 4))
    exif = upright.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    assert only(upright, "turned.jpg", exif=exif).size == (4, 6)


def test_unreadable_images_are_named_or_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, 12)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    whole = png(Image.fromarray(noise))
    (tmp_path / "cat" / "000.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "001.png").write_text("a web page, not an image")
    (tmp_path / "fox" / "002.png").write_bytes(b"")
    dataset = read_split(str(tmp_path), "all")
    for row, name in ((0, "cat/000.png"), (13, "dog/001.png"), (26, "fox/002.png")):
        with pytest.raises(
            UserError, match=rf"{name} cannot be read .*--skip-bad-images"
        ) as caught:
            _ = dataset.images[row]
        assert "\n" not in str(caught.value)
    kept = read_split(str(tmp_path), "all", skip_bad_images=True)
    assert len(kept) == 33
    assert len(kept.skipped) == 3
    assert "cat/000.png" in kept.skipped[0]
    assert set(reds(kept)) == set(range(36)) - {0, 13, 26}
    with pytest.raises(UserError, match=r"all\[\] |none of its 1 images can be read"):
        read_split(str(tmp_path), "all[:1]", skip_bad_images=True)
    splits = read(str(tmp_path), skip_bad_images=True)
    three = (splits.train, splits.validation, splits.test)
    assert sum(len(split.skipped) for split in three) == 3
    assert sum(len(split) for split in three) == 33


def test_an_unreadable_row_of_a_table_is_named(tmp_path: Path) -> None:
    rows = {"image": [png(picture(1)), b"garbage"], "label": ["cat", "dog"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "x.parquet")
    dataset = read_split(str(tmp_path / "x.parquet"), "all")
    assert red(dataset.images[0]) == 1
    with pytest.raises(UserError, match=r"x/all: image of row 1 cannot be read \(not an image\)"):
        _ = dataset.images[1]


# ---- the data set itself ------------------------------------------------------------------------


def test_a_data_set_checks_itself() -> None:
    def make(**change: Any) -> Table:
        given = {"classes": ("a", "b"), "labels": np.array([0, 1, 1]), "images": [picture(0)] * 3}
        return image_table(**{"name": "mine", **given, **change})

    assert make(columns={"x": [1, 2, 3]}).subset([2, 0]).columns["x"] == [3, 1]
    for change, message in (
        ({"classes": ("a", "b", "a")}, r'mine: class "a" is named twice'),
        ({"classes": ("a",)}, r"a classifier needs at least two"),
        ({"labels": np.array([0, 1, 2])}, r"row 2 has label 2, outside its 2 classes"),
        ({"labels": np.array([0.0, 1.0, 1.0])}, r"labels are float64; give whole numbers"),
        ({"images": [picture(0)]}, r'column "images" has 1 rows but there are 3 labels'),
        ({"columns": {"x": [1]}}, r'column "x" has 1 rows'),
    ):
        with pytest.raises(UserError, match=message):
            make(**change)


def test_data_sets_travel_to_other_processes(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", 4)
    write_table(tmp_path / "x.parquet", 12)
    for spec in ("folder", "x.parquet"):
        dataset = read_split(str(tmp_path / spec), "all[2:]")
        assert reds(pickle.loads(pickle.dumps(dataset))) == reds(dataset) == list(range(2, 12))
