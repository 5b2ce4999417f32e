"""Prompts: from tables and from text, divided, rendered and encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from char_tokenizer import PAD, char_tokenizer, ids, text_splits

from visgrpo.data.batches import BatchLoader
from visgrpo.data.prompts import encode_prompts, prompts_from_text
from visgrpo.data.read import read
from visgrpo.data.roles import prompt_table
from visgrpo.data.text import render
from visgrpo.errors import UserError

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'x' %}{{ raise_exception('no x') }}{% endif %}"
    "{{ m.content }}:{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
CHAT = [{"role": "user", "content": "bad"}]


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(spec: str, **options: Any) -> Any:
    return read(spec, "prompts", **{"validation_fraction": 0.25, "seed": 0, **options})


def test_rows_are_divided_by_prompt_and_columns_follow(tmp_path: Path) -> None:
    rows = [{"question": f"q{row // 2}", "answer": row} for row in range(40)]
    spec = write(tmp_path / "sums.jsonl", rows)
    splits = load(spec)
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [24, 8, 8]  # 20 prompts: 4 for test, 4 of 16
    assert [part.name for part in parts] == ["sums/train", "sums/validation", "sums/test"]
    assert sorted(row for part in parts for row in part.columns["answer"]) == list(range(40))
    for part in parts:
        assert [f"q{row // 2}" for row in part.columns["answer"]] == list(part.prompts)
    assert sum(len(set(part.prompts)) for part in parts) == 20
    assert len({part.identity for part in parts}) == 3
    assert "no test split: 8 of its 40 train rows (the same for every seed)" in splits.notes[0]
    assert "no validation split: 8 of its 32 train rows (seed 0)" in splits.notes[1]
    other = load(spec, seed=1)
    assert other.test.prompts == splits.test.prompts
    assert other.validation.prompts != splits.validation.prompts


def test_stored_splits_and_messages(tmp_path: Path) -> None:
    for split, text in (("train", "one"), ("val", "two"), ("test", "three")):
        write(tmp_path / f"{split}.jsonl", [{"prompt": [{"role": "user", "content": text}]}])
    splits = load(str(tmp_path))
    assert splits.train.prompts == (({"role": "user", "content": "one"},),)
    assert splits.validation.prompts[0][0]["content"] == "two"
    assert splits.notes == ()
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match="1 distinct prompts are too few to set a validation"):
        load(str(tmp_path))
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match="has no train split, only validation"):
        load(str(tmp_path))


def test_parquet_and_line_separators(tmp_path: Path) -> None:
    prompts = [f"{row}\u2028 é" for row in range(8)]
    datasets.Dataset.from_dict({"text": prompts}).to_parquet(tmp_path / "a.parquet")
    from_table = load(str(tmp_path / "a.parquet"), columns={"prompt": "text"})
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts), "utf-8"
    )
    from_lines = load(str(tmp_path / "a.jsonl"))
    assert from_table.train.prompts == from_lines.train.prompts


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"prompt": ""}], r'row 1, column "prompt" is empty'),
        ([{"prompt": "a"}, {"prompt": None}], r"row 1, .* holds nothing"),
        ([{"prompt": 3}], r"holds int; give a string or a list of messages"),
        ([{"prompt": []}, {"prompt": CHAT}], r"row 0, .* is empty"),
        ([{"prompt": [{"role": "user"}]}], r'row 0, .* no text as "content"'),
        ([{"prompt": [{"content": "a"}]}], r'row 0, .* no text as "role"'),
        ([{"prompt": "a"}, {"prompt": 3}], r'line 2: "prompt" is a number, but text in line 1'),
        ([{"prompt": "a", "x": 2**70}], r"do not fit together"),
        ([["a"]], r"line 1 is no JSON object"),
        ([{"prompt": "a"}], r"1 distinct prompts are too few"),
        ([{"promt": "a"}], r"none is called like the prompt; name it with --prompt-column"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "x.jsonl", rows))


def test_bad_files(tmp_path: Path) -> None:
    spec = write(tmp_path / "x.jsonl", [{"promt": "a"}])
    with pytest.raises(UserError, match=r'no column "prompt". Did you mean "promt"'):
        load(spec, columns={"prompt": "prompt"})
    (tmp_path / "x.jsonl").write_text('{"prompt": "a"}\n{oops\n')
    with pytest.raises(UserError, match=r"line 2 is not JSON"):
        load(spec)
    write(tmp_path / "two" / "train.jsonl", [{"prompt": "a"}])
    write(tmp_path / "two" / "test.jsonl", [{"question": "a"}])
    with pytest.raises(UserError, match=r'"prompt" is in only one of'):
        load(str(tmp_path / "two"))
    with pytest.raises(UserError, match=r'column "n" has 1 rows but there are 2 prompts'):
        prompt_table("x", ("a", "b"), {"n": [1]})


def test_prompts_from_text_are_the_starts_of_long_documents_once() -> None:
    text = text_splits(
        train=("abcdef", "abcxyz", "gh", "bbbbbb", "cccccc", "ddzzzz"),
        validation=("bbbaaa", "eeefff"),
        test=("bbbaaa", "cccddd"),
    )
    splits = prompts_from_text(text, char_tokenizer(), 3)
    assert splits.test.prompts == ("bbb", "ccc")
    assert splits.validation.prompts == ("eee",)
    assert splits.train.prompts == ("abc",)  # "ddz" is not given back: z is unknown
    assert "1 train, 1 validation, 2 test prompts of 3 tokens" in splits.notes[0]
    only_seen = text_splits(("abcdef",), ("bbbaaa",), ("bbbaaa",))
    with pytest.raises(UserError, match="letters/validation: all its prompts of 3 tokens"):
        prompts_from_text(only_seen, char_tokenizer(), 3)


def test_errors_of_prompts_from_text() -> None:
    text = text_splits(("abcdef",), ("zzzzzz",), ("ghi",))
    with pytest.raises(UserError, match=r"test has no document of 4 tokens .* longest has 3"):
        prompts_from_text(text, char_tokenizer(), 2)
    with pytest.raises(UserError, match="validation: the tokenizer gives no prompt back"):
        prompts_from_text(text, char_tokenizer(), 1)
    with pytest.raises(UserError, match="1 token or more, not 0"):
        prompts_from_text(text, char_tokenizer(), 0)


def test_encoding_pads_on_the_left_and_a_loader_deals_it() -> None:
    dataset = prompt_table("letters/train", ("ab", "cde", "f"), {"answer": [1, 2, 3]})
    encoded = encode_prompts(dataset, char_tokenizer(), max_tokens=3)
    assert encoded.inputs_M.tolist() == [[PAD, *ids("ab")], ids("cde"), [PAD, PAD, *ids("f")]]
    assert encoded.lengths_M.tolist() == [2, 3, 1]
    (batch,) = BatchLoader(dataset, encoded, batch_size=3, seed=0).batches(0, 1)
    rows = batch.indices_N.tolist()
    assert batch.columns == {"answer": [row + 1 for row in rows]}
    assert torch.equal(batch.lengths_N, encoded.lengths_M[batch.indices_N])


def test_messages_are_rendered_by_the_chat_template() -> None:
    tokenizer = char_tokenizer()
    with pytest.raises(UserError, match="no chat template"):
        render(CHAT, tokenizer)
    tokenizer.chat_template = TEMPLATE
    assert render(CHAT, tokenizer) == "bad:a:"
    assert render("bad", tokenizer) == "bad"
    encoded = encode_prompts(prompt_table("x", (CHAT,)), tokenizer, max_tokens=6)
    assert encoded.inputs_M.tolist() == [ids("bad:a:")]
    with pytest.raises(UserError, match=r"refuses the messages .* \(no x\)"):
        render([{"role": "x", "content": "a"}], tokenizer)


def test_errors_of_encoding() -> None:
    with pytest.raises(UserError, match="row 1 has 5 tokens but 1 to 4 are allowed"):
        encode_prompts(prompt_table("x", ("ab", "abcde")), char_tokenizer(), max_tokens=4)
    with pytest.raises(UserError, match="no pad token"):
        encode_prompts(prompt_table("x", ("a",)), char_tokenizer(pad_token=None), max_tokens=4)
    with pytest.raises(UserError, match="holds no prompts"):
        encode_prompts(prompt_table("x", ()), char_tokenizer(), max_tokens=4)
