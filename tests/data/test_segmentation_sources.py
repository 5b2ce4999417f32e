"""Where images with masks come from, how they are divided, and what is said about bad ones."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from pictures import picture, png, red
from PIL import Image

from visgrpo.data.read import read, read_split
from visgrpo.data.roles import image_and_mask
from visgrpo.data.table import Table
from visgrpo.data.worlds.shapes import MASK_CLASSES, SHAPES, shapes_splits
from visgrpo.errors import UserError

CLASSES = "background\ncat\ndog\n"


def mask_of(value: int) -> Image.Image:
    """A mask of class 0 with a pixel of class 1 or 2, told by the image's red value."""
    ids = np.zeros((4, 6), dtype=np.uint8)
    ids[1, 2] = 1 + value % 2
    return Image.fromarray(ids)


def write_masks(folder: Path, rows: int, start: int = 0) -> None:
    for part, make in (("images", picture), ("masks", mask_of)):
        (folder / part).mkdir(parents=True)
        for row in range(start, start + rows):
            make(row).save(folder / part / f"{row:03}.png")


def write_parquet(path: Path, rows: int, start: int = 0, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = range(start, start + rows)
    data = {"image": [*map(picture, values)], "mask": [*map(mask_of, values)], **columns}
    datasets.Dataset.from_dict(data).to_parquet(path)
    (path.parent / "classes.txt").write_text(CLASSES)


def reds(dataset: Table) -> list[int]:
    """The images by their red values, after a check that each has its own mask."""
    pairs = [image_and_mask(dataset, row) for row in range(len(dataset))]
    for image, ids in pairs:
        assert np.array_equal(ids, np.asarray(mask_of(red(image))))
    return [red(image) for image, _ in pairs]


def test_a_folder_of_tables(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 20, place=list("ab") * 10)
    write_parquet(tmp_path / "test.parquet", 5, start=50, place=["c"] * 5)
    splits = read(str(tmp_path), "masks", validation_fraction=0.2)
    assert splits.train.classes == ("background", "cat", "dog")
    train, validation = reds(splits.train), reds(splits.validation)
    assert sorted(train + validation) == list(range(20))
    assert sum(value % 2 for value in validation) == 2  # stratified by the rarest class
    assert reds(splits.test) == [50, 51, 52, 53, 54]
    assert list(splits.train.columns["place"]) == ["ab"[value % 2] for value in train]
    assert [part.name.split("/")[1] for part in (splits.train, splits.validation, splits.test)] == [
        "train",
        "validation",
        "test",
    ]
    (note,) = splits.notes
    assert "no validation split: 4 of its 20 train rows (stratified, seed 0)" in note
    identities = {part.identity for part in (splits.train, splits.validation, splits.test)}
    assert len(identities) == 3
    assert "" not in identities


def test_seed_fraction_and_slice(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 20)
    write_parquet(tmp_path / "test.parquet", 2)

    def load(**options: Any) -> tuple[list[int], list[int]]:
        splits = read(str(tmp_path), "masks", **options)
        return reds(splits.train), reds(splits.validation)

    assert load(seed=1) == load(seed=1) != load(seed=2)
    train, validation = load(train_slice="10:", validation_fraction=0.4)
    assert sorted(train + validation) == list(range(10, 20))
    assert len(validation) == 4


def test_one_undivided_table(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets.parquet", 20)
    splits = read(str(tmp_path / "pets.parquet"), "masks")
    everything = [reds(part) for part in (splits.train, splits.validation, splits.test)]
    assert sorted(chain(*everything)) == list(range(20))
    assert [len(part) for part in everything] == [14, 2, 4]
    again = read(str(tmp_path / "pets.parquet"), "masks", seed=5)
    assert reds(again.test) == everything[2]
    assert splits.test.name == "pets/test"
    assert len(splits.notes) == 2


def test_columns_of_pictures_are_found_and_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    masks = [mask_of(row) for row in range(20)]
    data = {
        "photo": [picture(row) for row in range(20)],
        "annotation": masks,
        "label": ["a", "b"] * 10,
    }
    datasets.Dataset.from_dict(data).to_parquet(path)
    (tmp_path / "names.txt").write_text(CLASSES)
    photo, names = {"image": "photo"}, tmp_path / "names.txt"
    splits = read(str(path), "masks", columns=photo, classes_file=names)
    assert list(splits.train.columns) == ["label"]
    assert len(reds(splits.train)) == 14
    with pytest.raises(UserError, match=r"\(photo, annotation, label\) none is called"):
        read(str(path), "masks", classes_file=names)
    with pytest.raises(UserError, match=r'no column "annotations"\. Did you mean "annotation"'):
        read(str(path), "masks", columns={**photo, "mask": "annotations"}, classes_file=names)


def test_encoded_masks_in_a_plain_table(tmp_path: Path) -> None:
    data = {
        "image": [png(picture(row)) for row in range(20)],
        "mask": [png(mask_of(row)) for row in range(20)],
    }
    datasets.Dataset.from_dict(data).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "classes.txt").write_text(CLASSES)
    assert len(reds(read(str(tmp_path / "x.parquet"), "masks").train)) == 14


def test_folders_with_splits(tmp_path: Path) -> None:
    for split, rows, start in (("train", 8, 0), ("val", 3, 20), ("test", 2, 30)):
        write_masks(tmp_path / split, rows, start)
    (tmp_path / "classes.txt").write_text(CLASSES)
    splits = read(str(tmp_path), "masks")
    assert reds(splits.train) == list(range(8))
    assert reds(splits.validation) == [20, 21, 22]
    assert reds(splits.test) == [30, 31]
    assert splits.train.columns["file"][3] == "train/images/003.png"
    assert splits.notes == ()


def test_an_undivided_folder_with_an_image_in_another_format(tmp_path: Path) -> None:
    write_masks(tmp_path, 20)
    (tmp_path / "classes.txt").write_text(CLASSES)
    (tmp_path / "images" / "003.png").unlink()
    picture(3).save(tmp_path / "images" / "003.bmp")
    splits = read(str(tmp_path), "masks")
    parts = (splits.train, splits.validation, splits.test)
    assert sorted(chain(*map(reds, parts))) == list(range(20))


def test_one_split_is_that_of_the_three(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 20)
    write_parquet(tmp_path / "test.parquet", 5, start=50)
    spec = str(tmp_path)
    splits = read(spec, "masks", seed=4)
    for split in ("validation", "test"):
        one = read_split(spec, split, "masks", seed=4)
        assert reds(one) == reds(getattr(splits, split))
        assert one.name == getattr(splits, split).name
    assert reds(read_split(spec, "train", "masks")) == list(range(20))
    assert reds(read_split(spec, "train[2:5]", "masks")) == [2, 3, 4]
    with pytest.raises(UserError, match=r"stored in the splits train, test\. Choose from"):
        read_split(spec, "all", "masks")
    with pytest.raises(UserError, match='Unknown split "tests"'):
        read_split(spec, "tests", "masks")


def test_one_split_of_undivided_or_untrained_data(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "pets.parquet", 20)
    pets = str(tmp_path / "a" / "pets.parquet")
    assert reds(read_split(pets, "all", "masks")) == list(range(20))
    test = reds(read_split(pets, "test", "masks", skip_bad_images=True))
    assert test == reds(read(pets, "masks").test)
    assert sorted([*test, *reds(read_split(pets, "train", "masks"))]) == list(range(20))
    write_parquet(tmp_path / "b" / "test.parquet", 3)
    assert reds(read_split(str(tmp_path / "b"), "test", "masks")) == [0, 1, 2]
    with pytest.raises(UserError, match="b has no train split, only test"):
        read(str(tmp_path / "b"), "masks")


@pytest.mark.parametrize(("spec", "style"), [("shapes", "in"), ("shapes-out", "out")])
def test_the_built_in_world(spec: str, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shapes_splits(seed=3, train=12, validation=2, test=2, size=16, style=style)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "visgrpo.data.read.shapes_splits",
        lambda **options: asked.append(options) or small,
    )
    splits = read(spec, "masks", seed=3)
    assert asked == [{"seed": 3} if style == "in" else {"seed": 3, "style": style}]
    assert splits.train.classes == MASK_CLASSES
    for row in range(12):
        image, ids = image_and_mask(splits.train, row)
        assert np.array_equal(np.asarray(image), np.asarray(small.train.images[row]))
        shape = SHAPES.index(small.train.columns["shape"][row]) + 1
        assert set(np.unique(ids)) == {0, shape}
    assert len(splits.test) == 2
    assert splits.train.identity != small.train.identity


def test_absent_classes_are_noted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 20)
    write_parquet(tmp_path / "test.parquet", 2)
    (tmp_path / "classes.txt").write_text(CLASSES + "\n".join("abcdefg"))
    *_, note = read(str(tmp_path), "masks").notes
    assert "7 of the 10 classes are on no pixel" in note
    assert "(a, b, c, d, e, …)" in note
    (tmp_path / "classes.txt").write_text(CLASSES + "ferret")
    *_, note = read(str(tmp_path), "masks").notes
    assert "1 of the 4 classes is on no pixel" in note
    assert "(ferret): nothing can be learned about it" in note


def test_a_bad_mask_in_the_train_rows_is_found_at_once_or_left_out(tmp_path: Path) -> None:
    write_masks(tmp_path / "train", 8)
    write_masks(tmp_path / "test", 2)
    (tmp_path / "classes.txt").write_text(CLASSES)
    Image.new("RGB", (6, 4)).save(tmp_path / "train" / "masks" / "002.png")
    with pytest.raises(UserError, match=r"row 2 \(train/images/002\.png\): its mask is a picture"):
        read(str(tmp_path), "masks")
    (tmp_path / "train" / "masks" / "005.png").write_bytes(b"no picture")
    (tmp_path / "train" / "images" / "006.png").write_bytes(b"no picture")
    splits = read(str(tmp_path), "masks", skip_bad_images=True)
    assert sorted(reds(splits.train) + reds(splits.validation)) == [0, 1, 3, 4, 7]
    assert len(splits.train.skipped) == 3
    assert "005.png cannot be read (not an image); replace it" in splits.train.skipped[1]


def test_a_mask_that_is_missing_from_a_table(tmp_path: Path) -> None:
    masks = [*map(mask_of, range(19)), None]
    write_parquet(tmp_path / "train.parquet", 20, mask=masks)
    with pytest.raises(UserError, match="row 19 has no mask in column"):
        read(str(tmp_path / "train.parquet"), "masks")


def test_class_names_must_be_there(tmp_path: Path) -> None:
    write_masks(tmp_path, 4)
    with pytest.raises(UserError, match=r"there is no .*classes\.txt; write one class name per"):
        read(str(tmp_path), "masks")
    with pytest.raises(UserError, match=r"there is no .*names\.txt"):
        read(str(tmp_path), "masks", classes_file=tmp_path / "names.txt")
    with pytest.raises(UserError, match=r"owner/pets: masks hold ids, not names; .*--classes-file"):
        read("owner/pets", "masks")


def test_a_folder_of_pictures_has_no_columns(tmp_path: Path) -> None:
    write_masks(tmp_path, 4)
    (tmp_path / "classes.txt").write_text(CLASSES)
    with pytest.raises(
        UserError, match=r"^--mask-column seg: .* is a folder of pictures"
    ) as caught:
        read(str(tmp_path), "masks", columns={"mask": "seg"})
    assert "\n" not in str(caught.value)


def test_names_that_do_not_match(tmp_path: Path) -> None:
    write_masks(tmp_path, 4)
    (tmp_path / "classes.txt").write_text(CLASSES)
    extra = tmp_path / "masks" / "009.png"
    mask_of(0).save(extra)
    with pytest.raises(UserError, match=r"009\.png has no file of the same name in .*images"):
        read(str(tmp_path), "masks")
    extra.unlink()
    (tmp_path / "masks" / "001.png").unlink()
    (tmp_path / "masks" / "002.png").unlink()
    with pytest.raises(UserError, match=r"001\.png \(and 1 more\) has no file .*masks"):
        read(str(tmp_path), "masks")
    picture(0).save(tmp_path / "images" / "000.bmp")
    with pytest.raises(UserError, match="have one name; keep one of them"):
        read(str(tmp_path), "masks")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("empty", "images is missing or holds no pictures"),
        ("empty/classes.txt", "is no table; name a folder"),
    ],
)
def test_unknown_sources(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "classes.txt").write_text(CLASSES)
    with pytest.raises(UserError, match=message):
        read(spec, "masks")


def test_the_hub_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"image": [*map(picture, range(10))], "label": [*map(mask_of, range(10))]}
    table = datasets.Dataset.from_dict(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": table, "val": table})
    (tmp_path / "names.txt").write_text(CLASSES)
    splits = read("owner/pets", "masks", classes_file=tmp_path / "names.txt")
    assert reds(splits.test) == list(range(10))
    assert "its stored validation split (10 rows) is the test split" in splits.notes[0]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"odd": table})
    with pytest.raises(UserError, match="has the splits odd, none of them train"):
        read("owner/pets", "masks", classes_file=tmp_path / "names.txt")


def test_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(CLASSES)
    with pytest.raises(UserError, match='"owner/pets" is no local folder and cannot be loaded'):
        read("owner/pets", "masks", classes_file=tmp_path / "names.txt")
