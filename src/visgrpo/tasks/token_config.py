"""The options that every policy over tokens has: how it draws, learns and is rewarded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

from visgrpo.errors import UserError
from visgrpo.methods.options import Policy, SamplingOptions
from visgrpo.models.options import Adapt
from visgrpo.options import option, override
from visgrpo.training.options import Loop

LORA_RATE = 20.0  # adapters learn at a multiple of the rate of whole models
KL_IN_REWARD = ("ppo", "rloo")  # by default; in the loss of the other stages


class Budget(NamedTuple):
    """How long a stage trains, by default."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class TokenPolicyConfig(SamplingOptions, Adapt, Policy, Loop):
    """How a policy over completions learns from rewards, in one or several stages."""

    estimator = lora_dropout = override(hidden=True)

    method: str = option("all", "What to run: one method, or all stages.")
    steps = override(help="Steps of one batch each; by default the preset's for the stage.")
    batch_size = override(help="Inputs of a step, over all processes; by default the preset's.")
    reward = override(help="What completions earn.")
    group_size = override(help="Completions drawn for each prompt.")
    token_budget: int | None = option(
        None, "Tokens to draw at most, instead of --steps: the same for every method.", within="> 0"
    )
    beta = override(help="Weight of KL(policy ‖ start).")
    kl_in: Literal["loss", "reward"] | None = option(
        None, "Where KL weighs; by default in the reward with ppo and rloo, else in the loss."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = option("k3", "Of KL in the loss.")
    kl_target: float | None = option(
        None, "Steer --beta so that KL stays near this many nats per completion.", within="> 0"
    )
    kl_horizon: float = option(
        10_000.0, "Completions over which --kl-target moves --beta.", within="> 0"
    )
    track_kl: bool = option(
        True, "Measure KL to the start also with --beta 0; costs a frozen copy and a pass a step."
    )
    entropy_weight = override(help="Weight of the entropy bonus, of the whole softmax.")
    mask_truncated: bool = option(
        False, "Leave completions that were cut off by --max-new-tokens out of the loss."
    )
    inner_passes = override(
        None, "Passes over each batch's completions; by default 2 with ppo, else 1."
    )
    refresh_every = override(
        help="Steps after which the old policy, which draws, is brought up to date."
    )
    silent_steps = override(50)

    def policy_rules(self) -> Iterator[str]:
        """Yield options of a policy that contradict each other, or leave one another idle."""
        if self.token_budget and self.steps:
            yield "--token-budget and --steps say the same thing: give one of them."
        if self.kl_target and not self.beta:
            yield "--kl-target steers --beta, which must not start at 0."
        in_reward = bool(self.beta) and self.kl_place() == "reward"
        if in_reward and self.combination == "normalize_then_sum":
            yield (
                "--combination normalize_then_sum would bring KL in the reward to the spread of a "
                "reward, however small it is: take --kl-in loss, or sum_then_normalize."
            )
        yield from self.idle(
            ("kl_horizon", not self.kl_target, "is for --kl-target"),
            ("kl_in kl_estimator", not self.beta, "has no KL to weigh with --beta 0"),
            ("kl_estimator", in_reward, "is for --kl-in loss: KL in the reward is always k1"),
            ("track_kl", bool(self.beta), f"is for --beta 0: --beta {self.beta:g} needs KL"),
        )

    def kl_place(self) -> Literal["loss", "reward"]:
        """Where KL weighs."""
        return self.kl_in or ("reward" if self.method in KL_IN_REWARD else "loss")

    def filled(self, budget: Budget, *, adapters_alone: bool, **found: Any) -> Self:
        """Return the options of one stage with every "by default" filled in.

        Args:
            adapters_alone: whether nothing but adapters trains.
            found: what holds by default beside the numbers of the budget.
        """
        found |= {
            "steps": budget.steps,
            "batch_size": budget.batch_size,
            "learning_rate": budget.learning_rate * (LORA_RATE if adapters_alone else 1.0),
            "kl_in": self.kl_place(),
        }
        missing = {name: value for name, value in found.items() if not getattr(self, name)}
        full = replace(self, **missing)
        return replace(full, steps=full._steps_of_budget()) if full.token_budget else full

    def _steps_of_budget(self) -> int:
        """Return the steps that --token-budget pays for; batch and length are known by then.

        Raises:
            UserError: where it does not pay for one.
        """
        assert self.token_budget is not None
        assert self.batch_size is not None
        assert self.max_new_tokens is not None
        a_step = self.batch_size * self.group_size * self.max_new_tokens
        if self.token_budget < a_step:
            raise UserError(
                f"--token-budget {self.token_budget} is less than the {a_step} tokens that one "
                "step may draw: take fewer prompts, smaller groups or shorter completions."
            )
        return self.token_budget // a_step
