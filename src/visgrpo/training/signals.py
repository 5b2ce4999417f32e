"""A first Ctrl-C or terminate signal asks a run to stop; a second stops it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """Whether somebody has asked the run to stop after the step that is under way."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of signals inside the block, and leave them to others after it."""

        def ask_to_stop(number: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        handled = (signal.SIGINT, signal.SIGTERM)
        try:
            before = {number: signal.signal(number, ask_to_stop) for number in handled}
        except ValueError:  # not in the main thread: the caller keeps the signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
