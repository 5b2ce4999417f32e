"""Tables of measures on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visgrpo.metrics import metric, ordered, scalars
from visgrpo.reporting.groups import TableCell
from visgrpo.terminal import show_table


def print_measures(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one row of measures for each name; missing measures stay empty."""
    numbers = {name: scalars(row) for name, row in rows.items()}
    found = dict.fromkeys(key for row in numbers.values() for key in row)
    columns = [key for key in ordered(found, "console") if metric(key, "any").is_shown("console")]
    lines = [
        [name, *(f"{row[key]:z.3f}" if key in row else "" for key in columns)]
        for name, row in numbers.items()
    ]
    show_table(
        ["", *(metric(key, "any").in_a_line for key in columns)], lines, title=title, width=120
    )


def print_cells(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[TableCell]]]
) -> None:
    """Print rows of cells, what stands below a cell on a page in brackets."""
    lines = [
        [name, *(f"{cell.main} ({cell.below})" if cell.below else cell.main for cell in cells)]
        for name, cells in rows
    ]
    show_table(["", *columns], lines, title=title)
