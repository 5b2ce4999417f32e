"""Several rewards at once, named and weighted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.custom import ARGUMENTS, CustomReward
from visgrpo.rewards.functions import user_function
from visgrpo.rewards.labels import LABEL_REWARDS, LabelReward, Scope, label_reward
from visgrpo.rewards.weighted import WeightedRewards


@dataclass(frozen=True)
class RewardSet(WeightedRewards):
    """R rewards over the same outputs.

    Calling it gives each reward's numbers, unweighted, (N, G, R); how they become one advantage
    (sum then normalise, or normalise then sum, with `weights_R`) is the objective's choice.

    Raises:
        UserError: no reward, one name twice, not one weight for each, or a weight not finite.
    """

    functions: tuple[LabelReward, ...]
    examples: ClassVar[tuple[str, ...]] = tuple(LABEL_REWARDS)

    @property
    def scope(self) -> Scope:
        """ "batch" if any part makes sense over the batch only."""
        return "batch" if any(part.scope == "batch" for part in self.functions) else "any"

    def validate(self, scope: str, columns: Iterable[str] | None = None) -> None:
        """Check before any model is loaded that the rewards fit the run.

        Args:
            scope: what advantages are taken over, "group" or "batch".
            columns: names of the data set's columns that calls will pass; None leaves them
                unchecked.

        Raises:
            UserError: a batch-only reward with groups, a column that has the name of an argument,
                or a function that needs a column which the data does not have.
        """
        names = None if columns is None else list(columns)
        for name, part in zip(self.names, self.functions, strict=True):
            if part.scope == "batch" and scope != "batch":
                raise UserError(
                    f'Reward "{name}" is the same number for every output of one image, so its '
                    "advantage inside that image's group is zero and teaches nothing: take "
                    'advantages over the "batch", or choose another reward.'
                )
            if names is not None and isinstance(part, CustomReward):
                part.check_columns(names)
        for column in names or ():
            if column in ARGUMENTS:
                raise UserError(
                    f'The data has a column "{column}", a name that rewards use for something '
                    "else: rename or drop the column."
                )

    def __call__(
        self,
        outputs_NG: Tensor,
        /,
        *,
        label: Tensor,
        probabilities: Tensor,
        classes: Sequence[str],
        **columns: Any,
    ) -> Tensor:
        """Return every reward, unweighted, (N, G, R) float32; see `LabelReward` for arguments.

        Raises:
            UserError: a user's reward raised, or returned something other than (N, G) numbers.
        """
        with torch.no_grad():
            parts = [
                part(
                    outputs_NG,
                    label=label,
                    probabilities=probabilities,
                    classes=classes,
                    **columns,
                )
                for part in self.functions
            ]
        # One whole (N, G) table after another in memory: each is read alone most of the time.
        return torch.stack(parts).movedim(0, -1)


def parse_rewards(
    specs: Sequence[str | Callable[..., Any]],
    weights: Sequence[float] | None,
    classes: Sequence[str],
) -> RewardSet:
    """Build rewards from what the user wrote.

    Args:
        specs: for each reward a built-in ("hard", "soft", "cost:costs.csv", "graded:credit.csv",
            "hierarchy:tree.yaml", "top-k:5"), a function's place ("module:function",
            "file.py:function"), or a Python callable. A function's own name names it.
        weights: one for each; None for all 1.
        classes: class names, position = class id.

    Raises:
        UserError: an unknown name or file (with the nearest), or a mistake in `RewardSet`.
        RewardError: importing the user's function raised.
    """
    parsed = [_parse(spec, classes) for spec in specs]
    return RewardSet.of(parsed, weights)


def _parse(spec: str | Callable[..., Any], classes: Sequence[str]) -> tuple[str, LabelReward]:
    if isinstance(spec, str):
        spec = spec.strip()
        name, _, argument = spec.partition(":")
        if name in LABEL_REWARDS:
            return name, label_reward(name, argument, classes)
    name, function = user_function(spec, LABEL_REWARDS)
    return name, CustomReward(name, function)
