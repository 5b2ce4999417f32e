"""Rewards: what an output earns. Plain callables that know no model."""

from visgrpo.rewards.class_set import ClassCredit, Spread, Uniformity, UniformityOfWrong
from visgrpo.rewards.custom import CustomReward, RewardError, load_function
from visgrpo.rewards.labels import (
    LABEL_REWARDS,
    Hard,
    LabelReward,
    Soft,
    TableReward,
    TopK,
    cost_reward,
    credit_reward,
    graded_reward,
    hierarchy_reward,
    label_reward,
)
from visgrpo.rewards.mix import RewardSet, parse_rewards
from visgrpo.rewards.scope import Scope

__all__ = [
    "LABEL_REWARDS",
    "ClassCredit",
    "CustomReward",
    "Hard",
    "LabelReward",
    "RewardError",
    "RewardSet",
    "Scope",
    "Soft",
    "Spread",
    "TableReward",
    "TopK",
    "Uniformity",
    "UniformityOfWrong",
    "cost_reward",
    "credit_reward",
    "graded_reward",
    "hierarchy_reward",
    "label_reward",
    "load_function",
    "parse_rewards",
]
