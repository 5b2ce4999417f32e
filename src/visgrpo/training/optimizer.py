"""The optimiser: Adam with decoupled weight decay, and a learning rate for each part of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from visgrpo.errors import UserError

RateOf = Callable[[str], float]


class Masters:
    """Float32 weights that an optimiser moves in the place of bfloat16 ones.

    A step of Adam is often less than half the distance between two numbers of bfloat16, and would
    be lost in rounding.

    Attributes:
        moved: what the optimiser moves, by name: masters, and parameters in float32 themselves.
        own: the masters among them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._rounded = {n: p for n, p in parameters.items() if p.dtype == torch.bfloat16}
        self.own = {n: nn.Parameter(p.detach().float()) for n, p in self._rounded.items()}
        self.moved: dict[str, nn.Parameter] = {**parameters, **self.own}

    def take_gradients(self) -> None:
        """Move the gradients of bfloat16 weights to their masters."""
        for name, weight in self._rounded.items():
            self.own[name].grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters into their weights."""
        for name, weight in self._rounded.items():
            weight.copy_(self.own[name])


def build_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, rate_of: RateOf
) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter], Masters]:
    """Return an AdamW, what trains by name in the optimiser's order, and what it moves of it.

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
    parameters = {name: p for key in ordered for name, p in groups[key].items()}
    masters = Masters(parameters)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [masters.moved[name] for name in groups[rate, no_decay]],
                "weight_decay": 0.0 if no_decay else weight_decay,
                "rate": rate,
            }
            for rate, no_decay in ordered
        ],
        lr=learning_rate,
        fused=True,  # one pass over the weights instead of several
    )
    return optimizer, parameters, masters


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]
