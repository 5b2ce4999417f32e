"""Published variants as settings of three knobs and an advantage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from visgrpo.errors import UserError, nearest
from visgrpo.objectives.advantages import Baseline, Estimator, Scale, Scope, advantages
from visgrpo.objectives.surrogate import (
    Aggregation,
    Clip,
    RatioLevel,
    SurrogateResult,
    surrogate,
)

Preset = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "reinforce"]


@dataclass(frozen=True)
class Objective:
    """How advantages are made and how the surrogate uses them. See the rooms' own docstrings."""

    scope: Scope = "group"
    baseline: Baseline = "mean"
    scale: Scale = "std"
    aggregation: Aggregation = "sequence_mean"
    ratio_level: RatioLevel = "token"
    clip: Clip = "two_sided"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    temperatures: tuple[float, float] = (1.0, 1.05)
    off_policy_mask: float | None = None

    def __post_init__(self) -> None:
        if self.delta is not None and self.delta <= 1 + self.epsilon_high:
            raise UserError(
                f"--delta {self.delta:g} must be above {1 + self.epsilon_high:g}, which is 1 + "
                "--epsilon-high: it would cut what has a positive advantage too."
            )

    def surrogate(
        self, log_probs_NGT: Tensor, old_log_probs_NGT: Tensor, advantages: Tensor, **more: Any
    ) -> SurrogateResult:
        """Return :func:`visgrpo.objectives.surrogate` with the ratio level and clip set here."""
        return surrogate(
            log_probs_NGT,
            old_log_probs_NGT,
            advantages,
            ratio_level=self.ratio_level,
            clip=self.clip,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            delta=self.delta,
            temperatures=self.temperatures,
            off_policy_mask=self.off_policy_mask,
            **more,
        )


PRESETS: Mapping[str, Objective] = MappingProxyType(
    {
        # Shao et al. 2024, arXiv 2402.03300
        "grpo": Objective(),
        # Liu et al. 2025, arXiv 2503.20783: neither the std nor the length divides
        "dr_grpo": Objective(scale="none", aggregation="constant"),
        # Yu et al. 2025, arXiv 2503.14476: clip-higher, every token the same
        "dapo": Objective(aggregation="token_mean", epsilon_high=0.28),
        # Zheng et al. 2025, arXiv 2507.18071: one ratio per sequence, hence the narrow clip
        "gspo": Objective(ratio_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4),
        # MiniMax 2025, arXiv 2506.13585: the weight is capped at 5 and has no floor
        "cispo": Objective(
            aggregation="token_mean", clip="detached", epsilon_low=1.0, epsilon_high=4.0
        ),
        # Gao et al. 2025, arXiv 2511.20347: a gate that closes slowly, faster for A < 0
        "sapo": Objective(clip="soft"),
        # Ahmadian et al. 2024, arXiv 2402.14740
        "rloo": Objective(
            baseline="leave_one_out", scale="none", aggregation="constant", clip="none"
        ),
        # Williams 1992, with the batch's mean reward as its baseline
        "reinforce": Objective(scope="batch", scale="none", aggregation="constant", clip="none"),
    }
)


def check_objective(objective: Objective, estimator: Estimator, group_size: int) -> None:
    """Raise UserError for advantages that cannot be taken, before anything is loaded.

    Args:
        group_size: outputs drawn for each input by the ``sampled`` estimator.
    """
    drawn = estimator == "sampled"
    rewards_NG = torch.zeros(2, group_size if drawn else 2)
    advantages(
        rewards_NG,
        scope=objective.scope,
        baseline=objective.baseline,
        scale=objective.scale,
        weights_NG=None if drawn else torch.full_like(rewards_NG, 0.5),
    )


def preset(name: str, **changes: Any) -> Objective:
    """Return a preset by name, with changes.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    if name not in PRESETS:
        raise UserError(f'Unknown objective "{name}". {nearest(name, PRESETS)}')
    return replace(PRESETS[name], **changes)
