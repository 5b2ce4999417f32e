"""Image folders and binary CIFAR."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import CLASSES, picture, reds, shares, write_folder
from PIL import Image

from visgrpo.data.folders import holds_photos, read_photos
from visgrpo.data.read import read, read_split
from visgrpo.errors import UserError

# ---- image folders ------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_folder_with_three_splits(tmp_path: Path, validation: str) -> None:
    write_folder(tmp_path / "train", 4)
    write_folder(tmp_path / validation, 2, start=100)
    write_folder(tmp_path / "test", 3, start=200)
    splits = read(str(tmp_path))
    assert splits.train.classes == CLASSES
    assert splits.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert reds(splits.train) == list(range(12))
    assert reds(splits.validation) == list(range(100, 106))
    assert reds(splits.test) == list(range(200, 209))
    assert splits.train.columns["file"][5] == "train/dog/001.png"
    assert splits.notes == ()


def test_class_folders_alone_are_divided_without_overlap(tmp_path: Path) -> None:
    write_folder(tmp_path, 20)
    splits = read(str(tmp_path), validation_fraction=0.25, seed=3)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [36, 12, 12]
    assert shares(splits.test) == [4, 4, 4]
    assert shares(splits.validation) == [4, 4, 4]
    assert sorted(reds(splits.train) + reds(splits.validation) + reds(splits.test)) == [*range(60)]
    assert "no test split: 12 of its 60 rows (20%" in splits.notes[0]
    assert "no validation split: 12 of its 48 train rows" in splits.notes[1]


def test_the_seed_moves_validation_and_never_test(tmp_path: Path) -> None:
    write_folder(tmp_path, 20)
    one, again, other = (read(str(tmp_path), seed=seed) for seed in (0, 0, 1))
    assert reds(one.validation) == reds(again.validation) != reds(other.validation)
    assert reds(one.test) == reds(other.test)


def test_imagenet_layout(tmp_path: Path) -> None:
    synsets = ("n01440764", "n02012849", "n03126707")
    for split in ("train", "val"):
        for synset in synsets:
            (tmp_path / split / synset / "images").mkdir(parents=True)  # Tiny ImageNet nests
            for number in range(5):
                picture(number).save(tmp_path / split / synset / "images" / f"{number}.JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
    )
    splits = read(str(tmp_path))
    assert splits.train.classes == ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")
    assert len(splits.test) == 15
    assert len(splits.train) + len(splits.validation) == 15


def test_classes_txt_gives_order_or_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", 5)
    (tmp_path / "a" / "classes.txt").write_text("fox\ncat\ndog\n")
    ordered = read_split(str(tmp_path / "a"), "all")
    assert ordered.classes == ("fox", "cat", "dog")
    assert ordered.labels[:6].tolist() == [1] * 5 + [2]  # the folders still come in sorted order
    write_folder(tmp_path / "b", 5, classes=("0", "1", "2"))
    (tmp_path / "b" / "classes.txt").write_text("red fox\nred panda\ndog\n")
    assert read_split(str(tmp_path / "b"), "all").classes == ("red fox", "red panda", "dog")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\nb\n", "names 2 classes but there are 3 class folders"),
        ("bird\nbird\nfish\n", 'class "bird" is named twice'),
        ("cat\ndgo\nfox\n", 'no line for class folder "dog"'),
        ("cat A\nfox B\n", 'no line for class folder "dog"'),
    ],
)
def test_a_class_file_that_does_not_fit(tmp_path: Path, lines: str, message: str) -> None:
    write_folder(tmp_path, 2)
    (tmp_path / "classes.txt").write_text(lines)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path))


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is empty; name a folder"):
        read(str(tmp_path))
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(UserError, match=r"holds no images, no tables"):
        read(str(tmp_path))
    picture(0).save(tmp_path / "cat.png")
    with pytest.raises(UserError, match=r"holds images but no class folders"):
        read(str(tmp_path))
    write_folder(tmp_path, 2, classes=["cat"])
    with pytest.raises(UserError, match=r'1 class \("cat"\) found; a classifier needs'):
        read(str(tmp_path))
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"dog holds no images"):
        read(str(tmp_path))


def test_splits_that_disagree(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 2)
    write_folder(tmp_path / "test", 2, classes=("cat", "dgo"))
    with pytest.raises(UserError, match=r'class "dgo" is not in .*train\. Did you mean "dog"\?'):
        read(str(tmp_path))
    write_folder(tmp_path / "val", 1)
    write_folder(tmp_path / "valid", 1)
    with pytest.raises(UserError, match=r"are both the validation split"):
        read(str(tmp_path))


# ---- binary CIFAR -------------------------------------------------------------------------------


def cifar_records(rows: int, *labels: Callable[[int], int]) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(rows).integers(0, 256, (rows, 3, 32, 32)).astype(np.uint8)
    content = b"".join(bytes(f(row) for f in labels) + pixels[row].tobytes() for row in range(rows))
    return content, pixels


def test_cifar10_binary(tmp_path: Path) -> None:
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\nfox\n\n")
    for number in (1, 2):
        content, _ = cifar_records(10, lambda row: row % 3)
        (tmp_path / f"data_batch_{number}.bin").write_bytes(content)
    content, pixels = cifar_records(6, lambda row: 2 - row % 3)
    (tmp_path / "test_batch.bin").write_bytes(content)
    splits = read(str(tmp_path))
    assert splits.train.classes == CLASSES
    assert len(splits.train) + len(splits.validation) == 20
    assert splits.test.labels.tolist() == [2, 1, 0, 2, 1, 0]
    assert np.array_equal(np.asarray(splits.test.images[4]), pixels[4].transpose(1, 2, 0))
    (tmp_path / "test_batch.bin").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"test_batch.bin is cut short"):
        read(str(tmp_path))
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"test_batch.bin is missing"):
        read(str(tmp_path))


def test_cifar100_binary(tmp_path: Path) -> None:
    (tmp_path / "fine_label_names.txt").write_text("cat\ndog\nfox\n")
    (tmp_path / "coarse_label_names.txt").write_text("pet\nwild\n")
    for split in ("train", "test"):
        content, _ = cifar_records(12, lambda row: int(row % 3 == 2), lambda row: row % 3)
        (tmp_path / f"{split}.bin").write_bytes(content)
    test = read_split(str(tmp_path), "test")
    assert test.labels.tolist() == [0, 1, 2] * 4
    assert test.columns["coarse_label"] == ["pet", "pet", "wild"] * 4


@pytest.mark.parametrize("file", ["data_batch_1", "meta"])
def test_pickled_cifar_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=r"is pickled, and .* download the binary version"):
        read(str(tmp_path))


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
