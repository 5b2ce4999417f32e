"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SHOWN = {
    "reward": "reward",
    "loss": "loss",
    "kl": "KL",
    "entropy": "entropy",
    "accuracy": "accuracy",
    "eval/reward": "validation reward",
    "eval/accuracy": "validation accuracy",
    "eval/sampled_accuracy": "sampled accuracy",
    "eval/miou": "validation mIoU",
    "eval/knn": "validation kNN",
    "eval/perplexity": "validation perplexity",
    "eval/gold_reward": "validation gold",
}


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
        self._values.update({k: v for k, v in metrics.items() if k in _SHOWN})
        text = "  ".join(
            f"{_SHOWN[name]} {self._values[name]:z.3f}" for name in _SHOWN if name in self._values
        )
        if self._bar:
            self._bar.update(self._task, metrics=text)
        elif self._shown:
            left = self._seconds_left(step)
            print(f"{self._title} {step}/{self._steps}  {text}{left}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a remark without breaking the bar."""
        if self._bar:
            self._bar.console.print(line, highlight=False)
        elif self._shown:
            print(line, file=sys.stderr, flush=True)

    def _seconds_left(self, step: int) -> str:
        done = step - self._start
        if not done > 0 or step >= self._steps:
            return ""
        left = (time.perf_counter() - self._began) / done * (self._steps - step)
        return f"  {left:.0f} s left"
