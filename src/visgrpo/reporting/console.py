"""Tables of measures on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from visgrpo.metrics import metric, ordered, scalars
from visgrpo.reporting.groups import TableCell


def print_measures(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one row of measures for each name; missing measures stay empty."""
    numbers = {name: scalars(row) for name, row in rows.items()}
    found = dict.fromkeys(key for row in numbers.values() for key in row)
    columns = [key for key in ordered(found, "console") if metric(key, "any").is_shown("console")]
    table = Table("", *[metric(key, "any").in_a_line for key in columns])
    for name, row in numbers.items():
        table.add_row(name, *[f"{row[key]:z.3f}" if key in row else "" for key in columns])
    print(title)  # not the table's own, which would be wrapped to the width of a small table
    Console(width=None if Console().is_terminal else 120).print(table)


def print_cells(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[TableCell]]]
) -> None:
    """Print rows of cells, what stands below a cell on a page in brackets."""
    table = Table("", *columns, title=title, title_justify="left")
    for name, cells in rows:
        texts = [f"{cell.main} ({cell.below})" if cell.below else cell.main for cell in cells]
        table.add_row(escape(name), *texts)
    Console(width=None if Console().is_terminal else 100).print(table)
