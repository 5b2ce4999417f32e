"""Options of policies: how outputs are drawn and learned from. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from visgrpo.options import Options, like, option


@dataclass(frozen=True)
class SamplingOptions(Options):
    """How text is drawn."""

    heading = "How text is drawn"

    max_new_tokens: int | None = option(
        None,
        "Longest completion; by default 64, 256 for models from elsewhere (tiny 24, small 128).",
        within="> 0",
    )
    temperature: float = option(
        1.0, "Tokens are drawn from, and scored by, softmax(logits / temperature).", within="> 0"
    )
    top_k: int = option(0, "Draw among this many most probable tokens; 0 for all.", within=">= 0")
    top_p: float = option(
        1.0,
        "Draw among the most probable tokens that together reach this probability.",
        within="[0, 1]",
    )


@dataclass(frozen=True)
class Policy(Options):
    """How a policy learns from rewards."""

    heading = "Method and rewards"

    method: str = option("grpo", "How it learns.")
    reward: tuple[str, ...] = option((), "What outputs earn.")
    reward_weights: tuple[float, ...] | None = option(
        None, "One number for each reward; by default 1."
    )
    combination: Literal["sum_then_normalize", "normalize_then_sum"] = option(
        "sum_then_normalize", "How several rewards become one advantage."
    )
    estimator: Literal["sampled", "exact", "uniform"] = option(
        "sampled",
        "Groups are --group-size drawn labels, or every class weighted by the policy or equally.",
    )
    group_size: int = option(
        8, "Labels drawn for each image by the sampled estimator.", within="> 0"
    )
    temperature = like(SamplingOptions, help="The policy is softmax(logits / temperature).")
    scope: Literal["group", "batch"] | None = option(
        None, "What advantages are taken over; by default as the method has it."
    )
    advantage_baseline: Literal["mean", "leave_one_out", "none"] | None = option(
        None, "What a reward is compared with; by default as the method has it."
    )
    scale: Literal["std", "batch_std", "mean", "none"] | None = option(
        None, "What advantages are divided by; by default as the method has it."
    )
    epsilon_low: float | None = option(
        None, "The ratio is clipped below 1 - this; by default as the method has it.", within=">= 0"
    )
    epsilon_high: float | None = option(
        None, "The ratio is clipped above 1 + this; by default as the method has it.", within=">= 0"
    )
    beta: float = option(0.02, "Weight of KL(policy ‖ start); 0 needs no reference.", within=">= 0")
    entropy_weight: float = option(0.0, "Weight of the entropy bonus.", within=">= 0")

    def changes(self) -> dict[str, Any]:
        """Return what these options change of a method's objective."""
        named = {
            "scope": self.scope,
            "baseline": self.advantage_baseline,
            "scale": self.scale,
            "epsilon_low": self.epsilon_low,
            "epsilon_high": self.epsilon_high,
        }
        return {name: value for name, value in named.items() if value is not None}


def options_of(objective: Any) -> dict[str, Any]:
    """Return an objective as the options that it could have been changed by."""
    names = ("scope", "scale", "epsilon_low", "epsilon_high")
    found = {name: getattr(objective, name) for name in names}
    return {**found, "advantage_baseline": objective.baseline}
