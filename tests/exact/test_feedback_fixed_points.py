"""Where learning from feedback ends: a table of logits driven to convergence by the label policy.

Rewards are those of `visgrpo clip`: posteriors of votes, looked up in a table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.feedback.reward import FeedbackReward, Log, LoggedGRPO
from visgrpo.feedback.worth.cells import VoteCells
from visgrpo.feedback.worth.posterior import Posterior, log_share_posterior, share_posterior
from visgrpo.methods.labels import LabelGRPO
from visgrpo.objectives import Objective
from visgrpo.rewards.sets import parse_rewards

CLASSES = ("cat", "dog", "owl", "fox")
VOTES = np.array([[48, 1, 1, 1], [20, 19, 11, 1], [13, 14, 12, 12]])
REFERENCE = np.random.default_rng(0).dirichlet(np.full(4, 3.0), 3)


class Reference:
    def log_probs(self, batch: Batch) -> Tensor:
        return torch.from_numpy(REFERENCE).log()


class Double(LabelGRPO):
    def log_probs(self, logits_NK: Tensor) -> Tensor:
        return (logits_NK / self.temperature).log_softmax(dim=-1)


class DoubleLogged(LoggedGRPO):
    def log_probs(self, logits_NK: Tensor) -> Tensor:
        return (logits_NK / self.temperature).log_softmax(dim=-1)


def votes() -> VoteCells:
    image_C, label_C = np.nonzero(VOTES)
    return VoteCells(image_C, label_C, VOTES[image_C, label_C].astype(float))


def reward_of(posterior: Posterior) -> FeedbackReward:
    return FeedbackReward(
        torch.from_numpy(posterior.mean_MK), torch.from_numpy(posterior.known_MK.copy())
    )


def optimum(
    reward: FeedbackReward,
    *,
    rate: float,
    steps: int = 60,
    log: Log | None = None,
    **settings: Any,
) -> np.ndarray:
    """Policies (M, K) after mirror descent: gradients are divided by π."""
    common: dict[str, Any] = {
        "rewards": parse_rewards(["votes"], None, CLASSES, {"votes": reward}),
        "objective": settings.pop("objective", Objective(scale="none")),
        "classes": CLASSES,
        "estimator": "exact",
        "reference": Reference(),
        **settings,
    }
    policy = Double(**common) if log is None else DoubleLogged(**common, log=log)
    images = len(reward.worth_MK)
    logits = torch.zeros(images, 4, dtype=torch.float64, requires_grad=True)
    batch = Batch(
        torch.arange(images),
        torch.zeros(images),
        torch.zeros(images, dtype=torch.long),
        {"feedback_row": list(range(images))},
    )
    for step in range(steps):
        loss = policy.loss(lambda inputs, at=logits: at, batch, None, step).loss
        slope = torch.autograd.grad(loss * images, logits)[0]
        with torch.no_grad():
            logits -= rate * slope / logits.softmax(-1)
    return logits.detach().softmax(-1).numpy()


def gibbs(exponents: np.ndarray, prior: np.ndarray | float = 1.0) -> np.ndarray:
    unnormalised = prior * np.exp(exponents)
    return unnormalised / unnormalised.sum(axis=1, keepdims=True)


def test_vote_shares_end_at_the_majority() -> None:
    posterior = share_posterior(votes(), 3, 4, prior=0.5)
    result = optimum(reward_of(posterior), rate=10.0)
    np.testing.assert_allclose(result, np.eye(4)[[0, 0, 1]], atol=1e-4)


@pytest.mark.parametrize("prior", [0.5, 1e-3])
def test_log_vote_shares_with_entropy_end_at_the_people(prior: float) -> None:
    posterior = log_share_posterior(votes(), 3, 4, prior=prior)
    result = optimum(reward_of(posterior), rate=0.5, entropy_weight=1.0)
    np.testing.assert_allclose(result, gibbs(posterior.mean_MK), atol=1e-8)
    # The mean of a log is below the log of the mean, most where there are fewest votes.
    shares = VOTES / VOTES.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result[1:, :3], shares[1:, :3], atol=0.02)


def test_log_shares_are_the_peoples_own_where_the_reward_is() -> None:
    shares = VOTES / VOTES.sum(axis=1, keepdims=True)
    reward = FeedbackReward(torch.from_numpy(np.log(shares)), torch.ones(3, 4).bool())
    result = optimum(reward, rate=0.5, entropy_weight=1.0)
    np.testing.assert_allclose(result, shares, atol=1e-8)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_kl_weight(beta: float) -> None:
    posterior = share_posterior(votes(), 3, 4, prior=0.5)
    result = optimum(reward_of(posterior), rate=0.5 / beta, beta=beta)
    np.testing.assert_allclose(result, gibbs(posterior.mean_MK / beta, REFERENCE), atol=1e-8)


KNOWN = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
WORTH = torch.tensor([[0.2, 0.6, 9.0, 9.0], [0.1, 0.9, 0.4, 9.0], [9.0, 1.0, 3.0, 0.0]])


def test_what_nobody_saw_is_left_to_the_entropy() -> None:
    """With S what is known, π_S = π / π(S) and H the entropy, the fixed point has

        log π_k = -H + (r_k - E_{π_S} r) / (α π(S)) in S,    log π_j = -H outside.

    An image without feedback stays where it was.
    """
    alpha = 0.5
    reward = FeedbackReward(WORTH.double(), KNOWN)
    result = optimum(reward, rate=0.5, steps=200, entropy_weight=alpha)
    for n in (0, 1):
        inside = KNOWN[n].numpy()
        pi, r = result[n], WORTH[n].double().numpy()
        entropy, mass = -(pi * np.log(pi)).sum(), pi[inside].sum()
        mean = (pi[inside] * r[inside]).sum() / mass
        expected = np.where(inside, (r - mean) / (alpha * mass), 0.0) - entropy
        np.testing.assert_allclose(np.log(pi), expected, atol=1e-8)
        assert pi[inside].argmax() == 1
    np.testing.assert_array_equal(result[2], np.full(4, 0.25))


def test_without_other_terms_mass_moves_among_what_is_known() -> None:
    """Logits of what nobody saw stay at 0: what is worst known can fall below it."""
    result = optimum(FeedbackReward(WORTH.double(), KNOWN), rate=1.0, steps=5)
    for n in (0, 1):
        outside = ~KNOWN[n].numpy()
        assert result[n, 1] > result[n, outside].max()
        assert result[n, 0] < result[n, outside].min()
    np.testing.assert_array_equal(result[2], np.full(4, 0.25))


@pytest.mark.parametrize("correction", ["ratio", "self-normalized"])
def test_a_log_of_every_label_ends_where_the_rewards_do(correction: Any) -> None:
    """At π_ref·exp(r/β), whichever policy wrote it."""
    p = np.random.default_rng(1).dirichlet(np.full(4, 2.0), 3)
    posterior = share_posterior(votes(), 3, 4, prior=0.5)
    log = Log(torch.from_numpy(p), torch.from_numpy(p).log())
    settings: dict[str, Any] = {
        "rate": 0.5,
        "beta": 1.0,
        "log": log,
        "objective": Objective(scale="none", clip="none"),
    }
    result = optimum(reward_of(posterior), correction=correction, **settings)
    expected = gibbs(posterior.mean_MK, REFERENCE)
    np.testing.assert_allclose(result, expected, atol=1e-8)
