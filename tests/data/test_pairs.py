"""Preference pairs: read, refused where they say nothing, and encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from char_tokenizer import EOS, PAD, char_tokenizer, ids

from visgrpo.data.batches import BatchLoader
from visgrpo.data.prompts import encode_pairs, write_pairs
from visgrpo.data.read import read
from visgrpo.data.roles import pair_table
from visgrpo.errors import UserError

USER = {"role": "user", "content": "a"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(path: Path, rows: list[Any]) -> Any:
    write_pairs(path, rows)
    return read(str(path), "pairs", validation_fraction=0.25, seed=0)


def test_written_pairs_are_read_again(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"é{row}", "chosen": "a\u2028", "rejected": "b", "margin": row}
        for row in range(20)
    ]
    splits = load(tmp_path / "pairs.jsonl", rows)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12, 4, 4]
    for part in (splits.train, splits.validation, splits.test):
        assert [f"é{margin}" for margin in part.columns["margin"]] == list(part.prompts)
        assert set(part.chosen) == {"a\u2028"}
    lines = (tmp_path / "pairs.jsonl").read_text("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows


def test_messages_and_the_prompt_repeated_in_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "chosen": [USER, answer("x")], "rejected": [USER, answer("y")]},
        {"prompt": "b", "chosen": [answer("x")], "rejected": [answer("y")]},
    ] * 2
    rows += [{**rows[1], "prompt": f"c{row}"} for row in range(8)]
    splits = load(tmp_path / "pairs.jsonl", rows)
    parts = (splits.train, splits.validation, splits.test)
    prompts = [prompt for part in parts for prompt in part.prompts]
    assert prompts.count((USER,)) == 2
    assert prompts.count("b") == 2
    assert {text for part in parts for text in part.chosen} == {"x"}


TEXTS = {"prompt": "a", "chosen": "x", "rejected": "y"}
CHATS = {"prompt": "a", "chosen": [USER, answer("x")], "rejected": [USER, answer("y")]}


@pytest.mark.parametrize(
    ("good", "changed", "message"),
    [
        (TEXTS, {"chosen": "y"}, "row 1 has the same text as chosen and as rejected"),
        (TEXTS, {"rejected": None}, 'row 1, column "rejected" holds nothing'),
        (TEXTS, {"prompt": ""}, 'row 1, column "prompt" is empty'),
        (TEXTS, {"chosen_ended": True}, "row 0 has None as chosen_ended; give a bool"),
        ({**TEXTS, "chosen": 3}, {}, 'row 0, column "chosen" holds int'),
        (CHATS, {"rejected": [USER]}, "row 1, .* last message is not the assistant's"),
        (CHATS, {"rejected": [answer("y")]}, "row 1: chosen and rejected answer different"),
        (CHATS, {"prompt": "z"}, "row 1: its completions answer other messages than its prompt"),
    ],
)
def test_bad_rows(
    tmp_path: Path, good: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path / "x.jsonl", [good, {**good, **changed}])


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no column "chosen"\. Did you mean "chosn"'):
        load(tmp_path / "x.jsonl", [{"prompt": "a", "chosn": "x", "rejected": "y"}])


def test_encoding_joins_prompt_completion_and_end() -> None:
    dataset = pair_table(
        "letters/train",
        ("ab", "c"),
        ("d", "ef"),
        ("gh", ""),
        {"rejected_ended": [False, True], "margin": [0.5, 1.5]},
    )
    encoded = encode_pairs(dataset, char_tokenizer(), max_tokens=4)
    assert encoded.inputs_M.tolist() == [
        [[*ids("abd"), EOS], ids("abgh")],
        [[*ids("cef"), EOS], [*ids("c"), EOS, PAD, PAD]],
    ]
    assert encoded.lengths_M.tolist() == [[4, 4], [4, 2]]
    (batch,) = BatchLoader(dataset, encoded, batch_size=2, seed=0).batches(0, 1)
    assert batch.inputs.shape == (2, 2, 4)
    assert batch.columns["margin"] == [row + 0.5 for row in batch.indices_N.tolist()]
    assert dataset.subset([1]).chosen == ("ef",)


def test_the_same_text_is_a_pair_if_only_one_ended() -> None:
    pair_table("x", ("a",), ("b",), ("b",), {"rejected_ended": [False]})
    with pytest.raises(UserError, match="row 0 has the same text"):
        pair_table("x", ("a",), ("b",), ("b",), {"rejected_ended": [True]})


def test_errors_of_encoding() -> None:
    dataset = pair_table("x", ("a", "b"), ("c", "d"), ("e", "fgh"))
    with pytest.raises(UserError, match="row 1 has 5 tokens with its rejected completion"):
        encode_pairs(dataset, char_tokenizer(), max_tokens=4)
    with pytest.raises(UserError, match="no eos token"):
        encode_pairs(dataset, char_tokenizer(eos_token=None), max_tokens=9)
    with pytest.raises(UserError, match="holds no pairs"):
        encode_pairs(pair_table("x", (), (), ()), char_tokenizer(), max_tokens=9)
