"""Sets of labels: their policy, what they earn and how they are measured."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, jaccard_score

from visgrpo.data.batches import Batch
from visgrpo.errors import UserError
from visgrpo.measures.label_sets import set_measures
from visgrpo.methods.class_set import ClassSetSupervised
from visgrpo.methods.label_sets import SetView
from visgrpo.methods.whole_masks import WholeMaskGRPO
from visgrpo.objectives import preset
from visgrpo.rewards.sets import parse_rewards

LABELS = ("hat", "shoe", "bag")
SETS_NK = torch.tensor([[1, 0, 1], [0, 0, 0]])


def logits() -> torch.Tensor:
    z = torch.tensor([[0.4, -0.3, 1.1], [0.2, -1.0, 0.6]], dtype=torch.float64)
    return z.requires_grad_()


def batch() -> Batch:
    return Batch(torch.arange(2), torch.zeros(2), SETS_NK, {})


def test_supervised_is_binary_cross_entropy() -> None:
    ours, theirs = logits(), logits()
    loss = ClassSetSupervised(SetView()).loss(lambda _: ours, batch(), None, 0).loss
    expected = F.binary_cross_entropy_with_logits(theirs, SETS_NK.double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (found,), (gradient,) = (
        torch.autograd.grad(value, z) for value, z in ((loss, ours), (expected, theirs))
    )
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-6)
    smooth = ClassSetSupervised(SetView(), ("smooth",)).loss(lambda _: ours, batch(), None, 0)
    target = 0.9 * SETS_NK.double() + 0.05
    expected = F.binary_cross_entropy_with_logits(theirs, target)
    assert smooth.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["f1", "jaccard"])
def test_grpo_has_the_gradient_of_the_expected_score_of_all_sets(name: str) -> None:
    z_NK, score = logits(), {"f1": f1_score, "jaccard": jaccard_score}[name]
    expected = torch.zeros((), dtype=torch.float64)
    for n, said in product(range(2), product((0, 1), repeat=3)):
        p_K = z_NK[n].sigmoid()
        chance = torch.stack([p if bit else 1 - p for p, bit in zip(p_K, said, strict=True)])
        reward = score(
            SETS_NK[n : n + 1].numpy(), np.array([said]), average="samples", zero_division=1.0
        )
        expected = expected + chance.prod() * float(reward) / 2
    (gradient,) = torch.autograd.grad(-expected / 3, z_NK)
    method = WholeMaskGRPO(
        parse_rewards([name], None, LABELS),
        preset("grpo", scale="none"),
        LABELS,
        SetView(),
        group_size=60_000,
    )
    result = method.loss(lambda _: z_NK, batch(), None, 0)
    assert result.metrics["reward"].item() == pytest.approx(expected.item(), abs=5e-3)
    (found,) = torch.autograd.grad(result.loss, z_NK)
    torch.testing.assert_close(found, gradient, atol=5e-4, rtol=0)
    assert gradient.abs().max() > 0.01


def test_measures_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_MK = torch.randn(50, 6, generator=generator)
    sets_MK = (torch.rand(50, 6, generator=generator) < 0.3).long()
    sets_MK[:5], logits_MK[:3] = 0, -1.0
    sets_MK[:, 5] = 0  # a label that no image has
    true, said = sets_MK.numpy(), (logits_MK > 0).long().numpy()
    found = set_measures(logits_MK, sets_MK)
    for name, score in (("f1", f1_score), ("jaccard", jaccard_score)):
        expected = score(true, said, average="samples", zero_division=1.0)
        assert found[name] == pytest.approx(expected), name
    assert found["macro_f1"] == pytest.approx(f1_score(true[:, :5], said[:, :5], average="macro"))
    assert found["whole_sets"] == pytest.approx((true == said).all(axis=1).mean())
    expected = F.binary_cross_entropy_with_logits(logits_MK, sets_MK.float())
    assert found["nll"] == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(UserError, match="the model has diverged"):
        set_measures(logits_MK * torch.inf, sets_MK)
