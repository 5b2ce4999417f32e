"""What the trainer asks of a method: of whatever turns batches into groups and a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from visgrpo.data.batches import Batch


class Loss(Protocol):
    """What a method returns for a batch; a protocol, since each output space has its groups."""

    @property
    def loss(self) -> Tensor: ...
    @property
    def metrics(self) -> Mapping[str, Tensor]: ...
    @property
    def groups(self) -> Any: ...


class Method(Protocol):
    """What is optimised. Groups must have ``select(rows)``; None stands for nothing to remember.

    ``rollout`` is given the old policy itself, a module without gradient whose weights are the old
    ones for the time of the call: it may be asked for logits or to generate.
    """

    def rollout(self, old_model: Any, batch: Batch, step: int, *, chunk: int) -> Any: ...

    def loss(self, model: Any, batch: Batch, groups: Any, step: int) -> Loss: ...

    def samples(self, groups: Any, rows: int) -> list[dict[str, Any]]: ...


class Memory(Protocol):
    """What a method remembers from step to step: plain numbers, which go into the checkpoint."""

    def state(self) -> dict[str, float]: ...

    def restore(self, state: Mapping[str, float]) -> None: ...

    def metrics(self) -> Mapping[str, float]:
        """Return what stands in the log beside the means of a step's metrics."""
        ...
