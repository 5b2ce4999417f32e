"""Which stages of a command make use of each of its options. Light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageOptions:
    """The stages of a command and their options.

    Attributes:
        stages: all of them.
        only_for: the stages that make use of an option; all of them where it is not named.
    """

    stages: tuple[str, ...]
    only_for: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, stages: tuple[str, ...], *rows: tuple[tuple[str, ...], str]) -> StageOptions:
        """Make the table of rows that each name some stages and, in one string, their options."""
        table = {option: users for users, options in rows for option in options.split()}
        return cls(stages, table)

    def users(self, option: str) -> tuple[str, ...]:
        """Return the stages that make use of an option."""
        return self.only_for.get(option, self.stages)

    def uses(self, stage: str, option: str) -> bool:
        """Whether a stage makes use of an option."""
        return stage in self.users(option)
