"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from visgrpo.errors import printable
from visgrpo.metrics import metric, ordered
from visgrpo.terminal import say


class ProgressDisplay:
    """Shows the newest value of a few metrics, on stderr; prints a line per log entry when piped.

    Args:
        shown: False on every process but the main one.
    """

    def __init__(self, title: str, steps: int, *, start: int = 0, shown: bool = True) -> None:
        self._title, self._steps, self._shown = title, steps, shown
        self._values: dict[str, float] = {}
        self._began, self._start = time.perf_counter(), start
        self._bar: Progress | None = None
        console = Console(file=sys.stderr)
        if shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=console,
            )
            self._task = self._bar.add_task(title, total=steps, completed=start, metrics="")

    def __enter__(self) -> ProgressDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show new values."""
        self._values.update({key: value for key, value in metrics.items() if _name(key)})
        shown = ordered(self._values, "bar")
        text = "  ".join(f"{_name(key)} {self._values[key]:z.3f}" for key in shown)
        if self._bar:
            self._bar.update(self._task, metrics=text)
        elif self._shown:
            left = self._seconds_left(step)
            say(f"{self._title} {step}/{self._steps}  {text}{left}")

    def say(self, line: str) -> None:
        """Print a remark without breaking the bar."""
        if self._bar:
            self._bar.console.print(Text(printable(line)))
        elif self._shown:
            say(line)

    def _seconds_left(self, step: int) -> str:
        done = step - self._start
        if not done > 0 or step >= self._steps:
            return ""
        left = (time.perf_counter() - self._began) / done * (self._steps - step)
        return f"  {left:.0f} s left"


def _name(key: str) -> str:
    """What a metric is called on the bar; nothing if it is not shown there."""
    row, of_validation = metric(key, "any"), key.startswith("eval/")
    if not row.is_shown("validation" if of_validation else "bar"):
        return ""
    return f"validation {row.in_a_line}" if of_validation else row.in_a_line
