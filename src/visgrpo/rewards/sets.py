"""Several rewards at once, named and weighted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.functions import ARGUMENTS, CustomReward, user_function
from visgrpo.rewards.labels import (
    BELIEVED,
    LABEL_REWARDS,
    CountReward,
    Known,
    LabelReward,
    PartialReward,
    Scope,
    Shape,
    TableReward,
    label_reward,
    scope_of,
)


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
        return "batch" if any(scope_of(part) == "batch" for part in self.functions) else "any"

    @property
    def masks(self) -> bool:
        """Whether some outputs of an image may have no reward, so that no group can have them."""
        return any(part.masks for part in self._partial)

    @property
    def _partial(self) -> list[PartialReward]:
        return [part for part in self.functions if isinstance(part, PartialReward)]

    def known(self, columns: Mapping[str, Any], device: torch.device) -> Known | None:
        """Return which labels of some images all rewards know; None where each knows all.

        Args:
            columns: of the images, those of the batch.
        """
        found = [part.known(columns, device) for part in self._partial]
        if not found:
            return None
        observed_NK = torch.stack([known.observed_NK for known in found]).all(dim=0)
        masked = [known.usable_NK for known in found if known.usable_NK is not None]
        return Known(observed_NK, torch.stack(masked).all(dim=0) if masked else None)

    @property
    def have_shapes(self) -> bool:
        """Whether every reward is a shape of the policy."""
        return all(getattr(part, "shape", None) is not None for part in self.functions)

    def shapes(self, label_N1: Tensor, true_N1: Tensor, n_classes: int) -> list[Shape]:
        """Return the rewards as shapes of the policy, which they have to be.

        Args:
            label_N1: the true classes.
            true_N1: the policy's probability of them.
        """
        parts: tuple[Any, ...] = self.functions
        return [part.shape(label_N1, true_N1, n_classes) for part in parts]

    @property
    def of_masks(self) -> tuple[str, ...]:
        """The names of the parts whose outputs are whole masks."""
        pairs = zip(self.names, self.functions, strict=True)
        return tuple(name for name, part in pairs if scope_of(part) == "mask")

    @property
    def counted(self) -> dict[str, CountReward]:
        """The parts, by name, that are scores of a whole mask or batch, made of counts."""
        pairs = zip(self.names, self.functions, strict=True)
        return {name: part for name, part in pairs if isinstance(part, CountReward)}

    @property
    def of_labels(self) -> Self | None:
        """The set without scores of counts; None where nothing is left."""
        parts = zip(self.names, self.functions, self.weights, strict=True)
        kept = [part for part in parts if not isinstance(part[1], CountReward)]
        pairs = [(name, function) for name, function, _ in kept]
        return self.of(pairs, [weight for _, _, weight in kept]) if kept else None

    def costs(self) -> Tensor | None:
        """Return what an answer costs, (K, K) with rows of truth, where a reward is a cost."""
        for name, part in zip(self.names, self.functions, strict=True):
            if name == "cost" and isinstance(part, TableReward):
                return 0 - part.table_KK
        return None

    def replaced(self, made: Mapping[str, LabelReward]) -> Self:
        """Return the set with other functions under some of its names."""
        functions = zip(self.names, self.functions, strict=True)
        return replace(self, functions=tuple(made.get(name, part) for name, part in functions))

    def expected(
        self,
        probabilities_NK: Tensor,
        *,
        label: Tensor,
        classes: Sequence[str],
        **columns: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what N images earn in the mean under a policy, Σ_k π_k r_k, and which earn at all.

        Where some labels of an image have no reward, the mean is over the others, with the policy's
        probabilities brought to a sum of 1.

        Returns:
            (N,) the weighted sum of the rewards' expectations; and (N,) bool, false where nobody
            has judged any label (so that the expectation is 0, or all guesswork), or None where
            all rewards are known of every label.
        """
        n_inputs, n_classes = probabilities_NK.shape
        rewards_NKR = self(
            torch.arange(n_classes, device=probabilities_NK.device).expand(n_inputs, -1),
            label=label,
            probabilities=probabilities_NK,
            classes=classes,
            **columns,
        )
        rewards_NK = rewards_NKR @ self.weights_R.to(rewards_NKR)
        known = self.known(columns, probabilities_NK.device)
        if known is None or known.usable_NK is None:
            decided_N = None if known is None else known.observed_NK.any(dim=-1)
            return (probabilities_NK * rewards_NK).sum(dim=-1), decided_N
        weights_NK = probabilities_NK * known.usable_NK
        # The smallest number stands in for 0 where nothing is known: the sum above it is 0 too.
        total_N = weights_NK.sum(dim=-1).clamp(min=torch.finfo(weights_NK.dtype).tiny)
        return (weights_NK * rewards_NK).sum(dim=-1) / total_N, known.usable_NK.any(dim=-1)

    def validate(
        self,
        scope: str,
        columns: Iterable[str] | None = None,
        *,
        counted: bool = False,
        masks: bool = False,
    ) -> None:
        """Check before any model is loaded that the rewards fit the run.

        Args:
            scope: what advantages are taken over, "group" or "batch".
            counted: whether there is somebody to count whole masks or batches.
            masks: whether outputs are whole masks.
            columns: names of the data set's columns that calls will pass; None leaves them
                unchecked.

        Raises:
            UserError: a batch-only reward with groups, a column that has the name of an argument,
                or a function that needs a column which the data does not have.
        """
        names = None if columns is None else list(columns)
        if masks and (others := [name for name in self.names if name not in self.of_masks]):
            raise UserError(
                f'Reward "{others[0]}" is of single labels, and whole masks or sets are drawn '
                'here: their rewards are f1, jaccard and functions with scope = "mask".'
            )
        if self.of_masks and not masks:
            raise UserError(
                f'Reward "{self.of_masks[0]}" asks for whole masks or sets, and groups here are of '
                "single labels: it is for visgrpo segmentation with --estimator sampled, and for "
                "representation with --label-sets."
            )
        if self.counted and not counted:
            raise UserError(
                f'Reward "{next(iter(self.counted))}" is a score of whole masks or batches, and '
                "groups here are of single labels: it is for visgrpo segmentation and "
                "representation, with --estimator exact."
            )
        for name, part in zip(self.names, self.functions, strict=True):
            if scope_of(part) == "batch" and scope != "batch":
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
    made: Mapping[str, LabelReward] | None = None,
) -> RewardSet:
    """Build rewards from what the user wrote.

    Args:
        specs: for each reward a built-in ("hard", "soft", "cost:costs.csv", "graded:credit.csv",
            "hierarchy:tree.yaml", "top-k:5"), a function's place ("module:function",
            "file.py:function"), or a Python callable. A function's own name names it.
        weights: one for each; None for all 1.
        classes: class names, position = class id.
        made: rewards that are there already, by name: those of people's clicks, say.

    Raises:
        UserError: an unknown name or file (with the nearest), or a mistake in `RewardSet`.
        RewardError: importing the user's function raised.
    """
    parsed = [_parse(spec, classes, made or {}) for spec in specs]
    return RewardSet.of(parsed, weights)


def _parse(
    spec: str | Callable[..., Any], classes: Sequence[str], made: Mapping[str, LabelReward]
) -> tuple[str, LabelReward]:
    if isinstance(spec, str):
        spec = spec.strip()
        name, _, argument = spec.partition(":")
        if spec in made:
            return name, made[spec]
        if name == BELIEVED:
            raise UserError(f'Reward "{name}" asks a frozen CLIP: it is for visgrpo clip alone.')
        if name in LABEL_REWARDS:
            return name, label_reward(name, argument, classes)
    name, function = user_function(spec, (*LABEL_REWARDS, BELIEVED, *made))
    return name, CustomReward(name, function)
