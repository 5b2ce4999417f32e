"""Documents as blocks of tokens, all of one length, to learn a language model on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visgrpo.data.batches import CachedInputs
from visgrpo.data.identity import of_rows
from visgrpo.data.token_rows import opened_ids, special_id
from visgrpo.errors import UserError


@dataclass(frozen=True)
class BlockDataset:
    """M blocks of text, whose tokens are in the `CachedInputs` beside it.

    Attributes:
        name: what messages call it, such as "topics/train".
        blocks: M.
        identity: names the content (see `visgrpo.data.identity`); "" when unknown.
    """

    name: str
    blocks: int
    identity: str = ""

    @property
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Blocks have no columns: a block may hold the end of one document and another's start."""
        return {}

    def __len__(self) -> int:
        return self.blocks

    def subset(self, indices: Sequence[int] | np.ndarray) -> BlockDataset:
        """Return as many blocks as there are `indices`."""
        rows = np.asarray(indices, dtype=np.int64)
        return BlockDataset(self.name, len(rows), of_rows(self.identity, rows))


def token_blocks(documents: Sequence[str], tokenizer: Any, block: int) -> CachedInputs:
    """Cut documents, joined with an end token after each, into blocks that do not overlap.

    Before each stands what the tokenizer puts before a plain text, if anything. A block holds one
    token more than is predicted in it; what remains at the end is dropped.

    Args:
        documents: the text, in order.
        tokenizer: of transformers, with an end token.
        block: how many tokens are predicted in each block, 1 or more.

    Returns:
        inputs_M (M, block + 1) int64 ids; labels_M (M,) int64, the number of tokens that count in
        a loss: always `block`.

    Raises:
        UserError: if `block` is below 1, the tokenizer has no end token, or the text is shorter
            than one block.
    """
    if block < 1:
        raise UserError(f"A block must hold 1 token or more, not {block}.")
    end = np.array([special_id(tokenizer, "eos")], dtype=np.int32)
    parts = [part for ids in opened_ids(documents, tokenizer) for part in (ids, end)]
    tokens = np.concatenate([np.empty(0, dtype=np.int32), *parts])
    rows = len(tokens) // (block + 1)
    if rows == 0:
        raise UserError(
            f"The text has {len(tokens)} tokens ({len(documents)} documents and their ends) but a "
            f"block takes {block + 1}; give more text or a smaller block."
        )
    blocks_MT = tokens[: rows * (block + 1)].reshape(rows, block + 1).astype(np.int64)
    return CachedInputs(torch.from_numpy(blocks_MT), torch.full((rows,), block))
