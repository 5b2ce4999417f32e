"""Rewards: what an output earns. Plain callables that know no model."""

from visgrpo.rewards.class_set import ClassCredit, Spread, Uniformity, UniformityOfWrong
from visgrpo.rewards.custom import CustomReward
from visgrpo.rewards.functions import RewardError, load_function
from visgrpo.rewards.gold import GoldJudge
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
from visgrpo.rewards.preferences import can_be_compared, prefer_first, preference_probability
from visgrpo.rewards.scope import Scope
from visgrpo.rewards.text import TextReward, TextRewards, parse_text_rewards

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
