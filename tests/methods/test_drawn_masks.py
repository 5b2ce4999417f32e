"""Masks that are drawn whole, against the gradient of their expected reward."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.errors import UserError
from visgrpo.methods.class_set import PixelView
from visgrpo.methods.whole_masks import WholeMaskGRPO
from visgrpo.objectives import preset
from visgrpo.rewards.sets import parse_rewards

IGNORE = 255
CLASSES = ("sky", "sea")
VIEW = PixelView(1, IGNORE, lambda logits, size: logits, "pixel")
TRUTH_NHW = torch.tensor([[[0, 1, 1]], [[1, IGNORE, 0]]])


def overlap(masks: Tensor, *, label: Tensor, **_: Any) -> Tensor:
    """IoU of the sea where there are labels: no sum over pixels."""
    known = (label != IGNORE)[:, None]
    truth, ours = (label == 1)[:, None] & known, (masks == 1) & known
    both, either = ((truth & ours), (truth | ours))
    return both.flatten(2).sum(2) / either.flatten(2).sum(2).clamp(min=1)


overlap.scope = "mask"  # type: ignore[attr-defined]


def method(**settings: Any) -> WholeMaskGRPO:
    rewards = parse_rewards([overlap], None, CLASSES)
    return WholeMaskGRPO(rewards, preset("grpo", scale="none"), CLASSES, VIEW, **settings)


def logits() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 1, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()


def batch_of(rows: list[int] | None = None) -> Batch:
    labels = TRUTH_NHW if rows is None else TRUTH_NHW[rows]
    places = torch.arange(2) if rows is None else torch.tensor(rows)
    return Batch(places, torch.zeros(len(labels)), labels, {}, places)


def test_the_gradient_is_that_of_the_expected_reward_by_the_number_of_places() -> None:
    z_NHWK = logits()
    log_p = z_NHWK.log_softmax(-1)[:, 0]
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(2):
        known = int((TRUTH_NHW[n] != IGNORE).sum())
        for mask in product(range(2), repeat=3):
            chance = torch.stack([log_p[n, p, k] for p, k in enumerate(mask)]).sum().exp()
            reward = overlap(torch.tensor(mask).view(1, 1, 1, 3), label=TRUTH_NHW[n : n + 1])
            expected = expected + chance * reward[0, 0] / known / 2
    (gradient,) = torch.autograd.grad(-expected, z_NHWK)
    result = method(group_size=40_000).loss(lambda _: z_NHWK, batch_of(), None, 0)
    (found,) = torch.autograd.grad(result.loss, z_NHWK)
    torch.testing.assert_close(found, gradient, atol=2e-3, rtol=0)
    assert gradient.abs().max() > 0.03
    assert found[1, 0, 1].abs().max() == 0.0  # nobody knows what is there
    mean = sum(
        (
            log_p[n, torch.arange(3), torch.tensor(mask)].sum().exp()
            * overlap(torch.tensor(mask).view(1, 1, 1, 3), label=TRUTH_NHW[n : n + 1])[0, 0]
            / 2
        ).item()
        for n in range(2)
        for mask in product(range(2), repeat=3)
    )
    assert result.metrics["reward"].item() == pytest.approx(mean, abs=5e-3)


def test_a_later_pass_has_the_same_gradient_where_nothing_has_moved() -> None:
    z_NHWK, grpo = logits(), method(entropy_weight=0.1)
    first = grpo.loss(lambda _: z_NHWK, batch_of(), None, 4)
    groups = grpo.rollout(lambda _: z_NHWK.detach(), batch_of(), 4, chunk=2)
    later = grpo.loss(lambda _: z_NHWK, batch_of(), groups, 4)
    one, other = (torch.autograd.grad(each.loss, z_NHWK)[0] for each in (first, later))
    torch.testing.assert_close(one, other)
    assert first.metrics.keys() == later.metrics.keys()
    one_row = grpo.rollout(lambda _: z_NHWK[1:].detach(), batch_of([1]), 4, chunk=2)
    assert torch.equal(one_row.outputs_NGP, groups.select(torch.tensor([1])).outputs_NGP)
    assert not torch.equal(
        groups.outputs_NGP, grpo.rollout(lambda _: z_NHWK, batch_of(), 5, chunk=2).outputs_NGP
    )


def test_masks_and_labels_do_not_mix() -> None:
    rewards = parse_rewards([overlap], None, CLASSES)
    with pytest.raises(
        UserError, match='"overlap" asks for whole masks or sets, and groups here are of'
    ):
        rewards.validate("group", counted=True)
    with pytest.raises(UserError, match='"hard" is of single labels, and whole masks or sets'):
        parse_rewards([overlap, "hard"], None, CLASSES).validate("group", masks=True)
    rewards.validate("group", masks=True)

    def wrong(masks: Tensor, **_: Any) -> Tensor:
        return masks.float()

    wrong.scope = "mask"  # type: ignore[attr-defined]
    bad = parse_rewards([wrong], None, CLASSES)
    given: Any = {"label": TRUTH_NHW, "probabilities": None, "classes": CLASSES}
    with pytest.raises(
        UserError, match=r"shape \(2, 4, 1, 3\): return one number for each, \(2, 4\)"
    ):
        bad(torch.zeros(2, 4, 1, 3, dtype=torch.long), **given)
