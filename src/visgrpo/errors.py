"""Mistakes that the user can mend, said in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

# Besides control characters those that turn the direction of a line, and halves of characters,
# as in file names that are no text.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that names the thing and the mend. The command line prints it without a
    traceback and exits with code 2; library users catch it like any exception.
    """


class Interrupted(Exception):
    """A run was asked to stop; it has saved a checkpoint and can go on from it."""

    def __init__(self, step: int, run: Path) -> None:
        super().__init__(f"stopped after step {step}, which is saved")
        self.step, self.run = step, run


class Deserted(Interrupted):
    """Another process of the run has ended, and this one cannot go on alone."""

    def __init__(self, run: Path) -> None:
        Exception.__init__(self, "another process of this run has ended")
        self.step, self.run = 0, run


def nearest(name: str, choices: Iterable[str], *, most: int = 12) -> str:
    """Return the end of an error message: the most similar choice, or the choices themselves.

    Args:
        most: choices that are shown, of what may be as many as a data set has classes.
    """
    known = [str(choice) for choice in choices]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f'Did you mean "{close[0]}"?'
    shown = ", ".join(known[:most]) + (", …" if len(known) > most else "")
    return f"Choose from: {shown}."


def printable(text: str) -> str:
    r"""Return one line of text for a terminal, with control characters escaped, such as ``\x1b``.

    Names and labels in the text may be anyone's: raw, they could rewrite what is on the screen.
    """
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)
