"""The three ways to take the expectation over a finite set of K outputs.

sampled   G draws from π_old, weight 1/G each: the policy gradient, without bias
exact     every class, weight π_old(k): the same gradient, without sampling variance
uniform   every class, weight 1/K: GRPO-RM (arXiv 2511.15256). Not a policy gradient: at
          π = π_old its logit gradient is A_k/K, which does not shrink as the model gets right
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["sampled", "exact", "uniform"]


def draw(log_probs_NK: Tensor, uniforms_NG: Tensor) -> Tensor:
    """Draw G outputs with replacement from each row by inverting its distribution function.

    The caller brings the randomness, U(0, 1) numbers (N, G): the same numbers and log-probs give
    the same outputs on any number of processes.

    Returns:
        Class ids (N, G), int64. A class of probability 0 is never drawn.
    """
    cumulative_NK = log_probs_NK.detach().double().exp().cumsum(dim=-1)
    targets_NG = (uniforms_NG.double() * cumulative_NK[:, -1:]).contiguous()
    # right=True finds the first class whose cumulative probability exceeds the target, which skips
    # classes of probability 0; a target rounded up to the total would find none: clamp it.
    last_possible = (log_probs_NK > -torch.inf).to(torch.int8).cumsum(-1).argmax(-1, keepdim=True)
    found = torch.searchsorted(cumulative_NK, targets_NG, right=True)
    return torch.minimum(found, last_possible)


def estimator_weights(estimator: Estimator, old_log_probs_NG: Tensor) -> Tensor | None:
    """Return the weights (N, G) of a group's outputs, rows summing to 1.

    None stands for equal weights of *sampled* outputs: their mean reward is itself an estimate,
    which is why their standard deviation is the sample's. With the enumerating estimators G = K.
    """
    if estimator == "sampled":
        return None
    if estimator == "exact":
        return old_log_probs_NG.detach().exp()
    # One number seen N × K times: reading it costs nothing.
    return old_log_probs_NG.new_tensor(1.0 / old_log_probs_NG.shape[-1]).expand_as(old_log_probs_NG)
