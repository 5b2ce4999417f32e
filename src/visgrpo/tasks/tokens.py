"""What the jobs of models over tokens share: how they draw, learn and are summed up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from visgrpo.data.text import Prompt
from visgrpo.errors import UserError
from visgrpo.methods.generate import Sampling
from visgrpo.methods.method import Method
from visgrpo.methods.options import SamplingOptions, options_of
from visgrpo.methods.ppo import TokenPPO
from visgrpo.methods.token_groups import AdaptiveKL, FixedKL, KLControl, TokenMemory, TokenRollouts
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.language import LanguageModel, context_of, stop_tokens
from visgrpo.models.lean import lean
from visgrpo.models.parts import Parts
from visgrpo.models.reference import (
    MovingReference,
    TokenReference,
    adapters_alone,
    reference_of,
)
from visgrpo.models.save import save, save_adapter, text_card
from visgrpo.objectives import Objective, check_objective, preset
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.rewards.texts import TextRewards
from visgrpo.tasks.lineage import Learned, divided, with_stages
from visgrpo.tasks.options import TokenPolicyConfig
from visgrpo.tasks.run import Job, Session
from visgrpo.training.options import TrainingOptions
from visgrpo.training.trainer import TrainResult

SPLITS = ("train", "validation", "test")


def training_of(config: TokenPolicyConfig, session: Session) -> TrainingOptions:
    """Turn a resolved config into the trainer's options, and check them."""
    options = config.resolved(config.steps, config.learning_rate)
    options.check_batches(session.processes.world_size)
    return options


def objective_of(config: TokenPolicyConfig) -> Objective:
    """Return the objective of a stage with the user's changes; refuse one that cannot be taken."""
    stage = {"ppo": "grpo", "rejection": "reinforce"}.get(config.method, config.method)
    objective = preset(stage.replace("-", "_"), **config.changes())
    if config.method != "ppo":
        check_objective(objective, "sampled", config.group_size)
    return objective


def compiled(config: TokenPolicyConfig, model: LanguageModel) -> bool:
    """Return whether tokens are drawn by a recorded graph.

    Raises:
        UserError: where that was asked for and cannot be.
    """
    if not config.compile:
        return False
    if model.device.type != "cuda":
        raise UserError(
            f"--compile records a CUDA graph, and this is {model.device.type}: leave it out."
        )
    if lean(model.trunk) is None:
        raise UserError(
            f"--compile does not know the layers of {type(model.trunk).__name__}: leave it out."
        )
    return True


def kl_control_of(config: TokenPolicyConfig, training: TrainingOptions) -> KLControl:
    """Return who decides the weight of KL."""
    if not config.kl_target:
        return FixedKL(config.beta)
    control = AdaptiveKL(config.beta, config.kl_target, config.kl_horizon)
    control.check(training.batch_size * config.group_size)  # completions of a step
    return control


def learning(
    rollouts: TokenRollouts,
    model: LanguageModel,
    config: TokenPolicyConfig,
    control: KLControl,
    session: Session,
) -> TokenRollouts:
    """Return rollouts as a run learns from them: in groups, with a memory and a reference."""
    reference: TokenReference | None = None
    if every := config.sync_reference:
        reference = MovingReference(model, config.weights, every=every, mix=config.sync_mix)
    elif config.beta or config.track_kl:
        reference = reference_of(model, config.weights)
    return replace(
        rollouts,
        group_size=config.group_size,
        memory=TokenMemory(control, reference),
        reference=reference,
        shards=session.processes,
    )


def method_of(config: TokenPolicyConfig, rollouts: TokenRollouts, *, on_policy: bool) -> Method:
    """Return what is optimised."""
    objective = objective_of(config)
    terms = TokenTerms(
        kl_in=config.kl_in or "loss",
        kl_estimator=config.kl_estimator,
        entropy_weight=config.entropy_weight,
        mask_truncated=config.mask_truncated,
        top_entropy=config.top_entropy,
        on_policy=on_policy,
    )
    if config.method == "ppo":
        ppo: Any = config  # only the language command has this stage, and its options
        return TokenPPO(
            rollouts,
            terms,
            gamma=ppo.gamma,
            lam=ppo.gae_lambda,
            whiten_advantages=ppo.whiten_advantages,
            objective=objective,
            value_clip=ppo.value_clip or None,
            value_weight=ppo.value_weight,
            critic_warmup=ppo.critic_warmup,
        )
    best_only = config.method == "rejection"
    if best_only:
        objective = replace(objective, aggregation="token_mean")
    return TokenGRPO(
        rollouts,
        objective,
        terms,
        config.combination,
        best_only=best_only,
        redraws=config.redraws,
        insert_truth=vars(config).get("insert_truth", False),  # of questions about images
        read_once=terms.on_policy,
    )


def policy_job(
    config: TokenPolicyConfig,
    rollouts: TokenRollouts,
    *,
    model: nn.Module,
    training: TrainingOptions,
    reward_bytes: int = 0,
    **job: Any,
) -> Job:
    """Return the job of a policy that learns from what its own completions earn.

    Args:
        config: resolved.
        rollouts: as `learning` has them.
        reward_bytes: of the reward models' weights.
        job: what else a `Job` says.
    """
    memory = rollouts.memory

    def more(result: TrainResult) -> dict[str, Any]:
        return {
            "sampled_tokens": memory.sampled_tokens,
            "tokens_per_second": per_second(memory.sampled_tokens, result.seconds),
            "memory": memory_of(model, rollouts.reference, reward_bytes),
        }

    return Job(
        model=model,
        method=method_of(config, rollouts, on_policy=training.updates_per_rollout == 1),
        training=training,
        selection="reward",
        chosen_method=config.method,
        by_default={**vars(config), **options_of(objective_of(config))},
        draws_sequences=True,
        memory=memory,
        more=more,
        **job,
    )


def prompt_room(config: SamplingOptions, parts: Parts) -> int:
    """Return how many tokens a prompt may have beside the longest completion."""
    assert config.max_new_tokens is not None
    room = context_of(parts.model) - config.max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens {config.max_new_tokens} leaves no room for a prompt: the model sees "
            f"{context_of(parts.model)} tokens at once."
        )
    return room


def sampling_of(config: SamplingOptions, parts: Parts) -> Sampling:
    """Return how completions are drawn.

    Never drawn are the places of images in prompts, and padding, unless it ends completions too.
    """
    places = () if parts.processor is None else parts.processor.placeholder_ids
    assert config.max_new_tokens is not None
    stop, pad = stop_tokens(parts), parts.tokenizer.pad_token_id
    forbidden = tuple(sorted({*places, pad} - set(stop)))
    distribution = TokenDistribution(config.temperature, config.top_k, config.top_p, forbidden)
    return Sampling(distribution, config.max_new_tokens, stop, pad)


def decoder_of(parts: Parts) -> Callable[[list[list[int]]], list[str]]:
    """Return what makes text of token ids, without special tokens."""
    tokenizer = parts.tokenizer
    return lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True)


def rollouts_of(
    config: SamplingOptions,
    parts: Parts,
    rewards: TextRewards,
    prompts: Sequence[Prompt],
    seed: int,
    **more: Any,
) -> TokenRollouts:
    """Return what draws completions and pays for them; one of each prompt, without a reference.

    Args:
        more: what else `TokenRollouts` take.
    """
    made: dict[str, Any] = {"group_size": 1, "memory": TokenMemory(), **more}
    sampling, decode = sampling_of(config, parts), decoder_of(parts)
    return TokenRollouts(rewards, sampling, prompts=prompts, decode=decode, seed=seed, **made)


def info_of(config: Any, parts: Parts) -> dict[str, Any]:
    """Return what a saved model says of how it was made."""
    return {
        "start": config.model,
        "method": config.method,
        "learned": with_stages(parts.info, Learned.of(divided(config, config.model))),
        "preset": parts.info.get("preset"),
    }


def save_run(
    model: LanguageModel,
    parts: Parts,
    session: Session,
    info: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> None:
    """Save the model of a finished run, and its adapter where that is all that trained."""
    auto = "AutoModelForCausalLM" if parts.processor is None else "AutoModelForImageTextToText"
    save(model.lm, parts, session.run.path / "model", text_card(summary, auto), info)
    if adapters_alone(model):
        save_adapter(model.lm, session.run.path / "adapter", **info)


def data_of(name: str, sizes: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Return what the summary says of the data.

    Args:
        name: as the user wrote it.
        sizes: something with a length by split.
        unit: what the splits are measured in.
    """
    return {"name": name, **{split: len(sizes[split]) for split in SPLITS}, "unit": unit}


def memory_of(
    model: nn.Module, reference: TokenReference | None = None, reward_bytes: int = 0
) -> dict[str, int]:
    """Return the bytes that weights and the optimiser's two moments take, by what they are for."""
    critic = getattr(model, "critic", None)
    of_critic = 0 if critic is None else bytes_of(critic)
    found = {
        "policy_bytes": bytes_of(model) - of_critic,
        "critic_bytes": of_critic,
        "reference_bytes": 0 if reference is None else reference.own_bytes,
        "reward_model_bytes": reward_bytes,
        "optimizer_bytes": sum(
            p.numel() * (8 if p.dtype == torch.float32 else 12)  # with its float32 master
            for p in model.parameters()
            if p.requires_grad
        ),
    }
    return {name: size for name, size in found.items() if size}


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's weights; those that two layers share count once."""
    return sum(parameter.nbytes for parameter in module.parameters())


def per_second(count: float, seconds: float) -> float:
    """Return a rate as a summary has it."""
    return round(count / max(seconds, 1e-9), 1)
