"""What a person sees while something long goes on: bars on a terminal, a few lines elsewhere.

All on stderr. Light to import.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from visgrpo.errors import printable
from visgrpo.metrics import duration, metric, ordered
from visgrpo.terminal import live_lines, say

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

T = TypeVar("T")
SOON = 0.5  # seconds that pass before a bar is worth its line
SELDOM = 20.0  # seconds between two lines where no terminal is
_open: list[Bar] = []
_live: Live | None = None


class Bar:
    """Something that takes long: what is done of it, how long it will take, its newest metrics.

    Bars that are open at one time stand below each other. Where stderr is no terminal, a bar of
    training has a line for every log entry, and any other one a line every 20 seconds.

    Args:
        total: of what is counted; None where nobody knows.
        start: what was done before.
        training: whether it is a run's own bar, which stays where it ends.
        shown: False on every process but the main one.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        start: int = 0,
        training: bool = False,
        shown: bool = True,
    ) -> None:
        self.title, self.total, self.training = printable(title), total, training
        self._shown = shown and os.environ.get("RANK", "0") == "0"
        self._values: dict[str, float] = {}
        self.done = self._start = start
        self._began = self._said = time.perf_counter()

    def __enter__(self) -> Bar:
        global _live
        if self._shown:
            if not _open:
                _live = live_lines(_lines)
            _open.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _live
        if not self._shown:
            return
        _open.remove(self)
        live, _live = _live, _live if _open else None
        if live is not None:
            if not _open:
                live.stop()
            if self.training:
                live.console.print(self.line(live.console.width))

    def to(self, done: int) -> None:
        """Say how much is done."""
        self.done, now = done, time.perf_counter()
        if self.training or not self._shown or _live is not None or now - self._said < SELDOM:
            return
        self._said = now
        self._say()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show new values of metrics, by the names that they are logged under."""
        if step == self._start:  # the time of what was measured before the first step
            self._began = time.perf_counter()
        self.done = step
        new = {key: value for key, value in metrics.items() if _name(key)}
        self._values.update(new)
        if self._shown and _live is None:
            self._say(*_texts(new))

    def line(self, width: int) -> Text:
        """Return one line for a terminal: as many metrics as fit, whole."""
        from rich.text import Text

        count, left = self._count(), self._left()
        title = self.title
        room = max(8, width // 3)
        title = title if len(title) <= room else f"{title[: room - 1]}…"
        line = Text(f"{title} {count} ", no_wrap=True, overflow="crop")
        if self.total:
            length = min(24, max(6, width // 5))
            done = round(length * min(1.0, self.done / self.total))
            line.append("━" * done, "green").append("━" * (length - done), "bright_black")
        line.append(f" {left}" if left else "")
        for text in _texts(self._values):
            if len(line) + 2 + len(text) >= width:
                break
            line.append(f"  {text}")
        line.truncate(width - 1)
        return line

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._began

    def _say(self, *texts: str) -> None:
        say("  ".join(filter(None, [f"{self.title} {self._count()}", self._left(), *texts])))

    def _count(self) -> str:
        return f"{self.done:,}" if self.total is None else f"{self.done}/{self.total}"

    def _left(self) -> str:
        done = self.done - self._start
        if self.total is None or done <= 0 or self.done >= self.total:
            return ""
        return f"{duration(self.age / done * (self.total - self.done))} left"


def tracked(values: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield values while a bar counts them.

    Args:
        total: how many there are; by default their length, where they have one.
    """
    known = len(values) if total is None and isinstance(values, Sequence) else total
    with Bar(title, known) as bar:
        for done, value in enumerate(values, start=1):
            yield value
            bar.to(done)


def _lines(width: int) -> list[Text]:
    """The open bars as they are now: a training's always, the others when they take longer."""
    return [bar.line(width) for bar in list(_open) if bar.training or bar.age >= SOON]


def _texts(values: Mapping[str, float]) -> list[str]:
    return [f"{_name(key)} {values[key]:z.3f}" for key in ordered(values, "bar")]


def _name(key: str) -> str:
    """What a metric is called on the bar; nothing if it is not shown there."""
    row, of_validation = metric(key, "any"), key.startswith("eval/")
    if not row.is_shown("validation" if of_validation else "bar"):
        return ""
    return f"validation {row.in_a_line}" if of_validation else row.in_a_line
