"""Documents: their paragraphs, their splits, and what is said about bad text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visgrpo.data.read import paragraphs, read
from visgrpo.errors import UserError


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_paragraphs_keep_indentation_and_lose_blank_lines() -> None:
    assert paragraphs("\n  \n  a\n b\n\n \t\n\nc\u2028d\n\n") == ("  a\n b", "c\u2028d")


def test_the_topics_of_python_are_the_built_in_text() -> None:
    text = read("topics", "text")
    whole = (*text.train.texts, *text.validation.texts, *text.test.texts)
    assert len(whole) > 1000
    assert len(set(whole)) == len(whole)
    assert len(text.validation) == len(text.test) == round(0.05 * len(whole))
    assert text.test.identity == read("topics", "text").test.identity != ""
    assert "no validation and no test split" in text.notes[0]


def test_a_file_is_cut_in_its_order(tmp_path: Path) -> None:
    spec = write(tmp_path / "play.txt", "\r\n\r\n".join(f"line {row}\r\nétc" for row in range(20)))
    text = read(spec, "text", validation_fraction=0.1)
    assert text.train.name == "play/train"
    assert text.train.texts == tuple(f"line {row}\nétc" for row in range(16))
    assert text.validation.texts == ("line 16\nétc", "line 17\nétc")
    assert text.test.texts == ("line 18\nétc", "line 19\nétc")


def test_folders_of_text(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "b.txt", "3\n\n4")
    write(tmp_path / "parts" / "a.txt", "1\n\n2")
    text = read(str(tmp_path / "parts"), "text")
    assert (text.train.texts, text.validation.texts, text.test.texts) == (
        ("1", "2"),
        ("3",),
        ("4",),
    )
    write(tmp_path / "splits" / "train.txt", "1\n\n2\n\n3")
    write(tmp_path / "splits" / "valid.txt", "4")
    text = read(str(tmp_path / "splits"), "text")
    assert (text.train.texts, text.validation.texts, text.test.texts) == (
        ("1", "2"),
        ("3",),
        ("4",),
    )
    assert "its stored validation split is the test split" in text.notes[0]
    write(tmp_path / "splits" / "other.txt", "5")
    with pytest.raises(UserError, match=r"named for a split but other\.txt is not"):
        read(str(tmp_path / "splits"), "text")


def test_tables(tmp_path: Path) -> None:
    lines = [json.dumps({"body": f"text {row}", "n": row}) for row in range(4)]
    spec = write(tmp_path / "x.jsonl", "\n".join(lines))
    assert read(spec, "text", columns={"text": "body"}).train.texts == ("text 0", "text 1")
    with pytest.raises(UserError, match=r'no column "bodi". Did you mean "body"'):
        read(spec, "text", columns={"text": "bodi"})
    with pytest.raises(UserError, match=r"none is called like the text"):
        read(spec, "text")
    write(tmp_path / "x.jsonl", '{"text": "a"}\n{"text": " "}')
    with pytest.raises(UserError, match=r'row 1 has no text in column "text"'):
        read(spec, "text")
    write(tmp_path / "x.jsonl", '{"text": 1}')
    with pytest.raises(UserError, match=r"row 0 has int in column"):
        read(spec, "text")


def test_bad_text(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    with pytest.raises(UserError, match=r"is empty"):
        read(write(file, " \n"), "text")
    with pytest.raises(UserError, match=r"2 documents are too few to set 1 apart"):
        read(write(file, "a\n\nb"), "text")
    with pytest.raises(UserError, match=r"binary file"):
        read(write(file, "a\0b"), "text")
    file.write_bytes("été".encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8"):
        read(str(file), "text")
