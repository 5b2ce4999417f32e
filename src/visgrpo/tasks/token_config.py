"""The options that every policy over tokens has: how it draws, learns and is rewarded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.errors import UserError
from visgrpo.options import Options, option, override
from visgrpo.tasks.configs import LoopConfig

KL_IN_REWARD = ("ppo", "rloo")  # by default; in the loss of the other stages


@dataclass(frozen=True)
class SamplingConfig(Options):
    """How text is drawn."""

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
class TokenPolicyConfig(LoopConfig, SamplingConfig):
    """How a policy over completions learns from rewards, in one or several stages."""

    stage: str = option("all", "What to run.")
    steps = override(help="Steps of one batch each; by default the preset's for the stage.")
    batch_size: int | None = option(
        None, "Inputs of a step, over all processes; by default the preset's.", within="> 0"
    )
    reward: tuple[str, ...] = option((), "What completions earn.")
    reward_weights: tuple[float, ...] | None = option(
        None, "One number for each reward; by default 1."
    )
    combination: Literal["sum_then_normalize", "normalize_then_sum"] = option(
        "sum_then_normalize", "How several rewards become one advantage."
    )
    group_size: int = option(8, "Completions drawn for each prompt.", within="> 0")
    token_budget: int | None = option(
        None, "Tokens to draw at most, instead of --steps: the same for every method.", within="> 0"
    )
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
    beta: float = option(0.02, "Weight of KL(policy ‖ start).", within=">= 0")
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
    entropy_weight: float = option(
        0.0, "Weight of the entropy bonus, of the whole softmax.", within=">= 0"
    )
    mask_truncated: bool = option(
        False, "Leave completions that were cut off by --max-new-tokens out of the loss."
    )
    inner_passes: int | None = option(
        None, "Passes over each batch's completions; by default 2 with ppo, else 1.", within="> 0"
    )
    minibatches: int = option(1, "Updates that each pass is split into.", within="> 0")
    refresh_every: int = option(
        1, "Steps after which the old policy, which draws, is brought up to date.", within="> 0"
    )
    silent_steps: int = option(
        50,
        "Stop when no group's rewards have differed for so many steps, looked at with every "
        "line of the log; 0 never stops.",
        within=">= 0",
    )
    lora_rank: int = option(8, "Rank of the adapters.", within="> 0")
    lora_alpha: float = option(16.0, "Adapters are scaled by this over their rank.", within="> 0")

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
        return self.kl_in or ("reward" if self.stage in KL_IN_REWARD else "loss")

    def steps_of_budget(self) -> int:
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
