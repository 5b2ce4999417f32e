"""The options that every policy over tokens has: how it draws, learns and is rewarded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from visgrpo.errors import UserError
from visgrpo.tasks.checks import not_negative, positive, share
from visgrpo.tasks.configs import Config, LoopConfig
from visgrpo.tasks.stage_options import StageOptions

KL_IN_REWARD = ("ppo", "rloo")  # by default; in the loss of the other stages


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How text is drawn."""

    max_new_tokens: int | None = None
    """Longest completion; by default 64, 256 for models from elsewhere (tiny 24, small 128)."""
    temperature: float = 1.0
    """Tokens are drawn from, and scored by, softmax(logits / temperature)."""
    top_k: int = 0
    """Draw among this many most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the most probable tokens that together reach this probability."""

    def check(self) -> None:
        positive(self, "max_new_tokens", optional=True)
        positive(self, "temperature", "top_p")
        not_negative(self, "top_k")
        share(self, "top_p")


@dataclass(frozen=True)
class TokenPolicyConfig(LoopConfig, SamplingConfig):
    """How a policy over completions learns from rewards, in one or several stages."""

    stage: str = "all"
    """What to run."""
    steps: int | None = None
    """Steps of one batch each; by default the preset's for the stage."""
    batch_size: int | None = None
    """Inputs of a step, over all processes; by default the preset's."""
    reward: tuple[str, ...] = ()
    """What completions earn."""
    reward_weights: tuple[float, ...] | None = None
    """One number for each reward; by default 1."""
    combination: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """How several rewards become one advantage."""
    group_size: int = 8
    """Completions drawn for each prompt."""
    token_budget: int | None = None
    """Tokens to draw at most, instead of --steps: the same for every method."""
    scope: Literal["group", "batch"] | None = None
    """What advantages are taken over; by default as the method has it."""
    advantage_baseline: Literal["mean", "leave_one_out", "none"] | None = None
    """What a reward is compared with; by default as the method has it."""
    scale: Literal["std", "batch_std", "mean", "none"] | None = None
    """What advantages are divided by; by default as the method has it."""
    epsilon_low: float | None = None
    """The ratio is clipped below 1 - this; by default as the method has it."""
    epsilon_high: float | None = None
    """The ratio is clipped above 1 + this; by default as the method has it."""
    beta: float = 0.02
    """Weight of KL(policy ‖ start)."""
    kl_in: Literal["loss", "reward"] | None = None
    """Where KL weighs; by default in the reward with ppo and rloo, else in the loss."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of KL in the loss."""
    kl_target: float | None = None
    """Steer --beta so that KL stays near this many nats per completion."""
    kl_horizon: float = 10_000.0
    """Completions over which --kl-target moves --beta."""
    track_kl: bool = True
    """Measure KL to the start also with --beta 0; costs a frozen copy and a pass a step."""
    entropy_weight: float = 0.0
    """Weight of the entropy bonus, of the whole softmax."""
    mask_truncated: bool = False
    """Leave completions that were cut off by --max-new-tokens out of the loss."""
    inner_passes: int | None = None
    """Passes over each batch's completions; by default 2 with ppo, else 1."""
    minibatches: int = 1
    """Updates that each pass is split into."""
    refresh_every: int = 1
    """Steps after which the old policy, which draws, is brought up to date."""
    silent_steps: int = 50
    """Stop when no group's rewards have differed for so many steps, looked at with every line of
    the log; 0 never stops."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """Adapters are scaled by this over their rank."""

    def check(self) -> None:
        LoopConfig.check(self)
        SamplingConfig.check(self)
        positive(self, "batch_size", "token_budget", "kl_target", "inner_passes", optional=True)
        positive(self, "group_size", "minibatches", "refresh_every", "lora_rank", "lora_alpha")
        positive(self, "kl_horizon")
        not_negative(self, "beta", "entropy_weight", "silent_steps")
        not_negative(self, "epsilon_low", "epsilon_high", optional=True)

    def refuse_unused(self, options: StageOptions) -> None:
        """Refuse an option that was given and that the stage makes no use of."""
        for name in self.given():
            if not options.uses(self.stage, name):
                raise UserError(
                    f"{self.flag(name)} does not go with --stage {self.stage}; it is for "
                    f"{', '.join(options.users(name))}."
                )

    def check_policy(self) -> None:
        """Refuse options of a policy that contradict each other, or leave one another idle."""
        if self.token_budget and self.steps:
            raise UserError("--token-budget and --steps say the same thing: give one of them.")
        if self.kl_target and not self.beta:
            raise UserError("--kl-target steers --beta, which must not start at 0.")
        in_reward = bool(self.beta) and self.kl_place() == "reward"
        if in_reward and self.combination == "normalize_then_sum":
            raise UserError(
                "--combination normalize_then_sum would bring KL in the reward to the spread of a "
                "reward, however small it is: take --kl-in loss, or sum_then_normalize."
            )
        self.refuse_idle(
            ("kl_horizon", not self.kl_target, "is for --kl-target"),
            ("kl_in", not self.beta, "has no KL to weigh with --beta 0"),
            ("kl_estimator", not self.beta, "has no KL to weigh with --beta 0"),
            ("kl_estimator", in_reward, "is for --kl-in loss: KL in the reward is always k1"),
            ("track_kl", bool(self.beta), f"is for --beta 0: --beta {self.beta:g} needs KL"),
        )

    def refuse_idle(self, *rows: tuple[str, bool, str]) -> None:
        """Refuse the first option that is given although it is of no use, with the reason."""
        for name, idle, reason in rows:
            if idle and name in self.given():
                raise UserError(f"{self.flag(name)} {reason}.")

    def given(self) -> list[str]:
        """Return the names of the options that are not at their default."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]

    def flag(self, name: str) -> str:
        """Return an option as whoever changes it from its default writes it."""
        is_on = any(each.name == name and each.default is True for each in fields(self))
        return ("--no-" if is_on else "--") + name.replace("_", "-")

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
