"""Between two sets of weights: keep what fine-tuning gained, lose less of what it forgot."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visgrpo.errors import UserError


def interpolate(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Interpolate in weight space, θ = (1 - α) θ_start + α θ_end.

    WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", eq. 1). Floating
    tensors are mixed, and returned, in float32 or wider, on the start's device; a tensor that is
    the same on both sides keeps its exact values.

    Args:
        start: state dict of the model before fine-tuning (α = 0).
        end: state dict of the model after it (α = 1).
        alpha: from 0 to 1.

    Raises:
        UserError: α lies outside [0, 1], a tensor is on one side only or of two shapes, or an
            integer buffer differs.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}: it must lie between 0 (start) and 1 (end).")
    for name in [*start, *end]:
        if name not in start or name not in end:
            side = "start" if name in start else "end"
            raise UserError(f'Tensor "{name}" is in the {side} model only: use two of one kind.')
    return {name: _mix(name, start[name], end[name], alpha) for name in start}


def _mix(name: str, start: Tensor, end: Tensor, alpha: float) -> Tensor:
    if start.shape != end.shape:
        raise UserError(
            f'Tensor "{name}" has shape {tuple(start.shape)} in the start model and '
            f"{tuple(end.shape)} in the end model."
        )
    end = end.to(start.device)
    if not (start.is_floating_point() and end.is_floating_point()):
        if start.dtype != end.dtype or not torch.equal(start, end):
            raise UserError(f'Tensor "{name}" is not of floats and differs between the models.')
        return start.clone()
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
    start, end = start.detach().to(dtype), end.detach().to(dtype)
    if torch.equal(start, end):  # rounding in the sum would move frozen weights
        return start.clone()
    return (1 - alpha) * start + alpha * end
