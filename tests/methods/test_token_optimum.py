"""Where training on tokens ends: sampled completions of two tokens, against the closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from token_tools import VOCABULARY, batch_of, language, rollouts, sampling

from visgrpo.methods.token_groups import FixedKL
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.language import LanguageModel
from visgrpo.models.reference import reference_of
from visgrpo.objectives import preset

USED = (2, 3, 4)  # tokens that can be drawn
WORTH = np.array([[0.0, 1.0, 0.3], [0.6, 0.2, 0.9], [1.0, 0.0, 0.5]])
BETA = 0.5
DRAWN = sampling(2, stop=(), forbidden=tuple(set(range(VOCABULARY)) - set(USED)))


def worth(*, completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(WORTH[first - 2, second - 2]) for first, second in completion_ids]


@torch.no_grad()
def joint(model: LanguageModel) -> np.ndarray:
    """Probabilities (3, 3) of all pairs of tokens after the first prompt."""
    batch, used = batch_of([0]), torch.tensor(USED)
    pairs = torch.cartesian_prod(used, used)[None]
    log_probs = model.score(batch.inputs, batch.lengths_N, pairs, DRAWN.distribution)
    return log_probs.sum(-1).exp().view(3, 3).double().numpy()


def tilted(prior: np.ndarray, values: np.ndarray) -> np.ndarray:
    weights = prior * np.exp(values / BETA)
    return weights / weights.sum(axis=-1, keepdims=True)


def optimum_by_token(start: np.ndarray) -> np.ndarray:
    """Each token's own optimum: a first token is worth what its second ones earn on average.

    What the first token does to the second one's KL is no part of its gradient.
    """
    first = start.sum(axis=1)
    second = tilted(start / first[:, None], WORTH)
    return tilted(first, (second * WORTH).sum(axis=1))[:, None] * second


def trained(terms: TokenTerms, name: str, *, steps: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """The policy before and after training on samples of the present policy."""
    model = language(spread=0.15, seed=2)
    reference = reference_of(model)
    start = joint(model)
    source = rollouts(
        rewards=(worth,), group_size=256, drawn=DRAWN, reference=reference, control=FixedKL(BETA)
    )
    method = TokenGRPO(source, preset(name), terms)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    batch = batch_of([0])
    for step in range(steps):
        groups = method.rollout(model, batch, step, chunk=1)
        optimizer.zero_grad()
        method.loss(model, batch, groups, step).loss.backward()
        optimizer.step()
        schedule.step()
    return start, joint(model)


def distance(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation."""
    return float(np.abs(p - q).sum() / 2)


def test_kl_in_the_reward_ends_at_the_tilted_reference() -> None:
    """π ∝ π_ref exp(r / β) over whole completions; at the optimum nothing is left to learn from."""
    start, end = trained(TokenTerms(kl_in="reward"), "rloo")
    expected = tilted(start.ravel(), WORTH.ravel()).reshape(start.shape)
    assert distance(start, expected) > 0.2
    assert distance(end, expected) < 5e-3


def test_kl_in_the_loss_ends_at_each_tokens_own_optimum() -> None:
    """The tilted reference token by token; samples leave some noise, which the reward's KL has not.

    Given the first token, the second one's distribution is exactly π_ref exp(r / β).
    """
    start, end = trained(TokenTerms(kl_in="loss", kl_estimator="k3"), "dr_grpo")
    assert distance(start, optimum_by_token(start)) > 0.2
    assert distance(end, optimum_by_token(start)) < 0.04
