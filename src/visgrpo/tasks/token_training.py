"""What all stages that train a model over tokens share: options, batches, the run, KL's weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from visgrpo.data.batches import BatchLoader, Collating, InputFunction, Rows
from visgrpo.methods.kl_control import AdaptiveKL, FixedKL
from visgrpo.methods.method import Method
from visgrpo.methods.token_groups import KLControl
from visgrpo.methods.tokens import TokenTerms
from visgrpo.objectives import Objective, preset
from visgrpo.tasks.session import Session, begin, loop_options
from visgrpo.tasks.token_config import TokenPolicyConfig
from visgrpo.training.options import TrainingOptions
from visgrpo.training.trainer import Trainer, TrainResult


def options_of(config: TokenPolicyConfig, session: Session) -> TrainingOptions:
    """Turn a resolved config into the trainer's options, and check them."""
    assert config.steps is not None
    assert config.batch_size is not None
    assert config.learning_rate is not None
    assert config.inner_passes is not None
    options = loop_options(
        config,
        config.steps,
        config.batch_size,
        config.learning_rate,
        inner_passes=config.inner_passes,
        minibatches=config.minibatches,
        refresh_every=config.refresh_every,
        silent_steps_allowed=config.silent_steps,
    )
    options.check(session.processes.world_size)
    return options


def loader_of(
    config: TokenPolicyConfig,
    rows: Rows,
    inputs: InputFunction | Collating,
    session: Session,
    *,
    workers: int = 0,
) -> BatchLoader:
    """Return this process's training batches."""
    assert config.batch_size is not None
    return BatchLoader(
        rows,
        inputs,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=session.processes.rank,
        world_size=session.processes.world_size,
        blocks=config.minibatches,
        workers=workers,
    )


def learn(
    model: nn.Module,
    method: Method,
    loader: BatchLoader,
    options: TrainingOptions,
    session: Session,
    *,
    measures: Callable[[str], dict[str, float]],
    recipe: str,
    title: str,
    inputs_are: str,
    rolls_out: bool = False,
) -> tuple[dict[str, float], TrainResult]:
    """Begin the run of a stage that learns from examples, and train.

    Args:
        measures: of a split; the weights of the lowest "nll" in validation are the best.
        rolls_out: whether the method looks at whole batches first.

    Returns:
        The test split's measures at the start, and how the training went.
    """
    trainer = Trainer(
        model,
        method,
        loader,
        options,
        processes=session.processes,
        run=session.run,
        evaluate=lambda: measures("validation"),
        selection="-nll",
        title=title,
        inputs_are=inputs_are,
        draws_sequences=rolls_out,
    )
    before = measures("test")
    begin(session, recipe)
    session.start_trackers()
    return before, trainer.train(session.checkpoint)


def objective_of(config: TokenPolicyConfig, method: str) -> Objective:
    """Return a method's objective with the user's changes."""
    changes = {
        "scope": config.scope,
        "baseline": config.advantage_baseline,
        "scale": config.scale,
        "epsilon_low": config.epsilon_low,
        "epsilon_high": config.epsilon_high,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(preset(method.replace("-", "_")), **given)  # type: ignore[arg-type]


def terms_of(config: TokenPolicyConfig, *, on_policy: bool) -> TokenTerms:
    """Return what is added to the surrogate, as the config has it."""
    return TokenTerms(
        kl_in=config.kl_in or "loss",
        kl_estimator=config.kl_estimator,
        entropy_weight=config.entropy_weight,
        mask_truncated=config.mask_truncated,
        on_policy=on_policy,
    )


def kl_control_of(config: TokenPolicyConfig, completions: int) -> KLControl:
    """Return who decides the weight of KL.

    Args:
        completions: of a step.
    """
    if not config.kl_target:
        return FixedKL(config.beta)
    control = AdaptiveKL(config.beta, config.kl_target, config.kl_horizon)
    control.check(completions)
    return control
