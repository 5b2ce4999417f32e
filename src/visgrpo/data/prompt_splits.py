"""Setting rows with prompts apart: no prompt is in two splits that are made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, TypeVar

import numpy as np

from visgrpo.data.chat import Prompt, prompt_key
from visgrpo.data.splitting import TEST_FRACTION, TEST_SEED, check_split_options, stratified_rows
from visgrpo.errors import UserError

_STREAMS = {"test": 0, "validation": 1}


class PromptedRows(Protocol):
    """Rows that have a prompt each."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The prompt of every row."""

    def named(self, name: str, /) -> Self:
        """Return the same rows under another name."""

    def subset(self, indices: np.ndarray, /) -> Self:
        """Return the rows at some places."""


Rows = TypeVar("Rows", bound=PromptedRows)


def divide_prompted(
    name: str, stored: Mapping[str, Rows], *, fraction: float, seed: int
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Return train, validation and test rows, and what was decided to make them.

    Missing splits are made as for images: a stored validation split becomes a missing test split;
    without either, 20 % of the rows do, the same for every seed; then validation is made by `seed`.
    Rows of one prompt stay together.

    Args:
        name: what messages call the data.
        stored: rows by split: "train", "validation", "test", or "all" when undivided.
        fraction: share of the train prompts that makes a missing validation split.
        seed: chooses that validation split.

    Raises:
        UserError: if an option is out of range, there are no train rows, or too few prompts.
    """
    check_split_options(fraction, seed)
    splits, notes = dict(stored), list[str]()
    if "all" in splits:
        splits["train"] = splits.pop("all").named(f"{name}/train")
    if "train" not in splits:
        raise UserError(
            f"{name} has no train split, only {', '.join(splits)}; add one or choose other data."
        )
    if set(splits) == {"train", "validation"}:
        splits["test"] = splits.pop("validation").named(f"{name}/test")
        notes.append(f"{name} has no test split: its stored validation split is the test split.")
    for split, share, split_seed in (
        ("test", TEST_FRACTION, TEST_SEED),
        ("validation", fraction, seed),
    ):
        if split not in splits:
            rng = np.random.default_rng([split_seed, _STREAMS[split]])
            whole = splits["train"]
            stay, taken = _part(f"{name}/train", split, whole.prompts, share, rng)
            splits["train"] = whole.subset(stay)
            splits[split] = whole.subset(taken).named(f"{name}/{split}")
            by = "the same for every seed" if split == "test" else f"seed {seed}"
            notes.append(
                f"{name} has no {split} split: {len(taken)} of its {len(whole.prompts)} train rows "
                f"({by}) were set apart."
            )
    return splits, tuple(notes)


def _part(
    where: str, split: str, prompts: Sequence[Prompt], fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that stay and the rows taken, each ascending."""
    distinct, prompt_of_M = np.unique(list(map(prompt_key, prompts)), return_inverse=True)
    _, taken = stratified_rows(np.zeros(len(distinct), dtype=np.int64), fraction, rng)
    if len(taken) == 0:
        raise UserError(
            f"{where}: {len(distinct)} distinct prompts are too few to set a {split} split apart; "
            "give more, or store the splits yourself."
        )
    is_taken_M = np.isin(prompt_of_M, taken)
    return np.flatnonzero(~is_taken_M), np.flatnonzero(is_taken_M)
