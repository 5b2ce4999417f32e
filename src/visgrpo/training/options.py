"""How a run is optimised: numbers only, the same for every job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from visgrpo.errors import UserError

Schedule = Literal["cosine", "linear", "constant"]
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class TrainingOptions:
    """One *step* takes one global batch of inputs through rollout, inner passes and updates.

    A step makes ``inner_passes × minibatches`` optimiser updates; ``accumulation`` splits each
    update into that many forward and backward passes without changing its result.

    Attributes:
        batch_size: inputs of a step over all processes.
        minibatches: consecutive blocks of the shuffled batch, the same in every pass.
        refresh_every: steps after which the old policy is brought up to date. With 1 it is the
            policy at the start of the step.
        warmup: share of the steps in which the learning rate rises from 0.
        final_learning_rate: share of the learning rate at which the decay ends.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them alone.
        silent_steps_allowed: steps in a row in which no group's rewards differ, after which a run
            is stopped; 0 lets it go on.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    final_learning_rate: float = 0.0
    max_grad_norm: float = 5.0
    inner_passes: int = 1
    minibatches: int = 1
    accumulation: int = 1
    refresh_every: int = 1
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    keep: Keep = "best"
    seed: int = 0
    silent_steps_allowed: int = 0

    def check(self, world_size: int) -> None:
        """Raise UserError where a batch cannot be split as asked."""
        for name in ("steps", "batch_size", "inner_passes", "minibatches", "accumulation"):
            if getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 1, not {getattr(self, name)}.")
        parts = world_size * self.minibatches * self.accumulation
        if self.batch_size % parts:
            raise UserError(
                f"--batch-size {self.batch_size} cannot be split evenly into {world_size} "
                f"process(es) × {self.minibatches} minibatch(es) × {self.accumulation} "
                f"accumulation pass(es): take a multiple of {parts}."
            )

    @property
    def one_forward_is_enough(self) -> bool:
        """Whether the first training pass also serves as the rollout: the policy is π_old then."""
        return self.minibatches == self.accumulation == self.refresh_every == 1

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser updates that the outputs of one rollout serve, before they are drawn anew."""
        return self.inner_passes * self.minibatches * self.refresh_every

    def steps_since_log(self, step: int) -> int:
        """Return how many steps the log line after ``step`` steps is the mean of."""
        return step % self.log_every or self.log_every

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step 0 … steps - 1: warm-up, then decay."""
        warmup_steps = math.ceil(self.warmup * self.steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(self.steps - warmup_steps, 1)
        if self.schedule == "constant":
            return self.learning_rate
        share = falling(self.schedule, progress)
        end = self.final_learning_rate
        return self.learning_rate * (end + (1 - end) * share)


def falling(schedule: Schedule, progress: float) -> float:
    """Return what a schedule leaves of a number that falls to 0 as progress goes from 0 to 1."""
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
