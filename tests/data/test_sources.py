"""What a user may type: names, splits, slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from pictures import CLASSES, picture, png, reds, shares, write_table
from PIL import Image

from visgrpo.data.read import read, read_split
from visgrpo.errors import UserError

# ---- built in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["digits", "shapes", "shapes-out"])
def test_built_in_worlds(spec: str) -> None:
    splits = read(spec, seed=1)
    assert splits.train.classes == splits.test.classes
    assert all(len(s) > 0 for s in (splits.train, splits.validation, splits.test))
    assert splits.train.images[0].mode == "RGB"
    assert read_split(spec, "test[:5]", seed=1).labels.tolist() == splits.test.labels[:5].tolist()


def test_shapes_out_is_another_style_of_the_same_classes() -> None:
    inside, outside = read("shapes").test, read("shapes-out").test
    assert inside.classes == outside.classes
    assert np.asarray(inside.images[0]).tobytes() != np.asarray(outside.images[0]).tobytes()


# ---- names --------------------------------------------------------------------------------------


def test_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"img": [png(picture(row)) for row in range(9)], "label": ["cat", "dog", "fox"] * 3}
    table = datasets.Dataset.from_dict(rows)
    asked = []

    def load(name: str) -> datasets.DatasetDict:
        asked.append(name)
        return datasets.DatasetDict({"train": table, "valid": table, "unlabeled": table})

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits = read("cifar10")
    assert asked == ["uoft-cs/cifar10"]
    assert splits.train.classes == CLASSES
    assert reds(splits.test) == list(range(9))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": table.select([])})
    with pytest.raises(UserError, match=r"some/thing/train holds no rows"):
        read("some/thing")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"unlabeled": table})
    with pytest.raises(UserError, match=r"splits unlabeled, none of them train"):
        read("some/thing")


# ---- slices and fractions -----------------------------------------------------------------------


def test_slices_count_stored_rows_before_validation_is_made(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", 30)
    write_table(tmp_path / "test.parquet", 9, start=100)
    spec = str(tmp_path)
    assert reds(read_split(spec, "train[:12]", seed=5)) == list(range(12))
    assert reds(read_split(spec, "train[12:]", seed=6)) == list(range(12, 30))
    assert reds(read_split(spec, "train[3:6]")) == [3, 4, 5]
    assert reds(read_split(spec, "test[-2:]")) == [107, 108]
    assert reds(read_split(spec, "validation", seed=2)) == reds(read(spec, seed=2).validation)
    splits = read(spec, train_slice="12:")
    assert sorted(reds(splits.train) + reds(splits.validation)) == list(range(12, 30))
    assert reds(splits.test) == list(range(100, 109))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", r'Unknown split "trian". Did you mean "train"\?'),
        ("train[5]", r'"5" is no slice of rows'),
        ("train[:10%]", r'":10%" is no slice of rows'),
        ("train[:5", r"no closing bracket"),
        ("train[90:]", r"train\[90:\] holds no rows; it has 30 in all"),
        ("all", r"is stored in the splits train, test"),
    ],
)
def test_splits_that_are_none(tmp_path: Path, split: str, message: str) -> None:
    write_table(tmp_path / "train.parquet", 30)
    write_table(tmp_path / "test.parquet", 3)
    with pytest.raises(UserError, match=message):
        read_split(str(tmp_path), split)


def test_slices_of_train_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "x.parquet", 30)
    spec = str(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r'"2000" is no slice of rows'):
        read(spec, train_slice="2000")
    with pytest.raises(UserError, match=r"holds no rows; it has 24 in all"):
        read(spec, train_slice="2000:")
    write_table(tmp_path / "x.parquet", 3)
    with pytest.raises(
        UserError, match=r"3 different images are too few to set a test split apart"
    ):
        read(spec)


def test_a_stored_validation_split_is_the_test_split_where_there_is_none(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", 30)
    write_table(tmp_path / "validation.parquet", 9, start=100)
    spec = str(tmp_path)
    splits = read(spec, validation_fraction=0.2, seed=3)
    assert reds(splits.test) == list(range(100, 109))
    assert splits.test.name.endswith("/test")
    assert shares(splits.validation) == [2, 2, 2]
    assert sorted(reds(splits.train) + reds(splits.validation)) == list(range(30))
    assert "its stored validation split (9 rows) is the test split" in splits.notes[0]
    assert "6 of its 30 train rows (stratified, seed 3) were set apart" in splits.notes[1]
    other = read(spec, validation_fraction=0.2, seed=4)
    assert reds(other.validation) != reds(splits.validation)
    assert reds(other.test) == reds(splits.test)
    # One split at a time, the names mean the same.
    assert reds(read_split(spec, "test")) == reds(splits.test)
    assert reds(read_split(spec, "train")) == list(range(30))
    alone = read_split(spec, "validation", validation_fraction=0.2, seed=3)
    assert reds(alone) == reds(splits.validation)


def test_a_validation_split_alone_stays_one(tmp_path: Path) -> None:
    write_table(tmp_path / "validation.parquet", 9)
    assert len(read_split(str(tmp_path), "validation")) == 9
    with pytest.raises(UserError, match=r"has no train split, only validation"):
        read(str(tmp_path))


def test_rare_classes_stay_in_train(tmp_path: Path) -> None:
    write_table(tmp_path / "x.parquet", 60, label=["cat"] * 40 + ["dog"] * 19 + ["fox"])
    splits = read(str(tmp_path / "x.parquet"))
    assert shares(splits.train)[2] == 1
    assert sum(shares(splits.test)) == 12
    assert shares(splits.test)[0] in (8, 9)  # of cats, 40 × 12/60 = 8


def test_train_alone_leaves_out_the_rows_of_the_made_test_split(tmp_path: Path) -> None:
    """Learning from "train" and testing on "test" must not share a row, asked for one by one."""
    for name in ("cat", "dog"):
        for i in range(10):
            folder = tmp_path / "train" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
    train, test = (read_split(str(tmp_path), split) for split in ("train", "test"))
    assert len(train) == 16
    assert len(test) == 4
    assert not set(train.columns["file"]) & set(test.columns["file"])


def rows_called(*names: str | None) -> dict[str, list[Any]]:
    encoded = [{"bytes": png(picture(row)), "path": name} for row, name in enumerate(names)]
    return {"image": encoded, "label": [row % 3 for row in range(len(names))]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"{n}.png" for n in range(30)], [f"{n}.png" for n in range(30)]),
        ([f"/home/me/photos/{n}.png" for n in range(30)], [f"{n}.png" for n in range(30)]),
        ([f"{n % 15}/{n // 15}.png" for n in range(30)],) * 2,
        (["image.png"] * 30, None),
        ([None, *(f"{n}.png" for n in range(29))], None),
    ],
)
def test_a_table_tells_the_names_of_its_files(
    tmp_path: Path, names: list[str | None], expected: list[str] | None
) -> None:
    """Where they tell rows apart; messages, samples and pages call rows by them."""
    table = datasets.Dataset.from_dict(rows_called(*names)).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "x.parquet")
    found = read_split(str(tmp_path / "x.parquet"), "all")
    assert found.columns.get("file") == expected
    if expected:
        assert found.where(3) == f"x/all: row 3 ({expected[3]})"
