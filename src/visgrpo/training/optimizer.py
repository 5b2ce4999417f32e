"""The optimiser: Adam with decoupled weight decay, and a learning rate for each part of a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from visgrpo.errors import UserError

RateOf = Callable[[str], float]


def build_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, rate_of: RateOf
) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    """Return an AdamW over what trains, and these parameters by name in the optimiser's order.

    Matrices decay; vectors and scalars (biases, norms, a logit scale) do not.

    Args:
        rate_of: the share of the learning rate that a parameter, by its name, trains at.

    Raises:
        UserError: when nothing trains.
    """
    groups: dict[tuple[float, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2
            groups.setdefault((rate_of(name), not decays), {})[name] = parameter
    if not groups:
        raise UserError("Nothing trains: choose another --train, such as lora.")
    ordered = sorted(groups)  # the same whatever the order of a model's layers
    optimizer = torch.optim.AdamW(
        [
            {
                "params": list(groups[rate, no_decay].values()),
                "weight_decay": 0.0 if no_decay else weight_decay,
                "rate": rate,
            }
            for rate, no_decay in ordered
        ],
        lr=learning_rate,
        fused=True,  # one pass over the weights instead of several
    )
    return optimizer, {name: p for key in ordered for name, p in groups[key].items()}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]
