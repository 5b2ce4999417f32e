"""The identity of data sets: equal for equal content, different after every change."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import CLASSES, picture, red, write_folder, write_table

from visgrpo.data.folders import read_image_folder
from visgrpo.data.read import read, read_split
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table, join
from visgrpo.data.worlds.shapes import digits_splits, shapes_splits


def touch(path: Path) -> None:
    """Change the time of change, as rewriting the file would."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def known(identity: str = "source", rows: int = 6) -> Table:
    labels = np.arange(rows) % 3
    images = [picture(row) for row in range(rows)]
    return image_table("rows", CLASSES, labels, images, identity=identity)


# ---- what is made of a data set -----------------------------------------------------------------


def test_a_subset_is_named_by_its_rows_in_their_order() -> None:
    whole = known()
    names = [whole.identity] + [
        whole.subset(rows).identity for rows in ([0, 1], [1, 0], [0, 2], [0, 1, 2], [])
    ]
    assert len(set(names)) == 6
    assert whole.subset([0, 1]).identity == whole.subset(np.array([0, 1], np.int32)).identity
    assert whole.subset([1, 2]).subset([0]).identity != whole.subset([0]).identity


def test_joined_sets_are_named_by_all_of_them_in_order() -> None:
    one, two = known("one"), known("two")
    names = {join([one, two]).identity, join([two, one]).identity, join([one, one]).identity}
    assert len(names) == 3
    assert join([one]).identity == "one"


def test_the_unknown_stays_unknown() -> None:
    made = image_table("rows", CLASSES, np.arange(3), [picture(0)] * 3)
    assert made.identity == ""
    assert made.subset([0]).identity == ""
    assert join([made, known()]).identity == join([known(), made]).identity == ""


# ---- sources ------------------------------------------------------------------------------------


def test_built_in_digits() -> None:
    first, again, other = (digits_splits(seed=seed) for seed in (0, 0, 1))
    assert first.train.identity == again.train.identity != other.train.identity
    assert first.test.identity == other.test.identity  # the same rows for every seed
    names = {split.identity for split in (first.train, first.validation, first.test)}
    assert len(names) == 3


def test_built_in_shapes() -> None:
    few = {"train": 30, "validation": 5, "test": 5}
    plain = shapes_splits(**few)
    assert plain.train.identity == shapes_splits(**few).train.identity != plain.test.identity
    assert plain.train.identity != shapes_splits(seed=1, **few).train.identity
    assert plain.test.identity == shapes_splits(seed=1, **few).test.identity
    others = [{"size": 40}, {"style": "out"}, {"noise": 0.2}]
    names = {shapes_splits(**few, **other).test.identity for other in others}
    assert len(names | {plain.test.identity}) == 4


def test_shapes_drawn_differently_have_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"train": 1, "validation": 1, "test": 1}
    before = shapes_splits(**few).train.identity
    blank = (picture(0), np.zeros((4, 6), np.uint8))
    monkeypatch.setattr("visgrpo.data.worlds.shapes.draw", lambda scene: blank)
    assert shapes_splits(**few).train.identity != before


def test_a_folder_of_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", 4)
    names = [read_split(str(tmp_path / "data"), "all").identity]
    assert read_split(str(tmp_path / "data"), "all").identity == names[0]
    touch(tmp_path / "data" / "dog" / "001.png")
    names.append(read_split(str(tmp_path / "data"), "all").identity)
    picture(7).save(tmp_path / "data" / "dog" / "004.png")
    names.append(read_split(str(tmp_path / "data"), "all").identity)
    (tmp_path / "data").rename(tmp_path / "moved")
    names.append(read_split(str(tmp_path / "moved"), "all").identity)
    assert len(set(names)) == 4


def test_a_folder_by_any_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "data", 4)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    ways = (tmp_path / "data", Path("data"), tmp_path / "link")
    names = {read_image_folder(way)["all"].identity for way in ways}
    assert len(names) == 1
    assert "" not in names


def test_made_splits_follow_the_seed(tmp_path: Path) -> None:
    write_folder(tmp_path, 20)
    one, again, other = (read(str(tmp_path), seed=seed) for seed in (0, 0, 1))
    assert one.train.identity == again.train.identity != other.train.identity
    assert one.test.identity == other.test.identity
    assert one.train.identity != read(str(tmp_path), train_slice=":40").train.identity


def test_parquet_files(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", 6)
    write_table(tmp_path / "test.parquet", 6, start=100)
    names = {read_split(str(tmp_path), split).identity for split in ("train", "test")}
    assert len(names) == 2
    assert read_split(str(tmp_path), "train").identity in names
    touch(tmp_path / "train.parquet")
    assert read_split(str(tmp_path), "train").identity not in names
    assert read_split(str(tmp_path), "test").identity in names


def test_two_image_columns_of_one_table(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 6, picture=[picture(9)] * 6, features=None)
    table = datasets.Dataset.from_parquet(str(tmp_path / "t.parquet"))
    assert set(table.column_names) == {"image", "picture", "label"}
    names = {
        read_split(str(tmp_path / "t.parquet"), "all", columns={"image": column}).identity
        for column in ("image", "picture")
    }
    assert len(names) == 2


def test_a_table_of_paths_is_named_by_its_files_since_they_may_change(tmp_path: Path) -> None:
    picture(3).save(tmp_path / "three.png")
    rows = {"image": [str(tmp_path / "three.png")] * 4, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "text.parquet")
    before = read_split(str(tmp_path / "text.parquet"), "all").identity
    assert " 1 files " in f" {before}".replace("(", " ")
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    pq.write_table(table.data.table, tmp_path / "image.parquet")  # as they are, not embedded
    by_path = read_split(str(tmp_path / "image.parquet"), "all")
    assert red(by_path.images[0]) == 3
    assert by_path.identity not in ("", before)
    picture(7, "L").save(tmp_path / "three.png")
    assert read_split(str(tmp_path / "text.parquet"), "all").identity != before


def test_the_hub_fingerprint_and_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"image": [picture(row) for row in range(4)], "label": ["a", "b"] * 2}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    other = datasets.Dataset.from_dict({**rows, "label": ["b", "a"] * 2})
    other = other.cast_column("image", datasets.Image())

    def served(**splits: datasets.Dataset) -> dict[str, str]:
        tables = datasets.DatasetDict(splits)
        monkeypatch.setattr(datasets, "load_dataset", lambda name: tables)
        return {split: read_split("some/pictures", split).identity for split in splits}

    names = served(train=table, test=other)
    assert names["train"] != names["test"]
    assert served(train=table, test=other) == names
    assert all("hub some/pictures" in name for name in names.values())


def test_binary_cifar(tmp_path: Path) -> None:
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(b"".join(bytes([label]) + bytes(3072) for label in (0, 1)))
    names = {read_split(str(tmp_path), split).identity for split in ("train", "test")}
    touch(tmp_path / "test_batch.bin")
    names |= {read_split(str(tmp_path), split).identity for split in ("train", "test")}
    assert len(names) == 3
    assert "" not in names


def test_images_left_out_change_the_identity(tmp_path: Path) -> None:
    write_folder(tmp_path, 4)
    (tmp_path / "dog" / "001.png").write_bytes(b"no image")
    whole = read_split(str(tmp_path), "all")
    assert read_split(str(tmp_path), "all", skip_bad_images=True).identity != whole.identity
    assert replace(whole, name="other").identity == whole.identity
