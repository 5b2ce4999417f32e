"""Questions about images from files: columns, paths, splits, and what is wrong with rows."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
from pictures import picture, png, red

from visgrpo.data.read import read, read_test
from visgrpo.data.roles import require_counts
from visgrpo.data.table import Table
from visgrpo.errors import UserError

RENDERS = Path(__file__).parents[3] / "shared" / "data" / "clevr"
COUNTS = {"image_path": "a.png", "question": "How many?", "ground_truth": 3}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_images(folder: Path, names: list[str], first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for value, name in enumerate(names, start=first):
        picture(value).save(folder / name)


def write_parquet(path: Path, images: list[Any], feature: Any = None, **columns: Any) -> str:
    data = {"image": images, "problem": ["How many?"] * len(images), **columns}
    table = datasets.Dataset.from_dict(data)
    table.cast_column("image", feature or datasets.Image()).to_parquet(path)
    return str(path)


def embedded(value: int, name: str | None = None) -> dict[str, Any]:
    return {"bytes": png(picture(value)), "path": name}


def reds(dataset: Table) -> list[list[int]]:
    return [[red(image) for image in images] for images in dataset.images]


def test_the_schema_of_the_hub(tmp_path: Path) -> None:
    spec = write_parquet(
        tmp_path / "clevr.parquet",
        [embedded(5, "somewhere/else.png"), embedded(6)],
        solution=["<answer> 3 </answer>", " 10 "],
        thinking=["<think>two red,\none blue </think>", None],
        difficulty=[0.5, 0.25],
    )
    data = read_test(spec, "questions")
    assert data.name == "clevr/all"
    assert data.questions == ("How many?", "How many?")
    assert data.answers == ("3", "10")
    assert data.traces == ("two red,\none blue", "")
    assert data.columns["answer"] == ["3", "10"]
    assert data.columns["difficulty"] == [0.5, 0.25]
    assert data.columns["solution"] == ["<answer> 3 </answer>", " 10 "]  # as rewards expect it
    assert not {"image", "problem"} & set(data.columns)
    assert reds(pickle.loads(pickle.dumps(data))) == [[5], [6]]
    assert data.images[0][0].mode == "RGB"
    assert data.identity


def test_lines_with_paths_and_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures", ["a.png", "b.png"], first=7)
    rows = [
        {"image_path": "./pictures/a.png", "question": "q0", "ground_truth": 4},
        {"image_path": str(tmp_path / "pictures" / "b.png"), "question": "q1", "ground_truth": 0},
    ]
    data = read_test(write_lines(tmp_path / "counting.jsonl", rows), "questions")
    assert data.answers == ("4", "0")
    assert data.traces is None
    assert data.notes == ()
    assert reds(pickle.loads(pickle.dumps(data))) == [[7], [8]]
    require_counts(data)
    before = data.identity
    picture(200, "L").save(tmp_path / "pictures" / "a.png")
    assert read_test(str(tmp_path / "counting.jsonl"), "questions").identity != before


def test_files_that_moved_are_found_by_name_and_a_note_says_so(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a.png", "b.png"])
    rows = [{**COUNTS, "image_path": f"old/place/{name}.png"} for name in ("b", "a", "b")]
    data = read_test(write_lines(tmp_path / "x.jsonl", rows), "questions")
    assert reds(data) == [[1], [0], [1]]
    assert data.notes == (
        'x/all: 2 images are not where "image_path" says, such as old/place/b.png; they were taken '
        f"by their names from {tmp_path / 'images'}.",
    )
    rows[1]["image_path"] = "other/b.png"
    with pytest.raises(UserError, match=r'neither "old/place/b.png" nor "other/b.png", and .* eit'):
        read_test(write_lines(tmp_path / "x.jsonl", rows), "questions")


def test_several_images_in_a_row(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png", "c.png"])
    rows = [
        {"images": ["c.png", "a.png"], "question": "q", "answer": "same"},
        {"images": ["b.png"], "question": "q", "answer": "other"},
    ]
    data = read_test(write_lines(tmp_path / "pairs.jsonl", rows), "questions")
    assert reds(data) == [[2, 0], [1]]
    inside = write_parquet(
        tmp_path / "pairs.parquet",
        [[embedded(1), embedded(2)], [embedded(3)]],
        datasets.List(datasets.Image()),
    )
    data = read_test(inside, "questions")
    assert reds(pickle.loads(pickle.dumps(data))) == [[1, 2], [3]]
    assert data.answers == ("", "")
    assert data.identity


def test_columns_of_other_names(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    spec = write_lines(
        tmp_path / "x.jsonl",
        [{"pic": "a.png", "ask": "how", "prompt": "no", "truth": 2.0, "why": "so", "answer": "9"}],
    )
    names = {"image": "pic", "question": "ask", "answer": "truth", "trace": "why"}
    data = read_test(spec, "questions", columns=names)
    assert (data.questions, data.answers, data.traces) == (("how",), ("2",), ("so",))
    assert data.columns["answer"] == ["2"]
    with pytest.raises(UserError, match=r'x has no column "pics". Did you mean "pic"'):
        read_test(spec, "questions", columns={**names, "image": "pics"})
    with pytest.raises(UserError, match="none is called like the image; name it with --image-col"):
        read_test(spec, "questions")
    with pytest.raises(UserError, match='"ask" is taken for both the question and the trace; name'):
        read_test(spec, "questions", columns={**names, "trace": "ask"})
    with pytest.raises(UserError, match='"pic" is taken for both the image and the question'):
        read_test(spec, "questions", columns={"image": "pic", "question": "pic"})


def test_class_names_are_answers(tmp_path: Path) -> None:
    spec = write_parquet(tmp_path / "x.parquet", [embedded(0)] * 2, answer=[1, None])
    table = datasets.Dataset.from_parquet(spec, cache_dir=str(tmp_path / "cache"))
    table.cast_column("answer", datasets.ClassLabel(names=["no", "yes"])).to_parquet(spec)
    assert read_test(spec, "questions").answers == ("yes", "")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("problem", ["a", " "], 'x/all: row 1, column "problem": the image has no question; fill'),
        ("problem", ["a", None], 'x/all: row 1, column "problem": the image has no question'),
        ("problem", [1, 2], 'x/all: row 0, column "problem" holds int, not a question as text'),
        ("solution", ["3", "<answer>3"], 'x/all: row 1, column "solution" holds 1 of the tags <an'),
        ("solution", ["<answer>3</answer><answer>4</answer>", ""], "row 0, .* holds 4 of the tags"),
        ("solution", ["<answer>", "</answer>"], "row 0, .* holds 1 of the tags"),
        ("thinking", ["ok", "</think>"], "row 1, .* holds 1 of the tags <think> and </think>"),
        ("solution", [True, False], "row 0, .* holds True; give text or a number"),
        ("solution", [1.5, float("nan")], "row 1, .* holds nan; give text or a number"),
        ("solution", [["3", "5"], ["4"]], "row 0, .* holds 2 answers that differ; give one"),
        ("image", [embedded(0), None], 'x/all: row 1 has no image in column "image'),
    ],
)
def test_rows_that_are_not_whole(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    columns = {"images": [embedded(0), embedded(1)], "solution": ["3", "4"]}
    columns["images" if column == "image" else column] = values
    with pytest.raises(UserError, match=message):
        read_test(write_parquet(tmp_path / "x.parquet", **columns), "questions")


@pytest.mark.parametrize("images", [[], None, ["a.png", ""], ["a.png", None]])
def test_a_row_without_images(tmp_path: Path, images: Any) -> None:
    write_images(tmp_path, ["a.png"])
    rows = [{"images": ["a.png"], "question": "q"}, {"images": images, "question": "q"}]
    with pytest.raises(UserError, match='x/all: row 1 has no image in column "imag'):
        read_test(write_lines(tmp_path / "x.jsonl", rows), "questions")


def test_columns_that_hold_no_images(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "x.jsonl", [{"image": 3, "question": "q"}])
    with pytest.raises(UserError, match='x/all: column "image" holds int64, not images or their p'):
        read_test(spec, "questions")


def test_missing_and_unreadable_images(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [{**COUNTS, "image_path": name} for name in ("a.png", "bad.png", "gone.png")]
    spec = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match=r'row 2 has the image "gone.png", but there is no .*gone'):
        read_test(spec, "questions")
    data = read_test(spec, "questions", skip_bad_images=True)
    assert reds(data) == [[0]]
    assert len(data.skipped) == 2
    assert data.skipped[0].startswith(f"x/all: image of row 1 ({tmp_path / 'bad.png'}) cannot be")
    data = read_test(write_lines(tmp_path / "x.jsonl", rows[:2]), "questions")
    with pytest.raises(
        UserError, match=r"x/all: image of row 1 .* \(not an image\).*--skip-bad-im"
    ):
        data.images[1]
    several = [{"images": ["a.png", "bad.png"], "question": "q"}]
    data = read_test(write_lines(tmp_path / "x.jsonl", several), "questions")
    with pytest.raises(UserError, match=r"x/all: image 2 of row 0 .* cannot be read"):
        data.images[0]


def test_rows_of_one_image_stay_together(tmp_path: Path) -> None:
    images = [embedded(row // 2) for row in range(40)]
    spec = write_parquet(tmp_path / "x.parquet", images, answer=[str(row) for row in range(40)])
    splits = read(spec, "questions", validation_fraction=0.25)
    parts = [splits.train, splits.validation, splits.test]
    assert [part.name for part in parts] == ["x/train", "x/validation", "x/test"]
    assert [len(part) for part in parts] == [24, 8, 8]  # 20 images: 4 for test, 4 of 16
    assert sorted(int(answer) for part in parts for answer in part.answers) == list(range(40))
    seen = [{value for (value,) in reds(part)} for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 20
    assert [{int(answer) // 2 for answer in part.answers} for part in parts] == seen
    assert splits.notes[0].startswith("x: its 40 rows have 20 different images; rows that share")
    assert "no test split: 8 of its 40 train rows (the same for every seed)" in splits.notes[1]
    other = read(spec, "questions", validation_fraction=0.25, seed=1)
    assert other.test.answers == splits.test.answers
    assert other.validation.answers != splits.validation.answers


def test_rows_that_share_images_through_others_stay_together(tmp_path: Path) -> None:
    # Rows 0 and 2 share no image, but row 1 shares one with each; rows 3 to 5 are alone.
    write_images(tmp_path / "here", [f"{name}.png" for name in "abcd"])
    write_images(tmp_path / "here" / "more", [f"{name}.png" for name in "efg"], first=10)
    lists = [["a", "b"], ["more/../b", "c"], ["c", "d"], ["more/e"], ["more/f"], ["more/g"]]
    rows = [
        {"images": [f"{name}.png" for name in names], "question": "q", "answer": str(row)}
        for row, names in enumerate(lists)
    ]
    divided = []
    for seed in range(8):
        spec = write_lines(tmp_path / "here" / "x.jsonl", rows)
        splits = read(spec, "questions", seed=seed, validation_fraction=0.3)
        parts = (splits.train, splits.validation, splits.test)
        divided.append([part.answers for part in parts])
        assert sum({"0", "1", "2"} <= set(part.answers) for part in parts) == 1
    (tmp_path / "here").rename(tmp_path / "there")
    splits = read(str(tmp_path / "there"), "questions", seed=7, validation_fraction=0.3)
    assert [splits.train.answers, splits.validation.answers, splits.test.answers] == divided[7]


def test_stored_splits(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    for split, answer in (("train", 1), ("val", 2), ("test", 3)):
        rows = [{**COUNTS, "ground_truth": answer}, {**COUNTS, "image_path": "b.png"}]
        write_lines(tmp_path / f"{split}.jsonl", rows)
    splits = read(str(tmp_path), "questions")
    assert [splits.train.answers[0], splits.validation.answers[0]] == ["1", "2"]
    assert [note.split(" have")[0] for note in splits.notes] == [
        f"warning: 2 of the 2 {split} rows of {tmp_path.name}" for split in ("validation", "test")
    ]
    assert read_test(str(tmp_path), "questions").answers == ("3", "3")
    (tmp_path / "test.jsonl").unlink()
    splits = read(str(tmp_path), "questions")
    assert splits.test.answers == read_test(str(tmp_path), "questions").answers == ("2", "3")
    assert "its stored validation split is the test split" in splits.notes[0]
    (tmp_path / "val.jsonl").unlink()
    with pytest.raises(UserError, match=r"1 distinct .* too few to set a validation split apart"):
        read(str(tmp_path), "questions")


def test_a_test_split_alone_is_enough_to_evaluate(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    write_lines(tmp_path / "test.jsonl", [COUNTS])
    assert read_test(str(tmp_path), "questions").answers == ("3",)
    with pytest.raises(UserError, match="has no train split, only test"):
        read(str(tmp_path), "questions")


def test_train_rows_alone_are_not_evaluated_on(tmp_path: Path) -> None:
    names = [f"{row}.png" for row in range(10)]
    write_images(tmp_path, names)
    write_lines(tmp_path / "train.jsonl", [{**COUNTS, "image_path": name} for name in names])
    data = read_test(str(tmp_path), "questions")
    assert reds(data) == reds(read(str(tmp_path), "questions", seed=3).test)
    assert len(data) == 2
    assert "2 of its 10 train rows (the same for every seed) were set apart" in data.notes[0]


def test_unreadable_images_are_listed_by_split(tmp_path: Path) -> None:
    images = [embedded(row) for row in range(20)]
    images[4]["bytes"] = b"damaged"
    spec = write_parquet(tmp_path / "x.parquet", images)
    splits = read(spec, "questions", skip_bad_images=True)
    parts = (splits.train, splits.validation, splits.test)
    assert sum(map(len, parts)) == 19
    assert sorted(len(part.skipped) for part in parts) == [0, 0, 1]


def test_the_counting_world() -> None:
    splits = read("shapes", "questions", seed=1)
    assert (
        read_test("shapes", "questions").answers == splits.test.answers
    )  # the same for every seed
    assert read_test("shapes-out", "questions").questions == splits.shifts["out"].questions
    require_counts(splits.shifts["out"])
    with pytest.raises(UserError, match="--trace-column x: shapes is drawn, and no table with col"):
        read("shapes", "questions", columns={"trace": "x"})


@pytest.mark.skipif(not RENDERS.is_dir(), reason=f"there are no renders in {RENDERS}")
def test_real_renders() -> None:
    clevr = read_test(str(RENDERS / "clevr10.parquet"), "questions")
    assert clevr.answers == ("7", "3", "7", "5", "5", "6", "5", "3", "10", "5")
    assert clevr.questions[0] == "How many items are there in the image?"
    lines = read_test(str(RENDERS / "superclevr10" / "counting.jsonl"), "questions")
    assert lines.answers == ("7", "9", "5", "7", "8", "7", "8", "5", "8", "3")
    assert lines.notes == ()
    for data, size in ((clevr, (320, 240)), (lines, (640, 480))):
        require_counts(data)
        assert {image.size for images in data.images for image in images} == {size}
