"""GRPO on a log: the group of an image is what another policy showed of it.

An image's n impressions showed label k with propensity p_k, n_k times: its empirical weight is
w_k = n_k / n. With ρ_k = π(k) / p_k,

    ratio             Σ_k w_k ρ_k A_k, clipped as the method clips: π_old of the PPO ratio is the
                      policy that wrote the log
    self-normalized   weights w_k ρ_k / Σ_j w_j ρ_j, where ρ is the old policy's and the PPO ratio
                      is to it: a constant added to all rewards changes nothing (Swaminathan and
                      Joachims 2015)
    uncorrected       weights w_k, as if the current policy had shown the labels: biased wherever it
                      would not have, and there to be compared with
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.errors import UserError
from visgrpo.feedback.reward import ROW_COLUMN
from visgrpo.methods.groups import LabelGroups, mean_over_inputs
from visgrpo.methods.labels import LabelGRPO, Model
from visgrpo.methods.method import LossResult, Metrics
from visgrpo.methods.unknown import Support

Correction = Literal["ratio", "self-normalized", "uncorrected"]


@dataclass(eq=False)
class Log:
    """What was shown, (M, K); it moves to the device of the outputs at a call.

    Attributes:
        shares_MK: w, the share of an image's impressions that showed a label; rows sum to 1, or
            are 0 where an image is not in the log.
        log_propensities_MK: log p where the share is not 0, and 0 elsewhere.
    """

    shares_MK: Tensor
    log_propensities_MK: Tensor

    def of(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return shares and log-propensities (N, K) of a batch."""
        self.shares_MK = self.shares_MK.to(device)
        self.log_propensities_MK = self.log_propensities_MK.to(device)
        rows_N = torch.as_tensor(batch.columns[ROW_COLUMN], device=device)
        return self.shares_MK[rows_N], self.log_propensities_MK[rows_N]


@dataclass(frozen=True, kw_only=True)
class LoggedGRPO(LabelGRPO):
    """`LabelGRPO` whose groups come from a log and not from its own policy.

    Rewards must be masked where nothing was logged.

    Attributes:
        log: what was shown.
        correction: see above.
    """

    log: Log = field()
    correction: Correction = "ratio"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator != "exact":
            raise UserError(
                "Groups from a log are all the labels that were shown: they go with --estimator "
                f'exact, not with "{self.estimator}".'
            )
        if not self.rewards.masks:
            raise UserError("Groups from a log need a reward from the same log, masked elsewhere.")

    def loss(self, model: Model, batch: Batch, groups: LabelGroups | None, step: int) -> LossResult:
        """Return the loss of a batch. Ratios are to the log, so the first pass has some too."""
        logits_NK = model(batch.inputs)
        if groups is None:
            groups = self.groups(logits_NK, batch, step)
        loss, metrics = self.loss_of(logits_NK, groups)
        return LossResult(loss, metrics | self._earned(logits_NK.detach(), batch, groups), groups)

    def _weighted(
        self, old_NK: Tensor, support: Support, outputs_NG: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        shares_NK, logged_NK = self.log.of(batch, old_NK.device)
        if self.correction == "ratio":
            return shares_NK, logged_NK
        if self.correction == "uncorrected":
            return shares_NK, old_NK
        return _self_normalized(shares_NK, logged_NK, old_NK), old_NK

    def _scored(self, log_probs_NK: Tensor, groups: LabelGroups) -> Tensor:
        """Of the policy itself: what was not shown was left out by chance, and has a propensity."""
        return log_probs_NK

    def _earned(self, logits_NK: Tensor, batch: Batch, groups: LabelGroups) -> Metrics:
        """What the policy itself would earn, by the log: its groups only say what the log did."""
        shares_NK, logged_NK = self.log.of(batch, logits_NK.device)
        weights_NK = _self_normalized(shares_NK, logged_NK, self.log_probs(logits_NK))
        earned_NR = (weights_NK.unsqueeze(-1) * groups.rewards_NGR).sum(dim=1)
        each = {"reward": earned_NR @ self.rewards.weights_R.to(earned_NR)}
        for i, name in enumerate(self.rewards.names):
            each[f"rewards/{name}/mean"] = earned_NR[:, i]
        return {
            name: mean_over_inputs(value, groups.input_weights_N) for name, value in each.items()
        }


def _self_normalized(shares_NK: Tensor, logged_NK: Tensor, log_probs_NK: Tensor) -> Tensor:
    """w_k ρ_k / Σ_j w_j ρ_j; 0 for an image that is not in the log."""
    shown_NK = shares_NK > 0
    # In logarithms, so that a policy far from the log still has weights that sum to 1.
    scores_NK = shares_NK.clamp(min=torch.finfo(shares_NK.dtype).tiny).log()
    scores_NK = (scores_NK + log_probs_NK - logged_NK).masked_fill(~shown_NK, -torch.inf)
    logged_N = shown_NK.any(dim=-1, keepdim=True)
    return scores_NK.masked_fill(~logged_N, 0.0).softmax(dim=-1) * logged_N
