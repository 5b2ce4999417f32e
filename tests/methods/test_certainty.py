"""The policy gradient of `certainty` is minus that of the entropy."""

from __future__ import annotations

import torch
from label_tools import LOGITS, batch_of, grpo

from visgrpo.objectives import Objective


def test_certainty_minimises_entropy() -> None:
    logits_NK = LOGITS.clone().requires_grad_()
    policy = grpo(rewards=["certainty"], estimator="exact", objective=Objective(scale="none"))
    loss = policy.first_pass(logits_NK, batch_of(inputs=logits_NK), step=0).loss
    (found,) = torch.autograd.grad(loss, logits_NK)
    p_NK = logits_NK.softmax(dim=1)
    entropy = -(p_NK * p_NK.log()).sum(dim=1).mean()
    (expected,) = torch.autograd.grad(entropy, logits_NK)
    assert torch.allclose(found, expected, atol=1e-6)
