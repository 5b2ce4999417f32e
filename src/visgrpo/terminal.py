"""All that is printed: names and labels in it may be anyone's, and must not steer a terminal.

Whatever prints calls these functions; a test sees to it. Light to import.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from visgrpo.errors import CONTROLS, printable


def show(text: str) -> None:
    """Print text of one or more lines on stdout."""
    print(_lines(text), flush=True)


def say(text: str) -> None:
    """Print a remark of one or more lines on stderr."""
    print(_lines(text), file=sys.stderr, flush=True)


def show_json(value: Any) -> None:
    """Print JSON on stdout."""
    print(json_text(value), flush=True)


def json_text(value: Any) -> str:
    r"""Return JSON in which control characters are written as ``\u009b`` and the like."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # Line ends stand between the values: inside of them JSON escapes them itself.
    return re.sub(CONTROLS, lambda c: c[0] if c[0] == "\n" else f"\\u{ord(c[0]):04x}", text)


def show_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    width: int = 100,
    lines: bool = False,
    error: bool = False,
) -> None:
    """Print a table, on stderr if asked to.

    Args:
        headings: none for a table without a heading.
        title: stands on a line of its own: a small table would wrap it.
        width: of the table where no terminal says.
        lines: whether cells may have several lines.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cell = _lines if lines else printable
    table = Table(show_header=bool(headings))
    for heading in headings:
        table.add_column(Text(printable(heading)))
    for row in rows:
        table.add_row(*(Text(cell(each)) for each in row))
    if title is not None:
        (say if error else show)(title)
    console = Console(stderr=error)
    Console(stderr=error, width=None if console.is_terminal else width).print(table)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.expandtabs().split("\n")))
