"""Text to learn from: documents, and their three splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from visgrpo.data.splitting import check_split_options
from visgrpo.errors import UserError

Documents = tuple[str, ...]


@dataclass(frozen=True)
class TextSplits:
    """Documents in three splits, none of them empty.

    Attributes:
        name: what messages call the text.
        train: documents to learn from.
        validation: documents to choose by.
        test: documents to report on.
        identity: names the content (see `visgrpo.data.identity`); "" when unknown.
        notes: what was decided for the user, such as a test split made from the train documents.
    """

    name: str
    train: Documents
    validation: Documents
    test: Documents
    identity: str = ""
    notes: tuple[str, ...] = ()


def paragraphs(text: str) -> Documents:
    """Return what stands between blank lines; lines keep their indentation."""
    by_filled = groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    return tuple("\n".join(lines) for filled, lines in by_filled if filled)


def divide_documents(
    name: str, stored: Mapping[str, Documents], *, fraction: float, identity: str
) -> TextSplits:
    """Return the three splits, those that are missing cut from the end of the train documents.

    Neighbouring documents resemble each other, so a split is one stretch of the text: train, then
    validation, then test. As for images, a stored validation split of text without a test split
    becomes the test split.

    Args:
        name: what messages call the text.
        stored: documents by split: "train", "validation", "test", or "all" when undivided.
        fraction: share of the train documents that makes each missing split.
        identity: names the content.

    Raises:
        UserError: if the fraction is out of range, there are no train documents, or too few.
    """
    check_split_options(fraction, seed=0)
    splits, notes = dict(stored), list[str]()
    if "all" in splits:
        splits["train"] = splits.pop("all")
    if "train" not in splits:
        raise UserError(
            f"{name} has no train split, only {', '.join(splits)}; add one or choose other text."
        )
    if set(splits) == {"train", "validation"}:
        splits["test"] = splits.pop("validation")
        notes.append(f"{name} has no test split: its stored validation split is the test split.")
    missing = [split for split in ("validation", "test") if split not in splits]
    if missing:
        whole = splits["train"]
        taken = max(1, round(fraction * len(whole)))
        stay = len(whole) - taken * len(missing)
        if stay < 1:
            raise UserError(
                f"{name}: {len(whole)} documents are too few to set {taken} apart for "
                f"{' and '.join(missing)} each; give more text, with blank lines between "
                "documents, or a smaller validation_fraction."
            )
        splits["train"] = whole[:stay]
        for place, split in enumerate(missing):
            start = stay + place * taken
            splits[split] = whole[start : start + taken]
        notes.append(
            f"{name} has no {' and no '.join(missing)} split: the last {taken * len(missing)} of "
            f"its {len(whole)} documents were set apart."
        )
    return TextSplits(
        name, splits["train"], splits["validation"], splits["test"], identity, tuple(notes)
    )
