"""What every kind of table keeps: its rows, its checks, its splits, and what a name may mean."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture

from visgrpo.data.read import DataKind, read, read_split
from visgrpo.data.roles import (
    IMAGES,
    block_table,
    image_table,
    mask_table,
    pair_table,
    prompt_table,
    question_table,
    text_table,
)
from visgrpo.data.split import ByGroup
from visgrpo.data.table import Role, Table
from visgrpo.errors import UserError

MASK = np.array([[0, 1], [1, 0]], dtype=np.uint8)
X = {"x": [10, 11, 12]}
MAKERS: dict[str, Callable[..., Table]] = {
    "labels": lambda **more: image_table(
        "t", ("a", "b"), [0, 1, 1], [*map(picture, X["x"])], **more
    ),
    "masks": lambda **more: mask_table(
        "t", ("a", "b"), [*map(picture, X["x"])], [MASK] * 3, **more
    ),
    "questions": lambda **more: question_table(
        "t", [(picture(row),) for row in range(3)], ("q0", "q1", "q2"), ("0", "1", "2"), **more
    ),
    "prompts": lambda **more: prompt_table("t", ("p0", "p1", "p2"), **more),
    "pairs": lambda **more: pair_table("t", ("p0", "p1", "p2"), ("a",) * 3, ("b",) * 3, **more),
    "text": lambda **more: text_table("t", ("d0", "d1", "d2"), **more),
    "blocks": lambda **more: block_table("t", 3, **more),
}
SHOWN = {
    "labels": "t: 3 rows of labels and images in 2 classes",
    "masks": "t: 3 rows of images and masks in 2 classes",
    "questions": "t: 3 rows of questions and images and answers",
    "prompts": "t: 3 rows of prompts",
    "pairs": "t: 3 rows of prompts and chosen and rejected",
    "text": "t: 3 rows of texts",
    "blocks": "t: 3 rows of blocks",
}
KINDS = list(MAKERS)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_taken_named_and_sent_alike(kind: str) -> None:
    table = MAKERS[kind](**({} if kind in ("text", "blocks") else {"columns": X}), identity="some")
    assert repr(table) == SHOWN[kind]
    part = pickle.loads(pickle.dumps(table.subset(np.array([2, 0])))).named("u")
    assert (part.name, len(part)) == ("u", 2)
    assert part.columns.get("x", [12, 10]) == [12, 10]
    for name, values in table.values.items():
        assert [str(value) for value in part.values[name]] != [str(value) for value in values]
        assert type(part.values[name]) is type(values) or kind == "blocks"
    assert part.identity.startswith("some > 2 rows ")
    assert [part.where(0), part.subset([1]).where(0)] == ["t: row 2", "t: row 0"]
    assert part.subset([0]).identity != table.subset([2]).identity
    assert (len(table.first(2)), table.first(5)) == (2, table)
    assert MAKERS[kind]().subset([0]).identity == ""


@pytest.mark.parametrize(
    ("kind", "word"),
    [("labels", "label"), ("masks", "image"), ("questions", "question"), ("prompts", "prompt")],
)
def test_columns_of_other_lengths_are_refused(kind: str, word: str) -> None:
    with pytest.raises(UserError, match=f't: column "y" has 1 rows but there are 3 {word}s; give'):
        MAKERS[kind](columns={"y": [1]})


def test_a_table_says_what_it_does_not_hold() -> None:
    table = MAKERS["prompts"](columns=X)
    assert table["x"] == [10, 11, 12]
    with pytest.raises(AttributeError, match="t: 3 rows of prompts: there is no column labels"):
        _ = table.labels


# ---- data of a new kind: one role ---------------------------------------------------------------


def tags_of(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise UserError(f"{where} holds no tags; write them with commas between.")
    return tuple(sorted(value.split(",")))


TAGS = Role("tags", "tag", ("tags", "keywords"), decode=tags_of)
TAGGED = DataKind((TAGS,), ByGroup(groups=lambda table: ["".join(tags) for tags in table["tags"]]))


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_new_kind_of_data_is_one_role(tmp_path: Path) -> None:
    rows = [{"keywords": f"{row % 10},b", "size": row} for row in range(20)]
    splits = read(lines(tmp_path / "x.jsonl", rows), TAGGED)
    parts = (splits.train, splits.validation, splits.test)
    assert sorted(size for part in parts for size in part.columns["size"]) == list(range(20))
    found = [set(part["tags"]) for part in parts]
    assert sum(map(len, found)) == len(set.union(*found)) == 10
    assert splits.train["tags"][0] == ("0", "b")
    assert len(splits.notes) == 2
    assert len(read_split(str(tmp_path / "x.jsonl"), "all[:3]", TAGGED)) == 3
    with pytest.raises(UserError, match=r'x has no column "word"\. Did you mean "keywords"'):
        read(str(tmp_path / "x.jsonl"), TAGGED, columns={"tag": "word"})
    bad = lines(tmp_path / "y.jsonl", [{"tags": "a"}, {"tags": None}])
    with pytest.raises(UserError, match='y/all: row 1, column "tags" holds no tags; write'):
        read(bad, TAGGED)
    both = DataKind((IMAGES, TAGS))
    with pytest.raises(UserError, match="none is called like the image; name it with --image-col"):
        read(bad, both)


# ---- what a name may mean, and options, for every kind ------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("labels", "digit", r'Unknown data set "digit". Did you mean "digits"\?'),
        ("labels", "cifar-100", r'Did you mean "cifar100"\?'),
        ("labels", "/no/such/place", r"No such file or folder: /no/such/place"),
        ("labels", "./here", r"No such file or folder: \./here"),
        ("labels", "photos/pets/cats", r"No such file or folder: photos/pets/cats"),
        ("labels", "votes.parquet", r"No such file or folder: votes.parquet"),
        ("labels", "cifar100", r'"uoft-cs/cifar100" is no local folder and cannot be loaded from'),
        ("labels", "nobody/nothing", r'"nobody/nothing" is no local folder and cannot be loaded'),
        ("masks", "shape", r'Unknown data set "shape"\. Did you mean "shapes"'),
        ("masks", "digits", 'Unknown data set "digits"'),
        ("masks", "./nowhere", "No such file or folder: ./nowhere"),
        ("masks", "nowhere.parquet", "No such file or folder"),
        ("questions", "shape", r'Unknown data set "shape". Did you mean "shapes"'),
        ("questions", "gone.jsonl", r"No such file or folder: gone.jsonl; check the path"),
        ("questions", "empty", r"holds no .jsonl, .csv and"),
        ("prompts", "gone.jsonl", r"No such file or folder"),
        ("prompts", "gone", r"No such file or folder: gone"),
        ("prompts", "empty", r"holds no \.jsonl, \.csv and"),
        ("prompts", "x.xls", "is no table: name a .jsonl, .json, .csv or .parquet file"),
        ("pairs", "nobody/nothing", r'"nobody/nothing" is no local folder and cannot be loaded'),
        ("text", "topic", r'Unknown text "topic". Did you mean "topics"'),
        ("text", "gone.txt", r"No such file or folder"),
        ("text", "x.xls", r"no text that can be read"),
        ("text", "empty", r"holds no \.txt, \.jsonl or \.parquet"),
        ("masked", "shapes", r'Unknown kind of data "masked". Did you mean "masks"'),
    ],
)
def test_names_that_lead_nowhere(
    kind: str, spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("x.xls").write_text("a")
    with pytest.raises(UserError, match=message) as caught:
        read(spec, kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [("labels", "digits"), ("masks", "shapes"), ("questions", "shapes"), ("text", "topics")],
)
def test_fractions_and_seeds_are_checked(kind: str, spec: str) -> None:
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match="validation_fraction must lie between 0 and 1, not"):
            read(spec, kind, validation_fraction=fraction)
    with pytest.raises(UserError, match="seed must be 0 or more, not -1"):
        read(spec, kind, seed=-1)


@pytest.mark.parametrize("kind", ["prompts", "pairs", "text"])
def test_splits_of_one_table_and_stored_ones(kind: str, tmp_path: Path) -> None:
    def rows(start: int, count: int) -> list[dict[str, Any]]:
        each = range(start, start + count)
        return [{"prompt": f"p{n}", "chosen": "a", "rejected": "b", "text": f"t{n}"} for n in each]

    lines(tmp_path / "validation.jsonl", rows(50, 4))
    with pytest.raises(UserError, match="has no train split, only validation; add one or choose o"):
        read(str(tmp_path), kind)
    lines(tmp_path / "train.jsonl", rows(0, 20))
    splits = read(str(tmp_path), kind, validation_fraction=0.2)
    assert "its stored validation split is the test split." in splits.notes[0]
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 4, 4]
    assert splits.test.name == f"{tmp_path.name}/test"
    lines(tmp_path / "test.jsonl", rows(90, 3))
    splits = read(str(tmp_path), kind)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 4, 3]
    assert splits.notes == ()
