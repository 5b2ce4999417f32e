"""Ranges of settings, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from visgrpo.errors import UserError


def named(value: str | tuple[str, ...], what: str) -> None:
    """Raise UserError where something that must be given is empty."""
    if not value:
        raise UserError(f"Name {what}")


def positive(config: object, *names: str, optional: bool = False) -> None:
    """Raise UserError for a setting that is not above 0; an optional one may be None."""
    for name, value in _finite(config, names, optional):
        if value <= 0:
            raise UserError(f"{_flag(name)} must be above 0, not {value}.")


def not_negative(config: object, *names: str, optional: bool = False) -> None:
    """Raise UserError for a setting below 0; an optional one may be None."""
    for name, value in _finite(config, names, optional):
        if value < 0:
            raise UserError(f"{_flag(name)} must not be negative, not {value}.")


def share(config: object, *names: str) -> None:
    """Raise UserError for a setting outside [0, 1]."""
    for name, value in _finite(config, names, optional=False):
        if not 0 <= value <= 1:
            raise UserError(f"{_flag(name)} {value} must lie between 0 and 1.")


def _finite(
    config: object, names: Iterable[str], optional: bool
) -> Iterator[tuple[str, int | float]]:
    """The settings of these names that are given; raise UserError for NaN and infinity."""
    for name in names:
        value = getattr(config, name)
        if value is None and optional:
            continue
        if not math.isfinite(value):
            raise UserError(f"{_flag(name)} must be a finite number, not {value}.")
        yield name, value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
