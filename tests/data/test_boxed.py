"""Boxes of the built-in worlds and of tables: where they are, units, noise, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visgrpo.boxes import boxes_in, overlaps
from visgrpo.data.boxed import Units, boxed_questions, in_units
from visgrpo.data.read import read, read_test
from visgrpo.data.table import Table
from visgrpo.data.worlds.boxes import SIZE, box_row, box_splits, name_of
from visgrpo.data.worlds.drawing import draw
from visgrpo.errors import UserError

PIXELS = Units.of("pixels")


def table_of(folder: Path, *rows: dict[str, Any], form: Any = "xyxy") -> Table:
    """The test rows of a table whose images are 80 × 40 pixels."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (80, 40)).save(folder / "a.png")
    lines = [json.dumps({"image": "a.png", "question": "Where?", **row}) for row in rows]
    (folder / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return read_test(str(folder / "test.jsonl"), boxed_questions(form))


# The worlds


@pytest.mark.parametrize("style", ["in", "out"])
def test_a_box_holds_all_pixels_of_its_object_and_no_others(style: str) -> None:
    for seed in range(20):
        row = box_row(np.random.default_rng(seed), "boxes", style)
        (asked,) = row.asked
        _, mask = draw(replace(row.scene, objects=(asked,), noise=0.0))
        rows, columns = np.nonzero(mask)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        (box,) = boxes_in(row.answer())
        assert np.abs(np.array(box.box) - seen).max() <= 1.0


def test_questions_name_one_object_or_ask_for_all() -> None:
    for seed in range(30):
        row = box_row(np.random.default_rng(seed))
        (asked,) = row.asked
        assert [name_of(each) for each in row.scene.objects].count(name_of(asked)) == 1
        assert row.question == f"Where is the {name_of(asked)}?"
        every = box_row(np.random.default_rng(seed), "detection")
        boxes = boxes_in(every.answer())
        assert sorted(box.label for box in boxes) == sorted(map(name_of, every.scene.objects))
        iou = overlaps(boxes, boxes)
        assert (iou - np.eye(len(boxes)) < 0.3).all()  # round objects' boxes may touch


def test_rows_depend_on_their_place_alone() -> None:
    few, more = box_splits(3, train=4, validation=2, test=2), box_splits(3, train=6, test=3)
    assert few.train.answers == more.train.answers[:4]
    assert few.test.answers == box_splits(4, train=1, validation=1, test=2).test.answers
    assert few.train.answers != box_splits(4, train=4, validation=1, test=1).train.answers
    assert few.shifts["out"].answers[0] != few.test.answers[0]
    assert few.train.images[0][0].size == (SIZE, SIZE)
    with pytest.raises(UserError, match="boxes/train: 0 rows"):
        box_splits(train=0)


def test_worlds_are_read_by_name() -> None:
    assert len(read_test("boxes-out", boxed_questions("xyxy"))) == 1000
    assert read_test("detection", boxed_questions("xyxy")).questions[0].startswith("Where are")
    with pytest.raises(UserError, match="boxes is drawn, and no table"):
        read("boxes", boxed_questions("xyxy"), columns={"image": "x"})


# Tables


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"answer": [1, 2, 30, 20]}, "[1,2,30,20]"),
        ({"bbox": [1, 2, 30, 20]}, "[1,2,30,20]"),  # RefCOCO
        ({"solution": "<answer>[1, 2, 30, 20]</answer>"}, "[1,2,30,20]"),  # VLM-R1
        (
            {"solution": "<answer>[{'Position': [1, 2, 30, 20], 'Confidence': 1}]</answer>"},
            "[1,2,30,20]",
        ),  # Visual-RFT
        ({"solution": "No Objects"}, "[]"),
        (
            {"answer": '[{"bbox_2d": [1, 2, 30, 20], "label": "cat"}]'},
            '[{"label":"cat","box":[1,2,30,20]}]',
        ),  # Qwen2.5-VL
        ({"boxes": [[1, 2, 30, 20], [3, 4, 5, 6]]}, "[[1,2,30,20],[3,4,5,6]]"),
        ({"answer": None}, ""),
    ],
)
def test_the_forms_of_true_boxes(row: dict[str, Any], expected: str, tmp_path: Path) -> None:
    table = table_of(tmp_path, row, row)
    assert table.answers == (expected,) * 2
    assert in_units(table, PIXELS).answers == (expected,) * 2


def test_the_chats_of_vlm_r1_are_read(tmp_path: Path) -> None:
    said = "<image>Please provide the bounding box of the region: the left dog."
    chat = [{"from": "human", "value": said}, {"from": "gpt", "value": "[1, 2, 30, 20]"}]
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    row = json.dumps({"id": 1, "image": "a.png", "conversations": chat})
    (tmp_path / "rec.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    table = read_test(str(tmp_path / "rec.jsonl"), boxed_questions("xyxy"))
    assert table.answers[0] == "[1,2,30,20]"
    assert table.questions[0] == said.removeprefix("<image>")


def test_corner_and_size_are_said(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"answer": [50, 10, 20, 15]}, {"answer": [5, 1, 2, 3]}, form="xywh")
    assert table.answers == ("[50,10,70,25]", "[5,1,7,4]")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ([50, 10, 20, 15], r"row 1, column \"answer\" has a box whose corners are turned"),
        ("on the left", r"row 1, column \"answer\" is no list of boxes; give \[left, top"),
        ([1, 2, 3], "not four numbers"),
        ("[1, 2, NaN, 4]", "not four numbers"),
        ([1, 2, 81.5, 20], "row 1: its box .* lies outside the image of 80 × 40 pixels"),
        ([-3, 2, 8, 20], "lies outside the image"),
        ([1, 2, 1, 20], "has no area"),
    ],
)
def test_bad_boxes_are_one_line_with_their_row(answer: Any, problem: str, tmp_path: Path) -> None:
    good = "[1,2,3,4]" if isinstance(answer, str) else [1, 2, 3, 4]
    with pytest.raises(UserError, match=problem) as caught:
        in_units(table_of(tmp_path, {"answer": good}, {"answer": answer}), PIXELS)
    assert "\n" not in str(caught.value)


# Units


def test_units_of_a_wide_image(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"answer": [8, 4, 40, 20]}, {"answer": [0, 0, 80, 40]})
    assert in_units(table, Units.of("permille")).answers[0] == "[100,100,500,500]"
    bins = Units.of("bins:32")
    made = in_units(table, bins)
    assert made.answers == ("[3.2,3.2,16,16]", "[0,0,32,32]")
    assert made.columns["answer"] == list(made.answers)  # as rewards are given them
    assert bins.answer(made.answers[0]) == "[3,3,16,16]"
    assert Units.of("bins:32", points=True).answer(made.answers[0]) == "[10,10]"
    assert Units.of("bins:4").answer("[1.1,1.2,1.3,3.2]") == "[1,1,2,3]"  # never without an area


@pytest.mark.parametrize(
    "wrong", ["inches", "bins", "bins:1", "bins:x", "permille:5", "bins:20000"]
)
def test_units_that_are_none(wrong: str) -> None:
    with pytest.raises(UserError, match=f"--coordinates {wrong}: write pixels, permille"):
        Units.of(wrong)


def test_noise_moves_edges_by_up_to_a_share_of_the_side_and_repeats(tmp_path: Path) -> None:
    table = table_of(tmp_path, *[{"answer": [20, 10, 60, 30]}] * 300)
    noisy = in_units(table, PIXELS, noise=0.3, seed=5)
    edges = np.array([boxes_in(answer)[0].box for answer in noisy.answers])
    off = edges - np.array([20, 10, 60, 30])
    assert np.abs(off[:, [0, 2]]).max() <= 0.3 * 40
    assert np.abs(off[:, [1, 3]]).max() <= 0.3 * 20
    assert np.abs(off[:, [0, 2]]).mean() == pytest.approx(0.15 * 40, rel=0.15)
    assert (edges[:, :2] < edges[:, 2:]).all()
    assert in_units(table, PIXELS, noise=0.3, seed=5).answers == noisy.answers
    assert in_units(table, PIXELS, noise=0.3, seed=6).answers != noisy.answers
    # A row keeps its noise whichever rows stand beside it.
    part = in_units(table.subset([7, 9]), PIXELS, noise=0.3, seed=5)
    assert part.answers == (noisy.answers[7], noisy.answers[9])
