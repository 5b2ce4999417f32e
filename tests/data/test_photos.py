"""Folders of photos that have no labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from visgrpo.data.folders import holds_photos, read_photos
from visgrpo.errors import UserError


def test_photos_are_named_by_their_paths_and_decoded_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "summer").mkdir()
    for level, name in enumerate(("b.png", "a.JPG", "summer/c.webp")):
        Image.new("L", (4, 4), 60 * level).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    names, images = read_photos(tmp_path)
    assert names == ["a.JPG", "b.png", "broken.png", "summer/c.webp"]
    assert [images[row].mode for row in (0, 1, 3)] == ["RGB"] * 3
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        images[2]


def test_class_folders_and_tables_are_no_photos(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "a.png")
    (tmp_path / "train.parquet").write_bytes(b"")
    assert not holds_photos(tmp_path)
    assert not holds_photos(tmp_path / "nowhere")
    assert holds_photos(tmp_path / "cat")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images; name another folder"):
        read_photos(tmp_path)
