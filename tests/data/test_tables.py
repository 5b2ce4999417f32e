"""Parquet files: their splits, columns and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from pictures import CLASSES, picture, reds, write_table

from visgrpo.data.read import read, read_split
from visgrpo.errors import UserError


def test_parquet_folder_with_other_columns(tmp_path: Path) -> None:
    votes = [row / 10 for row in range(30)]
    captions = [f"row {row}" for row in range(30)]
    masks = [picture(row, "L") for row in range(30)]
    names = datasets.ClassLabel(names=list(CLASSES))
    features = {"label": names, "mask": datasets.Image()}
    label = [row % 3 for row in range(30)]
    for file in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        write_table(
            tmp_path / "data" / f"{file}.parquet",
            30,
            start=100 * ("1-of" in file),
            features=features,
            label=label,
            votes=votes,
            caption=captions,
            mask=masks,
        )
    (tmp_path / "README.md").write_text("not data")
    splits = read(str(tmp_path))
    assert splits.train.classes == CLASSES
    assert len(splits.train) + len(splits.validation) == 60
    assert reds(splits.test) == list(range(30))
    assert splits.test.labels.tolist() == label
    assert splits.test.labels.dtype == np.int64
    assert list(splits.test.columns["votes"]) == votes
    assert list(splits.test.columns["caption"]) == captions
    assert splits.test.columns["mask"][7].mode == "L"
    made = set(reds(splits.train)) | set(reds(splits.validation))
    assert made == {*range(30), *range(100, 130)}
    row = splits.validation.columns["caption"][2]
    assert row == f"row {reds(splits.validation)[2] % 100}"  # columns follow their rows


def test_single_file_numbered_files_and_odd_names(tmp_path: Path) -> None:
    write_table(tmp_path / "one.parquet", 30)
    assert read_split(str(tmp_path / "one.parquet"), "all").classes == CLASSES
    assert len(read(str(tmp_path / "one.parquet")).test) == 6
    write_table(tmp_path / "many" / "part-0.parquet", 30)
    write_table(tmp_path / "many" / "part-1.parquet", 30, start=30)
    assert reds(read_split(str(tmp_path / "many"), "all")) == list(range(60))
    write_table(tmp_path / "many" / "other.parquet", 30)
    with pytest.raises(UserError, match=r"3 parquet files of different names"):
        read(str(tmp_path / "many"))


@pytest.mark.parametrize(
    ("values", "classes", "ids"),
    [
        (["dog", "cat", "dog", "fox"], ("cat", "dog", "fox"), [1, 0, 1, 2]),
        ([10, 2, 10, 3], ("2", "3", "10"), [2, 0, 2, 1]),
    ],
)
def test_classes_from_the_labels_themselves(
    tmp_path: Path, values: list[Any], classes: tuple[str, ...], ids: list[int]
) -> None:
    write_table(tmp_path / "x.parquet", 4, label=values)
    dataset = read_split(str(tmp_path / "x.parquet"), "all")
    assert (dataset.classes, dataset.labels.tolist()) == (classes, ids)


def test_cifar100_columns_are_found_and_others_named(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=list(CLASSES))
    table = datasets.Dataset.from_dict(
        {
            "img": [picture(row) for row in range(30)],
            "fine_label": [row % 3 for row in range(30)],
            "coarse_label": [row % 2 for row in range(30)],
        }
    )
    table.cast_column("fine_label", label).to_parquet(tmp_path / "train.parquet")
    splits = read(str(tmp_path))
    assert splits.train.classes == CLASSES
    assert set(splits.train.columns) == {"coarse_label"}
    coarse = read(str(tmp_path), columns={"label": "coarse_label"})
    assert coarse.train.classes == ("0", "1")


def test_columns_that_cannot_be_found(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    write_table(file, 6, label=[0, 1] * 3, target=[0, 1] * 3)
    with pytest.raises(UserError, match=r"label and target could each be the label; name it with"):
        read(str(file))
    with pytest.raises(UserError, match=r'no column "targt". Did you mean "target"\?'):
        read(str(file), columns={"label": "targt"})
    with pytest.raises(UserError, match=r'no column "imgae". Did you mean "image"\?'):
        read(str(file), columns={"label": "label", "image": "imgae"})
    with pytest.raises(UserError, match=r'column "target" holds int64, not images'):
        _ = read_split(str(file), "all", columns={"label": "label", "image": "target"}).images[0]
    write_table(tmp_path / "y.parquet", 6, features={"image": datasets.Image()})
    with pytest.raises(UserError, match=r"columns \(image\) none is called like the label"):
        read(str(tmp_path / "y.parquet"))


def test_labels_that_are_no_labels(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    write_table(file, 4, label=[0.5, 1.5, 0.5, 1.5])
    with pytest.raises(UserError, match=r'"label" holds float64, not class names'):
        read(str(file))
    write_table(file, 4, label=["cat", None, "dog", "cat"])
    with pytest.raises(UserError, match=r"row 1 has no label"):
        read(str(file))
    write_table(file, 4, label=["cat"] * 4)
    with pytest.raises(UserError, match=r'1 class \("cat"\) found'):
        read(str(file))
    only = datasets.ClassLabel(names=list(CLASSES))
    write_table(file, 10, label=[1] * 10, features={"label": only})
    with pytest.raises(UserError, match=r'all 8 rows are of class "dog"'):
        read(str(file))


@pytest.mark.parametrize(
    "feature", [datasets.ClassLabel(names=[*CLASSES]), datasets.Value("int64")]
)
def test_a_test_split_without_labels_is_left_out_and_said(tmp_path: Path, feature: Any) -> None:
    ids = [row % 3 for row in range(30)]
    write_table(tmp_path / "train.parquet", 30, label=ids, features={"label": feature})
    write_table(tmp_path / "test.parquet", 5, label=[-1] * 5, features={"label": feature})
    splits = read(str(tmp_path))
    assert len(splits.test) == 6
    assert "no labels (all are -1)" in splits.notes[0]


def test_damaged_and_disagreeing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"^bad: its parquet files cannot be read"):
        read(str(tmp_path / "bad.parquet"))
    write_table(tmp_path / "d" / "train.parquet", 6)
    write_table(tmp_path / "d" / "test.parquet", 6, caption=["x"] * 6)
    with pytest.raises(UserError, match=r'"caption" is in only one of train.* and test.parquet'):
        read(str(tmp_path / "d"))
    write_table(tmp_path / "d" / "test.parquet", 6, label=[[1]] * 6)
    with pytest.raises(UserError, match=r'^d/test: label column "label" holds List') as caught:
        read(str(tmp_path / "d"))
    assert "\n" not in str(caught.value)
    write_table(tmp_path / "d" / "train.parquet", 6, label=["cat", "dog"] * 3)
    write_table(tmp_path / "d" / "test.parquet", 2, label=["cat", "dgo"])
    with pytest.raises(UserError, match=r'd/test: row 1 has label "dgo".* Did you mean "dog"\?'):
        read(str(tmp_path / "d"))
    assert "Traceback" not in capsys.readouterr().err
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"table.csv holds no rows"):
        read(str(tmp_path / "table.csv"))


def test_a_split_without_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", 6)
    empty = datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"))["train"]
    empty.select([]).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match="every split needs rows"):
        read(str(tmp_path))


def test_no_train_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "test.parquet", 6)
    assert len(read_split(str(tmp_path), "test")) == 6
    with pytest.raises(UserError, match=r"has no train split, only test"):
        read(str(tmp_path))
    with pytest.raises(UserError, match=r"stored in the splits test"):
        read_split(str(tmp_path), "train")
