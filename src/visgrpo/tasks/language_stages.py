"""The stages of `visgrpo language`, and the options that each makes use of."""

from __future__ import annotations

from typing import Literal, get_args

from visgrpo.options import users

Stage = Literal[
    "all",
    "sft",
    "preferences",
    "reward",
    "grpo",
    "dr-grpo",
    "dapo",
    "gspo",
    "cispo",
    "rloo",
    "reinforce",
    "rejection",
    "ppo",
    "best-of-n",
]
POLICY_STAGES = (
    *("grpo", "dr-grpo", "dapo", "gspo", "cispo", "rloo", "reinforce", "rejection"),
    "ppo",
)
_DRAWING = (*POLICY_STAGES, "all", "preferences", "best-of-n")
_MEASURING = (*POLICY_STAGES, "all", "best-of-n")  # on held-out prompts
_REWARDED = (*POLICY_STAGES, "best-of-n")
_LEARNING = (*POLICY_STAGES, "all")
_CLIPPING = ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "ppo")
_WITH_GROUPS = tuple(stage for stage in POLICY_STAGES if stage not in ("ppo", "rejection"))
_ONE_BY_ONE = ("sft", "reward", *POLICY_STAGES)  # stages that train a model, apart from "all"
# The story's options are those of the stages that it goes through, where one value suits them all.
OPTIONS = users(
    "stage",
    get_args(Stage),
    (_ONE_BY_ONE, "steps learning_rate eval_every save_every accumulation"),
    ((*_ONE_BY_ONE, "preferences"), "batch_size"),
    ((*_ONE_BY_ONE, "all"), "weight_decay warmup schedule final_learning_rate max_grad_norm"),
    ((*_ONE_BY_ONE, "all"), "log_every keep report_to"),
    (("sft", *POLICY_STAGES), "lora lora_rank lora_alpha"),
    (("sft", "all"), "preset architecture tokenizer vocabulary context"),
    (("sft", "preferences", "reward", *_REWARDED), "init"),
    (_DRAWING, "temperature top_k top_p max_new_tokens prompt_tokens"),
    (_MEASURING, "eval_prompts"),
    (_REWARDED, "reward reward_weights prompt_column gold"),
    (("preferences", "all"), "pairs noise"),
    (("best-of-n", "all"), "samples"),
    (_WITH_GROUPS, "combination scope advantage_baseline scale"),
    (_CLIPPING, "epsilon_low epsilon_high"),
    (POLICY_STAGES, "kl_in kl_estimator mask_truncated inner_passes minibatches"),
    (POLICY_STAGES, "refresh_every token_budget"),
    (_LEARNING, "group_size beta kl_target kl_horizon track_kl entropy_weight silent_steps"),
    (("ppo", "all"), "critic critic_rate critic_warmup gamma gae_lambda"),
    (("ppo", "all"), "value_clip value_weight whiten_advantages"),
)
