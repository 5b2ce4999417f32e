"""All that is printed: names and labels in it may be anyone's, and must not steer a terminal.

Whatever prints calls these functions; a test sees to it. Light to import.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from visgrpo.errors import CONTROLS, printable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text


BROKEN_PIPE = 141  # the exit code of programs that nobody reads any more
_noted: set[str] = set()


def show(text: str) -> None:
    """Print text of one or more lines on stdout."""
    _put(_lines(text), sys.stdout)


def say(text: str) -> None:
    """Print a remark of one or more lines on stderr."""
    _put(_lines(text), sys.stderr)


def note(text: str) -> None:
    """Print what was decided on the way; a command says the same only once."""
    if text not in _noted:
        _noted.add(text)
        say(f"note: {text}")


def forget_notes() -> None:
    """A new command begins: it may say again what one before it said."""
    _noted.clear()


def show_json(value: Any) -> None:
    """Print JSON on stdout."""
    _put(json_text(value), sys.stdout)


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
        table.add_column(Text(printable(heading)), overflow="fold")  # nothing is cut off
    for row in rows:
        table.add_row(*(Text(cell(each)) for each in row))
    if title is not None:
        (say if error else show)(title)
    console = Console(stderr=error)
    console = Console(stderr=error, width=None if console.is_terminal else width)
    with console.capture() as drawn:
        console.print(table)
    _put(drawn.get().removesuffix("\n"), sys.stderr if error else sys.stdout)


def _put(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # whoever read has seen enough, as in "visgrpo compare … | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(BROKEN_PIPE) from None


def live_lines(lines: Callable[[int], list[Text]]) -> Live | None:
    """Keep lines at the end of the terminal of stderr up to date; None where there is none.

    What is printed meanwhile stands above them. ``stop()`` takes them away.

    Args:
        lines: of a width, as they are now; asked for a few times a second.
    """
    if not sys.stderr.isatty():
        return None
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    live = Live(
        console=console,
        get_renderable=lambda: Group(*lines(console.width)),
        refresh_per_second=5,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    live.start()
    return live


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.expandtabs().split("\n")))
