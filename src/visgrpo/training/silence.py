"""Rewards that teach nothing: groups in which every output earned the same."""

from __future__ import annotations

from collections.abc import Mapping

from visgrpo.errors import UserError


class Silence:
    """Counts the steps in which no group's rewards differed, up to now.

    Args:
        allowed: steps after which a run is stopped; 0 lets it go on.
    """

    def __init__(self, allowed: int) -> None:
        self.steps, self._allowed, self._warned = 0, allowed, False

    def mind(self, means: Mapping[str, float], steps: int, step: int) -> str | None:
        """Look at the means of some steps; return what to say of them, once in a run.

        KL and entropy would move the model alone, unnoticed.

        Args:
            steps: how many steps the means are of.
            step: the last of them.

        Raises:
            UserError: when rewards have taught nothing for as long as is allowed.
        """
        # A weighted mean of ones may round to a little less.
        if means.get("frac_reward_zero_std", 0.0) < 1 - 1e-6:
            self.steps = 0
            return None
        self.steps += steps
        if self._allowed and self.steps >= self._allowed:
            raise UserError(
                f"For {self.steps} steps the outputs of every group earned the same, so rewards "
                "teach nothing and the run is stopped. Take a reward that differs between outputs, "
                "a larger group, a higher temperature, or a start that succeeds at times."
            )
        if self._warned:
            return None
        self._warned = True
        return (
            f"warning: up to step {step} the outputs of every group earned the same: "
            "rewards teach nothing, only KL, entropy and labels move the model."
        )
