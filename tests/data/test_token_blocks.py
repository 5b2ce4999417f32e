"""Blocks of tokens: every token once and in order, an end after each document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from char_tokenizer import EOS, char_tokenizer, ids

from visgrpo.data.batches import BatchLoader, sequential
from visgrpo.data.roles import block_table
from visgrpo.data.text import token_blocks
from visgrpo.errors import UserError


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
