"""GRPO whose outputs are whole masks, or sets: all decisions of an image earn one number."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.class_set import PixelView
from visgrpo.methods.groups import advantages_of, places_of
from visgrpo.methods.label_sets import SetView
from visgrpo.methods.labels import CLIP_METRICS, Model
from visgrpo.methods.method import ONE_PROCESS, LossResult, Metrics, Shards
from visgrpo.objectives import Objective, all_equal, draw, entropy, surrogate, weighted_sum
from visgrpo.objectives.advantages import Combination
from visgrpo.rewards.sets import RewardSet


@dataclass(frozen=True)
class MaskGroups:
    """N groups of G masks of P places, and what they earned, without gradient.

    Attributes:
        outputs_NGP: class ids, int64.
        old_log_probs_NGP: log π_old of each place's class.
        rewards_NGR: each of R rewards, unweighted.
        advantages_NG: what every place of a mask is multiplied by.
    """

    outputs_NGP: Tensor
    old_log_probs_NGP: Tensor
    rewards_NGR: Tensor
    advantages_NG: Tensor

    def select(self, rows: Tensor) -> MaskGroups:
        return MaskGroups(*(getattr(self, each.name)[rows] for each in fields(self)))


@dataclass(frozen=True)
class WholeMaskGRPO:
    """GRPO over masks, every place of which is drawn by itself from the policy.

    With A the advantage of mask g of image n, the gradient is that of

        mean over n, g of  A_ng · mean over the labelled places p of  log π_p(a_ngp)

    which is the policy gradient of the expected reward, divided by the number of places. One number
    speaks for all of them, so the places' own parts in it drown in what the others did: the
    variance grows with their number, and falls with 1/G. A score of counts needs no drawing: see
    `visgrpo.objectives.counts`.

    Attributes:
        rewards: all of the scope "mask".
        view: places and their true classes.
        group_size: masks drawn for each image.
        seed: of the draws.
    """

    rewards: RewardSet
    objective: Objective
    classes: tuple[str, ...]
    view: PixelView | SetView
    shards: Shards = ONE_PROCESS
    group_size: int = 8
    temperature: float = 1.0
    entropy_weight: float = 0.0
    combination: Combination = "sum_then_normalize"
    seed: int = 0

    @torch.no_grad()
    def rollout(self, old_model: Model, batch: Batch, step: int, *, chunk: int) -> MaskGroups:
        """Draw masks from the old policy, whose logits are made ``chunk`` inputs at a time."""
        logits = torch.cat([old_model(inputs) for inputs in batch.inputs.split(chunk)])
        return self._groups(*self._policy(logits, batch), batch, step)

    def loss(self, model: Model, batch: Batch, groups: MaskGroups | None, step: int) -> LossResult:
        """Return the loss of a batch. Without groups they are drawn from this same forward pass."""
        log_probs_NHWK, truth_NHW = self._policy(model(batch.inputs), batch)
        if groups is None:
            groups = self._groups(log_probs_NHWK.detach(), truth_NHW, batch, step)
        labelled_NHW = truth_NHW != self.view.ignore_index
        result = surrogate(
            _of_outputs(log_probs_NHWK, groups.outputs_NGP),
            groups.old_log_probs_NGP,
            groups.advantages_NG,
            mask_NGT=labelled_NHW.flatten(1)[:, None].expand_as(groups.outputs_NGP),
            clip=self.objective.clip,
            epsilon_low=self.objective.epsilon_low,
            epsilon_high=self.objective.epsilon_high,
        )
        parts = result.clip_low, result.clip_high, result.clip_low + result.clip_high
        metrics: Metrics = dict(zip(CLIP_METRICS, parts, strict=True))
        metrics["ratio_mean"] = result.ratio_mean
        metrics |= self._metrics(groups)
        count = labelled_NHW.sum().clamp(min=1)
        bonus = (entropy(log_probs_NHWK) * labelled_NHW).sum() / count
        right_NHW = (log_probs_NHWK.argmax(dim=-1) == truth_NHW) & labelled_NHW
        metrics |= {"entropy": bonus.detach(), "accuracy": right_NHW.sum() / count}
        return LossResult(result.loss - self.entropy_weight * bonus, metrics, groups)

    def samples(self, groups: MaskGroups, rows: int) -> list[dict[str, Any]]:
        """Return nothing: masks are shown as pictures elsewhere."""
        return []

    def _policy(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log π (N, H, W, K) and the true classes (N, H, W) where decisions are."""
        logits_NHWK, truth_NHW = self.view.places(logits, batch.labels_N)
        return (logits_NHWK.float() / self.temperature).log_softmax(dim=-1), truth_NHW

    @torch.no_grad()
    def _groups(self, old_NHWK: Tensor, truth_NHW: Tensor, batch: Batch, step: int) -> MaskGroups:
        N, *size, K = old_NHWK.shape
        places = old_NHWK.flatten(1, 2).shape[1]
        drawn = []
        for place, old_HWK in zip(places_of(batch, self.shards).tolist(), old_NHWK, strict=True):
            number = (self.seed * 1_000_003 + step) * 1_000_003 + place
            own = torch.Generator().manual_seed(number % 2**63)
            uniforms_PG = torch.rand(places, self.group_size, generator=own, dtype=torch.float64)
            drawn.append(draw(old_HWK.view(places, K), uniforms_PG.to(old_HWK.device)).T)
        outputs_NGP = torch.stack(drawn)
        rewards_NGR = self.rewards(
            outputs_NGP.view(N, self.group_size, *size),
            label=truth_NHW,
            probabilities=old_NHWK.exp(),
            classes=self.classes,
        )
        weights_R = self.rewards.weights_R
        advantages_NG = advantages_of(
            rewards_NGR, weights_R, self.objective, self.combination, self.shards
        )
        old_NGP = _of_outputs(old_NHWK, outputs_NGP)
        return MaskGroups(outputs_NGP, old_NGP, rewards_NGR, advantages_NG)

    def _metrics(self, groups: MaskGroups) -> Metrics:
        rewards_NG = weighted_sum(groups.rewards_NGR, self.rewards.weights_R)
        deviation_N = rewards_NG.std(dim=1, correction=min(1, self.group_size - 1))
        each = {
            f"rewards/{name}/mean": groups.rewards_NGR[..., i].mean()
            for i, name in enumerate(self.rewards.names)
        }
        return {
            "reward": rewards_NG.mean(),
            "reward_std": deviation_N.mean(),
            "frac_reward_zero_std": all_equal(rewards_NG, None).float().mean(),
            "advantage_abs": groups.advantages_NG.abs().mean(),
            **each,
        }


def _of_outputs(log_probs_NHWK: Tensor, outputs_NGP: Tensor) -> Tensor:
    """Return the log-prob of every place's class, (N, G, P)."""
    log_probs_NPK = log_probs_NHWK.flatten(1, 2)
    return log_probs_NPK.gather(2, outputs_NGP.transpose(1, 2)).transpose(1, 2)
