"""The weight of the KL penalty: fixed, or steered towards a target divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from visgrpo.errors import UserError

MAX_ERROR = 0.2  # of the relative distance to the target that one update acts on


class KLControl(Protocol):
    """Who decides how much KL to the start weighs; its state goes into the checkpoint."""

    @property
    def coefficient(self) -> float:
        """The weight now."""

    def update(self, kl: float, samples: int) -> None:
        """Take the KL to the start that was seen over some completions."""

    def state(self) -> dict[str, float]: ...
    def restore(self, state: Mapping[str, float]) -> None: ...


class AdaptiveKL:
    """Raises the weight while the KL is above its target, and lowers it below.

        e = clip(KL / target - 1, -0.2, 0.2)
        β ← β (1 + e · samples / horizon)

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2, with a fixed share K_β = 0.1; the
    form here is that of its published code, in which it grows with the batch.

    Args:
        initial: the first weight, above 0.
        target: nats per completion, above 0.
        horizon: completions in which a KL far from its target moves the weight by about a fifth.

    Raises:
        UserError: for a setting that is not a finite number above 0.
    """

    def __init__(self, initial: float, target: float, horizon: float) -> None:
        settings = {"first weight": initial, "target": target, "horizon": horizon}
        for what, value in settings.items():
            if not 0 < value < math.inf:
                raise UserError(
                    f"The {what} of the adaptive KL is {value:g}: give a number above 0."
                )
        self.coefficient = initial
        self.target, self.horizon = target, horizon

    def update(self, kl: float, samples: int) -> None:
        """Move the weight after `samples` completions of mean divergence `kl`.

        Raises:
            UserError: for a KL that is not finite, and a horizon so short that the weight could
                reach 0 in one update.
        """
        if not math.isfinite(kl):
            raise UserError(f"The KL to the reference is {kl}: lower the learning rate.")
        self.check(samples)
        error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        self.coefficient *= 1 + error * samples / self.horizon

    def check(self, samples: int) -> None:
        """Raise UserError for a horizon so short that so many completions could bring it to 0."""
        if MAX_ERROR * samples >= self.horizon:
            raise UserError(
                f"The horizon of the adaptive KL is {self.horizon:g}: with {samples} completions "
                f"at once it must be above {MAX_ERROR * samples:g}."
            )

    def state(self) -> dict[str, float]:
        return {"coefficient": self.coefficient}

    def restore(self, state: Mapping[str, float]) -> None:
        self.coefficient = state["coefficient"]


class FixedKL:
    """A weight that stays as it is; it has no state.

    Raises:
        UserError: for a weight that is negative or not finite.
    """

    def __init__(self, coefficient: float) -> None:
        if not 0 <= coefficient < math.inf:
            raise UserError(f"The weight of the KL is {coefficient:g}: give a number from 0.")
        self.coefficient = coefficient

    def update(self, kl: float, samples: int) -> None:
        """Keep the weight."""

    def state(self) -> dict[str, float]:
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore nothing: the weight is the run's option."""
