"""Groups without the outputs whose reward nobody knows.

The policy is conditioned on the outputs S of an input that have a reward,

    π_S(k) = π(k) / Σ_{j ∈ S} π(j),

when groups are drawn or enumerated, and when they are scored: ratios are π_S / π_S,old. π_S does
not change with the odds between S and the rest, so that whatever the advantages are, no gradient
reaches a logit outside S: what nobody has seen is neither praised nor blamed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgrpo.objectives import Objective
from visgrpo.objectives.estimators import Estimator, estimator_weights
from visgrpo.rewards.labels import Known


def conditioned(log_probs_NK: Tensor, usable_NK: Tensor) -> Tensor:
    """Return log π_S (N, K), -inf outside S; log π where S is empty, so that numbers are finite."""
    outside_NK = ~usable_NK & usable_NK.any(dim=1, keepdim=True)
    return log_probs_NK.masked_fill(outside_NK, -torch.inf).log_softmax(dim=-1)


@dataclass(frozen=True)
class Support:
    """What the groups of N inputs can be made of.

    Attributes:
        log_probs_NK: the old policy among the possible outputs, -inf for the others; where an
            input has none, the old policy itself, so that numbers stay finite.
        usable_NK: bool, the possible outputs; None where all are.
        decided_N: bool, which inputs have a possible output; None where all have.
        coverage_N: the old policy's probability of what was observed; None where rewards are known
            of every output.
    """

    log_probs_NK: Tensor
    usable_NK: Tensor | None = None
    decided_N: Tensor | None = None
    coverage_N: Tensor | None = None

    @classmethod
    def of(cls, old_NK: Tensor, known: Known | None) -> Support:
        """Condition the old policy, log π (N, K), on the outputs that have a reward."""
        if known is None:
            return cls(old_NK)
        coverage_N = (old_NK.exp() * known.observed_NK).sum(dim=-1)
        usable_NK = known.usable_NK
        if usable_NK is None:
            return cls(old_NK, coverage_N=coverage_N)
        among_NK = conditioned(old_NK, usable_NK)
        return cls(among_NK, usable_NK, usable_NK.any(dim=1), coverage_N)

    def input_weights(self, given_N: Tensor | None) -> Tensor | None:
        """Return how much each input counts: nothing where no output is possible."""
        if self.decided_N is None:
            return given_N
        decided_N = self.decided_N.to(self.log_probs_NK.dtype)
        return decided_N if given_N is None else given_N * decided_N

    def weights(self, estimator: Estimator, among_NG: Tensor) -> Tensor | None:
        """Return the estimator's weights (N, G) of outputs with these log-probs; rows sum to 1."""
        if self.decided_N is None or estimator != "uniform":
            return estimator_weights(estimator, among_NG)
        possible_NG = (among_NG > -torch.inf).to(among_NG.dtype)
        return possible_NG / possible_NG.sum(dim=1, keepdim=True)

    def weights_in_batch(
        self, weights_NG: Tensor | None, outputs_NG: Tensor, objective: Objective
    ) -> Tensor | None:
        """Return the weights that advantages are taken with.

        Statistics of a batch are those of the inputs that have possible outputs. The others weigh
        0, for which sampled outputs need weights too: their deviation is then the population's.
        """
        in_groups = objective.scope == "group" and objective.scale != "batch_std"
        if self.decided_N is None or in_groups:
            return weights_NG
        if weights_NG is None:
            weights_NG = torch.full_like(outputs_NG, 1, dtype=self.log_probs_NK.dtype)
            weights_NG = weights_NG / outputs_NG.shape[1]
        return weights_NG * self.decided_N[:, None]
