"""What people's behaviour is to learning: tables over (image, label), and GRPO on a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import LogCells, of_images
from visgrpo.feedback.worth.posterior import Bools, Floats, Posterior, scatter
from visgrpo.feedback.worth.prediction import predicted_clicks
from visgrpo.methods.groups import LabelGroups, Support, mean_over_inputs
from visgrpo.methods.labels import LabelGRPO, Model
from visgrpo.methods.method import LossResult, Metrics
from visgrpo.rewards.labels import Known

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
    _copies: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.worth_MK.shape != self.observed_MK.shape:
            shapes = f"{tuple(self.worth_MK.shape)} and {tuple(self.observed_MK.shape)}"
            raise UserError(f"The tables of feedback have the shapes {shapes}: give equal ones.")
        if not self.worth_MK.isfinite().all():
            raise UserError("A reward from feedback is not finite: mend its table.")

    @classmethod
    def of(cls, posterior: Posterior, pessimism: float, *, masks: bool) -> FeedbackReward:
        """Return the reward of a posterior: its means less so many deviations."""
        worth_MK = posterior.pessimistic(pessimism).mean_MK
        known_MK = torch.from_numpy(posterior.known_MK)
        return cls(torch.from_numpy(worth_MK).float(), known_MK, masks)

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

    The group of an image is what another policy showed of it. Its n impressions showed label k with
    propensity p_k, n_k times: its empirical weight is w_k = n_k / n. With ρ_k = π(k) / p_k,

        ratio             Σ_k w_k ρ_k A_k, clipped as the method clips: π_old of the PPO ratio is
                          the policy that wrote the log
        self-normalized   weights w_k ρ_k / Σ_j w_j ρ_j, where ρ is the old policy's and the PPO
                          ratio is to it: a constant added to all rewards changes nothing
                          (Swaminathan and Joachims 2015)
        uncorrected       weights w_k, as if the current policy had shown the labels: biased
                          wherever it would not have, and there to be compared with

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
        metrics |= self._earned(logits_NK.detach(), batch, groups)
        return LossResult(loss, metrics, groups, self.weights_of(groups))

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


def logged(cells: LogCells, images: int, classes: int) -> tuple[FeedbackReward, Log]:
    """Return raw click rates as the reward of what was shown, and the log's groups."""
    shape = images, classes

    def table(values_C: Floats) -> Floats:
        return scatter(cells.image_C, cells.label_C, values_C, *shape)

    count_MK, inverse_MK = table(cells.count_C), table(cells.inverse_C)
    shown_MK = count_MK > 0
    total_M1 = count_MK.sum(axis=1, keepdims=True)
    # Impressions of a pair may have several propensities: sums of 1/p make the harmonic mean p.
    propensity_MK = np.divide(count_MK, inverse_MK, out=np.ones(shape), where=shown_MK)
    rate_MK = np.divide(
        table(cells.clicks_inverse_C), inverse_MK, out=np.zeros(shape), where=shown_MK
    )
    shares_MK = np.divide(count_MK, total_M1, out=np.zeros(shape), where=total_M1 > 0)
    log = Log(torch.from_numpy(shares_MK).float(), torch.from_numpy(np.log(propensity_MK)).float())
    return FeedbackReward(torch.from_numpy(rate_MK).float(), torch.from_numpy(shown_MK)), log


def doubly_robust(
    cells: LogCells, fit_M: Bools, features_MD: Floats, classes: int, *, seed: int
) -> FeedbackReward:
    """Return a doubly robust reward of every label (Dudík, Langford and Li 2011).

    Σ_k π_k r_k is then the doubly robust estimate of the policy's value at an image with n
    impressions, for every policy:

        r_k = q_k + (1/n) Σ_i 1[a_i = k] (c_i - q_k) / p_i

    Click rates q are predicted from image features, each image's without its own clicks.

    Args:
        fit_M: the images whose clicks q learns from.
        features_MD: of the images.
        seed: of the folds in which q is predicted.
    """
    images = len(fit_M)

    def table(values_C: Floats) -> Floats:
        return scatter(cells.image_C, cells.label_C, values_C, images, classes)

    rate_MK = predicted_clicks(of_images(cells, fit_M), features_MD, classes, seed=seed)
    correction_MK = table(cells.clicks_inverse_C) - rate_MK * table(cells.inverse_C)
    count_MK = table(cells.count_C)
    worth_MK = rate_MK + correction_MK / count_MK.sum(axis=1, keepdims=True).clip(min=1)
    return FeedbackReward(
        torch.from_numpy(worth_MK).float(), torch.from_numpy(count_MK > 0), masks=False
    )
