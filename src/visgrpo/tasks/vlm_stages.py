"""The stages of `visgrpo vlm`, and the options that each makes use of."""

from __future__ import annotations

from typing import Literal, get_args

from visgrpo.options import users

Stage = Literal[
    "all",
    "sft",
    "grpo",
    "dr-grpo",
    "dapo",
    "gspo",
    "cispo",
    "rloo",
    "reinforce",
]
POLICY_STAGES = ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "rloo", "reinforce")
_LEARNING = (*POLICY_STAGES, "all")
_CLIPPING = ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "all")
OPTIONS = users(
    "stage",
    get_args(Stage),
    (_LEARNING, "reward reward_weights combination group_size token_budget"),
    (_LEARNING, "scope advantage_baseline scale"),
    (_CLIPPING, "epsilon_low epsilon_high"),
    (_LEARNING, "beta kl_in kl_estimator kl_target kl_horizon track_kl entropy_weight"),
    (_LEARNING, "mask_truncated inner_passes minibatches refresh_every silent_steps engine"),
    (("all",), "sft_data sft_steps sft_batch_size sft_learning_rate"),
)
