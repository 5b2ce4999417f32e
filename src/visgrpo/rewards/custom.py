"""Label rewards that the user writes: any Python callable, checked where it meets the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.functions import UserFunction
from visgrpo.rewards.labels import Scope

ARGUMENTS = ("label", "probabilities", "classes")
"""Keyword arguments that every reward can take besides the data set's columns."""


@dataclass(frozen=True)
class CustomReward:
    """A user's function as a `LabelReward`.

    The function is given the outputs (N, G) as its first argument and, by name, only those of
    `label`, `probabilities`, `classes` and the columns that its signature accepts (all of them if
    it has **kwargs). Tensors stay on their device. It may return a tensor, an array or a nested
    list of shape (N, G). Set `function.scope = "batch"` if all outputs of an image earn the same.

    Raises:
        UserError: the function cannot take the outputs, or its scope is unknown.
    """

    name: str
    function: Callable[..., Any]
    scope: Scope = field(init=False)
    _caller: UserFunction = field(init=False, repr=False)

    def __post_init__(self) -> None:
        caller = UserFunction(self.name, self.function)
        first = next(iter(caller.parameters), None)
        if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
            raise UserError(
                f'Reward "{self.name}" must take the outputs (N, G) as its first argument.'
            )
        scope = getattr(self.function, "scope", "any")
        if scope not in ("any", "batch"):
            raise UserError(f'Reward "{self.name}": scope must be "any" or "batch", not {scope!r}.')
        object.__setattr__(self, "scope", scope)  # the dataclass is frozen
        object.__setattr__(self, "_caller", caller)

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise `UserError` if the function needs an argument that nothing will supply."""
        self._caller.check([*ARGUMENTS, *columns], positions=1)

    def __call__(
        self,
        outputs_NG: Tensor,
        /,
        *,
        label: Tensor,
        probabilities: Tensor,
        classes: Sequence[str],
        **columns: Any,
    ) -> Tensor:
        known = {"label": label, "probabilities": probabilities, "classes": classes, **columns}
        rewards_NG = self._tensor(self._caller(outputs_NG, offered=known), outputs_NG)
        if not rewards_NG.isfinite().all():
            row, column = (~rewards_NG.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f'Reward "{self.name}" returned {rewards_NG[row, column].item()} in row {row} for '
                f'output "{classes[int(outputs_NG[row, column])]}" '
                f'(true class "{classes[int(label[row])]}"): it must be finite.'
            )
        return rewards_NG

    def _tensor(self, result: Any, outputs_NG: Tensor) -> Tensor:
        """The result as float32 (N, G) on the outputs' device."""
        if not isinstance(result, Tensor):
            try:
                array = np.asarray(result)
            except (ValueError, TypeError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f'Reward "{self.name}" must return numbers: {reason}') from error
            if array.dtype.kind not in "biuf":
                raise UserError(
                    f'Reward "{self.name}" must return numbers, not {type(result).__name__} of '
                    f"{array.dtype}."
                )
            with np.errstate(over="ignore"):  # too big for float32 is infinite: named by the caller
                result = torch.from_numpy(array.astype(np.float32))
        if result.is_complex():
            raise UserError(f'Reward "{self.name}" must return real numbers, not {result.dtype}.')
        if result.shape != outputs_NG.shape:
            raise UserError(
                f'Reward "{self.name}" returned shape {tuple(result.shape)}; '
                f"the outputs have shape {tuple(outputs_NG.shape)}: return one number for each."
            )
        return result.detach().to(outputs_NG.device, torch.float32)
