"""Rewards: what an output earns. Plain callables that know no model."""

from visgrpo.rewards.custom import CustomReward, RewardError, load_function
from visgrpo.rewards.labels import (
    LABEL_REWARDS,
    Hard,
    LabelReward,
    Scope,
    Soft,
    TableReward,
    TopK,
    cost_reward,
    graded_reward,
    hierarchy_reward,
    label_reward,
)
from visgrpo.rewards.mix import RewardSet, parse_rewards

__all__ = [
    "LABEL_REWARDS",
    "CustomReward",
    "Hard",
    "LabelReward",
    "RewardError",
    "RewardSet",
    "Scope",
    "Soft",
    "TableReward",
    "TopK",
    "cost_reward",
    "graded_reward",
    "hierarchy_reward",
    "label_reward",
    "load_function",
    "parse_rewards",
]
