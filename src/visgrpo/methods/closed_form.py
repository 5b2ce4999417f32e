"""Class-set losses by `visgrpo.objectives.closed_form`: GRPO's first pass, and cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.groups import policy_measures, reward_metrics, silent_share
from visgrpo.methods.labels import CLIP_METRICS, LabelGRPO
from visgrpo.methods.method import Metrics
from visgrpo.objectives import closed_form
from visgrpo.objectives.closed_form import Softmax
from visgrpo.rewards.labels import Shape

Piece = slice | tuple[slice, slice]
"""Some of the rows; where these have two dimensions, inputs and places, some of either."""
Part = Callable[[Tensor, Any, Tensor, float], tuple[Tensor, Metrics]]
"""Takes some of the logits, which they are, where their gradient is to be written, and what share
of the whole they are; returns share × mean loss, share × metrics, and writes share × gradient."""


def cross_entropy(
    logits_RK: Tensor,
    batch: Batch,
    weights_R: Tensor | None,
    gradient_RK: Tensor,
    share: float,
) -> tuple[Tensor, Metrics]:
    """Return the cross-entropy of rows and the policy's metrics; see `Part`."""
    now, at_R1 = Softmax.of(logits_RK), batch.labels_N[..., None]
    each_R1 = _each(weights_R, now.total_R1, share)
    each = {"loss": closed_form.cross_entropy(now, at_R1, each_R1, gradient_RK)}
    if batch.logged:
        each |= _measures(now, at_R1)
    metrics = _sums(each, each_R1)
    return metrics.pop("loss"), metrics


def is_known(policy: LabelGRPO, batch: Batch) -> bool:
    """Return whether the gradient of a policy's first pass is known for rows such as these."""
    return (
        policy.takes_all_classes
        and not policy.supervised_weight
        and policy.rewards.known(batch.columns, batch.inputs.device) is None
    )


def first_pass(
    policy: LabelGRPO,
    logits_RK: Tensor,
    batch: Batch,
    step: int,
    weights_R: Tensor | None,
    gradient_RK: Tensor,
    share: float,
) -> tuple[Tensor, Metrics]:
    """Return loss and metrics of `LabelGRPO.first_pass`; see `Part`."""
    now = Softmax.of(logits_RK / policy.temperature if policy.temperature != 1.0 else logits_RK)
    at_R1 = batch.labels_N[..., None]
    true_R1 = now.probabilities_RK.gather(-1, at_R1)
    each_R1 = _each(weights_R, true_R1, share)
    metrics: Metrics = {}
    if not has_shapes(policy):
        groups = policy.groups_of(now.log_probs_RK, batch, step, weights_R)
        assert groups.weights_NG is not None  # outputs that are enumerated have weights
        weighted_RK = groups.weights_NG * groups.advantages_NG
        each = {"loss": closed_form.surrogate(now, weighted_RK, each_R1, gradient_RK)}
        measure = reward_metrics if batch.logged else silent_share
        metrics = {name: value * share for name, value in measure(groups, policy.rewards).items()}
        reference_RK = groups.reference_log_probs_NK
    else:
        shapes = policy.rewards.shapes(at_R1, true_R1, len(policy.classes))
        whole = Shape.total(shapes, policy.rewards.weights)
        result = closed_form.surrogate_of_shape(
            now,
            at_R1,
            *whole,
            each_R1,
            gradient_RK,
            exact=policy.estimator == "exact",
            baseline=policy.objective.baseline,
            scale=policy.objective.scale,
            measured=batch.logged,
        )
        each = {
            "loss": result.loss_R1,
            "frac_reward_zero_std": (result.std_R1 == 0).to(true_R1.dtype),
        }
        if batch.logged:
            assert result.advantage_abs_R1 is not None
            each |= {"reward_std": result.std_R1, "advantage_abs": result.advantage_abs_R1}
            squared_R1 = now.probabilities_RK.square().sum(dim=-1, keepdim=True)
            names = ["reward", *(f"rewards/{name}/mean" for name in policy.rewards.names)]
            for name, shape in zip(names, [whole, *shapes], strict=True):
                each[name] = shape.level + shape.peak * true_R1 + shape.slope * squared_R1
        reference_RK = policy.reference_of(batch) if policy.beta or batch.logged else None
    if batch.logged:
        each |= _measures(now, at_R1)
        each["ratio_mean"] = torch.ones_like(true_R1)
        metrics |= {name: true_R1.new_zeros(()) for name in CLIP_METRICS}
    if reference_RK is not None:
        each["kl"] = now.add_kl_gradient(reference_RK, policy.beta * each_R1, gradient_RK)
    if policy.entropy_weight:
        if not batch.logged:
            each["entropy"] = now.entropy_R1
        now.add_entropy_gradient(each["entropy"], policy.entropy_weight * each_R1, gradient_RK)
    if policy.temperature != 1.0:
        gradient_RK /= policy.temperature
    metrics |= _sums(each, each_R1)
    loss = metrics.pop("loss")
    if policy.entropy_weight:
        loss = loss - policy.entropy_weight * metrics["entropy"]
    if reference_RK is not None:
        loss = loss + policy.beta * metrics["kl"]
    return loss, metrics


def _measures(now: Softmax, at_R1: Tensor) -> Metrics:
    return policy_measures(now.entropy_R1, now.is_best(at_R1), now.probabilities_RK.shape[-1])


def has_shapes(policy: LabelGRPO) -> bool:
    """Return whether rewards and advantages are shapes: then only a row's own numbers matter."""
    objective = policy.objective
    return (
        policy.combination == "sum_then_normalize"
        and objective.scale in ("std", "none")
        and objective.baseline != "leave_one_out"
        and policy.rewards.have_shapes
    )


def _each(weights_R: Tensor | None, like_R1: Tensor, share: float) -> Tensor:
    """What each row's own loss is multiplied by, (R, 1)."""
    scale = share / like_R1.numel()
    if weights_R is None:
        return torch.full_like(like_R1, scale)
    return weights_R[..., None].to(like_R1) * scale


def _sums(each: Mapping[str, Tensor], each_R1: Tensor) -> Metrics:
    """Return the sum over rows of every value × ``each_R1``."""
    values_RM = torch.cat(tuple(each.values()), dim=-1).view(-1, len(each))
    return dict(zip(each, (each_R1.reshape(1, -1) @ values_RM)[0].unbind(), strict=True))
