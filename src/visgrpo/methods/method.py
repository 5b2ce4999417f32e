"""What the trainer asks of a method: of whatever turns batches into groups and a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from visgrpo.data.batches import Batch

Metrics = dict[str, Tensor]
"""Scalars without gradient, each a mean over the inputs of a batch."""


@dataclass(frozen=True)
class LossResult:
    """A loss with gradient, its metrics, and the groups it was taken on.

    Each output space has groups of its own; None where a method has none.

    Attributes:
        weights: how much a metric counts beside those of other parts of the batch, other steps and
            other processes, by its name: of how many tokens it is the mean, say. 1 where nothing
            is said, as of means over all inputs.
    """

    loss: Tensor
    metrics: Metrics
    groups: Any = None
    weights: Metrics = field(default_factory=dict)


class Method(Protocol):
    """What is optimised. Groups must have ``select(rows)``; None stands for nothing to remember.

    ``rollout`` is given the old policy itself, a module without gradient whose weights are the old
    ones for the time of the call: it may be asked for logits or to generate.
    """

    def rollout(self, old_model: Any, batch: Batch, step: int, *, chunk: int) -> Any: ...

    def loss(self, model: Any, batch: Batch, groups: Any, step: int) -> LossResult: ...

    def samples(self, groups: Any, rows: int) -> list[dict[str, Any]]: ...


class WithoutGroups:
    """What supervised methods have in common: nothing is drawn, and there are no groups to show."""

    def rollout(self, old_model: Any, batch: Batch, step: int, *, chunk: int) -> Any:
        """There is nothing to draw."""

    def samples(self, groups: Any, rows: int) -> list[dict[str, Any]]:
        """A supervised run has no groups to show."""
        return []


class Memory(Protocol):
    """What a method remembers from step to step: plain numbers, which go into the checkpoint.

    So do tensors, where there are any.
    """

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Tensors that the method changes itself, in place."""
        ...

    def state(self) -> dict[str, float]: ...

    def restore(self, state: Mapping[str, float]) -> None: ...

    def metrics(self) -> Mapping[str, float]:
        """Return what stands in the log beside the means of a step's metrics."""
        ...


class Shards(Protocol):
    """What a method needs to know of the other processes."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def gather(self, tensor: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class OneProcess:
    """All the processes there are, when there is one."""

    rank: int = 0
    world_size: int = 1

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


ONE_PROCESS = OneProcess()
