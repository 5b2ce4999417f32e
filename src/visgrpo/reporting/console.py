"""Tables of measures on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from visgrpo.files import write_whole
from visgrpo.metrics import metric, ordered, scalars
from visgrpo.reporting.groups import TableCell
from visgrpo.terminal import show_table


def print_measures(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one row of measures for each name; missing measures stay empty."""
    show_table(*table_of(rows), title=title, width=120)


def table_of(rows: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and a row of measures for each name; missing measures stay empty."""
    return table_of_groups([(name, [row]) for name, row in rows.items()])


def table_of_groups(
    rows: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
) -> tuple[list[str], list[list[str]]]:
    """Return the same where a row may be of several runs: mean ± standard deviation."""
    numbers = [(name, [scalars(of) for of in several]) for name, several in rows]
    found = dict.fromkeys(key for _, several in numbers for of in several for key in of)
    columns = [key for key in ordered(found, "console") if metric(key, "any").is_shown("console")]
    lines = [[name, *(_cell(several, key) for key in columns)] for name, several in numbers]
    return ["", *(metric(key, "any").in_a_line for key in columns)], lines


def _cell(rows: Sequence[Mapping[str, float]], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    if len(values) < 2:
        return "".join(f"{value:z.3f}" for value in values)
    return f"{fmean(values):z.3f} ± {stdev(values):z.3f}"


def write_table(path: Path | str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table as CSV, LaTeX or Markdown, by the ending of the file's name.

    Raises:
        UserError: for a file that cannot be written.
    """
    path = Path(path)
    write_whole(path, TABLES[path.suffix](headings, rows))


def _csv(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *rows])
    return text.getvalue()


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


_IN_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
    **{"±": "$\\pm$", "→": "$\\to$", "−": "$-$", "–": "--"},
}


def _latex(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        escaped = ("".join(_IN_LATEX.get(sign, sign) for sign in cell) for cell in cells)
        return f"{' & '.join(escaped)} \\\\\n"

    columns = "l" + "r" * (len(headings) - 1)
    body = "".join(map(line, rows))
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{line(headings)}\\hline\n"
        f"{body}\\hline\n\\end{{tabular}}\n"
    )


TABLES = {".csv": _csv, ".tex": _latex, ".md": markdown}


def print_cells(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[TableCell]]]
) -> None:
    """Print rows of cells, what stands below a cell on a page in brackets."""
    lines = [
        [name, *(f"{cell.main} ({cell.below})" if cell.below else cell.main for cell in cells)]
        for name, cells in rows
    ]
    show_table(["", *columns], lines, title=title)
