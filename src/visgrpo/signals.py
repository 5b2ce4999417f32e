"""What becomes of a command that is told to stop, or whose terminal closes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Have a terminate signal and a closed terminal end a command in order, as Ctrl-C does.

    Signals that nohup or a caller took are theirs, and so are all outside of the main thread.
    """
    terminals = standing_terminals()

    def stop(number: int, frame: Any) -> None:
        if number == HANGUP:
            silence(terminals)
            signal.raise_signal(signal.SIGTERM)  # which a server that is running takes its own way
        else:
            signal.default_int_handler(number, frame)

    wanted = [number for number in (signal.SIGTERM, HANGUP) if number is not None]
    replaced = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in replaced:
            signal.signal(number, stop)
    except ValueError:  # not the main thread
        replaced = []
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def standing_terminals() -> list[int]:
    """Return which of stdout and stderr are terminals; once gone they are none."""
    return [each for each in (1, 2) if os.isatty(each)]


def silence(descriptors: Sequence[int]) -> None:
    """Let what is printed to a terminal that has gone go nowhere, so that it stops no saving."""
    with open(os.devnull, "w") as nowhere:
        for descriptor in descriptors:
            os.dup2(nowhere.fileno(), descriptor)
