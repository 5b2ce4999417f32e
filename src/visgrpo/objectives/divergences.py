"""Entropy, and divergence from the reference: exact over classes, estimated over tokens."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

# e^60 is finite in float32, so that no gradient becomes 0·inf = NaN.
MAX_LOG_RATIO = 60.0
# Its exponential is 0, also in float64.
IMPOSSIBLE = -1000.0

KLEstimator = Literal["k1", "k2", "k3"]


def entropy(log_probs: Tensor) -> Tensor:
    """Return H(π) = -Σ_k π_k log π_k in nats, (..., K) → (...). Classes of probability 0 add 0."""
    # A probability that is 0 in float32 times a finite number: 0, in the gradient too.
    return -(log_probs.exp() * log_probs.clamp(min=IMPOSSIBLE)).sum(dim=-1)


def normalized_entropy(log_probs: Tensor) -> Tensor:
    """Return H(π) / log K: 1 for the uniform policy over K > 1 classes, 0 for a certain one."""
    return entropy(log_probs) / math.log(log_probs.shape[-1])


def categorical_kl(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Return KL(π ‖ π_ref) = Σ_k π_k (log π_k - log π_ref,k) in nats, (..., K) → (...).

    Exact, so never negative beyond rounding; infinite where the policy gives weight to a class that
    the reference rules out.
    """
    return _expectation(log_probs, log_probs - reference_log_probs)


def token_kl(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    *,
    estimator: KLEstimator = "k3",
    old_log_probs: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Estimate KL(π ‖ π_ref) at each sampled token, same shape as the log-probs.

    With d = log π_ref - log π at the sampled token (Schulman 2020, "Approximating KL divergence"):
    k1 = -d, k2 = d²/2, k3 = e^d - d - 1. As *values* k1 and k3 are unbiased when the tokens come
    from π; k3 is never negative. As a *loss* they need ``old_log_probs``, which weights each token
    by the ratio π/π_old: with its gradient for k1 and k3, and as a constant for k2, whose own
    gradient is the KL's already. Then the expected gradient of all three is the KL's, on and off
    policy. Without it k1's is 0, k3's is that of KL(π_ref ‖ π), and k2's is right on policy alone.

    Args:
        mask: 1 at the tokens that count. The others are never exponentiated and are 0.
    """
    if mask is not None:
        ignored = ~mask.bool()
        log_probs = log_probs.masked_fill(ignored, 0.0)
        reference_log_probs = reference_log_probs.masked_fill(ignored, 0.0)
        if old_log_probs is not None:
            old_log_probs = old_log_probs.masked_fill(ignored, 0.0)
    d = reference_log_probs - log_probs
    if estimator == "k1":
        value = -d
    elif estimator == "k2":
        value = d.square() / 2
    else:
        value = torch.expm1(d.clamp(max=MAX_LOG_RATIO)) - d
    if old_log_probs is not None:
        ratio = (log_probs - old_log_probs).clamp(max=MAX_LOG_RATIO).exp()
        value = value * (ratio.detach() if estimator == "k2" else ratio)
    return value


def _expectation(log_probs: Tensor, values: Tensor) -> Tensor:
    """Σ_k π_k v_k with 0·∞ = 0, in the gradient too (a ruled-out class has log-prob -inf)."""
    possible = log_probs.exp() > 0  # a log-prob of -200 is a probability of 0 in float32
    safe_log_probs = log_probs.masked_fill(~possible, 0.0)
    safe_values = values.masked_fill(~possible, 0.0)
    return (safe_log_probs.exp() * safe_values).sum(dim=-1)
