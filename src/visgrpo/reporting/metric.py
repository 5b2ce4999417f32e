"""One metric as people read it: title, unit, direction, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MINUS = "−"


@dataclass(frozen=True)
class Metric:
    """How people read one metric.

    Attributes:
        title: "KL to the start".
        unit: Label of the value axis, "nats".
        better: Which direction is a gain; "neither" where that depends on the user's aim.
        is_share: A number in [0, 1] that is written in per cent.
        short: Title where there is little room; the title itself if empty.
        about: One phrase for readers who do not know the metric.
    """

    title: str
    unit: str
    better: Literal["higher", "lower", "neither"] = "neither"
    is_share: bool = False
    about: str = ""
    short: str = ""

    @property
    def heading(self) -> str:
        return self.short or self.title

    def text(self, value: float) -> str:
        """Write a value: ``0.8125`` as "81.2 %" for shares, else four significant figures."""
        return signed(f"{100 * value:.1f} %") if self.is_share else number(value)

    def change(self, before: float, after: float) -> str:
        """Write a change with its sign: "+3.2 points" for shares, else "−0.012"."""
        delta = after - before
        if self.is_share:
            return signed(f"{100 * delta:+.1f} points")
        return f"+{number(delta)}" if delta > 0 else number(delta)

    def verdict(self, before: float, after: float) -> Literal["gain", "loss", "same"]:
        """Say whether the change is a gain; "same" where neither direction is one."""
        if self.better == "neither" or after == before:
            return "same"
        return "gain" if (after > before) == (self.better == "higher") else "loss"


def number(value: float) -> str:
    """Write a number with four significant figures, without a needless exponent."""
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e5:
        decimals = 3 if size < 10 else 1 if size < 1000 else 0
        return signed(f"{value:.{decimals}f}")
    return signed(f"{value:.2e}")


def signed(text: str) -> str:
    """Use the true minus sign, so that columns of signed numbers align; no sign before zero."""
    if text[:1] in "+-" and not any(digit in text for digit in "123456789"):
        text = text[1:]
    return text.replace("-", MINUS)
