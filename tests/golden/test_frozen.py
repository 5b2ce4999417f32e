"""Options and public names change on purpose: their diff stands in the commit.

`python tests/golden/make.py lists` writes both lists again.
"""

from __future__ import annotations

from frozen import NAMES, OPTIONS, names_text, options_text


def test_options_are_the_ones_kept() -> None:
    kept = OPTIONS.read_text(encoding="utf-8").splitlines()
    assert options_text().splitlines() == kept


def test_public_names_are_the_ones_kept() -> None:
    assert names_text().splitlines() == NAMES.read_text(encoding="utf-8").splitlines()
