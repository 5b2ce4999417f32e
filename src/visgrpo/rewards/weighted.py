"""Names and weights of several rewards: what sets of rewards have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from visgrpo.errors import UserError


@dataclass(frozen=True)
class WeightedRewards:
    """R rewards with a name and a weight each.

    Raises:
        UserError: no reward, one name twice, not one weight for each, or a weight not finite.
    """

    names: tuple[str, ...]
    functions: tuple[Any, ...]
    weights: tuple[float, ...]
    examples: ClassVar[tuple[str, ...]]
    """What a reward can be, for those who named none."""

    @classmethod
    def of(cls, parts: Iterable[tuple[str, Any]], weights: Sequence[float] | None) -> Self:
        """From (name, function) pairs and one weight for each; None for all 1."""
        pairs = list(parts)
        return cls(
            names=tuple(name for name, _ in pairs),
            functions=tuple(function for _, function in pairs),
            weights=(1.0,) * len(pairs) if weights is None else tuple(map(float, weights)),
        )

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError(f"Name at least one reward: {', '.join(self.examples)}.")
        if len(self.functions) != len(self.names):
            raise UserError(f"{len(self.functions)} functions for {len(self.names)} reward names.")
        if len(self.weights) != len(self.names):
            raise UserError(
                f"{len(self.weights)} reward weights for {len(self.names)} rewards "
                f"({', '.join(self.names)}): give one weight for each."
            )
        for position, (name, weight) in enumerate(zip(self.names, self.weights, strict=True)):
            if name in self.names[:position]:
                raise UserError(f'Two rewards are called "{name}": leave one out or rename one.')
            if not math.isfinite(weight):
                raise UserError(f'The weight of reward "{name}" is {weight}: it must be finite.')

    @property
    def weights_R(self) -> Tensor:
        """The weights, (R,) float32."""
        return torch.tensor(self.weights, dtype=torch.float32)
