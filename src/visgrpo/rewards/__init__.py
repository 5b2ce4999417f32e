"""Rewards: what an output earns. Plain callables that know no model."""

from visgrpo.rewards.functions import CustomReward, RewardError, load_function
from visgrpo.rewards.judge import GoldJudge, can_be_compared, prefer_first, preference_probability
from visgrpo.rewards.labels import (
    LABEL_REWARDS,
    ClassCredit,
    Hard,
    LabelReward,
    Scope,
    Soft,
    Spread,
    TableReward,
    TopK,
    Uniformity,
    UniformityOfWrong,
    cost_reward,
    credit_reward,
    graded_reward,
    hierarchy_reward,
    label_reward,
)
from visgrpo.rewards.sets import RewardSet, parse_rewards
from visgrpo.rewards.texts import TextReward, TextRewards, parse_text_rewards

__all__ = [
    "LABEL_REWARDS",
    "ClassCredit",
    "CustomReward",
    "GoldJudge",
    "Hard",
    "LabelReward",
    "RewardError",
    "RewardSet",
    "Scope",
    "Soft",
    "Spread",
    "TableReward",
    "TextReward",
    "TextRewards",
    "TopK",
    "Uniformity",
    "UniformityOfWrong",
    "can_be_compared",
    "cost_reward",
    "credit_reward",
    "graded_reward",
    "hierarchy_reward",
    "label_reward",
    "load_function",
    "parse_rewards",
    "parse_text_rewards",
    "prefer_first",
    "preference_probability",
]
