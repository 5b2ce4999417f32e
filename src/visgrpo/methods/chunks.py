"""A loss on some inputs at a time, so that its working memory does not grow with the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visgrpo.methods.method import Metrics

LossOfSome = Callable[[Tensor, slice], tuple[Tensor, Metrics]]


def in_chunks(loss_of: LossOfSome, logits: Tensor, inputs_at_once: int) -> tuple[Tensor, Metrics]:
    """Return the mean loss over N inputs, and metrics, from a loss of some inputs.

    The loss of one chunk is differentiated before the next is begun. Beside the logits only their
    gradient is ever whole; the tensors between them exist for one chunk, and stay in the cache of
    the processor. Value and gradient are those of the loss of all inputs at once, up to rounding.

    Args:
        loss_of: takes the logits of some inputs (n, …) and which these are; returns the *mean* loss
            of those inputs, which must not depend on other inputs, and metrics that are means too.
        logits: (N, …), with gradient.
        inputs_at_once: inputs in a chunk.
    """
    n_inputs = len(logits)
    if n_inputs <= inputs_at_once:
        return loss_of(logits, slice(0, n_inputs))
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    losses = []
    metrics: Metrics = {}
    for start in range(0, n_inputs, inputs_at_once):
        some = slice(start, min(start + inputs_at_once, n_inputs))
        share = (some.stop - some.start) / n_inputs
        with torch.enable_grad():
            leaf = logits[some].detach().requires_grad_()
            loss, its_metrics = loss_of(leaf, some)
            (gradient[some],) = torch.autograd.grad(loss * share, leaf)
        losses.append(loss.detach() * share)
        for name, value in its_metrics.items():
            metrics[name] = metrics.get(name, 0) + value * share
    return _WithGradient.apply(logits, torch.stack(losses).sum(), gradient), metrics


class _WithGradient(torch.autograd.Function):
    """A number whose gradient is known already. It can be gone through backwards once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("A loss made in chunks has no second backward pass.")
        return gradient.mul_(upstream), None, None  # in place: it can be as large as the logits
