"""A language model learns from rewards: `visgrpo language --stage grpo`, `ppo` and the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from visgrpo.data.batches import batch_columns
from visgrpo.errors import UserError
from visgrpo.measures.text import HeldOutPrompts
from visgrpo.methods.method import Method
from visgrpo.methods.ppo import TokenPPO
from visgrpo.methods.token_groups import TokenMemory, TokenRollouts
from visgrpo.methods.tokens import TokenGRPO
from visgrpo.models.language import critic_of
from visgrpo.models.language_loading import LanguageParts, stop_tokens
from visgrpo.models.reward_model import LearnedReward, load_reward_model
from visgrpo.models.token_reference import reference_of
from visgrpo.objectives import Objective, check_objective
from visgrpo.rewards.judge import GoldJudge
from visgrpo.rewards.texts import TextReward, TextRewards, parse_text_rewards
from visgrpo.tasks.ending import finish
from visgrpo.tasks.language_config import LanguageConfig, resolved
from visgrpo.tasks.language_defaults import LORA_RATE
from visgrpo.tasks.language_setup import (
    SPLITS,
    PromptJob,
    bytes_of,
    data_of,
    decoder_of,
    load_prompt_job,
    load_start,
    memory_of,
    run_name,
    sampling_of,
)
from visgrpo.tasks.language_training import adapted, save_writer
from visgrpo.tasks.session import Session, begin, open_session
from visgrpo.tasks.token_training import (
    kl_control_of,
    loader_of,
    objective_of,
    options_of,
    terms_of,
)
from visgrpo.training.trainer import Trainer

VALIDATION_COMPLETIONS = 2  # of each prompt; of a test prompt there are as many as in training


def train_policy(config: LanguageConfig) -> dict[str, Any]:
    """Run the stage and return its summary, which is also in OUTPUT/summary.json."""
    session = open_session(config, run_name(config))
    parts = load_start(config, session)
    full = resolved(config, parts.info)
    objective = _objective(full)
    options = options_of(full, session)
    _check_warmup(full, options.steps)
    control = kl_control_of(config, completions=options.batch_size * config.group_size)
    job = load_prompt_job(full, parts, session)
    rewards = rewards_of(full, parts, job, session)
    critic = critic_of(parts.model, config.critic) if config.stage == "ppo" else None
    model = adapted(config, parts, session, critic)
    reference = reference_of(model) if config.beta or config.track_kl else None
    memory = TokenMemory(control)
    rollouts = TokenRollouts(
        rewards=rewards,
        sampling=sampling_of(full, parts),
        group_size=config.group_size,
        prompts=job.splits.train.prompts,
        decode=decoder_of(parts),
        memory=memory,
        reference=reference,
        judge=job.judge,
        shards=session.processes,
        seed=config.seed,
    )
    # A critic is no adapter: it trains whole, at a rate for whole models.
    critic_rate = config.critic_rate / (LORA_RATE if config.lora else 1.0)
    held_out = {name: _held_out(rollouts, job, name, session) for name in SPLITS[1:]}
    trainer = Trainer(
        model,
        _method(full, rollouts, objective, on_policy=options.updates_per_rollout == 1),
        loader_of(full, job.splits.train, job.inputs["train"], session),
        options,
        processes=session.processes,
        run=session.run,
        evaluate=lambda: held_out["validation"].measures(model),
        selection="reward",
        title=config.stage,
        rate_of=lambda name: critic_rate if name.startswith("critic.") else 1.0,
        draws_sequences=True,
        memory=memory,
        inputs_are="prompts",
    )
    before = held_out["test"].measures(model)
    begin(session, "language")
    session.start_trackers()
    result = trainer.train(session.checkpoint)
    return finish(
        session,
        result,
        recipe="language",
        method=config.stage,
        model=str(config.init),
        data=data_of(config.data, {name: job.inputs[name].inputs_M for name in SPLITS}, "prompts"),
        before=before,
        after=held_out["test"].measures(model),
        save=lambda summary: save_writer(model, parts, config, session, summary),
        more={
            "sampled_tokens": memory.sampled_tokens,
            "tokens_per_second": round(memory.sampled_tokens / max(result.seconds, 1e-9), 1),
            "memory": memory_of(model, reference, reward_bytes_of(rewards)),
        },
    )


def _objective(config: LanguageConfig) -> Objective:
    """Return the stage's objective with the user's changes; refuse one that cannot be taken."""
    name = {"ppo": "grpo", "rejection": "reinforce"}.get(config.stage, config.stage)
    objective = objective_of(config, name)
    if config.stage != "ppo":
        check_objective(objective, "sampled", config.group_size)
    return objective


def _check_warmup(config: LanguageConfig, steps: int) -> None:
    if config.stage == "ppo" and config.critic_warmup >= steps:
        more = "a larger --token-budget" if config.token_budget else "more --steps"
        raise UserError(
            f"--critic-warmup {config.critic_warmup} leaves none of {steps} steps to the policy: "
            f"take {more}, or a shorter warm-up."
        )


def _method(
    config: LanguageConfig, rollouts: TokenRollouts, objective: Objective, *, on_policy: bool
) -> Method:
    """Return what is optimised."""
    terms = terms_of(config, on_policy=on_policy)
    if config.stage == "ppo":
        return TokenPPO(
            rollouts,
            terms,
            gamma=config.gamma,
            lam=config.gae_lambda,
            whiten_advantages=config.whiten_advantages,
            epsilon_low=objective.epsilon_low,
            epsilon_high=objective.epsilon_high,
            value_clip=config.value_clip or None,
            value_weight=config.value_weight,
            critic_warmup=config.critic_warmup,
        )
    if config.stage == "rejection":
        objective = replace(objective, aggregation="token_mean")
    return TokenGRPO(
        rollouts,
        objective,
        terms,
        config.combination,
        best_only=config.stage == "rejection",
        read_once=terms.on_policy,
    )


def rewards_of(
    config: LanguageConfig, parts: LanguageParts, job: PromptJob, session: Session
) -> TextRewards:
    """Return the rewards that were asked for, or the reward model beside the start.

    Raises:
        UserError: for a reward that is not there or cannot be used.
    """
    specs = config.reward
    if not specs:
        beside = Path(str(config.init)).parent / "reward"
        if not (beside / "config.yaml").exists():
            raise UserError(
                f"Name a --reward (model:RUN, gold, file.py:function): there is no run {beside} "
                "beside --init."
            )
        specs = (f"model:{beside}",)
        session.note(f"the reward is model:{beside}.")

    def gold(argument: str) -> GoldJudge:
        if job.judge is None:
            raise UserError(
                "--reward gold judges by the text that the prompts come from: take --data with "
                "text, and leave --gold on."
            )
        return job.judge

    def learned(path: str) -> LearnedReward:
        return LearnedReward(
            load_reward_model(path),
            device=session.processes.device,
            stop_tokens=stop_tokens(parts),
            policy_tokenizer=parts.tokenizer,
        )

    built_in: Mapping[str, Callable[[str], TextReward]] = {"gold": gold, "model": learned}
    rewards = parse_text_rewards(specs, config.reward_weights, built_in)
    rewards.validate(batch_columns(job.splits.train))
    return rewards


def reward_bytes_of(rewards: TextRewards) -> int:
    """Return the bytes of the reward models' weights."""
    learned = [f for f in rewards.functions if isinstance(f, LearnedReward)]
    return sum(bytes_of(function.model) for function in learned)


def _held_out(
    rollouts: TokenRollouts, job: PromptJob, split: str, session: Session
) -> HeldOutPrompts:
    dataset = getattr(job.splits, split)
    completions = rollouts.group_size if split == "test" else VALIDATION_COMPLETIONS
    apart = rollouts.apart(dataset.prompts, completions)
    return HeldOutPrompts(apart, dataset, job.inputs[split], session.processes)
