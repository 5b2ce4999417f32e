"""What stands before a text: the tokenizer's own choice for strings, the template's for chats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from char_tokenizer import BOS, EOS, PAD, char_tokenizer, ids, opening_tokenizer, text_splits

from visgrpo.data.batches import BatchLoader, sequential
from visgrpo.data.prompts import encode_pairs, encode_prompts, pair_lengths, prompts_from_text
from visgrpo.data.roles import block_table, pair_table, prompt_table
from visgrpo.data.text import opened_ids, token_blocks, token_ids
from visgrpo.errors import UserError
from visgrpo.models.tokenizers import character_tokenizer, make_tokenizer

CHAT = ({"role": "user", "content": "ab"},)
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}:{% endfor %}"


def opened(prompts: list[Any], tokenizer: Any) -> list[list[int]]:
    return [row.tolist() for row in opened_ids(prompts, tokenizer)]


def test_a_string_begins_as_the_tokenizer_begins_it() -> None:
    tokenizer = opening_tokenizer()
    assert tokenizer("ab")["input_ids"] == [BOS, *ids("ab"), EOS]
    assert opened(["ab", "c", ""], tokenizer) == [[BOS, *ids("ab")], [BOS, *ids("c")], [BOS]]
    assert [row.tolist() for row in token_ids(["ab"], tokenizer)] == [ids("ab")]


def test_what_is_spelled_is_not_put_there_twice() -> None:
    tokenizer = opening_tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert opened([CHAT, "<bos>ab", "ab"], tokenizer) == [
        [BOS, *ids("ab:")],
        [BOS, *ids("ab")],
        [BOS, *ids("ab")],
    ]
    tokenizer.chat_template = TEMPLATE.removeprefix("{{ bos_token }}")
    assert opened([CHAT], tokenizer) == [ids("ab:")]  # the template's choice


@pytest.mark.parametrize(
    "tokenizer",
    [
        char_tokenizer(),
        char_tokenizer(bos_token="<bos>"),  # it has one, and puts it nowhere
        make_tokenizer("char", ["bad"]),
        make_tokenizer("bpe", ["bad"], vocabulary=258),
        character_tokenizer({"\n": 0, "b": 1, "a": 2, "$": 3}, end="$"),  # raises at others
    ],
    ids=["characters", "bos that is not put", "char", "bpe", "nanoGPT"],
)
def test_others_begin_with_the_text(tokenizer: Any) -> None:
    assert opened(["ab"], tokenizer) == [row.tolist() for row in token_ids(["ab"], tokenizer)]


def test_prompts_documents_and_pairs_begin_alike() -> None:
    tokenizer = opening_tokenizer()
    prompts = encode_prompts(prompt_table("x", ("ab", "c")), tokenizer, max_tokens=3)
    assert prompts.inputs_M.tolist() == [[BOS, *ids("ab")], [PAD, BOS, *ids("c")]]
    blocks = token_blocks(["ab", "c"], tokenizer, block=6)
    assert blocks.inputs_M.tolist() == [[BOS, *ids("ab"), EOS, BOS, *ids("c"), EOS]]
    rows = pair_table("x", ("ab",), ("c",), ("de",), {"rejected_ended": [False]})
    pairs = encode_pairs(rows, tokenizer, max_tokens=5)
    assert pairs.inputs_M.tolist() == [[[BOS, *ids("abc"), EOS], [BOS, *ids("abde")]]]
    assert pair_lengths(rows, tokenizer).tolist() == [[5, 5]]


def test_prompts_from_text_are_without_it() -> None:
    text = text_splits(("abcdef",), ("bcdefg",), ("cdefgh",))
    assert prompts_from_text(text, opening_tokenizer(), 3).train.prompts == ("abc",)


def test_documents_are_joined_by_ends_and_cut_without_overlap() -> None:
    blocks = token_blocks(["abc", "de", "fgh"], char_tokenizer(), block=3)
    stream = [*ids("abc"), EOS, *ids("de"), EOS, *ids("fgh"), EOS]  # 11: three dropped
    assert blocks.inputs_M.tolist() == [stream[:4], stream[4:8]]
    assert blocks.inputs_M.dtype == torch.int64
    assert blocks.lengths_M.tolist() == [3, 3]


def test_many_documents_are_encoded_in_parts_and_kept_in_order() -> None:
    documents = ["abcdefghij"[row % 10] for row in range(5000)]
    blocks = token_blocks(documents, char_tokenizer(), block=1)
    assert blocks.inputs_M[:, 0].tolist() == [3 + row % 10 for row in range(5000)]
    assert set(blocks.inputs_M[:, 1].tolist()) == {EOS}


def test_a_batch_loader_deals_the_blocks() -> None:
    blocks = token_blocks(["abcdefgh"] * 4, char_tokenizer(), block=2)
    dataset = block_table("letters/train", len(blocks.inputs_M), identity="letters")
    assert len(dataset) == 12
    (batch,) = BatchLoader(dataset, blocks, batch_size=4, seed=0).batches(0, 1)
    assert torch.equal(batch.inputs, blocks.inputs_M[batch.indices_N])
    assert batch.lengths_N.tolist() == [2, 2, 2, 2]
    assert batch.columns == {}
    assert [len(part) for part in sequential(dataset, blocks, 5)] == [5, 5, 2]
    half = dataset.subset(np.arange(6))
    assert len(half) == 6
    assert half.identity != dataset.identity
    with pytest.raises(UserError, match="13 is larger than letters/train, which has 12 rows"):
        BatchLoader(dataset, blocks, batch_size=13, seed=0)


def test_errors() -> None:
    with pytest.raises(UserError, match=r"has 4 tokens \(1 documents and .* block takes 5"):
        token_blocks(["abc"], char_tokenizer(), block=4)
    with pytest.raises(UserError, match="1 token or more, not 0"):
        token_blocks(["abc"], char_tokenizer(), block=0)
    with pytest.raises(UserError, match="no eos token"):
        token_blocks(["abc"], char_tokenizer(eos_token=None), block=1)
