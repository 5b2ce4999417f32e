"""What people's behaviour says a label of an image is worth: a table over (image, label)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.labels import Known, Scope

ROW_COLUMN = "feedback_row"
"""Column of a data set that says which row of the tables an image is."""


@dataclass(frozen=True, eq=False)
class FeedbackReward:
    """The entry [image, output] of a table (M, K).

    Each device that outputs lie on gets a copy of the tables at its first call: training may ask on
    a GPU and evaluation on the CPU.

    Attributes:
        worth_MK: the reward of every pair; that of a pair never seen stands there too, and counts
            unless it is masked.
        observed_MK: bool, which pairs were seen.
        masks: pairs that were not seen take no part in a group.

    Raises:
        UserError: shapes that do not fit, or a reward that is not finite.
    """

    worth_MK: Tensor
    observed_MK: Tensor
    masks: bool = True
    scope: ClassVar[Scope] = "any"
    _copies: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.worth_MK.shape != self.observed_MK.shape:
            shapes = f"{tuple(self.worth_MK.shape)} and {tuple(self.observed_MK.shape)}"
            raise UserError(f"The tables of feedback have the shapes {shapes}: give equal ones.")
        if not self.worth_MK.isfinite().all():
            raise UserError("A reward from feedback is not finite: mend its table.")

    def __call__(self, outputs_NG: Tensor, /, **columns: Any) -> Tensor:
        worth_MK, _ = self._on(outputs_NG.device)
        rows_N = torch.as_tensor(columns[ROW_COLUMN], device=outputs_NG.device)
        return worth_MK[rows_N[:, None], outputs_NG]

    def known(self, columns: Mapping[str, Any], device: torch.device) -> Known:
        """Return what is known about all labels of some images."""
        _, observed_MK = self._on(device)
        observed_NK = observed_MK[torch.as_tensor(columns[ROW_COLUMN], device=device)]
        return Known(observed_NK, observed_NK if self.masks else None)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._copies:
            self._copies[device] = self.worth_MK.to(device), self.observed_MK.to(device)
        return self._copies[device]
